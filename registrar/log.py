"""One form of log line for all programs: UTC time, level, logger name, message."""

from __future__ import annotations

import logging
import sys
import time


def configure(level: int = logging.INFO) -> None:
    """Sends log lines to stderr, one an event."""
    formatter = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=level, handlers=[handler], force=True)
