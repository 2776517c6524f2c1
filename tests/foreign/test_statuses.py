"""The status of a call that its replica ends: UNAVAILABLE, which clients try again, only before a handler has it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from protos import api_pb2_grpc
from testbed.balancers import FedEnvoy, LuaNginx, StaticNginx
from testbed.calls import greet, open_channel
from testbed.processes import Processes
from tests.foreign.conftest import Client, balanced, wait_until_listening
from tests.support import frames
from tests.support.local import SLOT
from tests.support.scripted import Script, Scripted
from tests.support.server_process import ServerProcess

ADDRESS = f"127.{100 + SLOT}.251.1"
PORT = 7777
CANCELLED, PERMISSION_DENIED, RESOURCE_EXHAUSTED, INTERNAL, UNAVAILABLE = 1, 7, 8, 13, 14
# By HTTP/2's error code ("gRPC over HTTP2", Errors); STREAM_CLOSED has no status there.
TABLE = dict.fromkeys((0, 1, 2, 3, 4, 6, 9, 10, 13), INTERNAL) | {
    7: UNAVAILABLE,
    8: CANCELLED,
    11: RESOURCE_EXHAUSTED,
    12: PERMISSION_DENIED,
}
BACKOFF = {"initialBackoff": "0.01s", "maxBackoff": "0.1s", "backoffMultiplier": 2}
POLICY = {"maxAttempts": 5, **BACKOFF, "retryableStatusCodes": ["UNAVAILABLE"]}
RETRY = json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": POLICY}]})
BEGUN = [(":status", "200"), ("content-type", "application/grpc")]


def resets(code: int, *, begun: bool = False) -> Script:
    """Ends each call with RST_STREAM, before or after its answer has begun."""

    def script(stream: int) -> bytes:
        head = frames.headers(frames.block(BEGUN), stream=stream) if begun else b""
        return head + frames.reset(stream, code)

    return script


def goes_away(last_stream: int) -> Script:
    """Ends the connection with GOAWAY and takes no stream above the last."""
    return lambda _: frames.goaway(last_stream)


@pytest.fixture(scope="module", params=[LuaNginx, StaticNginx], ids=["dynamic", "reload"])
def balancer(request: pytest.FixtureRequest, tools: None, directory: Path) -> Iterator[Any]:  # noqa: ARG001
    with Processes(directory) as started:
        yield balanced(request.param(started, 26000 + 3 * SLOT), f"{ADDRESS}:{PORT}")


@pytest.fixture
def replica() -> Iterator[Scripted]:
    with closing(Scripted(ADDRESS, PORT, resets(2))) as made:
        yield made


def ended(balancer: Any, **options: str) -> tuple[int, str | None]:
    """Returns the status of a call, and its message."""
    given = [(f"grpc.{name}", value) for name, value in options.items()]
    arguments = [("grpc.use_local_subchannel_pool", 1), *given]
    with grpc.insecure_channel(balancer.target, options=arguments) as plain:
        channel: Any = plain
        try:
            channel.unary_unary("/foreign.Echo/Unary")(b"{}", timeout=10)
        except grpc.RpcError as error:
            return error.code().value[0], error.details()
    return 0, ""


@pytest.mark.parametrize("code", TABLE)
def test_a_reset_has_the_status_of_its_code(balancer: Any, replica: Scripted, code: int) -> None:
    replica.script = resets(code)
    status, message = ended(balancer)
    if isinstance(balancer, StaticNginx):
        # nginx without Lua does not tell the codes apart.
        assert status == INTERNAL, message
    else:
        assert (status, f" {code}" in str(message)) == (TABLE[code], True), message
    assert replica.calls == 1


@pytest.mark.parametrize(
    "script",
    [resets(2), resets(8), resets(11), resets(2, begun=True), resets(8, begun=True)],
    ids=["internal", "cancel", "calm", "begun", "begun cancel"],
)
def test_a_call_that_a_replica_has_begun_is_not_made_again(balancer: Any, replica: Scripted, script: Script) -> None:
    replica.script = script
    status, message = ended(balancer, service_config=RETRY)
    assert status not in (0, UNAVAILABLE), message
    assert replica.calls == 1


@contextmanager
def vanished(address: str) -> Iterator[str]:
    """A replica whose host is cut off: nothing answers a SYN. Here the queue of its port is full."""
    with socket.create_server((address, PORT), backlog=0), ExitStack() as queue:
        for _ in range(3):
            waiting = queue.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex((address, PORT))
        yield f"{address}:{PORT}"


@pytest.mark.parametrize("kind", [LuaNginx, StaticNginx, FedEnvoy])
def test_replicas_that_vanish_together_cost_no_call(
    kind: Any,
    tools: None,  # noqa: ARG001
    directory: Path,
) -> None:
    host = ADDRESS.rpartition(".")[0]
    with ExitStack() as leave:
        server = leave.enter_context(ServerProcess("server-1", f"{host}.2"))
        targets = [leave.enter_context(vanished(f"{host}.{number}")) for number in range(3, 7)]
        started = leave.enter_context(Processes(directory))
        front = kind(started, 26200 + 3 * SLOT)
        front.start([*targets, f"{server.address}:{PORT}"], ready=wait_until_listening)
        with open_channel(front.target) as channel:
            ping = api_pb2_grpc.PingStub(channel)
            assert [greet(ping) for _ in range(5)] == ["server-1"] * 5


def test_a_call_that_no_replica_takes_is_made_again(balancer: Any) -> None:
    assert ended(balancer) == (UNAVAILABLE, "no replica could be reached")


@pytest.mark.parametrize("script", [resets(7), goes_away(0)], ids=["refused stream", "goaway"])
def test_a_call_that_a_replica_has_not_begun_may_be_made_again(
    balancer: Any, replica: Scripted, script: Script
) -> None:
    replica.script = script
    status, message = ended(balancer)
    # Without Lua it is taken for a call that has begun.
    assert status == (INTERNAL if isinstance(balancer, StaticNginx) else UNAVAILABLE), message


def test_a_connection_that_breaks_has_the_status_that_it_has_direct(balancer: Any, replica: Scripted) -> None:
    replica.script = lambda _: b""
    status, message = ended(balancer)
    # Without Lua it can't be told from a reset.
    assert status == (INTERNAL if isinstance(balancer, StaticNginx) else UNAVAILABLE), message
    assert replica.calls == 1


def test_every_client_hears_the_same(balancer: Any, replica: Scripted, client: Client) -> None:
    replica.script = resets(11)
    (found,) = client.run(balancer.target, [{"method": "Unary", "requests": [{}]}])
    assert found["status"][0] == (INTERNAL if isinstance(balancer, StaticNginx) else RESOURCE_EXHAUSTED)
    assert replica.calls == 1
