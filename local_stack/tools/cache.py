"""The directory that downloaded and built tools are kept in, outside the checkout and by version."""

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from local_stack.tools.catalogue import Tool
from local_stack.tools.places import Places
from local_stack.tools.probe import check
from local_stack.tools.progress import say

_STAGING = "unfinished-"


@contextmanager
def exclusive(tool: Tool, places: Places) -> Iterator[None]:
    """Be the only process that puts this tool into the cache; wait, with a message, for one that does.

    The lock ends with the process, however it ends.

    Raises:
        OSError: if the cache can't be written.

    """
    directory = places.cached(tool).parent
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{tool}: another process is getting it; waiting for that")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def staging(tool: Tool, places: Places) -> Iterator[Path]:
    """Give a directory for unfinished work, on the cache's file system; it does not outlive the work.

    Only the process that has the lock has one, so what is found there was left by a process that was killed.
    """
    directory = places.cached(tool).parent
    for left in directory.glob(f"{_STAGING}*"):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_STAGING, dir=directory, ignore_cleanup_errors=True) as unfinished:
        yield Path(unfinished)


def keep(tool: Tool, places: Places, made: Path) -> Path:
    """Put a finished program into the cache, at once and whole, and return its path there.

    Raises:
        UnavailableError: if it is not a suitable one after all.

    """
    made.chmod(0o755)
    check(tool, made)
    cached = places.cached(tool)
    made.replace(cached)  # atomic: staging is on the same file system
    return cached
