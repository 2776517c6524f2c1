"""Waiting with a deadline that says what was seen last."""

from __future__ import annotations

import time
from collections.abc import Callable
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
