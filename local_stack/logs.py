"""What the containers print, each line with its container's name."""

from __future__ import annotations

import datetime
import re
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from local_stack.stack import Stack

_POLL_SECONDS = 0.2
# What the programs of the stack begin their lines with, behind the program's name: supervisord's, nginx's and ISO 8601.
# Only what says that it is UTC is; the others are in the machine's time zone.
_TIME = re.compile(r"(?:[\w-]+ \| )?(?:[\w./-]+: )?(\d{4})[-/](\d\d)[-/](\d\d)[T ](\d\d):(\d\d):(\d\d)(?:[.,]\d+)?(Z)?")


def show(
    stack: Stack,
    names: Sequence[str],
    out: TextIO,
    *,
    follow: bool,
    lines: int | None,
    since: datetime.datetime | None = None,
) -> None:
    """Prints the logs of containers; with ``follow`` until interrupted, containers that come later included.

    Args:
        stack: whose.
        names: of containers or services; none is all.
        out: where to.
        follow: go on.
        lines: the last so many of each container; None is all.
        since: only lines from then on; a line without a time has that of the one before it.
    """
    offsets: dict[Path, int] = {}
    containers = stack.containers(names)
    width = max((len(container.name) for container in containers), default=0)
    for container in containers:
        for line in _tail(later(_news(container.log, offsets), since), lines):
            print(f"{container.name:{width}} | {line}", file=out)
    while follow:
        out.flush()
        time.sleep(_POLL_SECONDS)
        for container in stack.containers():
            if not names or container.name in names or container.service.name in names:
                for line in _news(container.log, offsets):
                    print(f"{container.name:{width}} | {line}", file=out)


def _tail(everything: Iterable[str], lines: int | None) -> list[str]:
    # All are read in any case: what is shown later are the ones behind them.
    return list(deque(everything, maxlen=lines))


def later(lines: Iterable[str], since: datetime.datetime | None) -> Iterator[str]:
    """The lines from that time on."""
    shown = since is None
    for line in lines:
        if since is not None:
            at = _time_of(line)
            shown = shown if at is None else at >= since.replace(microsecond=0)
        if shown:
            yield line


def _time_of(line: str) -> datetime.datetime | None:
    found = _TIME.match(line)
    if not found:
        return None
    try:
        at = datetime.datetime(*map(int, found.groups()[:6]), tzinfo=datetime.UTC if found[7] else None)  # type: ignore[arg-type,misc]
        return at.astimezone(datetime.UTC)
    except (ValueError, OverflowError):
        # It only looks like a time.
        return None


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
