"""Waiting with a deadline that says what was seen last."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def wait_for(look: Callable[[], T], wanted: Callable[[T], bool], seconds: float, what: str) -> T:
    """Polls ``look`` until ``wanted`` holds for what it returns.

    Raises:
        AssertionError: that took longer than ``seconds``; with the last value.
    """
    deadline = time.monotonic() + seconds
    while True:
        value = look()
        if wanted(value):
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds:g} s; last seen: {value!r}")
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """Whether a process is there; one that waits for its parent to notice its end is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for_death(old: set[int]) -> None:
    """Waits until none of these processes is left."""
    wait_for(lambda: {pid for pid in old if is_alive(pid)}, lambda left: not left, 30, "the old processes end")
