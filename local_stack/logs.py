"""The containers' logs, each line with its container's name."""

from __future__ import annotations

import datetime
import re
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from local_stack.stack import Stack

_POLL_SECONDS = 0.2
# The times at the start of lines, after the program's name: supervisord's form, nginx's and ISO 8601. Those that end
# in Z are UTC, the others are in the machine's time zone.
_TIME = re.compile(r"(?:[\w-]+ \| )?(?:[\w./-]+: )?(\d{4})[-/](\d\d)[-/](\d\d)[T ](\d\d):(\d\d):(\d\d)(?:[.,]\d+)?(Z)?")


def show(
    stack: Stack,
    names: Sequence[str] = (),
    *,
    follow: bool,
    lines: int | None = None,
    since: datetime.datetime | None = None,
) -> None:
    """Prints the logs of the containers or services that are named, or of all.

    Args:
        stack: the stack.
        names: the names of containers or services; none is all.
        follow: whether to wait for more lines, until interrupted, also of containers that start later.
        lines: how many lines of each container, counted from the end; None is all.
        since: the time of the first line; a line without a time has that of the line before it.
    """
    offsets: dict[Path, int] = {}
    containers = stack.containers(names)
    width = max((len(container.name) for container in containers), default=0)
    while True:
        for container in containers:
            # The queue reads all lines, so that the next look starts behind them.
            for line in deque(lines_since(_new_lines(container.log, offsets), since), maxlen=lines):
                print(f"{container.name:{width}} | {line}")
        if not follow:
            return
        sys.stdout.flush()
        time.sleep(_POLL_SECONDS)
        lines = since = None
        containers = [container for container in stack.containers() if container.has_name(names)]


def lines_since(lines: Iterable[str], since: datetime.datetime | None) -> Iterator[str]:
    """Yields the lines from a time on; all lines without one."""
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


def _new_lines(path: Path, offsets: dict[Path, int]) -> Iterator[str]:
    """Yields the complete lines since the last look; one that has become shorter is read from its start."""
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
