"""The control plane's HTTP API on a Unix socket: ``GET /replicas``, which nginx passes on, and ``POST /drop``."""

from __future__ import annotations

import asyncio
import contextlib
import http
import http.client
import http.server
import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from balancer.controller import Controller
from balancer.errors import BalancerError
from balancer.unix import UnixConnection

_TIMEOUT_SECONDS = 5.0
_DROP = "/drop/"


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    # The program ends while a client hangs.
    block_on_close = False


@contextlib.contextmanager
def serve(path: Path, controller: Controller) -> Iterator[None]:
    """Serves at a Unix socket while the block runs, which has the event loop of the controller."""
    loop = asyncio.get_running_loop()

    def ask(work: Callable[[], Any]) -> Any:
        """Runs a method of the controller in its event loop."""

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
            """Logs nothing, because a Unix socket's clients have no address."""

    # A program that was killed leaves its socket.
    path.unlink(missing_ok=True)
    server = _Server(str(path), Handler)
    path.chmod(0o600)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        # Waits in a thread, because a request may wait for the event loop.
        threading.Thread(target=server.shutdown, daemon=True).start()
        path.unlink(missing_ok=True)


def call(path: Path, method: str, url: str) -> dict[str, Any]:
    """Calls the control plane at a Unix socket, and returns its answer.

    Raises:
        BalancerError: the control plane is out of reach, or refuses the call.
    """
    with contextlib.closing(UnixConnection(path, _TIMEOUT_SECONDS)) as connection:
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
    """Drops the held replicas at ``address:port``, and returns their keys.

    Raises:
        BalancerError: the control plane is out of reach.
    """
    return list(call(path, "POST", _DROP + quote(target))["dropped"])
