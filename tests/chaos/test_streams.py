"""Long calls with silences in them, while the fleet changes."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import grpc
import pytest

from testbed.calls import open_channel
from testbed.wait import wait_for
from tests.support.balancer import descriptors
from tests.support.chaos import FULL, note
from tests.support.drivers import LocalDriver
from tests.support.registered import RegisteredServer, running_server
from tests.support.scenarios import wait_for_replicas
from tests.support.server import SERVICE

SILENCE_SECONDS = 30.0 if FULL else 4.0
CHANGES = 20 if FULL else 4
EACH_KIND = 4
# Of each call, with a silence between two of them.
MESSAGES = 4
DRAIN_SECONDS = 2.0
# For calls whose own replica leaves.
GRACE_SECONDS = 6.0
SHORT_GRACE_SECONDS = 1.0
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"

pytestmark = pytest.mark.timeout(600)


def requests(silence: float) -> Iterator[bytes]:
    """Yields messages with silences between them."""
    for number in range(MESSAGES):
        if number:
            time.sleep(silence)
        yield b"message %d" % number


def server_stream(channel: Any, silence: float) -> int:
    request = json.dumps({"count": MESSAGES, "size": 10, "pause": silence}).encode()
    return len(list(channel.unary_stream(f"/{SERVICE}/ServerStream")(request)))


def client_stream(channel: Any, silence: float) -> int:
    return int(channel.stream_unary(f"/{SERVICE}/ClientStream")(requests(silence)).split()[0])


def bidi(channel: Any, silence: float) -> int:
    return len(list(channel.stream_stream(f"/{SERVICE}/Bidi")(requests(silence)))) - 1


KINDS: tuple[Callable[[Any, float], int], ...] = (server_stream, client_stream, bidi)


class Streams:
    """Open calls of every kind, each on a connection of its own."""

    def __init__(self, resources: ExitStack, port: int, silence: float) -> None:
        pool = resources.enter_context(ThreadPoolExecutor(len(KINDS) * EACH_KIND))
        self._calls: list[tuple[str, Future[str]]] = []
        for kind in KINDS:
            for _ in range(EACH_KIND):
                channel = resources.enter_context(open_channel(f"127.0.0.1:{port}"))
                self._calls.append((kind.__name__, pool.submit(self._outcome, kind, channel, silence)))

    @staticmethod
    def _outcome(kind: Callable[[Any, float], int], channel: grpc.Channel, silence: float) -> str:
        try:
            return f"{kind(channel, silence)} messages"
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"

    @property
    def open(self) -> int:
        return sum(not call.done() for _, call in self._calls)

    def outcomes(self) -> Counter[tuple[str, str]]:
        """Waits for the ends and returns how many of each kind had which."""
        return Counter((kind, call.result()) for kind, call in self._calls)


ALL_FINISHED = {(kind.__name__, f"{MESSAGES} messages"): EACH_KIND for kind in KINDS}
CALLS = len(KINDS) * EACH_KIND


def note_streams(fault: str, outcomes: Counter[tuple[str, str]]) -> None:
    """Notes how many streams have not finished."""
    note(fault, CALLS, CALLS - sum(outcomes[finished] for finished in ALL_FINISHED))


def change_the_fleet(stack: LocalDriver, other: RegisteredServer, seconds: float) -> int:
    """Changes the calls' application, and in the whole form hello_server too; returns the number of changes."""
    began = time.monotonic()
    replicas = 1
    for number in range(CHANGES):
        if FULL and number % 5 == 4:
            replicas = 3 - replicas
            stack.up(replicas)
        elif number % 2 == 0:
            other.register()
        else:
            other.deregister()
        # The changes are spread over the time of the calls, except its end, because the last change takes time too.
        time.sleep(max(0.0, began + 0.8 * seconds * (number + 1) / CHANGES - time.monotonic()))
    other.deregister(wait=False)
    return CHANGES


def test_streams_with_silences_outlive_changes_of_the_fleet(stack: LocalDriver) -> None:
    seconds = SILENCE_SECONDS * (MESSAGES - 1)
    wait_for_replicas(stack, 1)
    with running_server(stack, 11), running_server(stack, 12) as other, ExitStack() as resources:
        other.deregister()
        streams = Streams(resources, stack.port, SILENCE_SECONDS)
        changes = change_the_fleet(stack, other, seconds)
        assert streams.open == CALLS, "the changes were made while the calls were open"
        outcomes = streams.outcomes()
    silences = f"streams of {seconds:g} s with silences of {SILENCE_SECONDS:g} s"
    note_streams(f"{changes} changes of the fleet during {silences}", outcomes)
    if FULL:
        stack.up(1)
        wait_for_replicas(stack, 1)
    assert outcomes == ALL_FINISHED


def streams_at(server: RegisteredServer, resources: ExitStack, silence: float) -> Streams:
    """Opens streams and waits until that server has them all: each has a connection of the balancer's."""
    pid = server.process.pid
    before = descriptors(pid)
    streams = Streams(resources, server.stack.port, silence)
    wait_for(lambda: descriptors(pid) - before, lambda more: more >= CALLS, 20, "the replica has all calls")
    return streams


def leave(server: RegisteredServer) -> None:
    """Ends a server as its registrar would: deregisters it, drains it and stops it."""
    server.deregister()
    time.sleep(DRAIN_SECONDS)
    server.process.send_signal(signal.SIGTERM)


def test_streams_finish_in_the_grace_when_their_own_replica_leaves(stack: LocalDriver) -> None:
    with running_server(stack, 13, grace_seconds=GRACE_SECONDS) as server, ExitStack() as resources:
        # They end after the drain, in the grace.
        streams = streams_at(server, resources, (DRAIN_SECONDS + GRACE_SECONDS / 2) / (MESSAGES - 1))
        leave(server)
        assert streams.open == CALLS
        outcomes = streams.outcomes()
        assert server.process.wait(GRACE_SECONDS + 5) == 0
    note_streams("streams whose own replica leaves, and that end within its grace", outcomes)
    assert outcomes == ALL_FINISHED


def test_streams_get_unavailable_after_the_grace(stack: LocalDriver) -> None:
    with running_server(stack, 14, grace_seconds=SHORT_GRACE_SECONDS) as server, ExitStack() as resources:
        streams = streams_at(server, resources, 4)
        leave(server)
        began = time.monotonic()
        wait_for(lambda: streams.open, lambda count: count == 0, SHORT_GRACE_SECONDS + 5, "the calls have ended")
        seconds = time.monotonic() - began
        outcomes = streams.outcomes()
    ends = ", ".join(sorted({outcome for _, outcome in outcomes}))
    note("streams that outlast the grace of their own replica", CALLS, outcomes.total(), "", f"end with {ends}")
    assert seconds > SHORT_GRACE_SECONDS / 2
    assert {outcome.split(":")[0] for _, outcome in outcomes} == {"UNAVAILABLE"}


def test_a_stream_of_a_stopped_replica_finishes(stack: LocalDriver) -> None:
    """The server and the registrar of the product; reflection is its stream."""
    (name,) = stack.replicas()
    stopped = ThreadPoolExecutor(1)
    with open_channel(f"127.0.0.1:{stack.port}") as channel, stopped:
        list_services = b"\x3a\x01*"  # ServerReflectionRequest.list_services
        stopping: list[Future[None]] = []

        def asked() -> Iterator[bytes]:
            yield list_services
            stopping.append(stopped.submit(stack.stop, name))
            stack.wait_for_log(name, "stopping grace_seconds")
            yield list_services

        answers = list(channel.stream_stream(REFLECTION)(asked(), timeout=60))
        stopping[0].result()
    print(f"{len(answers)} answers")
    assert len(answers) == 2
    stack.start(name)
    wait_for_replicas(stack, 1)
