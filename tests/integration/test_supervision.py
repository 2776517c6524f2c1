"""supervisord with the configuration of the images, and programs of the tests."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from local_stack import processes
from local_stack.settings import ROOT
from testbed.wait import wait_for

SUPERVISORD = ROOT / "build/config/supervisord"
PROGRAM = """
[program:{name}]
command=with-name {name} sh {script}
autorestart=true
startsecs=1
startretries=1
redirect_stderr=true
stdout_logfile=/dev/fd/1
stdout_logfile_maxbytes=0
"""
STAY = "exec sleep 600\n"


class Container:
    """A running supervisord."""

    def __init__(self, root: Path, process: subprocess.Popen[bytes]) -> None:
        self._root = root
        self.process = process

    def log(self) -> str:
        """Its output."""
        return (self._root / "log").read_text()

    def lines(self, program: str) -> list[str]:
        """The lines of a program."""
        return re.findall(rf"^{program} \| (.*)$", self.log(), re.MULTILINE)

    def left(self) -> list[int]:
        """The processes that still run, including those whose parent has ended."""
        return processes.of_stack(self._root).get("test", [])


@contextmanager
def container(**scripts: str) -> Iterator[Container]:
    """Runs each shell script as a program under supervisord, as in a container."""
    # A Unix socket's path has few characters, and pytest's own directories many.
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "run").mkdir()
        shutil.copytree(SUPERVISORD / "etc", root / "etc")
        (root / "etc/supervisor/conf.d").mkdir(parents=True)
        for program, script in scripts.items():
            (root / program).write_text(script)
            text = PROGRAM.format(name=program, script=root / program)
            (root / f"etc/supervisor/conf.d/{program}.conf").write_text(text)
        path = f"{SUPERVISORD / 'usr/bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        # By these variables its processes are found.
        mark = {processes.DIRECTORY: name, processes.CONTAINER: "test"}
        command = [sys.executable, "-m", "supervisor.supervisord", "-c", "etc/supervisord.conf"]
        with (
            (root / "log").open("ab") as log,
            subprocess.Popen(
                command,
                cwd=root,
                env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), **mark},
                stdout=log,
                stderr=log,
            ) as process,
        ):
            running = Container(root, process)
            try:
                yield running
            finally:
                processes.kill_all(root)


def test_each_line_names_its_program() -> None:
    talk = 'for n in 1 2 3; do echo "out $n"; echo "err $n" >&2; done\n' + STAY
    with container(first=talk, second=talk) as running:
        for program in ("first", "second"):
            lines = wait_for(lambda name=program: running.lines(name), lambda seen: len(seen) == 6, 60, program)  # type: ignore[misc]
            assert lines == [f"{stream} {number}" for number in (1, 2, 3) for stream in ("out", "err")]


def test_a_long_line_is_cut_and_does_not_delay_the_next() -> None:
    talk = 'head -c 5000000 /dev/zero | tr "\\0" x; echo; echo after\n' + STAY
    with container(first=talk) as running:
        began = time.monotonic()
        wait_for(lambda: running.lines("first"), lambda lines: "after" in lines, 20, "the next line")
        assert time.monotonic() - began < 5
        assert [len(line) for line in running.lines("first")] == [8000, 5]


def test_a_hang_up_changes_nothing() -> None:
    with container(first="echo here\n" + STAY) as running:
        wait_for(lambda: running.lines("first"), bool, 20, "it runs")
        before = running.left()
        running.process.send_signal(signal.SIGHUP)
        wait_for(running.log, lambda text: "SIGHUP is ignored" in text, 20, "it is said")
        assert set(running.left()) == set(before)
        assert running.process.poll() is None


def test_signal_reaches_the_program_and_no_process_is_left() -> None:
    script = "trap 'echo bye; exit 0' TERM\necho ready\nwhile :; do sleep 0.1; done\n"
    with container(polite=script) as running:
        wait_for(lambda: running.lines("polite"), lambda lines: lines == ["ready"], 60, "the program runs")
        running.process.terminate()
        assert running.process.wait(60) == 0
        wait_for(lambda: running.lines("polite"), lambda lines: lines == ["ready", "bye"], 5, "the program's last line")
        wait_for(running.left, lambda left: not left, 20, "no process is left")


def test_program_that_dies_is_started_again() -> None:
    with container(mortal="echo $$\n" + STAY) as running:
        (first,) = wait_for(lambda: running.lines("mortal"), lambda lines: len(lines) == 1, 60, "the program runs")
        wait_for(running.log, lambda log: "mortal entered RUNNING" in log, 60, "supervisord takes it for running")
        os.kill(int(first), signal.SIGKILL)
        pids = wait_for(lambda: running.lines("mortal"), lambda lines: len(lines) == 2, 60, "the program runs again")
        assert pids[1] != first
        assert running.process.poll() is None


@pytest.mark.parametrize("script", ["exit 3\n", "exit 0\n"])
def test_program_that_cannot_be_started_ends_supervisord(script: str) -> None:
    with container(broken=script, well=STAY) as running:
        assert running.process.wait(60) == 0
        assert "exit-on-fatal | a program can't be started, ending the container: processname:broken" in running.log()
        wait_for(running.left, lambda left: not left, 20, "no process is left")


def test_named_pipe_is_gone_once_it_is_open() -> None:
    with container(program="echo ready; ls run\n" + STAY) as running:
        lines = wait_for(lambda: running.lines("program"), lambda lines: len(lines) >= 2, 60, "the program runs")
        assert not [line for line in lines if line.startswith("program.")]
