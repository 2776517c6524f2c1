"""Two balancers: both decide alike, and a client with both addresses loses no call when one of them ends."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from subprocess import PIPE
from typing import Any

import pytest
import requests

from testbed.errors import MissingError
from testbed.wait import wait_for
from tests.foreign.programs import go
from tests.support.drivers import LocalDriver
from tests.support.load import round_robin
from tests.support.local import SLOT, short_home
from tests.support.missing import missing
from tests.support.scenarios import wait_for_replicas

SECOND = "load-balancer-2"


@pytest.fixture(scope="module")
def pair(tools: None) -> Iterator[LocalDriver]:  # noqa: ARG001
    """A stack with two balancers and two replicas."""
    base = f"127.{(SLOT + 10) % 50 + 50}.64.0"
    with LocalDriver(short_home("pair"), address_base=base, port=16000 + 2 * SLOT, consul_port=19100 + SLOT) as driver:
        driver.flags += ["--scale", "load-balancer=2"]
        driver.up(2)
        wait_for_replicas(driver, 2)
        yield driver


def state(stack: LocalDriver, balancer: str) -> dict[str, Any]:
    """Returns nginx's view of a balancer."""
    return dict(requests.get(f"http://{stack.address(balancer)}:8080/state", timeout=10).json())


def count_replicas(stack: LocalDriver, balancer: str) -> int:
    """Returns the replicas of a balancer; none while it starts."""
    try:
        return len(state(stack, balancer)["replicas"])
    except (requests.RequestException, ValueError, KeyError):
        return 0


def status(stack: LocalDriver) -> dict[str, dict[str, Any]]:
    """Returns what `status` says about the balancers, by their nodes."""
    found = json.loads(stack.local_stack("status", "--json"))["balancers"]
    return {one["node"]: one for one in found}


def test_both_have_all_replicas_and_status_compares_them(pair: LocalDriver) -> None:
    found = wait_for(
        lambda: status(pair),
        lambda both: [one["serving"] for one in both.values()] == [2, 2],
        30,
        "both balancers serve both replicas",
    )
    assert {node: one["difference"] for node, one in found.items()} == {"load-balancer": "", SECOND: ""}
    pair.local_stack("pause", SECOND)
    try:
        assert status(pair)[SECOND]["difference"].startswith("its view is unknown: ")
    finally:
        pair.local_stack("unpause", SECOND)


def test_both_give_a_service_of_two_applications_to_the_same_one(pair: LocalDriver) -> None:
    replica = pair.address("hello_server-1")
    for number, (application, since) in enumerate({"aaa": "2026-02-02", "zzz": "2026-01-01"}.items()):
        metadata = {"grpc_services": "shared.Service", "grpc_since": f"{since}T00:00:00+00:00"}
        pair.register(f"{replica}:{7000 + number}", metadata, application=application)

    def owners() -> list[set[str]]:
        services = [state(pair, name)["services"] for name in ("load-balancer", SECOND)]
        return [{one["application"] for one in each if one["service"] == "shared.Service"} for each in services]

    try:
        wait_for(owners, lambda found: found == [{"zzz"}, {"zzz"}], 30, "the owner at both balancers")
    finally:
        for number, application in enumerate(("aaa", "zzz")):
            pair.deregister(f"{replica}:{7000 + number}", application=application)


@pytest.mark.parametrize("verb", ["stop", "kill"])
def test_a_balancer_that_ends_costs_a_client_with_both_addresses_no_call(pair: LocalDriver, verb: str) -> None:
    with round_robin(f"ipv4:127.0.0.1:{pair.port},127.0.0.1:{pair.port + 1}") as outcome:
        pair.local_stack(verb, SECOND)
        pair.local_stack("start", SECOND)
        wait_for(lambda: count_replicas(pair, SECOND), (2).__eq__, 30, "the replicas of the second balancer")
    assert outcome.lost == 0, outcome
    assert outcome.calls > 100


def test_clients_find_both_in_consuls_dns_and_lose_no_call_when_one_stops(pair: LocalDriver) -> None:
    target = f"dns://{pair.address('load-balancer')}:8600/load-balancer.service.consul:5000"
    try:
        command = [*go("greet"), target]
    except MissingError as error:
        missing(str(error))
    with round_robin(target) as python, subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True) as client:
        pair.local_stack("restart", SECOND)
        wait_for(lambda: count_replicas(pair, SECOND), (2).__eq__, 30, "the replicas of the second balancer")
        seen = json.loads(client.communicate(timeout=30)[0])[target]
    assert python.lost == 0, python
    assert seen.keys() == {f"{pair.address(name)}:5000" for name in ("load-balancer", SECOND)}, seen
    assert sum(seen.values()) > 100


def test_scaling_changes_the_number_of_balancers(pair: LocalDriver) -> None:
    pair.local_stack("scale", "load-balancer=1")
    assert SECOND not in {row["name"] for row in pair.rows()}
    pair.local_stack("scale", "load-balancer=2")
    wait_for(lambda: len(status(pair)), (2).__eq__, 30, "two balancers")
    refused = pair.attempt("scale", "load-balancer=0")
    assert refused.returncode == 1
    assert "must be at least 1" in refused.stderr
