"""A container without Docker: a directory laid out like the image, an address, an environment, a supervisord."""

from __future__ import annotations

import math
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from local_stack import processes
from local_stack.compose import Service
from local_stack.errors import LocalStackError, last_lines, say
from local_stack.settings import ROOT, Directory
from local_stack.supervisor import Program, Supervisor

_STOPPED = ("STOPPED", "EXITED", "FATAL", "UNKNOWN")


@dataclass(frozen=True, kw_only=True)
class Container:
    """One container of a service, a program of the outer supervisord; ``number`` counts from 1."""

    service: Service
    number: int
    address: str
    directory: Directory

    @property
    def name(self) -> str:
        """The name, numbered as by Compose; the first one of a service with a published port has the service's name."""
        return f"{self.service.name}-{self.number}" if self.service.scalable or self.number > 1 else self.service.name

    @property
    def path(self) -> Path:
        """The directory that is its file system."""
        return self.directory.containers / self.name

    @property
    def log(self) -> Path:
        """The file that its programs print to."""
        return self.directory.logs / f"{self.name}.log"

    @property
    def program(self) -> Path:
        """Its entry in the outer supervisord's configuration."""
        return self.directory.programs / f"{self.name}.conf"

    def has_name(self, names: Sequence[str]) -> bool:
        """Returns whether one of the names is its own or its service's; without names always."""
        return not names or self.name in names or self.service.name in names

    def programs(self) -> list[Program]:
        """Returns the programs of its own supervisord."""
        return Supervisor(self.path / "run" / "supervisor.sock").programs()

    def start(self, environment: Mapping[str, str]) -> None:
        """Starts it; a running one is restarted if its environment has changed, and left alone otherwise."""
        written = self.path / "environment"
        before = written.read_text() if written.exists() else None
        self.prepare(environment)
        if written.read_text() != before and not self._has_stopped():
            say(f"its environment changed, recreating {self.name}")
            self.request_stop()
            self.wait_stopped()
        self._outer.call("reloadConfig")
        self._outer.request("addProcessGroup", self.name)
        self._outer.request("startProcess", self.name, False)

    def request_stop(self) -> None:
        """Begins a graceful stop."""
        # A paused container could not stop.
        self.unpause()
        self._outer.request("stopProcess", self.name, False)

    def wait_stopped(self, seconds: float | None = None) -> None:
        """Waits until it has stopped, by default for its grace period; kills the processes that supervisord left."""
        limit = self.service.grace_seconds + 10 if seconds is None else seconds
        if not processes.wait_until(self._has_stopped, limit):
            raise LocalStackError(f"{self.name} has not stopped within {limit:g} s")
        processes.kill_all(self.directory.path, self.name)

    def kill(self, number: signal.Signals) -> None:
        """Sends a signal as ``docker kill`` does: SIGKILL to all its processes, another one to its first process."""
        if number != signal.SIGKILL:
            program = self._outer.state(self.name)
            processes.send([program.pid] if program and program.pid else [], number)
            return
        # All are stopped first, so that none of them sees the others end.
        self.pause()
        self._outer.request("stopProcess", self.name, False)
        processes.kill_all(self.directory.path, self.name)
        self.wait_stopped(10)

    def pause(self) -> None:
        """Stops every process where it is, as ``docker-compose pause`` does."""
        self._signal(signal.SIGSTOP)

    def unpause(self) -> None:
        """Continues every process."""
        self._signal(signal.SIGCONT)

    def remove(self) -> None:
        """Removes everything of a stopped container but its volumes and its log."""
        self._outer.request("removeProcessGroup", self.name)
        self.program.unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)

    def prepare(self, environment: Mapping[str, str]) -> None:
        """Lays out the file system, its start script and its program."""
        for component in self.service.components:
            _overlay(ROOT / "build" / "config" / component, self.path)
        for volume, mount in self.service.volumes.items():
            target = self.path / mount.lstrip("/")
            data = self.directory.volumes / (f"{volume}-{self.number}" if self.number > 1 else volume)
            data.mkdir(parents=True, exist_ok=True)
            if not target.is_symlink():
                shutil.rmtree(target, ignore_errors=True)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(data)
        for mount, source in self.service.binds.items():
            link = self.path / mount.lstrip("/")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(ROOT / source)
        lines = [f"export {name}={shlex.quote(value)}" for name, value in sorted(environment.items())]
        (self.path / "environment").write_text("\n".join(lines) + "\n")
        (self.path / "start").write_text(self._start_script())
        self.program.parent.mkdir(parents=True, exist_ok=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.program.write_text(self._configuration())

    def run_job(self, environment: Mapping[str, str]) -> None:
        """Runs the command of a job to its end, and raises LocalStackError when it fails."""
        self.prepare(environment)
        self.program.unlink()
        python, *arguments = self.service.job
        command = [sys.executable if python == "python3" else python, *arguments]
        done = subprocess.run(command, cwd=self.path, env=dict(environment), stdin=subprocess.DEVNULL, check=False,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip
        self.log.write_text(done.stdout)
        if done.returncode:
            raise LocalStackError(f"{self.name} failed:\n" + "\n".join(last_lines(self.log, 5)))

    @property
    def _outer(self) -> Supervisor:
        return Supervisor(self.directory.socket)

    def _signal(self, number: signal.Signals) -> None:
        processes.send(processes.of_stack(self.directory.path).get(self.name, []), number)

    def _has_stopped(self) -> bool:
        program = self._outer.state(self.name)
        return program is None or program.state in _STOPPED

    def _start_script(self) -> str:
        emptied = " ".join(shlex.quote(path.lstrip("/")) for path in self.service.tmpfs)
        # A supervisord that was killed leaves its PID file and its programs, which in a real container end with it.
        kill = shlex.join([sys.executable, "-m", "local_stack.processes", str(self.directory.path), self.name])
        return (
            "# Written by local_stack: how the outer supervisord starts this container.\n"
            "set -eu\n"
            f"[ ! -e run/supervisord.pid ] || {kill}\n"
            f"rm -rf run {emptied}\n"
            f"mkdir -p run {emptied}\n"
            # Nothing of the shell that started the stack, as in a real container.
            f"exec env -i /bin/sh -c {shlex.quote('. ./environment; exec supervisord-start')}\n"
        )

    def _configuration(self) -> str:
        # The outer supervisord restarts a container as Compose's `restart: unless-stopped` does. The paths are relative
        # to its working directory, whose own path may contain any character; a value here may not.
        return (
            f"[program:{self.name}]\ncommand=/bin/sh start\ndirectory={self.path.relative_to(self.directory.path)}\n"
            "autostart=false\nautorestart=true\nstartsecs=1\nstartretries=1000000\n"
            f"stopwaitsecs={math.ceil(self.service.grace_seconds)}\n"
            # supervisord is not the only writer, so it can't rename the file; rotation.py truncates it.
            f"redirect_stderr=true\nstdout_logfile={self.log.relative_to(self.directory.path)}\n"
            "stdout_logfile_maxbytes=0\n"
        )


def _overlay(source: Path, target: Path) -> None:
    """Links every file of ``source`` into ``target``, directory by directory, as COPY lays it over an image."""
    for path in source.rglob("*"):
        link = target / path.relative_to(source)
        if path.is_file():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(path)
