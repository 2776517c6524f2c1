"""The replicas and their states."""

from __future__ import annotations

from dataclasses import replace

import pytest

from balancer.fleet import Fleet, Health, Replica
from balancer.registration import Registration
from tests.support.fleet import registration

A, B, C = (registration("shop", number) for number in (1, 2, 3))


def make_fleet(*registrations: Registration) -> Fleet:
    """Makes a fleet of replicas that serve since 10."""
    fleet = Fleet()
    fleet.apply(registrations, 10)
    return fleet


def keys(fleet: Fleet) -> list[str]:
    return [one.registration.key for one in fleet]


def get(fleet: Fleet, one: Registration) -> Replica:
    found = fleet.get(one.key)
    assert found is not None
    return found


def test_a_replica_serves_since_its_registration() -> None:
    fleet = make_fleet(A)
    found = get(fleet, A)
    assert (found.serves, found.may_serve, found.held, found.since, found.state) == (True, True, False, 10, "serving")
    assert len(fleet) == 1
    assert fleet.get("other") is None


def test_replicas_are_in_the_order_of_their_keys() -> None:
    fleet = make_fleet(C, A)
    fleet.apply([C, B, A], 11)
    assert keys(fleet) == [A.key, B.key, C.key]


def test_applying_tells_new_and_changed_registrations() -> None:
    fleet = make_fleet(A)
    fleet.set_health(A.key, Health.TIMEOUT, 11)
    assert fleet.apply([A, B], 11) is True
    assert fleet.apply([B, A], 11) is False
    assert fleet.apply([replace(A, weight=9), B], 12) is True
    assert get(fleet, A).registration.weight == 9
    assert get(fleet, A).since == 10
    assert get(fleet, A).health is Health.TIMEOUT


def test_a_replica_that_is_no_longer_registered_is_absent_until_it_is_back() -> None:
    fleet = make_fleet(A, B)
    assert fleet.apply([B], 11) is False
    assert keys(fleet) == [A.key, B.key]
    assert [one.registration for one in fleet.absent] == [A]
    assert not fleet.is_registered(A.key)
    assert fleet.is_registered(B.key)
    assert fleet.apply([A, B], 12) is False
    assert fleet.absent == []
    assert get(fleet, A).since == 10


def test_a_held_replica_serves_until_it_is_registered_again() -> None:
    fleet = make_fleet(A)
    fleet.apply([], 11)
    assert fleet.hold([A.key, "other"]) == [get(fleet, A)]
    assert fleet.hold([A.key]) == []
    assert get(fleet, A).serves
    assert get(fleet, A).state == "held"
    assert [one.registration for one in fleet.absent] == [A]
    assert fleet.held == fleet.absent
    assert fleet.apply([A], 12) is True
    assert get(fleet, A).state == "serving"
    assert get(fleet, A).since == 10
    assert fleet.held == []


def test_a_removed_replica_that_is_registered_again_is_a_new_one() -> None:
    fleet = make_fleet(A, B)
    fleet.set_health(A.key, Health.REFUSED, 11)
    found = get(fleet, A)
    assert fleet.remove([A.key, "other", A.key]) == [found]
    assert keys(fleet) == [B.key]
    assert fleet.remove([]) == []
    assert fleet.apply([A, B], 20) is True
    assert (get(fleet, A).state, get(fleet, A).since) == ("serving", 20)


@pytest.mark.parametrize("health", [health for health in Health if health is not Health.SERVING])
@pytest.mark.parametrize("held", [False, True])
def test_a_replica_that_does_not_serve_is_ejected_with_the_reason(health: Health, held: bool) -> None:
    fleet = make_fleet(A)
    if held:
        fleet.hold([A.key])
    assert fleet.set_health(A.key, health, 11) is True
    assert not get(fleet, A).serves
    assert get(fleet, A).state == f"ejected: {health.value}"


def test_a_replica_serves_since_it_was_restored() -> None:
    fleet = make_fleet(A)
    assert fleet.set_health("other", Health.TIMEOUT, 11) is False
    for health, now, changed, since in (
        (Health.SERVING, 11, False, 10),
        (Health.TIMEOUT, 12, True, 10),
        (Health.TIMEOUT, 13, False, 10),
        (Health.REFUSED, 14, True, 10),
        (Health.SERVING, 15, True, 15),
    ):
        assert fleet.set_health(A.key, health, now) is changed
        assert get(fleet, A).since == since


@pytest.mark.parametrize("name", ["", "shop.A"])
@pytest.mark.parametrize("health", Health)
def test_an_address_that_another_program_may_have_is_not_tried_if_the_health_service_can_tell(
    name: str, health: Health
) -> None:
    one = Replica(registration=registration(health=name), since=0, health=health)
    untried = [("shop.A", Health.REFUSED), ("shop.A", Health.WRONG_SERVICE)]
    assert one.may_serve is ((name, health) not in untried and health is not Health.CERTIFICATE)


def test_the_replicas_of_an_earlier_run_are_registered_until_the_next_registrations() -> None:
    fleet = Fleet()
    fleet.restore(
        [Replica(registration=A, since=5, health=Health.TIMEOUT), Replica(registration=B, since=6, held=True)]
    )
    assert fleet.absent == []
    assert [one.state for one in fleet] == ["ejected: timeout", "held"]
    fleet.apply([A], 20)
    assert [one.registration for one in fleet.absent] == [B]
    assert get(fleet, A).since == 5


def test_a_replica_with_tls_serves_only_after_its_first_probe() -> None:
    fleet = Fleet()
    secure = replace(A, tls=True)
    fleet.apply([secure, B], 10)
    assert [one.state for one in fleet] == ["ejected: certificate", "serving"]
    assert not get(fleet, secure).may_serve
    fleet.set_health(secure.key, Health.SERVING, 11)
    # The same registration again changes nothing; one without TLS is another replica.
    fleet.apply([secure, B], 12)
    assert get(fleet, A).state == "serving"
    fleet.apply([A, replace(B, tls=True)], 13)
    assert [one.state for one in fleet] == ["serving", "ejected: certificate"]
