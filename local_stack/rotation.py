"""Keeps the containers' logs short, inside of the outer supervisord, which loads it as a plug-in.

The containers write to their logs themselves: supervisord, which could rotate what passes through it, takes longer for
two lines than the balancer for the call that they are of. It looks at their sizes instead, every five seconds.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

from supervisor import events

MAX_BYTES = 10_000_000


class _Nothing:
    """An interface of no methods."""


def make_interface(supervisord: Any, **settings: str) -> _Nothing:
    """A factory of XML-RPC interfaces (supervisord.org/xmlrpc.html), of which supervisord calls each at its start.

    Args:
        supervisord: itself, with the log that says when a log can't be rotated.
        settings: of its section: ``directory``, of the logs.
    """
    directory = Path(settings["directory"])

    def look(_: events.Event) -> None:
        # An error that went on from here would be supervisord's end.
        try:
            rotate(directory)
        except OSError as error:
            supervisord.options.logger.warn(f"logs: {error}")  # noqa: G004, G010 - its own kind of logger

    events.subscribe(events.Tick5Event, look)
    return _Nothing()


def rotate(directory: Path, max_bytes: int = MAX_BYTES) -> None:
    """Begins each log anew that is longer than that, and keeps what was in it as ``NAME.log.1``.

    The log is copied and emptied and not renamed, since its writers have it open; they append, so that they go on at
    its new end. A line that is written in the microseconds between the two is lost.

    Raises:
        OSError: one can't be copied; it is emptied all the same, or a full disk would stay full.
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
