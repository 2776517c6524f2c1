"""A call through the balancer is the call that it would be without it: each case is made both ways and compared."""

from __future__ import annotations

import contextlib
import hashlib
import json
import statistics
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from testbed.calls import open_channel
from testbed.wait import wait_for
from tests.support.chaos import FULL
from tests.support.drivers import LocalDriver
from tests.support.registered import RegisteredServer, running_server
from tests.support.server import SERVICE

MANY_MESSAGES = 20_000 if FULL else 2_000
CANCELLATIONS = 50 if FULL else 15
SECONDS = 60.0
MIB = 1024 * 1024
# What HTTP and the balancer say of themselves, not of the call. nginx hands the :authority on as host, which is the
# same by RFC 9113, section 8.3.1; Python's server shows only the latter to its methods. A call without an ID gets one.
HOP_HEADERS = {"server", "date", "content-length", "host", "x-request-id"}
STATUS_CODES = [code.value[0] for code in grpc.StatusCode if code is not grpc.StatusCode.OK]


@dataclass(frozen=True)
class Observed:
    """The result of a call, as its client saw it."""

    status: str
    details: str | None
    messages: tuple[Any, ...]
    initial: tuple[tuple[str, Any], ...]
    trailers: tuple[tuple[str, Any], ...]


def pairs(metadata: Iterable[Any] | None) -> tuple[tuple[str, Any], ...]:
    """Metadata without the hop's own; the order of different keys means nothing."""
    found = [(str(key), value) for key, value in metadata or () if key not in HOP_HEADERS]
    return tuple(sorted(found, key=lambda pair: pair[0]))


def brief(message: bytes) -> Any:
    """A message, or for a long one its length and sum."""
    return message if len(message) < 200 else (len(message), hashlib.sha256(message).hexdigest())


def observe(call: Any, *, stream: bool) -> Observed:
    """Waits for the end of a call, whose answer is one message or a stream, and returns its result."""
    messages: list[Any] = []
    with contextlib.suppress(grpc.RpcError):  # The status says it.
        for message in call if stream else [call.result()]:
            messages.append(brief(message))  # noqa: PERF401 - keeps what came before a failure
    return Observed(
        status=call.code().name,
        details=call.details(),
        messages=tuple(messages),
        initial=pairs(call.initial_metadata()),
        trailers=pairs(call.trailing_metadata()),
    )


class Client:
    """A channel with the four kinds of call.

    Args:
        channel: a grpc.Channel; its stubs know no calls with bytes.
    """

    def __init__(self, channel: Any) -> None:
        self._channel = channel

    def start(self, kind: str, method: str, request: Any, **options: Any) -> Any:
        """Starts a call of a kind such as ``unary_stream``."""
        path = method if method.startswith("/") else f"/{SERVICE}/{method}"
        call = getattr(self._channel, kind)(path)
        return (call if kind.endswith("_stream") else call.future)(request, **{"timeout": SECONDS, **options})

    def unary(self, method: str, request: bytes = b"", **options: Any) -> Observed:
        return observe(self.start("unary_unary", method, request, **options), stream=False)

    def server_stream(self, method: str, request: bytes = b"", **options: Any) -> Observed:
        return observe(self.start("unary_stream", method, request, **options), stream=True)

    def client_stream(self, method: str, requests: Iterable[bytes], **options: Any) -> Observed:
        return observe(self.start("stream_unary", method, iter(requests), **options), stream=False)

    def bidi(self, method: str, requests: Iterable[bytes], **options: Any) -> Observed:
        return observe(self.start("stream_stream", method, iter(requests), **options), stream=True)

    def hang(self, name: str, **options: Any) -> Any:
        """An open call that the server has begun to handle."""
        call = self.start("unary_unary", "Hang", name.encode(), **options)
        wait_for(lambda: self._number("Hanging", name), lambda number: number == 1, 10, "the server has begun")
        return call

    def seen(self, **options: Any) -> Any:
        """Returns the metadata and the deadline that the server sees."""
        return json.loads(self.start("unary_unary", "Seen", b"", **options).result())

    def cancelled_at(self, name: str) -> float:
        """Returns the time at which the server noticed that a call is cancelled; 0 before that."""
        return self._number("Cancelled", name)

    def _number(self, method: str, name: str) -> float:
        return float(self.start("unary_unary", method, name.encode()).result())


def messages(count: int, size: int) -> list[bytes]:
    """Messages that differ."""
    return [number.to_bytes(4, "big").ljust(size, b"y") for number in range(count)]


def stream_request(count: int, size: int, **more: Any) -> bytes:
    return json.dumps({"count": count, "size": size, **more}).encode()


def fail_request(code: int, details: str, trailers: Iterable[tuple[str, str]] = ()) -> bytes:
    return json.dumps({"code": code, "details": details, "trailers": list(trailers)}).encode()


def seen_by_the_server(client: Client, **options: Any) -> Any:
    """The metadata as the server got it, and whether there was a deadline."""
    seen = client.seen(**options)
    return pairs(map(tuple, seen["metadata"])), seen["seconds"] is None


def deadlines(client: Client) -> Any:
    """Each deadline as the server sees it; gRPC sends three or four digits of it."""
    found = []
    for seconds in (20, 300, 7200):
        left = client.seen(timeout=seconds)["seconds"]
        found.append(seconds if seconds - 5 < left < seconds * 1.01 else left)
    return found


def deadline_exceeded(client: Client) -> Any:
    """The client's status, and that the server stops too."""
    name = uuid.uuid4().hex
    call = client.hang(name, timeout=1.0)
    observed = observe(call, stream=False)
    wait_for(lambda: client.cancelled_at(name), bool, 10, "the server has stopped")
    return observed.status, observed.messages


def initial_metadata_first(client: Client) -> Any:
    """The server's initial metadata comes before the client has sent any message."""
    sent = threading.Event()

    def requests() -> Iterator[bytes]:
        assert sent.wait(SECONDS)
        yield b"late"

    call = client.start("stream_stream", "Bidi", requests(), metadata=[("back-x", "1")])
    first = pairs(call.initial_metadata())
    sent.set()
    return first, observe(call, stream=True)


def ping_pong(client: Client) -> Any:
    """Each request of a stream is sent only when the answer to the last one is there."""
    answered = threading.Semaphore(1)

    def requests() -> Iterator[bytes]:
        for message in messages(50, 10):
            assert answered.acquire(timeout=SECONDS)
            yield message

    call = client.start("stream_stream", "Bidi", requests())
    found = []
    for answer in call:
        found.append(answer)
        answered.release()
    return found, call.code().name


def early_error(client: Client) -> Any:
    """The server fails while the client still sends; how much the client could send is not compared."""
    stop = threading.Event()

    def requests() -> Iterator[bytes]:
        yield b"first"
        while not stop.wait(0.005):
            yield b"x" * 10_000

    observed = client.client_stream("EarlyError", requests())
    stop.set()
    return observed


def slow_reader(client: Client) -> Any:
    """A stream of 32 MiB to a client that does not read for a moment."""
    call = client.start("unary_stream", "ServerStream", stream_request(64, MIB // 2))
    time.sleep(1)
    return observe(call, stream=True)


def half_read_then_cancelled(client: Client) -> Any:
    call = client.start("unary_stream", "ServerStream", stream_request(10**6, 1000))
    first = [next(call) for _ in range(3)]
    call.cancel()
    return [brief(message) for message in first], call.code().name


DETAILS_BIN = "0805120474657874"
LARGE = [("back-large", "v" * 16 * 1024)]
SPREAD = [(f"back-{number}", "v" * 500) for number in range(32)]
BINARY = [("back-all-bin", bytes(range(256))), ("back-empty-bin", b""), ("back-twice", "1"), ("back-twice", "2")]

CASES: dict[str, Callable[[Client], Any]] = {
    "unary": lambda client: client.unary("Unary", b"hello"),
    "unary, empty": lambda client: client.unary("Unary", b""),
    "unary, 4 MiB": lambda client: client.unary("Unary", b"m" * 4 * MIB),
    "unary, 16 MiB": lambda client: client.unary("Unary", bytes(range(256)) * (16 * MIB // 256)),
    "server stream": lambda client: client.server_stream("ServerStream", stream_request(20, 100)),
    "server stream, none": lambda client: client.server_stream("ServerStream", stream_request(0, 0)),
    "server stream, empty ones": lambda client: client.server_stream("ServerStream", stream_request(5, 0)),
    "server stream, 16 MiB": lambda client: client.server_stream("ServerStream", stream_request(1, 16 * MIB)),
    "server stream, many": lambda client: client.server_stream("ServerStream", stream_request(MANY_MESSAGES, 8)),
    "server stream, slow reader": slow_reader,
    "server stream, fails after 3": lambda client: client.server_stream(
        "ServerStream", stream_request(3, 9, fail="gone")
    ),
    "server stream, read in part": half_read_then_cancelled,
    "client stream": lambda client: client.client_stream("ClientStream", messages(20, 100)),
    "client stream, none": lambda client: client.client_stream("ClientStream", []),
    "client stream, empty ones": lambda client: client.client_stream("ClientStream", [b""] * 5),
    "client stream, 16 MiB": lambda client: client.client_stream("ClientStream", [b"m" * 16 * MIB]),
    "client stream, many": lambda client: client.client_stream("ClientStream", messages(MANY_MESSAGES, 8)),
    "client stream, early error": early_error,
    "bidi": lambda client: client.bidi("Bidi", messages(20, 100)),
    "bidi, none": lambda client: client.bidi("Bidi", []),
    "bidi, 4 MiB each": lambda client: client.bidi("Bidi", [b"m" * 4 * MIB] * 4),
    "bidi, many": lambda client: client.bidi("Bidi", messages(MANY_MESSAGES, 8)),
    "bidi, one after the other": ping_pong,
    "bidi, answers after half-close": lambda client: client.bidi("AfterHalfClose", messages(100, 1000)),
    "initial metadata first": initial_metadata_first,
    "metadata of 16 KiB in one": lambda client: client.unary("Unary", b"x", metadata=LARGE),
    "metadata of 16 KiB in many": lambda client: client.unary("Unary", b"x", metadata=SPREAD),
    "metadata, binary and twice": lambda client: client.unary("Unary", b"x", metadata=BINARY),
    "metadata of a stream": lambda client: client.bidi("Bidi", [b"x"], metadata=SPREAD),
    "metadata as the server sees it": lambda client: seen_by_the_server(client, metadata=BINARY + SPREAD[:3]),
    "no deadline": lambda client: seen_by_the_server(client, timeout=None),
    "deadlines": deadlines,
    "deadline exceeded": deadline_exceeded,
    "status codes": lambda client: [client.unary("Fail", fail_request(code, "why")) for code in STATUS_CODES],
    "details, not ASCII": lambda client: client.unary("Fail", fail_request(9, "kein Gerät: 100 % ☠ \n\t'\"")),
    "details, long": lambda client: client.unary("Fail", fail_request(9, "d" * 4000)),
    "status details": lambda client: client.unary(
        "Fail", fail_request(5, "no", [("grpc-status-details-bin", DETAILS_BIN), ("reason", "gone")])
    ),
    "unimplemented method": lambda client: client.unary("NoSuchMethod"),
    "unimplemented method of a stream": lambda client: client.bidi("NoSuchMethod", [b"x"]),
    "unimplemented service": lambda client: client.unary(
        "/tests.NoSuchService/Method", metadata=[("x-application", "probe")]
    ),
    "gzip from the client": lambda client: client.unary("Unary", b"z" * 100_000, compression=grpc.Compression.Gzip),
    "gzip of a stream": lambda client: client.bidi("Bidi", messages(9, 9999), compression=grpc.Compression.Gzip),
    "gzip as the server sees it": lambda client: seen_by_the_server(client, compression=grpc.Compression.Gzip),
    "gzip from the server": lambda client: client.unary("Compressed", b"z" * 100_000),
}
# The statuses of cases that fail on purpose, because two equal faults would be equal too.
STATUSES = {
    "server stream, fails after 3": "DATA_LOSS",
    "client stream, early error": "FAILED_PRECONDITION",
    "details, not ASCII": "FAILED_PRECONDITION",
    "details, long": "FAILED_PRECONDITION",
    "status details": "NOT_FOUND",
    "unimplemented method": "UNIMPLEMENTED",
    "unimplemented method of a stream": "UNIMPLEMENTED",
    "unimplemented service": "UNIMPLEMENTED",
}


@pytest.fixture(scope="module")
def server(stack: LocalDriver) -> Iterator[RegisteredServer]:
    """A server of ``tests.Probe``, which gets all calls to that service."""
    with running_server(stack, 1) as server:
        yield server


@pytest.fixture(scope="module")
def direct(server: RegisteredServer) -> Iterator[Client]:
    """A client of the server itself."""
    with open_channel(server.target) as channel:
        yield Client(channel)


@pytest.fixture(scope="module")
def through(stack: LocalDriver, server: RegisteredServer) -> Iterator[Client]:  # noqa: ARG001 - it has to run
    """A client of the balancer."""
    with open_channel(f"127.0.0.1:{stack.port}") as channel:
        yield Client(channel)


@pytest.mark.parametrize("case", CASES)
def test_a_call_through_the_balancer_is_as_without_it(direct: Client, through: Client, case: str) -> None:
    wanted = CASES[case](direct)
    assert CASES[case](through) == wanted
    if isinstance(wanted, Observed):
        assert wanted.status == STATUSES.get(case, "OK"), wanted


def test_deadlines_arrive_as_deadlines(through: Client) -> None:
    assert deadlines(through) == [20, 300, 7200]


def test_a_cancellation_arrives_within_100_ms(direct: Client, through: Client) -> None:
    milliseconds = {name: cancellations(client) for name, client in (("direct", direct), ("through", through))}
    for name, found in milliseconds.items():
        print(f"{name}: {len(found)} cancellations, median {statistics.median(found):.1f} ms, worst {max(found):.1f}")
    assert statistics.median(milliseconds["through"]) < 100, milliseconds


def cancellations(client: Client) -> list[float]:
    """Measures how long each cancelled call continues at the server, in milliseconds."""
    found = []
    for _ in range(CANCELLATIONS):
        name = uuid.uuid4().hex
        call = client.hang(name)
        began = time.monotonic()
        call.cancel()
        ended = wait_for(lambda name=name: client.cancelled_at(name), bool, 10, "the server has stopped")  # type: ignore[misc]
        found.append((ended - began) * 1000)
    return found
