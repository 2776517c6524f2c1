"""Gives a client another source address: passes on its connections byte by byte."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Self


class Relay:
    """A relay to a target; leaving the ``with`` block ends it with its connections.

    Args:
        target: address and port.
        source: the address from which it connects.

    Attributes:
        target: where a client connects.
    """

    def __init__(self, target: str, source: str) -> None:
        host, _, port = target.rpartition(":")
        self._to, self._source = (host, int(port)), source
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = [self._listener]
        self.target = f"127.0.0.1:{self._listener.getsockname()[1]}"
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
                for one, other in ((mine, theirs), (theirs, mine)):
                    threading.Thread(target=_copy, args=(one, other), daemon=True).start()


def _copy(source: socket.socket, to: socket.socket) -> None:
    with suppress(OSError):
        while part := source.recv(65_536):
            to.sendall(part)
    with suppress(OSError):
        to.shutdown(socket.SHUT_RDWR)
