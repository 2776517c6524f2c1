"""``python -m balancer.drain SOCKET SECONDS``: has Envoy take no connections any more, and waits for its calls.

SOCKET is that of Envoy's administration interface. It is a program of its own, because it must start at once.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import sys
import time

from balancer.unix import UnixConnection

_POLL_SECONDS, _TIMEOUT_SECONDS = 0.1, 5.0
# A call that was on its way when its client got the GOAWAY arrives within the drain_timeout of the listener.
_LEAST_SECONDS = 1.2
_CALLS = "http.calls.downstream_rq_active"


def _ask(path: str, method: str, target: str) -> bytes:
    with contextlib.closing(UnixConnection(path, _TIMEOUT_SECONDS)) as connection:
        connection.request(method, target)
        return connection.getresponse().read()


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
