"""What the containers print, each line with its container's name."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from local_stack.stack import Stack

_POLL_SECONDS = 0.2


def show(stack: Stack, names: Sequence[str], out: TextIO, *, follow: bool, lines: int | None) -> None:
    """Prints the logs of containers; with ``follow`` until interrupted, containers that come later included."""
    offsets: dict[Path, int] = {}
    containers = stack.containers(names)
    width = max((len(container.name) for container in containers), default=0)
    for container in containers:
        for line in _tail(container.log, lines, offsets):
            print(f"{container.name:{width}} | {line}", file=out)
    while follow:
        out.flush()
        time.sleep(_POLL_SECONDS)
        for container in stack.containers():
            if not names or container.name in names or container.service.name in names:
                for line in _news(container.log, offsets):
                    print(f"{container.name:{width}} | {line}", file=out)


def _tail(path: Path, lines: int | None, offsets: dict[Path, int]) -> list[str]:
    everything = list(_news(path, offsets))
    return everything if lines is None else list(deque(everything, maxlen=lines))


def _news(path: Path, offsets: dict[Path, int]) -> Iterator[str]:
    """The whole lines that are new since the last look; a file that shrank was rotated and is read from its start."""
    try:
        with path.open("rb") as log:
            size = log.seek(0, 2)
            offset = offsets.get(path, 0)
            log.seek(offset if offset <= size else 0)
            for line in log:
                if not line.endswith(b"\n"):
                    log.seek(-len(line), 1)
                    break
                yield line.decode(errors="replace").rstrip("\n")
            offsets[path] = log.tell()
    except FileNotFoundError:
        return
