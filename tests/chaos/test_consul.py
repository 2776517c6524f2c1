"""The Consul cluster loses its leader, all its servers, and its data, while calls go on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import grpc
import pytest
import requests

from testbed.calls import say_hello, status
from testbed.stack import BALANCER
from testbed.wait import wait_for
from tests.support.balancer import peers
from tests.support.chaos import FULL, lose_catalogue, record
from tests.support.drivers import ConsulApi, LocalDriver
from tests.support.load import two_clients
from tests.support.local import with_replicas
from tests.support.scenarios import PATIENCE_SECONDS, SERVER_NAME, leader, target, wait_for_replicas
from tests.support.secure import SECURE

pytestmark = pytest.mark.timeout(1800 if FULL else 900)

# The short form runs on machines with other work.
LIMIT_FACTOR = 1 if FULL else 4
# Serf's number of a live member.
ALIVE = 1
SERVERS = ("server-1", "server-2", "server-3")


@pytest.fixture
def three_replicas(stack: LocalDriver) -> Iterator[LocalDriver]:
    """The shared stack with three replicas; one again afterwards."""
    yield from with_replicas(stack, 3)


def members(driver: LocalDriver) -> dict[str, int]:
    """Returns the agents as the UI's agent sees them."""
    return {one["Name"]: one["Status"] for one in ConsulApi(driver).get("/v1/agent/members")}


def states(driver: LocalDriver) -> dict[str, object]:
    """Returns the states of the balancer's replicas by address."""
    return {str(peer["address"]): peer["state"] for peer in peers(driver)}


# First, because for a minute after a loss of the catalogue absent replicas that answer are held.
def test_a_deregistration_by_hand_takes_effect_at_once_the_last_one_included(stack: LocalDriver) -> None:
    stack.up(0)
    last = f"{stack.run_server(SERVER_NAME)}:7777"
    try:
        stack.register(last)
        wait_for_replicas(stack, 1)
        stack.deregister(last)
        begin = time.monotonic()
        wait_for(lambda: status(target(stack))[0], lambda code: code == "UNAVAILABLE", 5, "nobody is there")
        assert time.monotonic() - begin < LIMIT_FACTOR * 1
    finally:
        stack.stop_extras()
        stack.up(1)
    wait_for_replicas(stack, 1)


@pytest.mark.full
def test_a_cluster_that_was_away_costs_no_call_and_brings_the_new_replica(three_replicas: LocalDriver) -> None:
    seconds = 30
    leaver, _, newcomer = three_replicas.replicas()
    address = three_replicas.address(newcomer)
    three_replicas.stop(newcomer)
    with two_clients(three_replicas) as load:
        first = wait_for(lambda: leader(three_replicas), bool, PATIENCE_SECONDS, "a leader")
        three_replicas.local_stack("kill", first)
        wait_for(lambda: leader(three_replicas), lambda name: name not in ("", first), PATIENCE_SECONDS, "another one")
        three_replicas.start(first)
        three_replicas.local_stack("stop", *SERVERS)
        starting = three_replicas.begin("start", newcomer)
        # Only the replica's own health service can tell the balancer of its end.
        leaving = three_replicas.begin("stop", leaver)
        time.sleep(seconds)
        assert leaving.wait(60) == 0
        assert address not in states(three_replicas)
        three_replicas.local_stack("start", *SERVERS)
        wait_for(lambda: leader(three_replicas), bool, PATIENCE_SECONDS, "the cluster is back")
        back = time.monotonic()
        wait_for(lambda: states(three_replicas).get(address), lambda state: state == "serving", 30, "it is served")
        served = time.monotonic() - back
        assert starting.wait(60) == 0
    # The servers have not heard of a departure before their start.
    three_replicas.start(leaver)
    wait_for(lambda: members(three_replicas)[leaver], lambda state: state == ALIVE, 10, "all agents know it again")
    fault = f"Consul's leader killed; all servers stopped for {seconds} s, meanwhile a replica stopped"
    record(fault, load, f"new replica after {served:.1f} s")
    load.assert_no_failed_calls()
    assert served < LIMIT_FACTOR * 2, f"{served:.1f} s"


def test_a_catalogue_that_has_lost_its_data_costs_no_call(three_replicas: LocalDriver) -> None:
    api = ConsulApi(three_replicas)
    newcomer = three_replicas.replicas()[-1]
    with two_clients(three_replicas) as load:
        lose_catalogue(three_replicas, SERVERS)
        if SECURE:
            # The tokens are lost with the data; `up` gives Consul its tokens again.
            three_replicas.local_stack("up", "-d", "--scale", "hello_server=3", *three_replicas.flags)
        time.sleep(6)
        os.kill(three_replicas.pid(BALANCER, "consul-template"), signal.SIGKILL)
        time.sleep(10)
    before = states(three_replicas)
    # The restart ends every connection: the load has ended before it.
    three_replicas.local_stack("stop", BALANCER)
    starting = three_replicas.begin("start", BALANCER)
    balancer = three_replicas.home / "containers" / BALANCER
    wait_for((balancer / "run" / "supervisord.pid").exists, bool, 30, "the container has started")
    begin = time.monotonic()
    while True:
        try:
            say_hello(target(three_replicas), timeout=1)
            break
        except grpc.RpcError:
            assert time.monotonic() - begin < PATIENCE_SECONDS, "the balancer does not come back"
            time.sleep(0.02)
    from_disk = time.monotonic() - begin
    wait_for(lambda: states(three_replicas), lambda found: set(found) == set(before), 30, "the same replicas")
    assert starting.wait(60) == 0
    wait_for(lambda: _registered(api), lambda count: count == 3, 30, "all have registered again")
    three_replicas.stop(newcomer)
    begin = time.monotonic()
    three_replicas.start(newcomer)
    serving = ["serving"] * 3
    wait_for(lambda: list(states(three_replicas).values()), serving.__eq__, PATIENCE_SECONDS, "the replica is served")
    new_replica = time.monotonic() - begin
    remark = f"balancer serves from disk {from_disk:.1f} s after its start, a replica {new_replica:.1f} s after its own"
    record("Consul's servers come back without their data; consul-template killed 6 s later", load, remark)
    wait_for(lambda: api.instances("load-balancer"), lambda found: set(found.values()) == {"passing"}, 30, "it is back")
    load.assert_no_failed_calls()
    assert from_disk < LIMIT_FACTOR * 1, f"{from_disk:.2f} s"
    assert new_replica < LIMIT_FACTOR * 5, f"{new_replica:.2f} s"


def _registered(api: ConsulApi) -> int:
    try:
        return len(api.instances("hello_server"))
    except requests.RequestException:
        return 0
