"""The routes of gRPC services to applications."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence

import pytest

from balancer import routes as module
from balancer.registration import Registration
from balancer.routes import MAX_SERVICES, Route, RouteMemory, compute_routes
from tests.support.fleet import registration

OLD, NEW = "2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00"


def replica(application: str, *services: str, since: str = "", number: int = 1) -> Registration:
    return registration(application, number, *services, since=since)


def route(application: str, *also: str) -> Route:
    return Route(application=application, also=also)


@pytest.mark.parametrize(
    ("replicas", "routes"),
    [
        ([], {}),
        ([replica("shop")], {}),
        ([replica("shop", "s.A", "s.B"), replica("mail", "m.C")], {"m.C": ["mail"], "s.A": ["shop"], "s.B": ["shop"]}),
        ([replica("a", "x.X", since=NEW), replica("b", "x.X", since=OLD)], {"x.X": ["b", "a"]}),
        # An application without a time comes last.
        (
            [replica("a", "x.X"), replica("b", "x.X", since=NEW), replica("c", "x.X", since=OLD)],
            {"x.X": ["c", "a", "b"]},
        ),
        # The first by name comes first among equals.
        ([replica(name, "x.X") for name in "cab"], {"x.X": ["a", "b", "c"]}),
        ([replica(name, "x.X", since=OLD) for name in "cab"], {"x.X": ["a", "b", "c"]}),
    ],
)
def test_a_service_goes_to_the_application_that_has_had_it_for_the_longest_time(
    replicas: Sequence[Registration], routes: Mapping[str, Sequence[str]]
) -> None:
    assert compute_routes(replicas) == {service: route(*names) for service, names in routes.items()}


def test_the_time_is_the_earliest_of_the_replicas_that_have_the_service() -> None:
    """An old application is not senior for a service that only its new version has."""
    other = replica("a", "x.X", since="2026-01-01T12:00:00+00:00", number=4)
    new = [replica("shop", "x.X", "y.Y", since=NEW, number=1), replica("shop", "x.X", number=3)]
    assert compute_routes([*new, replica("shop", "x.X", since=OLD, number=2), other])["x.X"].application == "shop"
    assert compute_routes([*new, replica("shop", "y.Y", since=OLD, number=2), other])["x.X"].application == "a"


def test_the_order_of_the_registrations_does_not_matter() -> None:
    fleet = [
        replica("a", "x.X", "y.Y", since=NEW, number=1),
        replica("a", "x.X", since=OLD, number=2),
        replica("b", "y.Y", since=OLD, number=3),
        replica("c", "x.X", "z.Z", number=4),
        replica("d", "z.Z", number=5),
    ]
    results = [compute_routes(order) for order in itertools.permutations(fleet)]
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("seed", range(20))
def test_a_fleet_at_random_has_the_same_routes_in_any_order(seed: int) -> None:
    source = random.Random(seed)  # noqa: S311 - has to repeat
    services = [f"s.S{number}" for number in range(6)]
    fleet = []
    for number in range(30):
        application, chosen = source.choice("abcdefgh"), source.sample(services, source.randint(0, 4))
        fleet.append(replica(application, *chosen, since=source.choice(("", OLD, NEW)), number=number))
    first = compute_routes(fleet)
    for _ in range(20):
        source.shuffle(fleet)
        assert compute_routes(fleet) == first


def test_the_other_applications_are_sorted_and_ten_at_the_most() -> None:
    names = [f"a{number:02}" for number in range(15)]
    found = compute_routes([replica(name, "x.X", since=OLD if name == "a07" else "") for name in reversed(names)])
    assert found["x.X"].application == "a07"
    assert found["x.X"].also == tuple(name for name in names if name != "a07")[:10]


def test_of_very_many_services_the_first_by_name_have_routes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SERVICES", 3)
    assert list(compute_routes([replica("shop", "e", "a", "d", "c", "b")])) == ["a", "b", "c"]


def test_very_many_services_of_a_new_application_do_not_displace_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SERVICES", 3)
    found = compute_routes([replica("new", "a", "b", "c", since=NEW), replica("old", "x", "y", since=OLD)])
    assert sorted(found) == ["a", "x", "y"]


def test_a_service_without_replicas_is_remembered_for_ten_minutes() -> None:
    memory = RouteMemory({}, 1000)
    present = {"x.X": route("shop", "mail")}
    assert memory.update(present, 1000) == present
    gone = {"x.X": route("shop")}
    assert memory.update({}, 1000) == gone
    assert memory.update({}, 1599.9) == gone
    assert memory.update({}, 1600) == {}
    assert memory.update({}, 0) == {}


def test_the_ten_minutes_begin_when_the_service_was_there_last() -> None:
    memory = RouteMemory({}, 0)
    for now in (0, 500, 1000):
        memory.update({"x.X": route("shop")}, now)
    assert memory.update({}, 1599)
    assert not memory.update({}, 1600)


def test_a_remembered_service_goes_to_the_application_that_had_it_last() -> None:
    memory = RouteMemory({}, 0)
    memory.update({"x.X": route("a")}, 0)
    memory.update({"x.X": route("b", "a")}, 1)
    assert memory.update({}, 2) == {"x.X": route("b")}


def test_the_services_of_an_earlier_run_are_remembered_for_ten_minutes_from_the_start() -> None:
    memory = RouteMemory({"x.X": "shop"}, 50)
    assert memory.update({}, 649) == {"x.X": route("shop")}
    assert memory.update({}, 650) == {}


def test_a_present_service_has_its_present_route() -> None:
    present = {"x.X": route("new", "other")}
    assert RouteMemory({"x.X": "old"}, 0).update(present, 1) == present


def test_the_memory_is_limited_and_present_services_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SERVICES", 4)
    memory = RouteMemory({f"old{number}": "a" for number in range(10)}, 0)
    present = {f"new{number}": route("b") for number in range(3)}
    found = memory.update(present, 1)
    assert len(found) == 4
    assert present.items() <= found.items()
    full = {f"new{number}": route("b") for number in range(4)}
    assert memory.update(full, 2) == full
    assert memory.update({}, 3) == full


def test_names_that_come_and_go_leave_a_limited_memory() -> None:
    memory = RouteMemory({}, 0)
    for number in range(4):
        present = {f"s{number}.{one}": route("shop") for one in range(MAX_SERVICES // 2)}
        found = memory.update(present, number)
        assert present.items() <= found.items()
        assert len(found) <= MAX_SERVICES
    assert len(memory.update({}, 5)) == MAX_SERVICES
