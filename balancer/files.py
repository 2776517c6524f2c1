"""Reads a file each time that another program replaces it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import inotify_simple

LOG = logging.getLogger("balancer")

# The file is also read at this interval, because inotify does not report changes on every file system.
_LOOK_SECONDS = 1.0


def _read(path: Path) -> str:
    return path.read_text("utf-8")


async def follow_text(path: Path) -> AsyncIterator[str]:
    """Yields the text of a file, now and after each change; the file need not exist."""
    changed = asyncio.Event()
    loop = asyncio.get_running_loop()
    before = None
    with contextlib.ExitStack() as leave:
        try:
            watcher = leave.enter_context(inotify_simple.INotify(nonblocking=True))
            # The other program writes another file and renames it.
            watcher.add_watch(path.parent, inotify_simple.flags.MOVED_TO | inotify_simple.flags.CLOSE_WRITE)
        except OSError as error:
            LOG.warning("no notice of changes, looking every %g s reason=%s", _LOOK_SECONDS, error)
        else:

            def notice() -> None:
                if any(event.name == path.name for event in watcher.read(timeout=0)):
                    changed.set()

            loop.add_reader(watcher.fileno(), notice)
            leave.callback(loop.remove_reader, watcher.fileno())
        while True:
            with contextlib.suppress(OSError, UnicodeDecodeError):
                text = _read(path)
                if text != before:
                    before = text
                    yield text
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), _LOOK_SECONDS)
            changed.clear()
