"""grpc_client has its replicas from the control plane by xDS, and no call passes the balancer.

tests/foreign/test_xds.py has more, with clients of several libraries.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from testbed.wait import wait_for
from tests.support.chaos import kill_program
from tests.support.drivers import ROOT, LocalDriver
from tests.support.load import round_robin
from tests.support.local import SLOT
from tests.support.metrics import handled_so_far
from tests.support.scenarios import leader, wait_for_replicas
from tests.support.xds import bootstrap, serving_xds

pytest.importorskip("xds", reason="xds-protos is not installed")


@pytest.fixture(scope="module")
def xds(tools: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalDriver]:  # noqa: ARG001
    """A stack with xDS and two replicas; the bootstrap file is in the environment."""
    base = f"127.{140 + SLOT}.64.0"
    with (
        serving_xds("xds", address_base=base, port=16200 + SLOT, consul_port=19300 + SLOT) as driver,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in bootstrap(driver, tmp_path_factory.mktemp("xds")).items():
            patch.setenv(name, value)
        yield driver


def report(target: str, *flags: str) -> dict[str, Any]:
    """Calls a target with grpc_client, and returns its report."""
    command = [sys.executable, "-m", "grpc_client", "--target", target, "--json", "--count", "200", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(done.stdout))


@contextmanager
def no_call_lost(target: str = "xds:///hello_server") -> Iterator[None]:
    """Calls a target until the block ends, without retries."""
    with round_robin(target, retry=False) as outcome:
        yield
    assert outcome.lost == 0, outcome


@pytest.mark.parametrize("target", ["xds:///hello_server", "xds:///protos.Ping"])
def test_an_application_and_a_service_are_called_without_the_balancer(xds: LocalDriver, target: str) -> None:
    before = handled_so_far(xds)
    assert set(report(target)["replicas"]) == {"hello_server-1", "hello_server-2"}
    assert handled_so_far(xds) == before


def test_clients_go_on_without_the_control_plane_and_without_a_leader(xds: LocalDriver) -> None:
    with no_call_lost():
        for program in ("balancer", "answers"):
            kill_program(xds, "load-balancer", program)
        first = wait_for(lambda: leader(xds), bool, 30, "a leader")
        xds.local_stack("kill", first)
        xds.scale(3)
        wait_for(lambda: len(report("xds:///hello_server")["replicas"]), (3).__eq__, 60, "three replicas answer")
        xds.start(first)
        xds.scale(2)


@pytest.mark.parametrize(("idempotent", "lost"), [("false", 12), ("true", 0)])
def test_a_replica_that_is_killed_costs_its_calls_in_flight_unless_they_may_be_repeated(
    xds: LocalDriver, idempotent: str, lost: int
) -> None:
    # A client's own retry policy does not hold with xDS: retries come with the route (gRFC A44).
    xds.up(2, GRPC_IDEMPOTENT=idempotent)
    wait_for_replicas(xds, 2)
    with round_robin("xds:///hello_server") as outcome:
        for name in ("hello_server-2", "hello_server-1"):
            kill_program(xds, name, "grpc_server")
            wait_for(lambda: len(report("xds:///hello_server")["replicas"]), (2).__eq__, 60, "it answers again")
    assert outcome.lost <= 2 * lost, outcome
