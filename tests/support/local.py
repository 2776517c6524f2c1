"""Directories, addresses and ports of the stacks of a test run, so that two runs on one machine do not meet."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

from tests.support.drivers import LocalDriver
from tests.support.scenarios import wait_for_replicas

_SLOTS = 40


def _claim() -> tuple[int, IO[str]]:
    """Returns a slot that no other run on this machine has, and the file whose lock says so until this process ends."""
    for number in range(os.getpid(), os.getpid() + _SLOTS):
        file = Path(tempfile.gettempdir(), f"glb-slot-{number % _SLOTS}").open("w")  # noqa: SIM115
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return number % _SLOTS, file
    raise RuntimeError(f"{_SLOTS} runs are going on")


# Part of addresses and ports.
SLOT, _SLOT_FILE = _claim()


def with_replicas(stack: LocalDriver, count: int, **env: str) -> Iterator[LocalDriver]:
    """Gives the stack so many replicas and these variables; afterwards one replica and its own variables."""
    stack.up(count, **env)
    wait_for_replicas(stack, count)
    yield stack
    stack.up(1)
    wait_for_replicas(stack, 1)


def short_home(name: str) -> Path:
    """Returns a directory for a stack; pytest's are too long for the paths of Unix sockets."""
    parent = Path(os.environ.get("TMPDIR", "/tmp")) / f"glb-{os.getpid()}"  # noqa: S108
    parent.mkdir(exist_ok=True)
    return parent / name
