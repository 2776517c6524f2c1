"""Progress on stderr, and commands that take long."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from local_stack.tools.errors import UnavailableError

INTERVAL_SECONDS = 15.0
_STOP_SECONDS = 5.0


def say(message: str) -> None:
    """Print one line on stderr."""
    print(f"local_stack: {message}", file=sys.stderr, flush=True)


def run(
    command: Sequence[str], what: str, *, limit_seconds: float, log: Path, cwd: Path, env: Mapping[str, str]
) -> tuple[int, list[str]]:
    """Run a command, say now and then for how long, and return its exit code and the lines of its output.

    Whatever ends the wait, no process of the command is left.

    Raises:
        UnavailableError: if it does not end within the limit.

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
            say(f"{what}: {time.monotonic() - started:.0f} s")
        raise UnavailableError(f"{what} did not end within {limit_seconds:.0f} s")
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            if process.poll() is None:
                os.killpg(process.pid, number)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_STOP_SECONDS)
