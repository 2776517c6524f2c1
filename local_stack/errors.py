"""What local_stack tells the person at the terminal: errors and progress."""

from __future__ import annotations

import sys


class LocalStackError(Exception):
    """The stack can't do what was asked; the message says why and what to do."""


def say(message: str) -> None:
    """Prints progress."""
    print(message, file=sys.stderr, flush=True)
