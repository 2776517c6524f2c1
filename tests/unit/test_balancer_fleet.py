"""The replicas, and what is decided about each."""

from __future__ import annotations

from dataclasses import replace

import pytest

from balancer.fleet import Fleet, Health, Replica
from balancer.registration import Registration


def registration(number: int, *, weight: int = 1, health: str = "") -> Registration:
    return Registration(application="shop", address=f"10.0.0.{number}", port=7777, weight=weight, health=health)


A, B, C = registration(1), registration(2), registration(3)


def fleet(*registrations: Registration, now: float = 10) -> Fleet:
    made = Fleet()
    made.apply(registrations, now)
    return made


def keys(made: Fleet) -> list[str]:
    return [one.registration.key for one in made]


def replica(made: Fleet, one: Registration) -> Replica:
    found = made.get(one.key)
    assert found is not None
    return found


def test_a_replica_that_is_registered_serves_from_then_on() -> None:
    made = fleet(A, now=10)
    found = replica(made, A)
    assert (found.serves, found.may_serve, found.held, found.since, found.state) == (True, True, False, 10, "serving")
    assert len(made) == 1
    assert made.get("other") is None


def test_replicas_are_in_the_order_of_their_keys() -> None:
    made = fleet(C, A)
    made.apply([C, B, A], 11)
    assert keys(made) == [A.key, B.key, C.key]


def test_applying_the_same_again_changes_nothing() -> None:
    made = fleet(A, B, now=10)
    assert made.apply([B, A], 11) is False
    assert replica(made, A).since == 10


def test_applying_tells_of_what_has_come_and_of_what_is_registered_otherwise() -> None:
    made = fleet(A)
    assert made.apply([A, B], 11) is True
    assert made.apply([replace(A, weight=9), B], 12) is True
    assert replica(made, A).registration.weight == 9
    assert replica(made, A).since == 10


def test_what_was_found_of_a_replicas_health_survives_another_registration() -> None:
    made = fleet(A)
    made.set_health(A.key, Health.TIMEOUT, 11)
    made.apply([replace(A, weight=2)], 12)
    assert replica(made, A).health is Health.TIMEOUT


def test_a_replica_that_is_no_longer_registered_stays_until_it_is_decided_about() -> None:
    made = fleet(A, B)
    assert made.apply([B], 11) is False
    assert keys(made) == [A.key, B.key]
    assert [one.registration for one in made.absent] == [A]
    assert not made.is_registered(A.key)
    assert made.is_registered(B.key)


def test_a_replica_that_comes_back_is_not_absent() -> None:
    made = fleet(A)
    made.apply([], 11)
    assert made.apply([A], 12) is False
    assert made.absent == []
    assert replica(made, A).since == 10


def test_a_held_replica_serves_and_says_so() -> None:
    made = fleet(A)
    made.apply([], 11)
    assert made.hold([A.key, "other"]) == [replica(made, A)]
    assert replica(made, A).serves
    assert replica(made, A).state == "held"
    assert [one.registration for one in made.absent] == [A]


def test_holding_tells_only_of_those_that_were_not_held() -> None:
    made = fleet(A)
    made.hold([A.key])
    assert made.hold([A.key]) == []


def test_a_held_replica_that_is_registered_again_is_not_held() -> None:
    made = fleet(A)
    made.apply([], 11)
    made.hold([A.key])
    assert made.apply([A], 12) is True
    assert replica(made, A).state == "serving"
    assert replica(made, A).since == 10


def test_removing_tells_of_those_that_were_there() -> None:
    made = fleet(A, B)
    found = replica(made, A)
    assert made.remove([A.key, "other", A.key]) == [found]
    assert keys(made) == [B.key]
    assert made.remove([]) == []


def test_a_removed_replica_that_is_registered_again_is_a_new_one() -> None:
    made = fleet(A, now=10)
    made.set_health(A.key, Health.REFUSED, 11)
    made.remove([A.key])
    assert made.apply([A], 20) is True
    assert (replica(made, A).state, replica(made, A).since) == ("serving", 20)


@pytest.mark.parametrize("health", [health for health in Health if health is not Health.SERVING])
def test_a_replica_that_does_not_serve_is_ejected_with_the_reason(health: Health) -> None:
    made = fleet(A)
    assert made.set_health(A.key, health, 11) is True
    assert not replica(made, A).serves
    assert replica(made, A).state == f"ejected: {health.value}"


def test_an_ejected_replica_that_is_held_is_shown_as_ejected() -> None:
    made = fleet(A)
    made.hold([A.key])
    made.set_health(A.key, Health.REFUSED, 11)
    assert replica(made, A).state == "ejected: refused"


def test_health_that_was_known_is_no_news() -> None:
    made = fleet(A)
    assert made.set_health(A.key, Health.SERVING, 11) is False
    assert made.set_health(A.key, Health.TIMEOUT, 12) is True
    assert made.set_health(A.key, Health.TIMEOUT, 13) is False
    assert made.set_health("other", Health.TIMEOUT, 14) is False
    assert replica(made, A).since == 10


def test_a_replica_serves_since_it_was_found_to_serve_again() -> None:
    made = fleet(A, now=10)
    made.set_health(A.key, Health.TIMEOUT, 11)
    assert replica(made, A).since == 10
    made.set_health(A.key, Health.REFUSED, 12)
    assert replica(made, A).since == 10
    made.set_health(A.key, Health.SERVING, 13)
    assert replica(made, A).since == 13


@pytest.mark.parametrize(
    ("name", "health", "may_serve"),
    [
        ("", Health.SERVING, True),
        ("", Health.REFUSED, True),
        ("", Health.TIMEOUT, True),
        ("", Health.WRONG_SERVICE, True),
        ("", Health.NOT_SERVING, True),
        ("shop.A", Health.SERVING, True),
        ("shop.A", Health.REFUSED, False),
        ("shop.A", Health.TIMEOUT, True),
        ("shop.A", Health.WRONG_SERVICE, False),
        ("shop.A", Health.NOT_SERVING, True),
    ],
)
def test_one_whose_address_may_be_anothers_by_now_is_not_tried_where_it_can_be_told(
    name: str, health: Health, may_serve: bool
) -> None:
    assert Replica(registration=registration(1, health=name), since=0, health=health).may_serve is may_serve


def test_the_replicas_of_an_earlier_run_are_registered_until_something_else_is_known() -> None:
    made = Fleet()
    made.restore([Replica(registration=A, since=5, health=Health.TIMEOUT), Replica(registration=B, since=6, held=True)])
    assert made.absent == []
    assert [one.state for one in made] == ["ejected: timeout", "held"]
    made.apply([A], 20)
    assert [one.registration for one in made.absent] == [B]
    assert replica(made, A).since == 5
