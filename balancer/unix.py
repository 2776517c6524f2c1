"""HTTP by a Unix socket, as the control plane's own API and Envoy's administration interface have it."""

from __future__ import annotations

import http.client
import socket
from pathlib import Path


class UnixConnection(http.client.HTTPConnection):
    """A connection to the server at a Unix socket.

    Args:
        path: the socket's.
        timeout_seconds: for each step of a request.
    """

    def __init__(self, path: str | Path, timeout_seconds: float) -> None:
        super().__init__("localhost", timeout=timeout_seconds)
        self._path = str(path)

    def connect(self) -> None:
        """Connects, as each request does that has no connection."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
