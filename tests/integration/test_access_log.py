"""The balancer's access log: a line of JSON a call."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from testbed.calls import say_hello
from testbed.stack import BALANCER
from testbed.wait import wait_for
from tests.support.drivers import LocalDriver
from tests.support.local import with_replicas
from tests.support.registered import running_server
from tests.support.scenarios import target, wait_for_replicas
from tests.support.server import SERVICE


@pytest.fixture(scope="module", autouse=True)
def with_log(stack: LocalDriver) -> Iterator[LocalDriver]:
    """The shared stack with the log, which the other tests have off: it would be most of what they find in the logs."""
    yield from with_replicas(stack, 1, LB_ACCESS_LOG="on")


def entries(stack: LocalDriver, **wanted: str) -> list[dict[str, Any]]:
    """The access log's lines with these values; fails for a line that is no JSON."""
    lines = [line.partition("nginx | ")[2] for line in stack.logs(BALANCER)]
    found = [json.loads(line) for line in lines if line.startswith('{"time"')]
    return [entry for entry in found if wanted.items() <= entry.items()]


def wait_for_entries(stack: LocalDriver, count: int, **wanted: str) -> list[dict[str, Any]]:
    """Waits for the buffer, which nginx writes after a second."""
    return wait_for(lambda: entries(stack, **wanted), lambda found: len(found) == count, 10, f"{count} lines")


def test_each_call_is_a_line_of_json(stack: LocalDriver) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    with grpc.insecure_channel(target(stack)) as plain:
        channel: Any = plain
        call = channel.unary_unary("/protos.Ping/SayHello")
        call(b"", timeout=10, metadata=(("x-request-id", "made-by-me"), ("traceparent", trace)))
    (entry,) = wait_for_entries(stack, 1, request_id="made-by-me")
    assert entry["method"] == "/protos.Ping/SayHello"
    assert entry["grpc_status"] == "OK"
    assert entry["replica"] == f"{stack.address(stack.replicas()[0])}:7777"
    assert entry["traceparent"] == trace
    assert entry["client"] == "127.0.0.1"
    assert 0 <= entry["seconds"] < 10
    assert entry["request_bytes"] >= 5
    assert entry["response_bytes"] >= 5
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", entry["time"])


def new_id(stack: LocalDriver, given: str | None) -> str:
    """The ID that a replica sees of a call with this one."""
    with grpc.insecure_channel(target(stack)) as plain:
        channel: Any = plain
        metadata = (("x-request-id", given),) if given is not None else ()
        seen = json.loads(channel.unary_unary(f"/{SERVICE}/Seen")(b"", timeout=10, metadata=metadata))
        ids = [value for key, value in seen["metadata"] if key == "x-request-id"]
        assert len(ids) == 1
        assert re.fullmatch(r"[0-9a-f]{32}", ids[0])
        return str(ids[0])


@pytest.mark.parametrize("given", [None, "", "two words", "x" * 129])
def test_a_request_without_an_id_of_use_gets_one(stack: LocalDriver, given: str | None) -> None:
    with running_server(stack, 2):
        wait_for_entries(stack, 1, request_id=new_id(stack, given))


# Last: it leaves the log off.
def test_the_access_log_can_be_turned_off(stack: LocalDriver) -> None:
    stack.up(1, LB_ACCESS_LOG="off")
    wait_for_replicas(stack, 1)
    time.sleep(1.5)
    before = len(entries(stack))
    assert say_hello(target(stack))
    time.sleep(2.5)
    assert len(entries(stack)) == before
    # What a replica sees is the same.
    with running_server(stack, 2):
        assert new_id(stack, "two words") != new_id(stack, None)
