"""gRPC's own interoperability suite, through the balancer."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.balancers import LuaNginx, StaticNginx
from testbed.processes import Processes
from testbed.programs import ROOT
from tests.foreign.conftest import balanced, built, wait_until_listening
from tests.foreign.programs import tool
from tests.support.local import SLOT

# All of grpc-go's client that need neither TLS nor an account
# (github.com/grpc/grpc/blob/master/doc/interop-test-descriptions.md).
CASES = (
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "timeout_on_sleeping_server",
    "cancel_after_begin",
    "cancel_after_first_response",
    "status_code_and_message",
    "special_status_message",
    "custom_metadata",
    "unimplemented_method",
    "unimplemented_service",
)


@pytest.fixture(scope="module", params=[LuaNginx, StaticNginx], ids=["dynamic", "reload"])
def balancer(request: pytest.FixtureRequest, tools: None, directory: Path) -> Iterator[LuaNginx]:  # noqa: ARG001
    """The suite's server behind the balancer."""
    port = 27000 + 4 * SLOT
    command = built(lambda: [tool("server"), f"-port={port}"])
    with Processes(directory) as started:
        started.start("interop", command, cwd=ROOT)
        wait_until_listening(f"127.0.0.1:{port}")
        yield balanced(request.param(started, port + 1), f"127.0.0.1:{port}")


@pytest.mark.parametrize("case", CASES)
def test_it_passes(balancer: LuaNginx, case: str) -> None:
    address = ["-server_host=127.0.0.1", f"-server_port={balancer.port}"]
    command = [str(tool("client")), *address, f"-test_case={case}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
