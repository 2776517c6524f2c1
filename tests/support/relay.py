"""Gives a client another source address, or a server a slow start: passes on connections byte by byte."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from typing import Self


class Relay:
    """A relay to a target; leaving the ``with`` block ends it with its connections.

    Args:
        target: address and port.
        source: the address from which it connects.
        listen: where it listens; by default at a free port.
        delay_seconds: it passes on nothing that a client sends before that.

    Attributes:
        target: where a client connects.
    """

    def __init__(
        self, target: str, source: str, listen: tuple[str, int] = ("127.0.0.1", 0), delay_seconds: float = 0
    ) -> None:
        host, _, port = target.rpartition(":")
        self._to, self._source = (host, int(port)), source
        self._delay_seconds = delay_seconds
        self._listener = socket.create_server(listen)
        self._sockets: list[socket.socket] = [self._listener]
        self.target = f"{listen[0]}:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._sockets:
            # Wakes the thread that waits for it.
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                mine, _ = self._listener.accept()
                self._sockets.append(mine)
                try:
                    theirs = socket.create_connection(self._to, 5, (self._source, 0))
                except OSError:
                    mine.close()
                    continue
                theirs.settimeout(None)
                self._sockets.append(theirs)
                for one, other, delay in ((mine, theirs, self._delay_seconds), (theirs, mine, 0)):
                    threading.Thread(target=_copy, args=(one, other, delay), daemon=True).start()


def _copy(source: socket.socket, to: socket.socket, delay_seconds: float) -> None:
    time.sleep(delay_seconds)
    with suppress(OSError):
        while part := source.recv(65_536):
            to.sendall(part)
    with suppress(OSError):
        to.shutdown(socket.SHUT_RDWR)
