"""One form of log line for all programs: UTC time, level, logger name, message."""

from __future__ import annotations

import logging
import sys
import time

# Names in the catalogue and answers of other programs may have any length.
_MOST = 4000


class _Formatter(logging.Formatter):
    """Limits the length of the message; a stack trace keeps its lines."""

    converter = staticmethod(time.gmtime)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        if len(record.message) > _MOST:
            record.message = f"{record.message[:_MOST]}... ({len(record.message)} characters)"
        return super().formatMessage(record)


def configure() -> None:
    """Sends log lines to stderr, one line an event."""
    formatter = _Formatter("%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s %(message)s", "%Y-%m-%dT%H:%M:%S")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
