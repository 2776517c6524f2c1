"""Waits with a deadline; the error has the last value."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from local_stack.processes import is_alive
from testbed.errors import BenchmarkError

T = TypeVar("T")


class NotReachedError(BenchmarkError, AssertionError):
    """A state was not reached in time: a measurement is not possible, and a test fails."""


def wait_for(
    look: Callable[[], T], wanted: Callable[[T], bool], seconds: float, what: str, interval_seconds: float = 0.05
) -> T:
    """Polls ``look`` until ``wanted`` holds for what it returns.

    Raises:
        NotReachedError: that took longer than ``seconds``; with the last value.
    """
    deadline = time.monotonic() + seconds
    while True:
        value = look()
        if wanted(value):
            return value
        if time.monotonic() > deadline:
            raise NotReachedError(f"{what}: not within {seconds:g} s; last seen: {value!r}")
        time.sleep(interval_seconds)


def wait_for_death(old: set[int]) -> None:
    """Waits until none of these processes is left."""
    wait_for(lambda: {pid for pid in old if is_alive(pid)}, lambda left: not left, 30, "the old processes end")
