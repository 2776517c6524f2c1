"""Whether Consul's catalogue can vouch for the absence of a replica."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import requests

from balancer.catalogue import HOLD_SECONDS, Catalogue
from balancer.errors import BalancerError
from balancer.registration import Registration

URL = "http://127.0.0.1:8500"
SERVICES, ROOTS, HEALTH = "/v1/catalog/services", "/v1/connect/ca/roots", "/v1/health/service/"


def answer(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> requests.Response:
    response = requests.Response()
    response.status_code = status
    response._content = content if isinstance(content, bytes) else json.dumps(content).encode()
    response.headers.update(headers or {})
    return response


class Consul:
    """What the agent answers."""

    def __init__(self) -> None:
        self.index: object = 100
        self.services: object = {"consul": []}
        self.filtered = ""
        self.cluster: object = "one.consul"
        self.instances: dict[str, object] = {}
        self.problem = ""
        self.roots_problem = ""
        self.now = 1000.0
        # Called when a question has been sent and its answer is on its way.
        self.on_the_way: Callable[[], None] = lambda: None

    def get(self, path: str) -> requests.Response:
        problem = self.roots_problem if path == ROOTS else self.problem
        if problem:
            raise BalancerError(problem)
        if path == ROOTS:
            return answer({"TrustDomain": self.cluster})
        if path.startswith(HEALTH):
            return answer(self.instances.get(path.removeprefix(HEALTH), []))
        assert path == SERVICES
        headers = {"X-Consul-Index": str(self.index)} if self.index is not None else {}
        if self.filtered:
            headers["X-Consul-Results-Filtered-By-ACLs"] = self.filtered
        found = answer(self.services, headers=headers)
        self.on_the_way()
        return found

    def catalogue(self, known: dict[str, object] | None = None) -> Catalogue:
        made = Catalogue(URL, known, clock=lambda: self.now)
        made._get = self.get  # type: ignore[method-assign]
        return made


@pytest.fixture
def consul() -> Consul:
    return Consul()


def test_an_answer_without_any_service_does_not_vouch(consul: Consul) -> None:
    """Consul does not tell who has no token that it has filtered an answer; it lists itself else."""
    catalogue = consul.catalogue()
    consul.services = {}
    assert not catalogue.is_complete()
    assert not catalogue.lost
    consul.services = {"consul": []}
    assert catalogue.is_complete()


@pytest.mark.parametrize("later", [100, 101, 10**9])
def test_a_catalogue_whose_index_does_not_go_back_vouches(consul: Consul, later: int) -> None:
    catalogue = consul.catalogue()
    assert catalogue.is_complete()
    consul.index = later
    assert catalogue.is_complete()
    assert not catalogue.lost


def test_a_catalogue_whose_index_goes_back_has_lost_its_data(consul: Consul, caplog: pytest.LogCaptureFixture) -> None:
    catalogue = consul.catalogue()
    catalogue.is_complete()
    consul.index = 99
    assert not catalogue.is_complete()
    assert catalogue.lost
    assert "the catalogue has lost its data cluster=one.consul index=99 before=one.consul 100" in caplog.text


def test_a_catalogue_of_another_cluster_has_lost_its_data(consul: Consul) -> None:
    catalogue = consul.catalogue()
    catalogue.is_complete()
    consul.cluster, consul.index = "two.consul", 1000
    assert not catalogue.is_complete()
    assert catalogue.lost


def test_a_catalogue_that_has_lost_its_data_vouches_again_after_a_time(
    consul: Consul, caplog: pytest.LogCaptureFixture
) -> None:
    catalogue = consul.catalogue()
    catalogue.is_complete()
    consul.index, consul.cluster = 5, "two.consul"
    for seconds in (0, 1, HOLD_SECONDS - 0.1):
        consul.now = 1000 + seconds
        assert not catalogue.is_complete()
        consul.index += 1
    consul.now = 1000 + HOLD_SECONDS
    assert catalogue.is_complete()
    assert caplog.text.count("has lost its data") == 1


def test_a_second_loss_begins_the_time_anew(consul: Consul) -> None:
    catalogue = consul.catalogue()
    catalogue.is_complete()
    consul.index = 50
    catalogue.is_complete()
    consul.now, consul.index = 1000 + HOLD_SECONDS - 1, 5
    catalogue.is_complete()
    consul.now = 1000 + 2 * HOLD_SECONDS - 1.1
    assert not catalogue.is_complete()
    consul.now += 0.1
    assert catalogue.is_complete()


@pytest.mark.parametrize(("filtered", "vouches"), [("true", False), ("True", False), ("false", True), ("", True)])
def test_an_answer_that_is_filtered_by_acls_does_not_vouch(consul: Consul, filtered: str, vouches: bool) -> None:
    consul.filtered = filtered
    catalogue = consul.catalogue()
    assert catalogue.is_complete() is vouches
    assert not catalogue.lost


def test_what_can_not_be_asked_is_not_known(consul: Consul) -> None:
    catalogue = consul.catalogue()
    catalogue.is_complete()
    consul.problem = "out of reach"
    with pytest.raises(BalancerError, match="out of reach"):
        catalogue.is_complete()
    assert not catalogue.lost
    consul.problem = ""
    assert catalogue.is_complete()


@pytest.mark.parametrize("index", [None, "", "x", "1.5"])
def test_an_answer_without_an_index_says_nothing(consul: Consul, index: object) -> None:
    consul.index = index
    with pytest.raises(BalancerError, match="not of the expected form"):
        consul.catalogue().is_complete()


@pytest.mark.parametrize("cluster", ["", None])
def test_where_connect_is_off_the_index_alone_decides(consul: Consul, cluster: object) -> None:
    consul.cluster = cluster
    catalogue = consul.catalogue()
    assert catalogue.is_complete()
    consul.cluster, consul.roots_problem = "one.consul", "500 Connect must be enabled in order to use this endpoint"
    assert catalogue.is_complete()
    consul.index = 99
    assert not catalogue.is_complete()


def test_a_cluster_that_does_not_say_which_it_is_any_more_does_not_vouch(consul: Consul) -> None:
    """Servers that come back without their data may have caught up with a young cluster's index."""
    catalogue = consul.catalogue()
    catalogue.is_complete()
    consul.index, consul.roots_problem = 101, "500 CA is uninitialized"
    with pytest.raises(BalancerError, match="uninitialized"):
        catalogue.is_complete()
    consul.roots_problem, consul.cluster = "", "two.consul"
    assert not catalogue.is_complete()
    assert catalogue.lost


def overtaken(consul: Consul, catalogue: Catalogue, first: int, then: int) -> bool:
    """Whether a catalogue vouches by an answer of index ``first`` that another thread's of ``then`` has overtaken."""
    results: list[bool] = []

    def other() -> None:
        consul.on_the_way = lambda: None
        consul.index = then
        thread = threading.Thread(target=lambda: results.append(catalogue.is_complete()))
        thread.start()
        thread.join()

    consul.index, consul.on_the_way = first, other
    vouches = catalogue.is_complete()
    assert len(results) == 1
    return vouches and results[0]


def test_an_answer_that_was_overtaken_is_no_loss(consul: Consul) -> None:
    catalogue = consul.catalogue()
    catalogue.is_complete()
    assert overtaken(consul, catalogue, 110, 120)
    assert catalogue.to_dict() == {"cluster": "one.consul", "index": 120, "lost": False}
    assert catalogue.is_complete()


def test_an_answer_that_was_overtaken_by_the_sign_of_a_loss_does_not_hide_it(consul: Consul) -> None:
    catalogue = consul.catalogue()
    catalogue.is_complete()
    assert not overtaken(consul, catalogue, 110, 5)
    assert catalogue.lost


def test_an_index_that_was_known_before_the_question_counts_whoever_read_it(consul: Consul) -> None:
    catalogue = consul.catalogue()
    consul.index = 200
    thread = threading.Thread(target=catalogue.is_complete)
    thread.start()
    thread.join()
    consul.index = 199
    assert not catalogue.is_complete()


def test_a_later_run_knows_the_catalogue(consul: Consul) -> None:
    first = consul.catalogue()
    first.is_complete()
    known = json.loads(json.dumps(first.to_dict()))
    assert known == {"cluster": "one.consul", "index": 100, "lost": False}
    later = consul.catalogue(known)
    assert not later.lost
    assert later.to_dict() == known
    consul.index = 99
    assert not later.is_complete()


def test_a_later_run_knows_the_cluster(consul: Consul) -> None:
    consul.cluster, consul.index = "two.consul", 1000
    assert not consul.catalogue({"cluster": "one.consul", "index": 100, "lost": False}).is_complete()


def test_in_a_later_run_the_time_of_a_loss_begins_anew(consul: Consul) -> None:
    known = {"cluster": "one.consul", "index": 100, "lost": True}
    consul.now = 5.0
    catalogue = consul.catalogue(dict(known))
    assert catalogue.to_dict() == known
    assert not catalogue.is_complete()
    consul.now = 5.0 + HOLD_SECONDS
    assert catalogue.is_complete()


@pytest.mark.parametrize("known", [None, {}])
def test_nothing_known_is_nothing_lost(consul: Consul, known: dict[str, object] | None) -> None:
    catalogue = consul.catalogue(known)
    assert catalogue.to_dict() == {"cluster": "", "index": 0, "lost": False}
    assert catalogue.is_complete()


def replica(application: str = "shop", address: str = "10.0.0.2", port: int = 80) -> Registration:
    return Registration(application=application, address=address, port=port, weight=1)


def instance(
    address: str, port: int, node: str = "10.0.0.9", status: str = "critical", weight: int = 1, tag: str = "grpc_server"
) -> dict[str, object]:
    service = {"Address": address, "Port": port, "Tags": [tag], "Weights": {"Passing": weight, "Warning": weight}}
    return {"Service": service, "Node": {"Address": node}, "Checks": [{"Status": "passing"}, {"Status": status}]}


@pytest.mark.parametrize(
    ("given", "explained"),
    [
        ({}, True),
        ({"status": "passing"}, False),
        ({"status": "warning"}, False),
        ({"status": "maintenance"}, True),
        ({"status": "passing", "weight": 0}, True),
        ({"status": "warning", "weight": 0}, True),
        ({"status": "passing", "tag": "other"}, True),
    ],
)
def test_only_what_is_not_to_be_served_is_explained(consul: Consul, given: dict[str, Any], explained: bool) -> None:
    """One that passes has come back after a loss, and the rendered list is older."""
    consul.instances = {"shop": [instance("10.0.0.2", 80, **given)]}
    assert consul.catalogue().find_unserved([replica()]) == ({"shop 10.0.0.2:80"} if explained else set())


def test_a_replica_that_the_catalogue_lists_is_explained(consul: Consul) -> None:
    consul.instances = {
        "shop": [instance("10.0.0.2", 80), instance("FD00:0::1", 80), instance("", 80, node="10.0.0.7")],
        "mail": [instance("10.0.0.2", 81)],
    }
    asked = [
        replica(),
        replica(port=81),
        replica("mail"),
        replica("mail", port=81),
        replica("none"),
        replica(address="fd00::1"),
        replica(address="10.0.0.7"),
        replica(address="10.9.9.9"),
    ]
    assert consul.catalogue().find_unserved(asked) == {
        "shop 10.0.0.2:80",
        "shop [fd00::1]:80",
        "shop 10.0.0.7:80",
        "mail 10.0.0.2:81",
    }


def test_nothing_is_asked_about_nobody(consul: Consul) -> None:
    consul.problem = "asked"
    assert consul.catalogue().find_unserved([]) == set()


@pytest.mark.parametrize("listed", [{"x": 1}, [{}], [5], "x", 5, [{"Service": None}], None])
def test_a_list_of_another_form_explains_nothing_and_is_told(consul: Consul, listed: object) -> None:
    consul.instances = {"shop": listed}
    with pytest.raises(BalancerError, match="/v1/health/service/shop: not of the expected form"):
        consul.catalogue().find_unserved([replica()])


def test_an_instance_without_an_ip_address_is_nobody(consul: Consul) -> None:
    consul.instances = {"shop": [instance("host.example", 80)]}
    assert consul.catalogue().find_unserved([replica()]) == set()


@pytest.mark.parametrize("path", [SERVICES, ROOTS, HEALTH + "shop"])
def test_an_answer_that_is_no_json_is_told(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    def get(_: requests.Session, url: str, **_options: object) -> requests.Response:
        return answer(
            b"<html>" if url == URL + path else {"TrustDomain": "x", "consul": []}, headers={"X-Consul-Index": "5"}
        )

    monkeypatch.setattr(requests.Session, "get", get)
    catalogue = Catalogue(URL)
    with pytest.raises(BalancerError, match=path):
        catalogue.find_unserved([replica()]) if path.startswith(HEALTH) else catalogue.is_complete()


@pytest.mark.parametrize("status", [301, 403, 404, 429, 500, 503])
def test_any_status_but_200_is_told(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setattr(requests.Session, "get", lambda *_, **__: answer(b"Permission denied\n", status))
    with pytest.raises(BalancerError, match=f"^{URL}/v1/catalog/services: {status} Permission denied$"):
        Catalogue(URL).is_complete()


def test_a_long_answer_is_told_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests.Session, "get", lambda *_, **__: answer(b"x" * 10**6, 500))
    with pytest.raises(BalancerError) as caught:
        Catalogue(URL).is_complete()
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "error", [requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError]
)
def test_an_agent_out_of_reach_is_told(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    def get(*_: object, **__: object) -> requests.Response:
        raise error

    monkeypatch.setattr(requests.Session, "get", get)
    with pytest.raises(BalancerError, match=f"^Consul at {URL} is out of reach: {error.__name__}$"):
        Catalogue(URL).is_complete()


def test_a_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def get(session: requests.Session, *_: object, **__: object) -> requests.Response:
        seen.append(session.trust_env)
        return answer({}, headers={"X-Consul-Index": "1"})

    monkeypatch.setattr(requests.Session, "get", get)
    Catalogue(URL).is_complete()
    assert seen == [False, False]
