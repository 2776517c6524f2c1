"""What local_stack tells the person at the terminal: errors, progress, the ends of logs."""

from __future__ import annotations

import sys
from collections import deque
from pathlib import Path


class LocalStackError(Exception):
    """An expected failure of any part of local_stack; the message has the reason and the remedy."""


class ToolError(LocalStackError):
    """A tool was not found; the message has one line for each way that was tried, and the remedy."""


class UnavailableError(LocalStackError):
    """A tool is unavailable by one of the ways to get it; the message is the reason, on one line."""


def say(message: str) -> None:
    """Prints progress or an error on stderr."""
    print(f"local_stack: {message}", file=sys.stderr, flush=True)


def last_lines(path: Path, count: int) -> list[str]:
    """Returns the last lines of a log, indented."""
    try:
        with path.open(errors="replace") as log:
            return [f"    {line.rstrip()}" for line in deque(log, maxlen=count)]
    except FileNotFoundError:
        return ["    (it has printed nothing)"]
