"""Starts programs and ends every one of them; reads what they use from /proc."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO

import requests

from testbed.errors import BenchmarkError

_PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")
_STOP_SECONDS = 10.0
_LAST_LINES = 12


class Processes:
    """The programs of one run, each in a process group of its own; leaving the ``with`` block ends them all."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in reversed(list(self._running)):
            self.stop(process)

    def log(self, name: str) -> Path:
        """Where a program's output goes."""
        return self.directory / f"{name}.log"

    def start(
        self, name: str, command: Sequence[str | Path], *, cwd: Path, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Starts a program in the background; ``env`` is added to this process's own."""
        with self.log(name).open("wb") as log:
            return self._spawn(command, cwd, env, log, log)

    def _spawn(
        self,
        command: Sequence[str | Path],
        cwd: Path,
        env: Mapping[str, str] | None,
        stdout: IO[bytes] | int,
        stderr: IO[bytes] | int,
    ) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
        self._running.append(process)
        return process

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        """Ends a program and its children: TERM, and KILL for what is left after some seconds."""
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
        deadline = time.monotonic() + _STOP_SECONDS
        while group_alive(process.pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process in self._running:
            self._running.remove(process)

    def tail(self, name: str) -> str:
        """The last lines that a program printed."""
        if not self.log(name).exists():
            return "    (it has printed nothing)"
        lines = self.log(name).read_text(errors="replace").splitlines()
        return "\n".join(f"    {line}" for line in lines[-_LAST_LINES:])

    @contextmanager
    def explained(self, what: str, name: str) -> Iterator[None]:
        """Adds the last lines of the program ``name`` to an error of the block, which is about ``what``."""
        try:
            yield
        except (BenchmarkError, requests.RequestException) as error:
            raise BenchmarkError(f"{what}: {error}\n{self.tail(name)}") from error

    def attempt(
        self,
        command: Sequence[str | Path],
        *,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        timeout_seconds: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a program to its end, which may be a failure.

        Raises:
            BenchmarkError: it did not end in time.
        """
        process = self._spawn(command, cwd, env, subprocess.PIPE, subprocess.PIPE)
        try:
            output, errors = process.communicate(timeout=timeout_seconds)
        except subprocess.TimeoutExpired:
            raise BenchmarkError(f"{Path(command[0]).name} did not end within {timeout_seconds:g} s") from None
        finally:
            self.stop(process)
        printed = (output.decode(errors="replace"), errors.decode(errors="replace"))
        return subprocess.CompletedProcess(command, process.returncode, *printed)

    def run(
        self,
        command: Sequence[str | Path],
        *,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        timeout_seconds: float = 120,
    ) -> str:
        """Runs a program to its end and returns what it printed on stdout.

        Raises:
            BenchmarkError: it failed; with what it printed.
        """
        done = self.attempt(command, cwd=cwd, env=env, timeout_seconds=timeout_seconds)
        if done.returncode:
            shown = " ".join(map(str, command))
            raise BenchmarkError(f"{shown}: exit {done.returncode}\n{(done.stdout + done.stderr).strip()[-2000:]}")
        return done.stdout


def group_alive(group: int) -> bool:
    """Whether a process group has a member that runs."""
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            with suppress(OSError, IndexError):
                fields = _stat(int(entry.name))
                if int(fields[2]) == group and fields[0] != "Z":
                    return True
    return False


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name: state, parent, group (proc_pid_stat(5))."""
    return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()


def children(pid: int) -> list[int]:
    """The children of a process."""
    return [int(text) for text in (_PROC / str(pid) / "task" / str(pid) / "children").read_text().split()]


def descendants(pid: int) -> list[int]:
    """A process and everything below it."""
    return [pid, *(found for child in children(pid) for found in descendants(child))]


def cpu_seconds(pids: Iterable[int]) -> float:
    """The processor time that processes have used: utime and stime of all their threads, in ticks of 10 ms."""
    return sum(int(fields[11]) + int(fields[12]) for fields in map(_stat, pids)) / _TICKS


def exact_cpu_seconds(pids: Iterable[int]) -> float:
    """The same to the nanosecond, for processes of one thread: the first number of /proc/PID/schedstat."""
    return sum(int((_PROC / str(pid) / "schedstat").read_text().split()[0]) for pid in pids) / 1e9


def pss_bytes(pid: int) -> int:
    """A process's share of memory, what is shared divided by its users (Pss of /proc/PID/smaps_rollup)."""
    for line in (_PROC / str(pid) / "smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise BenchmarkError(f"/proc/{pid}/smaps_rollup names no Pss")
