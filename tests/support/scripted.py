"""Replicas that speak HTTP/2 only as far as a test wants."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

from tests.support import frames

# The answer of a connection, by its number, to a stream; to stream 0 what is sent first. None ends the connection.
Answer = Callable[[int, int], bytes | None]
# The frames of the answer to a stream; an empty text ends the connection.
Script = Callable[[int], bytes]


class RawReplica:
    """Listens at an address, and answers each call when the client has sent it whole.

    Attributes:
        accepted: the count of connections so far.
        open: the connections that are open.
        received: the kinds of the frames of each part that was received.
    """

    def __init__(self, address: str, port: int, answer: Answer) -> None:
        self.accepted = 0
        self.open: set[socket.socket] = set()
        self.received: list[list[int]] = []
        self._answer = answer
        self._listener = socket.create_server((address, port), backlog=64)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Ends it with its connections."""
        # close() alone would leave them to the threads that wait.
        for one in (self._listener, *list(self.open)):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.accepted += 1
                self.open.add(connection)
                threading.Thread(target=self._serve, args=(connection, self.accepted), daemon=True).start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError), connection:
            self._speak(connection, number)
        self.open.discard(connection)

    def _speak(self, connection: socket.socket, number: int) -> None:
        rest, answers = b"", [self._answer(number, 0)]
        while True:
            for answer in answers:
                if answer is None:
                    return
                connection.sendall(answer)
            part = connection.recv(65536)
            if not part:
                return
            found, rest = frames.whole((rest + part).removeprefix(frames.MAGIC))
            self.received.append([kind for kind, _, _ in found])
            ended = [
                stream
                for kind, flags, stream in found
                if kind in (frames.DATA, frames.HEADERS) and flags & frames.END_STREAM
            ]
            answers = [frames.frame(frames.SETTINGS, frames.ACK)] * (frames.SETTINGS in self.received[-1])
            answers += [self._answer(number, stream) for stream in ended]


class Scripted(RawReplica):
    """Answers every call with the frames of a script, which a test may replace."""

    def __init__(self, address: str, port: int, script: Script) -> None:
        self.script = script
        super().__init__(
            address, port, lambda _, stream: (self.script(stream) or None) if stream else frames.settings()
        )

    @property
    def calls(self) -> int:
        """The count of calls that have begun here."""
        return sum(kinds.count(frames.HEADERS) for kinds in list(self.received))
