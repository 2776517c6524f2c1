"""One form of log line for all programs: UTC time, level, logger name, message."""

from __future__ import annotations

import logging
import sys
import time
from typing import Protocol

# Names in the catalogue and answers of other programs may have any length.
_MOST = 4000
_TIME = "%Y-%m-%dT%H:%M:%S"


class Stream(Protocol):
    """What lines are written to."""

    def write(self, lines: str, /) -> object:
        """Writes lines."""

    def flush(self) -> object:
        """Sends them on."""


class _Formatter(logging.Formatter):
    """Limits the length of the message; a stack trace keeps its lines."""

    converter = staticmethod(time.gmtime)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        if len(record.message) > _MOST:
            record.message = f"{record.message[:_MOST]}... ({len(record.message)} characters)"
        return super().formatMessage(record)


def configure(stream: Stream | None = None) -> None:
    """Sends log lines to a stream, by default stderr, one line an event."""
    formatter = _Formatter("%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s %(message)s", _TIME)
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


class Lines:
    """Writes lines as :func:`configure` has them, for a line a call: in a tenth of the time that logging needs.

    Args:
        stream: gets the lines.
        name: the logger's.
    """

    def __init__(self, stream: Stream, name: str) -> None:
        self._stream = stream
        self._name = name
        # Calls come many in a second and some in a millisecond, so the begin of a line is kept.
        self._second = self._milliseconds = -1
        self._time = self._begin = ""

    def info(self, message: str) -> None:
        """Writes one line; the message must be short and have no line break."""
        milliseconds = time.time_ns() // 1_000_000
        if milliseconds != self._milliseconds:
            second, rest = divmod(milliseconds, 1000)
            if second != self._second:
                self._time = time.strftime(_TIME, time.gmtime(second))
                self._second = second
            self._begin = f"{self._time}.{rest:03d}Z INFO {self._name} "
            self._milliseconds = milliseconds
        self._stream.write(f"{self._begin}{message}\n")
