"""The document that nginx balances by."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from balancer import document
from balancer.fleet import Health, Replica
from balancer.registration import Registration
from balancer.routes import Route, RouteMemory, compute_routes
from tests.support.fleet import build, registration, replica

SINCE = "2026-01-02T03:04:05+00:00"


def members(built: Mapping[str, Any], number: int) -> list[int]:
    """Returns the replicas of a pool by the last number of their addresses."""
    addresses = [built["replicas"][one - 1]["address"] for one in built["pools"][number - 1]["replicas"]]
    return [int(address.rpartition(".")[2]) for address in addresses]


def of_services(built: Mapping[str, Any]) -> dict[str, list[int]]:
    """Returns the replicas of each gRPC service."""
    return {service: members(built, route["pool"]) for service, route in built["routes"].items()}


def test_a_document_has_its_version_its_times_and_the_state_of_the_catalogue() -> None:
    known = {"cluster": "a.consul", "index": 7, "lost": False}
    built = build([], version="x-7", changed=3.5, updated=1.7e9, catalogue=known)
    assert (built["version"], built["changed"], built["updated"], built["catalogue"]) == ("x-7", 3.5, 1.7e9, known)


def test_a_replica_has_its_registration_and_its_state() -> None:
    registered = {"application": "shop", "address": "fd00::2", "port": 80, "weight": 9, "health": "shop.A"}
    registration = Registration(services=("shop.A",), since=SINCE, **registered)  # type: ignore[arg-type]
    built = build([Replica(registration=registration, since=12.34567, health=Health.REFUSED, held=True)])
    assert built["replicas"] == [
        {
            **registered,
            "state": "ejected: refused",
            "serves": False,
            "may_serve": False,
            "since": 12.346,
            "held": True,
            "services": 0,
            "registered_since": SINCE,
        }
    ]
    assert built["service_sets"] == [["shop.A"]]


def test_an_encoder_writes_the_same_as_a_new_one_after_any_change() -> None:
    encoder = document.Encoder()
    fleet = [replica("shop", 1, "shop.A"), replica("shop", 2, "shop.A"), replica("bank", 3)]

    def check() -> None:
        found = compute_routes(one.registration for one in fleet)
        given: dict[str, Any] = {"version": "v-1", "changed": 1.0, "updated": 2.0, "catalogue": {"index": 7}}
        content = document.Content(replicas=fleet, routes=found, **given)
        assert json.loads(encoder.encode(content)) == build(fleet, found, **given)

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


def test_without_replicas_the_default_is_an_empty_pool() -> None:
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


SHOP, MAIL = replica("shop", 1, "shop.A"), replica("mail", 2, "mail.B")


@pytest.mark.parametrize(
    ("replicas", "services", "default"),
    [
        pytest.param([SHOP, MAIL], {"shop.A": [1], "mail.B": [2]}, None, id="all have services"),
        pytest.param(
            [SHOP, replica("mute", 2), replica("dumb", 3), replica("mute", 4)],
            {"shop.A": [1]},
            [2, 3, 4],
            id="those without services share all other calls",
        ),
        pytest.param([SHOP, replica("mute", 2)], {"shop.A": [1]}, [2], id="one without services gets all other calls"),
        pytest.param(
            [SHOP, replica("shop", 3), MAIL],
            {"shop.A": [1, 3], "mail.B": [2]},
            None,
            id="a replica without services has those of its application",
        ),
    ],
)
def test_calls_go_to_the_replicas_with_the_service_and_others_to_those_without_services(
    replicas: Sequence[Replica], services: Mapping[str, Sequence[int]], default: Sequence[int] | None
) -> None:
    built = build(replicas)
    assert of_services(built) == services
    assert (members(built, built["default"]) if "default" in built else None) == default
    for service, route in built["routes"].items():
        assert members(built, built["applications"][route["application"]]) == services[service]


def test_while_a_version_is_rolled_out_each_service_goes_to_the_replicas_that_have_it() -> None:
    old, new = ("shop.A", "shop.Old"), ("shop.A", "shop.New")
    built = build([replica("shop", 1, *old), replica("shop", 2, *new), replica("shop", 3, *old), replica("shop", 4)])
    assert of_services(built) == {"shop.A": [1, 2, 3, 4], "shop.Old": [1, 3, 4], "shop.New": [2, 4]}
    assert members(built, built["default"]) == [1, 2, 3, 4]
    # The whole application is one pool under one number.
    assert built["routes"]["shop.A"]["pool"] == built["applications"]["shop"] == built["default"]


def test_pools_of_the_same_replicas_of_an_application_are_one() -> None:
    services = [f"shop.S{number}" for number in range(50)]
    built = build([replica("shop", 1, *services), replica("shop", 2, *services[:25]), replica("mail", 3, "mail.B")])
    assert len(built["pools"]) == 3
    assert len({pool["name"] for pool in built["pools"]}) == 3


def test_ejected_replicas_stay_in_their_pools() -> None:
    built = build([replica("shop", 1, "shop.A", health=Health.TIMEOUT), replica("shop", 2, "shop.A", held=True)])
    assert of_services(built) == {"shop.A": [1, 2]}
    assert [one["state"] for one in built["replicas"]] == ["ejected: timeout", "held"]
    assert [one["serves"] for one in built["replicas"]] == [False, True]


def test_a_remembered_service_whose_application_has_no_replica_has_no_pool() -> None:
    memory = RouteMemory({"shop.A": "shop"}, 0)
    built = build([MAIL], memory.update({"mail.B": Route(application="mail")}, 1))
    assert built["routes"]["shop.A"] == {"pool": 0, "application": "shop", "also": ""}
    assert members(built, built["routes"]["mail.B"]["pool"]) == [2]


def test_a_remembered_service_goes_to_all_replicas_of_its_application() -> None:
    built = build([SHOP, replica("shop", 2, "shop.B")], {"shop.Old": Route(application="shop")})
    assert of_services(built) == {"shop.Old": [1, 2]}


def test_a_service_of_several_applications_names_the_others() -> None:
    built = build([replica(name, number, "x.X") for number, name in enumerate("cab")])
    assert built["routes"]["x.X"]["application"] == "a"
    assert built["routes"]["x.X"]["also"] == "b,c"


def test_a_document_has_each_set_of_services_once() -> None:
    built = build([replica("shop", number, "shop.A", "shop.B") for number in range(100)] + [replica("mute", 100)])
    assert built["service_sets"] == [["shop.A", "shop.B"], []]
    assert {one["services"] for one in built["replicas"][:100]} == {0}


SIX = Registration(application="six", address="fd00::1", port=1, weight=65535, health="six.S", since=SINCE)
FLEET = [
    replica("shop", 1, "shop.A", "shop.B"),
    replica("shop", 2, health=Health.TIMEOUT),
    replica("shop", 3, "shop.A", health=Health.REFUSED, held=True),
    replica("mail", 4, "mail.C", health=Health.WRONG_SERVICE),
    replica("mail", 5, "mail.C", health=Health.NOT_SERVING),
    replica("mute", 6, held=True),
    Replica(registration=SIX, since=1234.5),
]


@pytest.mark.parametrize("fleet", [FLEET, []])
def test_the_replicas_of_a_document_can_be_read_again(fleet: list[Replica]) -> None:
    assert document.read_replicas(build(fleet)) == fleet


@pytest.mark.parametrize("wrong", [{}, {"replicas": []}])
def test_half_a_document_raises(wrong: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError, IndexError)):
        document.read_replicas(wrong)


@pytest.mark.parametrize(
    ("name", "value"),
    [("service_sets", None), ("service_sets", []), ("replicas", [{}]), ("replicas", ["x"]), ("replicas", 5)],
)
def test_a_document_of_another_form_raises(name: str, value: object) -> None:
    with pytest.raises((KeyError, TypeError, ValueError, IndexError)):
        document.read_replicas(build(FLEET) | {name: value})


@pytest.mark.parametrize(
    ("name", "value"), [("state", "ejected: magic"), ("port", "x"), ("services", 9), ("services", "x"), ("since", None)]
)
def test_a_replica_of_another_form_raises(name: str, value: object) -> None:
    built = build(FLEET)
    built["replicas"][0][name] = value
    with pytest.raises((KeyError, TypeError, ValueError, IndexError)):
        document.read_replicas(built)


def test_a_replica_with_tls_says_so_and_can_be_read_again() -> None:
    fleet = [replica("shop", 1, "shop.A"), Replica(registration=registration("shop", 2, "shop.A", tls=True), since=5)]
    found = build(fleet)
    assert [one.get("tls") for one in found["replicas"]] == [None, True]
    assert document.read_replicas(found) == fleet
