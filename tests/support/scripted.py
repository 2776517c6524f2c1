"""A replica that answers every call with the frames that it is told to."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.support import frames

# Of a stream, the frames of the answer; an empty text ends the connection.
Script = Callable[[int], bytes]


class Scripted:
    """Listens at an address.

    Attributes:
        calls: how many have begun here.
    """

    def __init__(self, address: str, port: int, script: Script) -> None:
        self.script = script
        self.calls = 0
        self._lock = threading.Lock()
        self._connections: list[socket.socket] = []
        self._socket = socket.create_server((address, port), backlog=64)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Listens no more, and ends its connections."""
        for one in (self._socket, *self._connections):
            with contextlib.suppress(OSError):
                # A thread that waits for it would keep it open.
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self._connections.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.sendall(frames.settings())
            rest = b""
            while data := connection.recv(65536):
                rest = (rest + data).removeprefix(frames.MAGIC)
                found, rest = _whole(rest)
                for kind, flags, stream in found:
                    if kind == frames.SETTINGS and not flags & frames.ACK:
                        connection.sendall(frames.frame(frames.SETTINGS, frames.ACK))
                    if kind == frames.HEADERS:
                        with self._lock:
                            self.calls += 1
                    if kind in (frames.HEADERS, frames.DATA) and flags & frames.END_STREAM:
                        answer = self.script(stream)
                        if not answer:
                            return
                        connection.sendall(answer)


def _whole(received: bytes) -> tuple[list[tuple[int, int, int]], bytes]:
    """The kind, flags and stream of each frame that has arrived as a whole, and the rest."""
    found, at = [], 0
    while at + 9 <= len(received) and at + 9 + int.from_bytes(received[at : at + 3], "big") <= len(received):
        found.append((received[at + 3], received[at + 4], int.from_bytes(received[at + 5 : at + 9], "big")))
        at += 9 + int.from_bytes(received[at : at + 3], "big")
    return found, received[at:]


@contextmanager
def scripted(address: str, port: int, script: Script) -> Iterator[Scripted]:
    """A replica at an address, while the block runs."""
    made = Scripted(address, port, script)
    try:
        yield made
    finally:
        made.close()
