"""The document that nginx balances by."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from balancer import document
from balancer.fleet import Health, Replica
from balancer.registration import Registration
from balancer.routes import Route, RouteMemory, compute_routes


def replica(application: str, number: int, *services: str, health: Health = Health.SERVING, **given: Any) -> Replica:
    registration = Registration(
        application=application, address=f"10.0.0.{number}", port=7777, weight=1, services=services
    )
    return Replica(registration=registration, since=5, health=health, **given)


def build(replicas: Sequence[Replica], found: dict[str, Route] | None = None, **given: Any) -> dict[str, Any]:
    if found is None:
        found = compute_routes(one.registration for one in replicas)
    content = document.Content(**{"replicas": replicas, "routes": found, "version": "v-1", **given})
    # As nginx gets it.
    return dict(json.loads(json.dumps(document.build(content))))


def members(built: dict[str, Any], number: int) -> list[str]:
    """The addresses of a pool by its number."""
    return [built["replicas"][one - 1]["address"] for one in built["pools"][number - 1]["replicas"]]


def of_service(built: dict[str, Any], service: str) -> list[str]:
    return members(built, built["routes"][service]["pool"])


def test_a_document_says_which_it_is_and_what_was_known() -> None:
    known = {"cluster": "a.consul", "index": 7, "lost": False}
    built = build([], version="x-7", changed=3.5, updated=1.7e9, catalogue=known)
    assert (built["version"], built["changed"], built["updated"], built["catalogue"]) == ("x-7", 3.5, 1.7e9, known)


def test_a_replica_has_everything_that_is_decided_about_it() -> None:
    registration = Registration(
        application="shop",
        address="fd00::2",
        port=80,
        weight=9,
        services=("shop.A",),
        health="shop.A",
        since="2026-01-02T03:04:05+00:00",
    )
    built = build([Replica(registration=registration, since=12.34567, health=Health.REFUSED, held=True)])
    assert built["replicas"] == [
        {
            "application": "shop",
            "address": "fd00::2",
            "port": 80,
            "weight": 9,
            "state": "ejected: refused",
            "serves": False,
            "may_serve": False,
            "since": 12.346,
            "held": True,
            "health": "shop.A",
            "services": 0,
            "registered_since": "2026-01-02T03:04:05+00:00",
        }
    ]
    assert built["service_sets"] == [["shop.A"]]


def test_an_encoder_writes_what_is_built_whatever_has_changed_since_the_last_time() -> None:
    encoder = document.Encoder()
    fleet = [replica("shop", 1, "shop.A"), replica("shop", 2, "shop.A"), replica("bank", 3)]

    def check() -> None:
        found = compute_routes(one.registration for one in fleet)
        content = document.Content(
            replicas=fleet, routes=found, version="v-1", changed=1.0, updated=2.0, catalogue={"index": 7}
        )
        assert json.loads(encoder.encode(content)) == json.loads(json.dumps(document.build(content)))

    check()
    fleet[0].health = Health.TIMEOUT
    check()
    fleet[0].health, fleet[0].since = Health.SERVING, 9.5
    check()
    fleet[1].held = True
    check()
    fleet[2].registration = replica("bank", 3, "bank.A").registration
    check()
    # Its set of services gets another number.
    del fleet[0]
    check()
    fleet.insert(0, replica("another", 4, "another.A", "another.B"))
    check()
    fleet.clear()
    check()


def test_no_replicas_make_a_default_pool_of_nobody() -> None:
    built = build([])
    assert (built["replicas"], built["applications"], built["routes"]) == ([], {}, {})
    assert built["pools"] == [{"name": "", "application": "", "replicas": []}]
    assert built["default"] == 1


def test_one_application_is_one_pool_for_its_services_and_all_other_calls() -> None:
    built = build([replica("shop", 1, "shop.A", "shop.B"), replica("shop", 2, "shop.A", "shop.B")])
    assert built["pools"] == [{"name": "shop", "application": "shop", "replicas": [1, 2]}]
    assert built["applications"] == {"shop": 1}
    assert {service: route["pool"] for service, route in built["routes"].items()} == {"shop.A": 1, "shop.B": 1}
    assert built["default"] == 1


def test_several_applications_that_say_their_services_leave_no_default() -> None:
    built = build([replica("shop", 1, "shop.A"), replica("mail", 2, "mail.B")])
    assert "default" not in built
    assert members(built, built["applications"]["shop"]) == of_service(built, "shop.A") == ["10.0.0.1"]
    assert members(built, built["applications"]["mail"]) == of_service(built, "mail.B") == ["10.0.0.2"]


def test_the_applications_that_do_not_say_their_services_share_all_other_calls() -> None:
    built = build([replica("shop", 1, "shop.A"), replica("mute", 2), replica("dumb", 3), replica("mute", 4)])
    assert members(built, built["default"]) == ["10.0.0.2", "10.0.0.3", "10.0.0.4"]
    assert of_service(built, "shop.A") == ["10.0.0.1"]


def test_a_single_silent_application_beside_others_is_the_default() -> None:
    built = build([replica("shop", 1, "shop.A"), replica("mute", 2)])
    assert members(built, built["default"]) == ["10.0.0.2"]


def test_an_application_of_which_some_replicas_say_their_services_is_not_silent() -> None:
    built = build([replica("shop", 1, "shop.A"), replica("shop", 2), replica("mail", 3, "mail.B")])
    assert "default" not in built


def test_a_replica_that_says_nothing_has_its_applications_services() -> None:
    built = build([replica("shop", 1, "shop.A"), replica("shop", 2), replica("mail", 3, "mail.B")])
    assert of_service(built, "shop.A") == ["10.0.0.1", "10.0.0.2"]


def test_while_a_version_is_rolled_out_each_service_goes_to_those_that_have_it() -> None:
    built = build(
        [
            replica("shop", 1, "shop.A", "shop.Old"),
            replica("shop", 2, "shop.A", "shop.New"),
            replica("shop", 3, "shop.A", "shop.Old"),
            replica("shop", 4),
        ]
    )
    assert of_service(built, "shop.A") == ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"]
    assert of_service(built, "shop.Old") == ["10.0.0.1", "10.0.0.3", "10.0.0.4"]
    assert of_service(built, "shop.New") == ["10.0.0.2", "10.0.0.4"]
    assert members(built, built["default"]) == ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"]
    # The whole application is one pool under one number.
    assert built["routes"]["shop.A"]["pool"] == built["applications"]["shop"] == built["default"]


def test_pools_of_the_same_replicas_of_an_application_are_one() -> None:
    services = [f"shop.S{number}" for number in range(50)]
    built = build([replica("shop", 1, *services), replica("shop", 2, *services[:25]), replica("mail", 3, "mail.B")])
    assert len(built["pools"]) == 3
    assert len({pool["name"] for pool in built["pools"]}) == 3


def test_ejected_replicas_stay_in_their_pools() -> None:
    built = build([replica("shop", 1, "shop.A", health=Health.TIMEOUT), replica("shop", 2, "shop.A", held=True)])
    assert of_service(built, "shop.A") == ["10.0.0.1", "10.0.0.2"]
    assert [one["state"] for one in built["replicas"]] == ["ejected: timeout", "held"]
    assert [one["serves"] for one in built["replicas"]] == [False, True]


def test_a_remembered_service_whose_application_has_no_replica_has_no_pool() -> None:
    memory = RouteMemory({"shop.A": "shop"}, 0)
    built = build([replica("mail", 1, "mail.B")], memory.update({"mail.B": Route(application="mail")}, 1))
    assert built["routes"]["shop.A"] == {"pool": 0, "application": "shop", "also": ""}
    assert of_service(built, "mail.B") == ["10.0.0.1"]


def test_a_remembered_service_is_asked_of_all_replicas_that_its_application_still_has() -> None:
    built = build([replica("shop", 1, "shop.A"), replica("shop", 2, "shop.B")], {"shop.Old": Route(application="shop")})
    assert of_service(built, "shop.Old") == ["10.0.0.1", "10.0.0.2"]


def test_a_service_of_several_applications_names_the_others() -> None:
    built = build([replica(name, number, "x.X") for number, name in enumerate("cab")])
    assert built["routes"]["x.X"]["application"] == "a"
    assert built["routes"]["x.X"]["also"] == "b,c"


def test_service_sets_are_told_once() -> None:
    built = build([replica("shop", number, "shop.A", "shop.B") for number in range(100)] + [replica("mute", 100)])
    assert built["service_sets"] == [["shop.A", "shop.B"], []]
    assert {one["services"] for one in built["replicas"][:100]} == {0}


FLEET = [
    replica("shop", 1, "shop.A", "shop.B"),
    replica("shop", 2, health=Health.TIMEOUT),
    replica("shop", 3, "shop.A", health=Health.REFUSED, held=True),
    replica("mail", 4, "mail.C", health=Health.WRONG_SERVICE),
    replica("mail", 5, "mail.C", health=Health.NOT_SERVING),
    replica("mute", 6, held=True),
    Replica(
        registration=Registration(
            application="six",
            address="fd00::1",
            port=1,
            weight=65535,
            health="six.S",
            since="2026-01-02T03:04:05+00:00",
        ),
        since=1234.5,
    ),
]


def test_the_replicas_of_a_document_are_those_that_it_was_built_of() -> None:
    assert document.read_replicas(build(FLEET)) == FLEET
    assert document.read_replicas(build([])) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"replicas": []},
        {"service_sets": None, "replicas": []},
        {"service_sets": [], "replicas": [{}]},
        {"service_sets": [], "replicas": ["x"]},
        {"service_sets": [], "replicas": 5},
    ],
)
def test_what_is_no_document_is_told(wrong: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError, IndexError)):
        document.read_replicas(wrong)


@pytest.mark.parametrize(
    ("name", "value"), [("state", "ejected: magic"), ("port", "x"), ("services", 9), ("services", "x"), ("since", None)]
)
def test_a_replica_of_another_form_is_told(name: str, value: object) -> None:
    built = build(FLEET)
    built["replicas"][0][name] = value
    with pytest.raises((KeyError, TypeError, ValueError, IndexError)):
        document.read_replicas(built)
