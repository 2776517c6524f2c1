"""Limits by the address of the client."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from testbed.calls import status
from testbed.processes import Processes
from testbed.programs import ghz
from testbed.wait import wait_for
from tests.support.control_plane import Balancer, serving
from tests.support.drivers import ROOT
from tests.support.local import SLOT
from tests.support.server_process import NETWORK, ServerProcess

Start = Callable[..., Balancer]


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess("server-1", f"{NETWORK}.8.1") as one:
        yield one


@pytest.fixture
def start(processes: Processes, tools: None, server: ServerProcess) -> Iterator[Start]:  # noqa: ARG001
    """Starts a balancer with some variables, in front of the server."""
    with ExitStack() as leave:

        def make(**variables: str) -> Balancer:
            return leave.enter_context(serving(processes, 28000 + 4 * SLOT, variables, server))

        yield make


@pytest.mark.parametrize(
    ("allowed", "code"), [("10.0.0.0/8, ::1/128", "PERMISSION_DENIED"), ("10.0.0.0/8 127.0.0.0/8", "OK")]
)
def test_calls_are_allowed_from_the_networks_of_the_variable_only(start: Start, allowed: str, code: str) -> None:
    assert status(start(LB_ALLOW=allowed).target)[0] == code


def test_calls_beyond_the_rate_of_an_address_are_refused_and_the_others_answered(start: Start) -> None:
    rate, calls = 50, 400
    one = start(LB_MAX_CALLS_PER_SECOND_PER_ADDRESS=str(rate))
    call: list[str | Path] = [
        "--call",
        "protos.Ping.SayHello",
        "-d",
        '{"greeting": "x"}',
        "-c",
        "8",
        "-n",
        str(calls),
        "-O",
        "json",
    ]
    command = [ghz(), "--insecure", "--proto", ROOT / "protos/api.proto", "-i", ROOT, *call]
    report = json.loads(
        subprocess.run([*command, one.target], capture_output=True, text=True, timeout=60, check=True).stdout
    )
    found = report["statusCodeDistribution"]
    assert set(found) == {"OK", "ResourceExhausted"}
    assert found["OK"] + found["ResourceExhausted"] == calls
    # The calls of one second at once, and those of the time that the run took.
    assert rate <= found["OK"] <= 1 + rate * (1 + report["total"] / 1e9)
    assert list(report["errorDistribution"]) == [
        "rpc error: code = ResourceExhausted desc = too many calls a second from this address"
    ]
    wait_for(lambda: status(one.target)[0], "OK".__eq__, 5, "the address may call again")
