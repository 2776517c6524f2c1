"""Directories, addresses and ports of the stacks of a test run, so that two runs on one machine do not meet."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from tests.support.drivers import LocalDriver
from tests.support.scenarios import wait_for_replicas

# Part of addresses and ports, by process.
SLOT = os.getpid() % 100


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
