"""The completeness of Consul's catalogue."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import pytest
import requests

from balancer.catalogue import HOLD_SECONDS, Catalogue
from balancer.errors import BalancerError, ForbiddenError
from tests.support.fleet import registration

URL = "http://127.0.0.1:8500"
SERVICES, ROOTS, HEALTH = "/v1/catalog/services", "/v1/connect/ca/roots", "/v1/health/service/"
ASKED = {"cluster": "one.consul", "index": 100, "lost": False}
SHOP = registration("shop", 2)


def answer(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> requests.Response:
    response = requests.Response()
    response.status_code = status
    response._content = content if isinstance(content, bytes) else json.dumps(content).encode()
    response.headers.update(headers or {})
    return response


class Consul:
    """The answers of the agent."""

    def __init__(self) -> None:
        self.index: object = 100
        self.services: object = {"consul": []}
        self.filtered = ""
        self.cluster: object = "one.consul"
        self.instances: dict[str, object] = {}
        self.problem: str | BalancerError = ""
        self.roots_problem = ""
        self.now = 1000.0
        # Called between a question and its answer.
        self.on_the_way: Callable[[], None] = lambda: None

    def get(self, path: str) -> requests.Response:
        problem = self.roots_problem if path == ROOTS else self.problem
        if problem:
            raise problem if isinstance(problem, BalancerError) else BalancerError(problem)
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

    def catalogue(self, known: Mapping[str, object] | None = None) -> Catalogue:
        made = Catalogue(URL, known, clock=lambda: self.now)
        made._get = self.get  # type: ignore[method-assign]
        return made


@pytest.fixture
def consul() -> Consul:
    return Consul()


@pytest.fixture
def catalogue(consul: Consul) -> Catalogue:
    """A catalogue that has been asked once."""
    made = consul.catalogue()
    assert made.is_complete()
    return made


def test_an_answer_without_any_service_is_not_complete(consul: Consul) -> None:
    """Consul lists itself, and does not tell a caller without a token that it has filtered an answer."""
    catalogue = consul.catalogue()
    consul.services = {}
    assert not catalogue.is_complete()
    assert not catalogue.lost
    consul.services = {"consul": []}
    # consul-template may still render what was filtered.
    consul.now += 14.9
    assert not catalogue.is_complete()
    consul.now += 0.1
    assert catalogue.is_complete()


@pytest.mark.parametrize("later", [100, 101, 10**9])
def test_a_catalogue_whose_index_does_not_go_back_is_complete(consul: Consul, catalogue: Catalogue, later: int) -> None:
    consul.index = later
    assert catalogue.is_complete()
    assert not catalogue.lost


@pytest.mark.parametrize(("index", "cluster"), [(99, "one.consul"), (1000, "two.consul")])
@pytest.mark.parametrize("restarted", [False, True])
def test_a_catalogue_of_a_lower_index_or_of_another_cluster_has_lost_its_data(
    consul: Consul, catalogue: Catalogue, caplog: pytest.LogCaptureFixture, index: int, cluster: str, restarted: bool
) -> None:
    if restarted:
        known = json.loads(json.dumps(catalogue.to_dict()))
        assert known == ASKED
        catalogue = consul.catalogue(known)
        assert not catalogue.lost
        assert catalogue.to_dict() == known
    consul.index, consul.cluster = index, cluster
    assert not catalogue.is_complete()
    assert catalogue.lost
    assert f"has lost its data cluster={cluster} index={index} before=one.consul 100" in caplog.text


def test_a_catalogue_that_has_lost_its_data_is_complete_after_a_time(
    consul: Consul, catalogue: Catalogue, caplog: pytest.LogCaptureFixture
) -> None:
    consul.index, consul.cluster = 5, "two.consul"
    for seconds in (0, 1, HOLD_SECONDS - 0.1):
        consul.now = 1000 + seconds
        assert not catalogue.is_complete()
        consul.index += 1
    consul.now = 1000 + HOLD_SECONDS
    assert catalogue.is_complete()
    assert caplog.text.count("has lost its data") == 1


def test_after_a_second_loss_the_time_starts_again(consul: Consul, catalogue: Catalogue) -> None:
    consul.index = 50
    catalogue.is_complete()
    consul.now, consul.index = 1000 + HOLD_SECONDS - 1, 5
    catalogue.is_complete()
    consul.now = 1000 + 2 * HOLD_SECONDS - 1.1
    assert not catalogue.is_complete()
    consul.now += 0.1
    assert catalogue.is_complete()


@pytest.mark.parametrize(("filtered", "complete"), [("true", False), ("True", False), ("false", True), ("", True)])
def test_an_answer_that_is_filtered_by_acls_is_not_complete(consul: Consul, filtered: str, complete: bool) -> None:
    consul.filtered = filtered
    catalogue = consul.catalogue()
    assert catalogue.is_complete() is complete
    assert not catalogue.lost


def test_a_change_of_the_rights_is_described_and_logged_once(
    consul: Consul, catalogue: Catalogue, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "balancer")
    for problem, expected in (
        (ForbiddenError("ACL not found"), "Consul refuses requests: ACL not found: check the token of the agent"),
        (None, "Consul filters its answers by rights: check the token of the agent, which must read all"),
    ):
        consul.problem, consul.filtered = problem or "", "true"
        for _ in range(2):
            with suppress(ForbiddenError):
                assert not catalogue.is_complete()
        assert catalogue.describe()["access"].startswith(expected)
        assert [record.message for record in caplog.records if record.message.startswith(expected)] == [
            f"{catalogue.describe()['access']}; replicas stay while they answer"
        ]
    consul.filtered = ""
    catalogue.is_complete()
    assert catalogue.describe()["access"] == ""
    assert caplog.records[-1].message == "Consul answers in full again"


def test_a_catalogue_out_of_reach_has_not_lost_its_data(consul: Consul, catalogue: Catalogue) -> None:
    consul.problem = "out of reach"
    with pytest.raises(BalancerError, match="out of reach"):
        catalogue.is_complete()
    assert not catalogue.lost
    consul.problem = ""
    assert catalogue.is_complete()


@pytest.mark.parametrize("index", [None, "", "x", "1.5"])
def test_an_answer_without_an_index_raises(consul: Consul, index: object) -> None:
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


def test_a_cluster_that_does_not_name_itself_any_more_is_not_complete(consul: Consul, catalogue: Catalogue) -> None:
    """Servers that come back without their data may have caught up with a young cluster's index."""
    consul.index, consul.roots_problem = 101, "500 CA is uninitialized"
    with pytest.raises(BalancerError, match="uninitialized"):
        catalogue.is_complete()
    consul.roots_problem, consul.cluster = "", "two.consul"
    assert not catalogue.is_complete()
    assert catalogue.lost


def ask_in_thread(catalogue: Catalogue) -> bool:
    results: list[bool] = []
    thread = threading.Thread(target=lambda: results.append(catalogue.is_complete()))
    thread.start()
    thread.join()
    return results[0]


@pytest.mark.parametrize(("later", "lost"), [(120, False), (5, True)])
def test_an_answer_that_another_one_overtakes_is_no_loss_and_does_not_hide_one(
    consul: Consul, catalogue: Catalogue, later: int, lost: bool
) -> None:
    results: list[bool] = []

    def overtake() -> None:
        consul.index, consul.on_the_way = later, lambda: None
        results.append(ask_in_thread(catalogue))

    consul.index, consul.on_the_way = 110, overtake
    complete = catalogue.is_complete()
    assert len(results) == 1
    assert (complete and results[0]) is not lost
    assert catalogue.lost is lost
    if not lost:
        assert catalogue.to_dict() == {"cluster": "one.consul", "index": 120, "lost": False}
        assert catalogue.is_complete()


def test_an_index_that_another_thread_has_read_counts(consul: Consul) -> None:
    catalogue = consul.catalogue()
    consul.index = 200
    ask_in_thread(catalogue)
    consul.index = 199
    assert not catalogue.is_complete()


def test_in_a_later_run_the_time_of_a_loss_starts_again(consul: Consul) -> None:
    known = {**ASKED, "lost": True}
    consul.now = 5.0
    catalogue = consul.catalogue(known)
    assert catalogue.to_dict() == known
    assert not catalogue.is_complete()
    consul.now = 5.0 + HOLD_SECONDS
    assert catalogue.is_complete()


@pytest.mark.parametrize("known", [None, {}])
def test_without_an_earlier_run_nothing_is_lost(consul: Consul, known: dict[str, object] | None) -> None:
    catalogue = consul.catalogue(known)
    assert catalogue.to_dict() == {"cluster": "", "index": 0, "lost": False}
    assert catalogue.is_complete()


def instance(
    address: str, port: int, node: str = "10.0.0.9", status: str = "critical", weight: int = 1, tag: str = "grpc_server"
) -> dict[str, object]:
    service = {"Address": address, "Port": port, "Tags": [tag], "Weights": {"Passing": weight, "Warning": weight}}
    return {"Service": service, "Node": {"Address": node}, "Checks": [{"Status": "passing"}, {"Status": status}]}


@pytest.mark.parametrize(
    ("given", "unserved"),
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
def test_a_replica_is_unserved_unless_it_passes_with_weight_and_tag(
    consul: Consul, given: dict[str, Any], unserved: bool
) -> None:
    """A replica that passes has come back after a loss, and the rendered list is older."""
    consul.instances = {"shop": [instance("10.0.0.2", 7777, **given)]}
    assert consul.catalogue().find_unserved([SHOP]) == ({"shop 10.0.0.2:7777"} if unserved else set())


def test_unserved_replicas_are_found_by_application_address_and_port(consul: Consul) -> None:
    consul.instances = {
        "shop": [instance("10.0.0.2", 7777), instance("FD00:0::1", 7777), instance("", 7777, node="10.0.0.7")],
        "mail": [instance("10.0.0.2", 81)],
    }
    asked = [registration(name, 2, port=port) for name in ("shop", "mail") for port in (7777, 81)]
    asked += [registration("shop", address=address) for address in ("fd00::1", "10.0.0.7", "10.9.9.9")]
    asked += [registration("none", 2)]
    assert consul.catalogue().find_unserved(asked) == {
        "shop 10.0.0.2:7777",
        "shop [fd00::1]:7777",
        "shop 10.0.0.7:7777",
        "mail 10.0.0.2:81",
    }


def test_without_replicas_nothing_is_asked(consul: Consul) -> None:
    consul.problem = "asked"
    assert consul.catalogue().find_unserved([]) == set()


@pytest.mark.parametrize("listed", [{"x": 1}, [{}], [5], "x", 5, [{"Service": None}], None])
def test_a_list_of_another_form_raises(consul: Consul, listed: object) -> None:
    consul.instances = {"shop": listed}
    with pytest.raises(BalancerError, match="/v1/health/service/shop: not of the expected form"):
        consul.catalogue().find_unserved([SHOP])


def test_an_instance_without_an_ip_address_matches_no_replica(consul: Consul) -> None:
    consul.instances = {"shop": [instance("host.example", 7777)]}
    assert consul.catalogue().find_unserved([SHOP]) == set()


@pytest.mark.parametrize("path", [SERVICES, ROOTS, HEALTH + "shop"])
def test_an_answer_that_is_not_json_raises(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    def get(_: requests.Session, url: str, **_options: object) -> requests.Response:
        content = b"<html>" if url == URL + path else {"TrustDomain": "x", "consul": []}
        return answer(content, headers={"X-Consul-Index": "5"})

    monkeypatch.setattr(requests.Session, "get", get)
    catalogue = Catalogue(URL)
    with pytest.raises(BalancerError, match=path):
        catalogue.find_unserved([SHOP]) if path.startswith(HEALTH) else catalogue.is_complete()


@pytest.mark.parametrize("status", [301, 403, 404, 429, 500, 503])
@pytest.mark.parametrize(("text", "shown"), [(b"Permission denied\n", "Permission denied"), (b"x" * 10**6, "x{9,250}")])
def test_any_status_but_200_raises_with_a_part_of_the_text(
    monkeypatch: pytest.MonkeyPatch, status: int, text: bytes, shown: str
) -> None:
    monkeypatch.setattr(requests.Session, "get", lambda *_, **__: answer(text, status))
    with pytest.raises(BalancerError, match=f"^{URL}/v1/catalog/services: {status} {shown}$") as caught:
        Catalogue(URL).is_complete()
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "error", [requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError]
)
def test_an_agent_out_of_reach_raises(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
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
