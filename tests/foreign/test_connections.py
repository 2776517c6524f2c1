"""Servers that end connections by age or idleness or take few calls at once, clients that ping: no call is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed.balancers import LuaNginx
from testbed.processes import Processes
from tests.foreign.conftest import Client, Served, balanced, before_grpc_go, serving
from tests.foreign.programs import LIBRARIES, Library, libraries
from tests.support.local import SLOT

SERVERS = libraries("grpc-go", "grpcio-threads")
CLIENTS = libraries("grpc-go", "grpcio-threads", "grpc-js")
PINGING = libraries("grpcio-threads", "grpc-js")
OPTIONS = {
    "age": {"max_connection_age_ms": 300, "max_connection_age_grace_ms": 60000},
    "idleness": {"max_connection_idle_ms": 150},
    "one call at once": {"max_concurrent_streams": 1},
    "ten calls at once": {"max_concurrent_streams": 10},
}
# Calls one after the other, through several ages; with pauses, in which connections are idle; and many at once.
CASES: list[dict[str, Any]] = [
    *[{"method": "Unary", "requests": [{"payload": "hello", "pause_ms": 5}]}] * 150,
    *[{"method": "Unary", "requests": [{"payload": "late", "pause_ms": 200}]}] * 5,
    {"method": "ServerStream", "requests": [{"payload": "tick", "count": 25, "pause_ms": 40}]},
    {"method": "Unary", "requests": [{"payload": "many", "pause_ms": 10}], "at_once": 100},
    {"method": "ServerStream", "requests": [{"payload": "tick", "count": 10, "pause_ms": 20}], "at_once": 20},
]


@pytest.fixture(scope="module", params=OPTIONS)
def options(request: pytest.FixtureRequest) -> dict[str, int]:
    return OPTIONS[str(request.param)]


@pytest.fixture(scope="module", params=SERVERS, ids=lambda one: one.name)
def balancer(
    request: pytest.FixtureRequest,
    options: dict[str, int],
    tools: None,  # noqa: ARG001
    directory: Path,
) -> Iterator[LuaNginx]:
    """A balancer before a server with these options."""
    address = f"127.{100 + SLOT}.252.{SERVERS.index(request.param) + 1}:7777"
    with Processes(directory) as started, serving(request.param, address, started, options):
        yield balanced(LuaNginx(started, 26400 + 3 * SLOT), address)


def lost(calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The calls that did not end well."""
    return [call for call in calls if call["status"] != [0, ""]]


@pytest.mark.parametrize("library", CLIENTS, ids=lambda one: one.name)
def test_no_call_is_lost(balancer: LuaNginx, library: Library) -> None:
    found = Client.of(library).run(balancer.target, CASES)
    assert not lost(found)
    answers = [case["requests"][0].get("count", 1) for case in CASES for _ in range(case.get("at_once", 1))]
    assert [len(call["answers"]) for call in found] == answers


@pytest.mark.parametrize("served", LIBRARIES[:1], ids=lambda one: one.name, indirect=True)
@pytest.mark.parametrize("library", PINGING, ids=lambda one: one.name)
def test_a_client_may_ping_each_second(served: Served, library: Library) -> None:
    """Direct, a server of default options ends such a connection (too_many_pings)."""
    streams = [{"method": "ServerStream", "requests": [{"payload": "tick", "count": 3, "pause_ms": 2000}]}]
    options = {"keepalive_time_ms": 1000, "keepalive_permit_without_calls": 1, "http2.max_pings_without_data": 0}
    assert not lost(Client.of(library).run(served.through, streams, options))


@before_grpc_go
@pytest.mark.parametrize("library", CLIENTS, ids=lambda one: one.name)
def test_hundreds_of_calls_at_once_on_one_connection_don_t_wait_for_each_other(
    served: Served, library: Library
) -> None:
    """By itself nginx takes 128, beyond which a client waits without a word."""
    calls = [{"method": "Unary", "requests": [{"pause_ms": 2500}], "at_once": 190, "timeout_ms": 4500}]
    assert not lost(Client.of(library).run(served.through, calls))
