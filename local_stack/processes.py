"""All processes of a container, found in /proc, including those whose parent has ended."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

# Every process of a container has these two variables: the name of its container, and the directory of its stack.
CONTAINER, DIRECTORY = "LOCAL_STACK_CONTAINER", "LOCAL_STACK_DIRECTORY"


def of_stack(directory: Path) -> dict[str, list[int]]:
    """The ids of all processes that belong to containers of the stack in ``directory``, by container."""
    found: dict[str, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            name = _container(entry, directory)
            if name:
                found.setdefault(name, []).append(int(entry.name))
    return found


def _container(entry: Path, directory: Path) -> str | None:
    try:
        environ = entry.joinpath("environ").read_bytes()
        if entry.joinpath("stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return None
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
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def kill_all(directory: Path, name: str | None = None) -> int:
    """Kills every process of a container, or of all containers; returns how many there were.

    They are stopped first, or a supervisord would restart the programs that die before it.
    """
    count = 0
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        found = of_stack(directory)
        pids = [pid for container, ids in found.items() for pid in ids if name in (None, container)]
        if not pids:
            break
        count = max(count, len(pids))
        send(pids, signal.SIGSTOP)
        send(pids, signal.SIGKILL)
        time.sleep(0.02)
    return count


if __name__ == "__main__":
    kill_all(Path(sys.argv[1]), sys.argv[2])
