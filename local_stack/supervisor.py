"""Talks to supervisords: the outer one of the stack, and the one of each container."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import xmlrpc.client
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supervisor.xmlrpc import Faults, SupervisorTransport

from local_stack.errors import LocalStackError, last_lines
from local_stack.processes import wait_until
from local_stack.settings import ROOT, Directory

_START_SECONDS = 15.0


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program under a supervisord, as supervisord names its states (supervisord.org/subprocess.html)."""

    name: str
    state: str
    pid: int


class SupervisorGoneError(LocalStackError):
    """No supervisord answers at the control socket."""


class Supervisor:
    """A supervisord behind its control socket."""

    def __init__(self, socket_path: Path) -> None:
        self._socket = socket_path

    def call(self, method: str, *arguments: Any) -> Any:
        """Calls a method of supervisord's XML-RPC API (supervisord.org/api.html), which refuses by a Fault."""
        # A new transport for each call, because one that has failed to connect always fails.
        transport = SupervisorTransport(None, None, f"unix://{self._socket}")
        proxy = xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport, allow_none=True)
        try:
            return getattr(proxy.supervisor, method)(*arguments)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode != Faults.SHUTDOWN_STATE:
                raise
            raise SupervisorGoneError(f"the supervisord at {self._socket} is stopping") from fault
        except (OSError, http.client.HTTPException, xmlrpc.client.ProtocolError) as error:
            raise SupervisorGoneError(f"no supervisord answers at {self._socket}: {error}") from error

    def alive(self) -> bool:
        """Returns whether supervisord answers and runs."""
        try:
            return bool(self.call("getState")["statename"] == "RUNNING")
        except SupervisorGoneError:
            return False

    def programs(self) -> list[Program]:
        """Returns its programs; none when no supervisord answers."""
        try:
            infos = self.call("getAllProcessInfo")
        except SupervisorGoneError:
            return []
        return [Program(name=info["name"], state=info["statename"], pid=info["pid"]) for info in infos]

    def state(self, name: str) -> Program | None:
        """Returns one program; None when supervisord does not know it."""
        return next((program for program in self.programs() if program.name == name), None)

    def request(self, method: str, name: str, *arguments: Any) -> None:
        """Calls a method for a program; a program that is in the wanted state already is not an error."""
        fine = (Faults.ALREADY_STARTED, Faults.NOT_RUNNING, Faults.BAD_NAME, Faults.ALREADY_ADDED)
        try:
            self.call(method, name, *arguments)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode not in fine:
                raise LocalStackError(f"supervisord: {method} {name}: {fault.faultString}") from fault


def start_outer(directory: Directory) -> Supervisor:
    """Starts the stack's own supervisord in the background and waits until it answers."""
    directory.programs.mkdir(parents=True, exist_ok=True)
    python = Path(sys.executable)
    configuration = directory.path / "supervisord.conf"
    configuration.write_text(
        "; Written by local_stack: one program for each container.\n"
        "[supervisord]\nlogfile=supervisord.log\npidfile=supervisord.pid\nnocleanup=true\n"
        "[unix_http_server]\nfile=supervisor.sock\nchmod=0700\n"
        "[rpcinterface:supervisor]\n"
        "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n"
        "[eventlistener:rotation]\n"
        f"command={python.name} -m local_stack.rotation {directory.logs.name}\nevents=TICK_5\n"
        "stdout_logfile=NONE\nstderr_logfile=rotation.log\n"
        "[include]\nfiles=programs/*.conf\n"
    )
    # In a session of its own, so that Ctrl-C in the terminal does not stop it.
    process = subprocess.Popen(
        # supervisord reads includes as patterns, of which this name of its directory has no special characters.
        [python.parent / "supervisord", "--nodaemon", "--configuration", f"/proc/self/cwd/{configuration.name}"],
        cwd=directory.path,
        # It finds Python for rotation.py by PATH, because a path in its configuration may not have all characters.
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    supervisor = Supervisor(directory.socket)
    wait_until(lambda: supervisor.alive() or process.poll() is not None, _START_SECONDS)
    if not supervisor.alive():
        printed = "\n".join(last_lines(directory.path / "supervisord.log", 5))
        raise LocalStackError(f"supervisord does not start:\n{printed}")
    return supervisor
