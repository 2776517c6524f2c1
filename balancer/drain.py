"""``python -m balancer.drain SOCKET SECONDS``: has Envoy take no connections any more, and waits for its calls.

SOCKET is that of Envoy's administration interface. It is a program of its own, because it must start at once.
"""

from __future__ import annotations

import http.client
import json
import socket
import sys
import time

_POLL_SECONDS = 0.1
# A call that was on its way when its client got the GOAWAY arrives within the drain_timeout of the listener.
_LEAST_SECONDS = 1.2
_CALLS = "http.calls.downstream_rq_active"


class _Connection(http.client.HTTPConnection):
    """A connection to a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=5)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _ask(path: str, method: str, target: str) -> bytes:
    connection = _Connection(path)
    try:
        connection.request(method, target)
        return connection.getresponse().read()
    finally:
        connection.close()


def _count_calls(path: str) -> int:
    stats = json.loads(_ask(path, "GET", f"/stats?format=json&filter=^{_CALLS}$"))["stats"]
    return sum(int(one["value"]) for one in stats if one.get("name") == _CALLS)


def drain(path: str, seconds: float) -> int:
    """Drains an Envoy, and returns how many calls were left after so many seconds at the most.

    Raises:
        OSError, http.client.HTTPException, ValueError: it does not answer.
    """
    began = time.monotonic()
    # Connections get a GOAWAY with their next answer; the second request closes the ports.
    _ask(path, "POST", "/drain_listeners?graceful&skip_exit")
    _ask(path, "POST", "/drain_listeners")
    while True:
        calls, passed = _count_calls(path), time.monotonic() - began
        if (calls == 0 and passed >= _LEAST_SECONDS) or passed >= seconds:
            return calls
        time.sleep(_POLL_SECONDS)


def main() -> int:
    """Drains, and returns the exit code: 0 done, 1 Envoy does not answer or still has calls."""
    path, seconds = sys.argv[1:]
    try:
        calls = drain(path, float(seconds))
    except (OSError, http.client.HTTPException, ValueError) as error:
        print(f"no drain: {error}", file=sys.stderr)
        return 1
    print(f"drained, calls={calls}", file=sys.stderr)
    return 1 if calls else 0


if __name__ == "__main__":
    sys.exit(main())
