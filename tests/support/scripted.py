"""Replicas of raw HTTP/2, which answer with the frames that a test wants."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable

from tests.support import frames
from tests.support.frames import Frame

# Of a stream, the frames of the answer; an empty text ends the connection.
Script = Callable[[int], bytes]


class RawServer:
    """Listens at an address; acknowledges settings by itself.

    Args:
        address, port: where.
        context: of TLS; None for clear text.
        reply: returns what is sent on a connection (its number) for frames that have come, which are none when it has
            been made; None ends it.

    Attributes:
        accepted: how many connections there have been.
        open: those that are open.
    """

    def __init__(
        self,
        address: str,
        port: int,
        reply: Callable[[int, list[Frame]], bytes | None],
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.accepted = 0
        self.open: set[socket.socket] = set()
        self._reply = reply
        self._context = context
        self._listener = socket.create_server((address, port), backlog=64)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.accepted += 1
                self.open.add(connection)
                threading.Thread(target=self._speak, args=(connection, self.accepted), daemon=True).start()

    def _speak(self, connection: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError), connection:
            if self._context:
                connection = self._context.wrap_socket(connection, server_side=True)
            received, said = b"", self._reply(number, [])
            while said is not None:
                connection.sendall(said)
                part = connection.recv(65536)
                if not part:
                    break
                found, received = frames.whole((received + part).removeprefix(frames.MAGIC))
                if any(one.kind == frames.SETTINGS and not one.flags & frames.ACK for one in found):
                    connection.sendall(frames.frame(frames.SETTINGS, frames.ACK))
                said = self._reply(number, found) if found else b""
        self.open.discard(connection)

    def close(self) -> None:
        """Listens no more, and ends its connections."""
        for one in (self._listener, *list(self.open)):
            with contextlib.suppress(OSError):
                # A thread that waits for it would keep it open.
                one.shutdown(socket.SHUT_RDWR)
        self._listener.close()


class Scripted(RawServer):
    """Answers every call as its script says, when the request has ended.

    Attributes:
        calls: how many have begun here.
    """

    def __init__(self, address: str, port: int, script: Script, context: ssl.SSLContext | None = None) -> None:
        self.script = script
        self.calls = 0
        self._lock = threading.Lock()
        super().__init__(address, port, self._answer, context)

    def _answer(self, _number: int, found: list[Frame]) -> bytes | None:
        if not found:
            return frames.settings()
        with self._lock:
            self.calls += sum(one.kind == frames.HEADERS for one in found)
        ended = [one for one in found if one.kind in (frames.HEADERS, frames.DATA) and one.flags & frames.END_STREAM]
        said = [self.script(one.stream) for one in ended]
        return b"".join(said) if all(said) else None
