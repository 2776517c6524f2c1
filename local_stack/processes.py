"""Processes, read from /proc: those of a container, including those whose parent has ended, and their signals."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")
# Every process of a container has these two variables: the name of its container, and the directory of its stack.
CONTAINER, DIRECTORY = "LOCAL_STACK_CONTAINER", "LOCAL_STACK_DIRECTORY"


def stat(pid: int) -> list[str]:
    """Returns the fields of /proc/PID/stat behind the name: state, parent, group, session (proc_pid_stat(5))."""
    return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()


def is_alive(pid: int) -> bool:
    """Returns whether a process runs; a zombie does not."""
    try:
        return stat(pid)[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def running() -> Iterator[tuple[int, list[str]]]:
    """Yields the id and the :func:`stat` of every other process that runs."""
    for entry in PROC.iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):  # it has ended meanwhile
                fields = stat(int(entry.name))
                if fields[0] != "Z":
                    yield int(entry.name), fields


def in_directory(directory: Path) -> list[int]:
    """Returns the processes whose working directory is this one."""
    found = []
    for pid, _ in running():
        with suppress(OSError):
            if (PROC / str(pid) / "cwd").readlink() == directory:
                found.append(pid)
    return found


def of_stack(directory: Path) -> dict[str, list[int]]:
    """Returns the ids of all processes that belong to containers of the stack in ``directory``, by container."""
    found: dict[str, list[int]] = {}
    for pid, _ in running():
        if name := _container(PROC / str(pid), directory):
            found.setdefault(name, []).append(pid)
    return found


def _container(entry: Path, directory: Path) -> str | None:
    try:
        environ = entry.joinpath("environ").read_bytes()
        if b"PATH=" in environ:
            variables = dict(item.partition(b"=")[::2] for item in environ.split(b"\0"))
            if variables.get(DIRECTORY.encode()) == os.fsencode(directory):
                return os.fsdecode(variables.get(CONTAINER.encode(), b"")) or None
            return None
        # nginx writes its title over its environment; its working directory is the container's.
        working = entry.joinpath("cwd").readlink()
    except OSError:
        # It has ended meanwhile, or is another user's.
        return None
    containers = directory / "containers"
    return working.relative_to(containers).parts[0] if containers in working.parents else None


def send(pids: Iterable[int], number: int) -> None:
    """Sends a signal to processes; one that has ended is not an error."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def kill_all(directory: Path, name: str | None = None) -> int:
    """Kills every process of a container, or of all containers; returns how many there were.

    They are stopped first, or a supervisord would restart the programs that die before it.
    """
    count = 0

    def none_is_left() -> bool:
        nonlocal count
        found = of_stack(directory)
        pids = [pid for container, ids in found.items() for pid in ids if name in (None, container)]
        count = max(count, len(pids))
        send(pids, signal.SIGSTOP)
        send(pids, signal.SIGKILL)
        return not pids

    wait_until(none_is_left, 10, 0.02)
    return count


def wait_until(reached: Callable[[], bool], seconds: float, interval: float = 0.05) -> bool:
    """Polls until ``reached()``; returns False when that takes longer than ``seconds``."""
    deadline = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > deadline:
            return False
        time.sleep(interval)
    return True


if __name__ == "__main__":
    kill_all(Path(sys.argv[1]), sys.argv[2])
