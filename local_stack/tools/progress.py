"""Messages to whoever waits: on stderr, one line each."""

import sys
import time

INTERVAL_SECONDS = 15


def say(message: str) -> None:
    """Print one line on stderr."""
    print(f"local_stack: {message}", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Write a duration in words: "45 s", "2 min 5 s"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


class Ticker:
    """Says, about every 15 s, how long something has been going on.

    Args:
        what: what goes on: "building Consul 1.22.7 with Go".
        expected: how long it may take: "about 5 minutes".

    """

    def __init__(self, what: str, expected: str) -> None:
        self._what = what
        self._expected = expected
        self.started = self._last = time.monotonic()

    @property
    def elapsed_seconds(self) -> float:
        """The time since this began."""
        return time.monotonic() - self.started

    def tick(self, more: str = "") -> None:
        """Say it, if it is time to; `more` is said behind it."""
        if time.monotonic() - self._last >= INTERVAL_SECONDS:
            self._last = time.monotonic()
            say(f"{self._what}: {duration(self.elapsed_seconds)} of {self._expected}{more}")
