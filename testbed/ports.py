"""TCP ports: free ones, and those at which a program listens."""

from __future__ import annotations

import socket
from contextlib import ExitStack


def free_ports(count: int, address: str = "127.0.0.1") -> list[int]:
    """Returns ports of an address on which nothing listened a moment ago."""
    with ExitStack() as sockets:
        found = [sockets.enter_context(socket.create_server((address, 0))) for _ in range(count)]
        return [int(one.getsockname()[1]) for one in found]


def listens(address: str, port: int) -> bool:
    """Returns whether a program listens at an address and port.

    It connects: a port that can't be bound may be one at which nothing listens yet.
    """
    with socket.socket() as connection:
        return connection.connect_ex((address, port)) == 0
