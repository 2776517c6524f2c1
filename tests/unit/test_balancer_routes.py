"""Which application gets the calls of which service."""

from __future__ import annotations

import itertools
import random

import pytest

from balancer import routes as module
from balancer.registration import Registration
from balancer.routes import MAX_SERVICES, Route, RouteMemory, compute_routes

OLD, NEW = "2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00"


def replica(application: str, *services: str, since: str = "", number: int = 1) -> Registration:
    return Registration(
        application=application, address=f"10.0.0.{number}", port=7777, weight=1, services=services, since=since
    )


def test_a_service_goes_to_the_application_that_has_it() -> None:
    assert compute_routes([replica("shop", "shop.A", "shop.B"), replica("mail", "mail.C")]) == {
        "mail.C": Route(application="mail"),
        "shop.A": Route(application="shop"),
        "shop.B": Route(application="shop"),
    }


def test_without_services_there_are_no_routes() -> None:
    assert compute_routes([]) == {}
    assert compute_routes([replica("shop")]) == {}


def test_the_application_that_has_had_its_services_for_longest_gets_the_calls() -> None:
    assert compute_routes([replica("a", "x.X", since=NEW), replica("b", "x.X", since=OLD)]) == {
        "x.X": Route(application="b", also=("a",))
    }


def test_an_application_that_does_not_say_since_when_comes_last() -> None:
    found = compute_routes([replica("a", "x.X"), replica("b", "x.X", since=NEW), replica("c", "x.X", since=OLD)])
    assert found == {"x.X": Route(application="c", also=("a", "b"))}


@pytest.mark.parametrize("since", ["", OLD])
def test_among_equals_the_first_by_name_gets_the_calls(since: str) -> None:
    found = compute_routes([replica(name, "x.X", since=since) for name in ("c", "a", "b")])
    assert found == {"x.X": Route(application="a", also=("b", "c"))}


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
    fleet = [
        replica(
            source.choice("abcdefgh"),
            *source.sample(services, source.randint(0, 4)),
            since=source.choice(("", OLD, NEW)),
            number=number,
        )
        for number in range(30)
    ]
    first = compute_routes(fleet)
    for _ in range(20):
        source.shuffle(fleet)
        assert compute_routes(fleet) == first


def test_the_other_applications_are_sorted_and_ten_at_the_most() -> None:
    names = [f"a{number:02}" for number in range(15)]
    found = compute_routes([replica(name, "x.X", since=OLD if name == "a07" else "") for name in reversed(names)])
    assert found["x.X"].application == "a07"
    assert found["x.X"].also == tuple(name for name in names if name != "a07")[:10]


def test_of_very_many_services_the_first_by_name_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SERVICES", 3)
    assert list(compute_routes([replica("shop", "e", "a", "d", "c", "b")])) == ["a", "b", "c"]


def test_very_many_services_of_a_new_application_do_not_crowd_out_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SERVICES", 3)
    found = compute_routes([replica("new", "a", "b", "c", since=NEW), replica("old", "x", "y", since=OLD)])
    assert sorted(found) == ["a", "x", "y"]


def test_a_service_without_replicas_is_remembered_for_ten_minutes() -> None:
    memory = RouteMemory({}, 1000)
    present = {"x.X": Route(application="shop", also=("mail",))}
    assert memory.update(present, 1000) == present
    gone = {"x.X": Route(application="shop")}
    assert memory.update({}, 1000) == gone
    assert memory.update({}, 1599.9) == gone
    assert memory.update({}, 1600) == {}
    assert memory.update({}, 0) == {}


def test_the_ten_minutes_begin_when_the_service_was_there_last() -> None:
    memory = RouteMemory({}, 0)
    present = {"x.X": Route(application="shop")}
    for now in (0, 500, 1000):
        memory.update(present, now)
    assert memory.update({}, 1599)
    assert not memory.update({}, 1600)


def test_a_remembered_service_goes_to_the_application_that_had_it_last() -> None:
    memory = RouteMemory({}, 0)
    memory.update({"x.X": Route(application="a")}, 0)
    memory.update({"x.X": Route(application="b", also=("a",))}, 1)
    assert memory.update({}, 2) == {"x.X": Route(application="b")}


def test_what_an_earlier_run_knew_is_remembered_for_ten_minutes_from_the_start() -> None:
    memory = RouteMemory({"x.X": "shop"}, 50)
    assert memory.update({}, 649) == {"x.X": Route(application="shop")}
    assert memory.update({}, 650) == {}


def test_a_service_that_is_there_is_as_it_is_whatever_was_known() -> None:
    present = {"x.X": Route(application="new", also=("other",))}
    assert RouteMemory({"x.X": "old"}, 0).update(present, 1) == present


def test_the_memory_is_limited_and_what_is_there_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SERVICES", 4)
    memory = RouteMemory({f"old{number}": "a" for number in range(10)}, 0)
    present = {f"new{number}": Route(application="b") for number in range(3)}
    found = memory.update(present, 1)
    assert len(found) == 4
    assert present.items() <= found.items()
    full = {f"new{number}": Route(application="b") for number in range(4)}
    assert memory.update(full, 2) == full
    assert memory.update({}, 3) == full


def test_names_that_come_and_go_leave_a_limited_memory() -> None:
    memory = RouteMemory({}, 0)
    for number in range(4):
        present = {f"s{number}.{one}": Route(application="shop") for one in range(MAX_SERVICES // 2)}
        found = memory.update(present, number)
        assert present.items() <= found.items()
        assert len(found) <= MAX_SERVICES
    assert len(memory.update({}, 5)) == MAX_SERVICES
