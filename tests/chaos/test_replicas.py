"""Replicas die, stop where they are, and lose their address to another service, while calls go on."""

from __future__ import annotations

import math
import random
import sys
import time

import pytest

from testbed.processes import Processes
from testbed.wait import wait_for
from tests.support.balancer import wait_for_peers
from tests.support.chaos import FULL, kill_program, record, rounds
from tests.support.drivers import ROOT, LocalDriver
from tests.support.load import CALLERS, DEADLINE_SECONDS, Load, two_clients
from tests.support.scenarios import wait_for_replicas
from tests.support.secure import SECURE

pytestmark = pytest.mark.timeout(3600 if FULL else 600)

# In the whole form, the most calls in flight at one of five replicas: the balancer gives none more than 1.25 times its
# share, or 8 calls, in each of its workers, and all connections may be at one worker.
IN_FLIGHT = math.ceil(1.25 * 2 * CALLERS / 5) + 8 if FULL else 2 * CALLERS
# The short form runs on machines with other work, which may take a second.
LIMIT_SECONDS = 1.0 if FULL else DEADLINE_SECONDS


def check(load: Load, deaths: int) -> None:
    """Asserts that only calls in flight without a retry policy are lost, and that no call waits for a dead replica."""
    load.assert_lost_at_most(deaths * IN_FLIGHT)
    assert load.slowest_seconds < LIMIT_SECONDS, load


def test_a_killed_server_process_costs_what_was_in_flight(five_replicas: LocalDriver) -> None:
    times, dice = rounds(20, 3), random.Random(7)  # noqa: S311 - the same victims in every run
    names = five_replicas.replicas()
    with two_clients(five_replicas, retry=True) as load:
        for _ in range(times):
            kill_program(five_replicas, dice.choice(names), "grpc_server")
    record(f"kill -9 of a server process, {times} times; grpc_client with the standard retry policy", load)
    check(load, times)
    wait_for_replicas(five_replicas, 5)


def test_a_replica_killed_outright_costs_what_was_in_flight(five_replicas: LocalDriver) -> None:
    times, names = rounds(10, 1), five_replicas.replicas()
    with two_clients(five_replicas, retry=True) as load:
        for number in range(times):
            name = names[number % len(names)]
            five_replicas.local_stack("kill", name)
            wait_for_peers(five_replicas, 4)
            five_replicas.start(name)
            wait_for_replicas(five_replicas, 5)
    record(f"kill -9 of a whole replica, {times} times; grpc_client with the standard retry policy", load)
    check(load, times)


def test_a_stopped_replica_keeps_what_was_in_flight_and_gets_no_more(five_replicas: LocalDriver) -> None:
    seconds, name = rounds(30, 8), five_replicas.replicas()[2]
    # The deadline passes before the replica continues, which would answer its calls in flight late.
    with two_clients(five_replicas, retry=True, deadline=5) as load:
        five_replicas.local_stack("pause", name)
        time.sleep(seconds)
        five_replicas.local_stack("unpause", name)
        wait_for_replicas(five_replicas, 5)
    record(f"SIGSTOP of a replica for {seconds} s; lost: in flight at it, until their deadline of 5 s", load)
    assert load.lost <= IN_FLIGHT, load
    assert load.slowest_seconds < LIMIT_SECONDS, load


@pytest.mark.skipif(SECURE, reason="the other service speaks clear text, so that not even a health check reaches it")
def test_another_service_at_a_dead_replicas_address_gets_no_call(
    five_replicas: LocalDriver, processes: Processes
) -> None:
    name = five_replicas.replicas()[1]
    address = five_replicas.address(name)
    command = [sys.executable, "-m", "tests.support.foreign", f"{address}:7777"]
    printed = processes.log("foreign")
    with two_clients(five_replicas, retry=True) as load:
        five_replicas.local_stack("kill", name)
        foreign = processes.start("foreign", command, cwd=ROOT)
        for text in ("serving", "/grpc.health.v1.Health/Check"):
            wait_for(printed.read_text, lambda found, text=text: text in found, 20, text)  # type: ignore[misc]
        wait_for_peers(five_replicas, 4)
        processes.stop(foreign)
        five_replicas.start(name)
        wait_for_replicas(five_replicas, 5)
    # gRPC's own messages, on standard error, are left out.
    methods = {line for line in printed.read_text().splitlines() if line.startswith(("serving", "/"))}
    record("another service at a dead replica's address; grpc_client with the standard retry policy", load)
    assert methods == {"serving", "/grpc.health.v1.Health/Check"}
    check(load, 1)
