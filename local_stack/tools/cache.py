"""The cache: a directory outside the checkout for programs that are downloaded or built, by version."""

import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from local_stack.errors import UnavailableError, say

INTERVAL_SECONDS = 15.0
_STOP_SECONDS = 5.0


def keep(directory: Path, title: str, is_kept: Callable[[], bool], make: Callable[[Path], None]) -> None:
    """Lets one process at a time make a program, unless another has made it meanwhile.

    Args:
        directory: the program's in the cache; its lock ends with the process, however that ends.
        title: the program's name for messages.
        is_kept: whether the program is there.
        make: puts it into an unfinished directory, from where all files are moved when it has returned.
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


def run(
    command: Sequence[str], step: str, *, limit_seconds: float, log: Path, cwd: Path, env: Mapping[str, str]
) -> tuple[int, list[str]]:
    """Runs a command, reports its progress, and returns its exit code and the lines of its output.

    No process of the command is left, also after an exception such as KeyboardInterrupt.
    """
    started = time.monotonic()
    with log.open("wb") as output:
        # A session of its own, so that the command's children can be stopped with it.
        process = subprocess.Popen(
            command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        while (elapsed := time.monotonic() - started) < limit_seconds:
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(min(INTERVAL_SECONDS, limit_seconds - elapsed))
                return code, log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            say(f"{step}: {time.monotonic() - started:.0f} s")
        raise UnavailableError(f"{step} did not end within {limit_seconds:.0f} s")
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            if process.poll() is None:
                os.killpg(process.pid, number)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_STOP_SECONDS)
