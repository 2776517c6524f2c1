"""The control plane's own HTTP, on a Unix socket: ``GET /replicas`` (which nginx passes on) and ``POST /drop``."""

from __future__ import annotations

import asyncio
import contextlib
import http
import http.client
import http.server
import json
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from balancer.controller import Controller
from balancer.errors import BalancerError

_TIMEOUT_SECONDS = 5.0
_DROP = "/drop/"


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    # A client that hangs must not keep the program from ending.
    block_on_close = False


@contextlib.contextmanager
def serve(path: Path, controller: Controller) -> Iterator[None]:
    """Answers at a Unix socket while the block runs; within it runs the event loop of the controller."""
    loop = asyncio.get_running_loop()

    def ask(work: Callable[[], Any]) -> Any:
        """Runs something of the controller where it belongs."""

        async def call() -> Any:
            return work()

        return asyncio.run_coroutine_threadsafe(call(), loop).result(_TIMEOUT_SECONDS)

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = _TIMEOUT_SECONDS

        def do_GET(self) -> None:
            if self.path == "/replicas":
                self._answer(200, ask(controller.describe))
            else:
                self._answer(404, {"error": "there is /replicas"})

        def do_POST(self) -> None:
            if self.path.startswith(_DROP):
                target = unquote(self.path.removeprefix(_DROP))
                self._answer(200, {"dropped": ask(lambda: controller.drop(target))})
            else:
                self._answer(404, {"error": f"there is {_DROP}ADDRESS:PORT"})

        def _answer(self, status: int, fields: dict[str, Any]) -> None:
            body = json.dumps(fields).encode() + b"\n"
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Says nothing: a Unix socket's clients have no address to log."""

    # A killed program leaves its socket.
    path.unlink(missing_ok=True)
    server = _Server(str(path), Handler)
    path.chmod(0o600)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        # Not before the loop has gone on: a request may wait for it.
        threading.Thread(target=server.shutdown, daemon=True).start()
        path.unlink(missing_ok=True)


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("balancer", timeout=_TIMEOUT_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_TIMEOUT_SECONDS)
        self.sock.connect(str(self._path))


def call(path: Path, method: str, url: str) -> dict[str, Any]:
    """Asks the control plane at a Unix socket.

    Raises:
        BalancerError: it is out of reach, or refuses.
    """
    with contextlib.closing(_Connection(path)) as connection:
        try:
            connection.request(method, url)
            response = connection.getresponse()
            answer = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise BalancerError(f"the control plane does not answer at {path}: {error}") from error
    if response.status != http.HTTPStatus.OK:
        raise BalancerError(f"{url}: {answer.get('error', response.status)}")
    return dict(answer)


def drop(path: Path, target: str) -> list[str]:
    """Has the control plane at a Unix socket drop the held replicas at ``address:port``; their keys.

    Raises:
        BalancerError: it is out of reach.
    """
    return list(call(path, "POST", _DROP + quote(target))["dropped"])
