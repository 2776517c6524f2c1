"""An event listener of the outer supervisord (supervisord.org/events.html): truncates long logs, every five seconds.

The containers write to their logs directly: supervisord, which could rotate output that passes through it, needs more
time for two lines than the balancer for the call that they describe.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from pathlib import Path

MAX_BYTES = 10_000_000


def main(directory: Path) -> None:
    """Answers each TICK_5 event, until supervisord closes stdin."""
    print("READY", flush=True)
    while header := sys.stdin.readline():
        sys.stdin.read(int(header.rpartition("len:")[2]))
        try:
            rotate(directory)
        except OSError as error:
            print(f"{directory}: {error}", file=sys.stderr, flush=True)
        print("RESULT 2\nOKREADY", flush=True)


def rotate(directory: Path, max_bytes: int = MAX_BYTES) -> None:
    """Truncates each log that is longer than ``max_bytes``, and keeps its lines as ``NAME.log.1``.

    The log is copied and truncated, not renamed, because its writers have it open; they append, so they continue at
    its new end. A line that is written in the microseconds between the two steps is lost.

    Raises:
        OSError: a log can't be copied; it is truncated all the same, or a full disk would stay full.
    """
    for log in sorted(directory.glob("*.log")):
        # A container may be removed, with its log, at any time.
        with contextlib.suppress(FileNotFoundError):
            if log.stat().st_size <= max_bytes:
                continue
            with log.open("r+b") as file:
                try:
                    with log.with_name(f"{log.name}.1").open("wb") as kept:
                        shutil.copyfileobj(file, kept, 1 << 20)
                finally:
                    file.truncate(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
