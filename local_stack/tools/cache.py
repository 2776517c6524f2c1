"""The cache: a directory outside the checkout for programs that are downloaded or built, by version."""

import fcntl
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from local_stack.tools.progress import say


def keep(directory: Path, title: str, is_kept: Callable[[], bool], make: Callable[[Path], None]) -> None:
    """Let one process at a time make a program, unless another has made it meanwhile.

    The lock ends with the process, however it ends.

    Args:
        directory: where the program is kept.
        title: its name for messages.
        is_kept: whether the program is there.
        make: puts it into an unfinished directory, from where all files are moved when it has returned.

    Raises:
        OSError: if the cache can't be written.

    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{title}: another process is getting it; waiting for that")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if is_kept():
            return
        for left in directory.glob("unfinished-*"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix="unfinished-", dir=directory, ignore_cleanup_errors=True) as unfinished:
            make(Path(unfinished))
            for made in Path(unfinished).iterdir():
                made.replace(directory / made.name)  # atomic, because it is on the same file system
