"""Files that another program replaces: read when they have changed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import inotify_simple

LOG = logging.getLogger("balancer")

# For a change that inotify has not told, which it does not owe on every file system.
_LOOK_SECONDS = 1.0


def _read(path: Path) -> str:
    return path.read_text("utf-8")


async def follow_text(path: Path) -> AsyncIterator[str]:
    """The text of a file, now and whenever it has changed; it need not be there."""
    changed = asyncio.Event()
    loop = asyncio.get_running_loop()
    before = None
    with contextlib.ExitStack() as leave:
        try:
            watcher = leave.enter_context(inotify_simple.INotify(nonblocking=True))
            # Whoever writes it writes another file and renames that.
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
