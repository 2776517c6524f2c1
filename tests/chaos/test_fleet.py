"""The fleet changes while calls go on."""

from __future__ import annotations

import random
import time

import pytest

from tests.support.chaos import FULL, record
from tests.support.drivers import LocalDriver
from tests.support.load import two_clients
from tests.support.scenarios import wait_for_replicas

pytestmark = pytest.mark.timeout(3600 if FULL else 600)


@pytest.mark.full
def test_scaling_in_no_particular_rhythm_loses_no_call(stack: LocalDriver) -> None:
    changes, replicas = 100, 1
    dice = random.Random(4)  # noqa: S311 - the same fleet in every run
    with two_clients(stack) as load:
        for _ in range(changes):
            replicas = dice.choice([count for count in range(1, 6) if count != replicas])
            stack.scale(replicas)
            time.sleep(dice.random())
    stack.up(1)
    wait_for_replicas(stack, 1)
    record(f"{changes} membership changes, 1 to 5 replicas", load)
    load.assert_no_failed_calls()
    assert load.calls >= 50_000, load


def test_a_rolling_restart_loses_no_call(five_replicas: LocalDriver) -> None:
    times, names = (3, five_replicas.replicas()) if FULL else (1, five_replicas.replicas()[:2])
    with two_clients(five_replicas) as load:
        for _ in range(times):
            for name in names:
                five_replicas.local_stack("restart", name)
    record(f"rolling restart of {len(names)} of five replicas, {times} times", load)
    load.assert_no_failed_calls()
