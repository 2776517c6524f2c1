"""The stack without Docker as the benchmarks use it: a home of its own, and no wait when it ends."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import requests

from local_stack import processes as local_processes
from testbed.calls import wait_for_answers
from testbed.errors import BenchmarkError
from testbed.processes import Processes
from testbed.programs import ROOT
from testbed.wait import wait_for

_UP_SECONDS = 60.0


class Stack:
    """``python -m local_stack`` in a directory of its own; leaving the ``with`` block ends it.

    Args:
        processes: what runs its commands.
        address_base: the first of its loopback addresses.
        port: the balancer's.
        consul_port: the Consul UI's.

    Attributes:
        consul: the HTTP API of the Consul UI's agent.
    """

    def __init__(self, processes: Processes, *, address_base: str, port: int, consul_port: int) -> None:
        self.processes = processes
        self.home = processes.directory / "stack"
        self.port = port
        self._flags = ["--address-base", address_base, "--port", str(port), "--consul-port", str(consul_port)]
        self.consul = f"http://127.0.0.1:{consul_port}"
        self._http = requests.Session()
        self._http.trust_env = False
        self._state: tuple[int, str] | None = None
        self._status = ""

    def __enter__(self) -> Stack:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def target(self) -> str:
        """Where calls go."""
        return f"127.0.0.1:{self.port}"

    def begin(self, *command: str, mode: str = "dynamic") -> subprocess.Popen[bytes]:
        """Starts a command of local_stack."""
        env = {"LOCAL_STACK_HOME": str(self.home), "NGINX_UPDATE": mode}
        full = [sys.executable, "-m", "local_stack", *command]
        return self.processes.start(f"local_stack-{command[0]}", full, cwd=ROOT, env=env)

    def finish(self, command: str, process: subprocess.Popen[bytes]) -> None:
        """Waits for the end of a command.

        Raises:
            BenchmarkError: it failed; with what it printed.
        """
        try:
            code = process.wait(_UP_SECONDS)
        except subprocess.TimeoutExpired:
            code = -1
        self.processes.stop(process)
        if code:
            raise BenchmarkError(f"local_stack {command} failed:\n{self.processes.tail(f'local_stack-{command}')}")

    def begin_up(self, replicas: int, mode: str = "dynamic") -> subprocess.Popen[bytes]:
        """Starts ``up -d`` with so many replicas."""
        self._state = (replicas, mode)
        return self.begin("up", "-d", "--scale", f"hello_server={replicas}", *self._flags, mode=mode)

    def ensure(self, replicas: int, mode: str = "dynamic") -> None:
        """Sees that it is up, with so many replicas and this NGINX_UPDATE."""
        if self._state != (replicas, mode):
            self.finish("up", self.begin_up(replicas, mode))
            if replicas:
                wait_for_answers(self.target, replicas, _UP_SECONDS)

    def kill(self) -> None:
        """Ends it at once: nothing of it is kept, and a graceful end takes as long as its drains."""
        self._state = None
        if not self.home.exists():
            return
        wait_for(lambda: not self._kill_supervisor(), bool, 10, "the end of the stack's supervisord", 0.01)
        local_processes.kill_all(self.home)
        shutil.rmtree(self.home)

    def supervisors(self) -> list[int]:
        """Returns the outer supervisord, whose working directory is the home itself."""
        return local_processes.in_directory(self.home)

    def _kill_supervisor(self) -> bool:
        found = self.supervisors()
        local_processes.send(found, signal.SIGKILL)
        return bool(found)

    def rows(self) -> list[dict[str, Any]]:
        """What ``ps --json`` says."""
        env = {"LOCAL_STACK_HOME": str(self.home)}
        command = [sys.executable, "-m", "local_stack", "ps", "--json"]
        return list(json.loads(self.processes.run(command, cwd=ROOT, env=env)))

    def pids(self) -> dict[str, list[int]]:
        """The processes of every container, by its name."""
        return local_processes.of_stack(self.home)

    def nginx(self) -> list[int]:
        """The balancer's nginx, master and workers."""
        return [pid for pid in self.pids()["load-balancer"] if _command(pid) == "nginx"]

    def state(self) -> dict[str, Any]:
        """What nginx balances over: the answer to /state."""
        return self._ask_nginx("/state")

    def version(self) -> str:
        """The version of the document that nginx has."""
        return str(self._ask_nginx("/configuration")["version"])

    def _ask_nginx(self, path: str) -> dict[str, Any]:
        if not self._status:
            balancer = next(row for row in self.rows() if row["name"] == "load-balancer")
            self._status = f"http://{balancer['address']}:8080"
        try:
            return dict(self._http.get(self._status + path, timeout=10).json())
        except requests.RequestException as error:
            raise BenchmarkError(f"nginx: {path}: {error}") from error

    def register(self, peer: str, metadata: Mapping[str, str] | None = None) -> None:
        """Registers a replica as passing; returns when the agent has accepted it."""
        address, _, port = peer.rpartition(":")
        body = {
            "Name": "hello_server",
            "ID": f"bench-{address}",
            "Address": address,
            "Port": int(port),
            "Tags": ["grpc_server"],
            "Meta": metadata or {},
            # A TTL check that starts as passing, and so stays for longer than any run.
            "Check": {"TTL": "24h", "Status": "passing"},
        }
        self._put("/v1/agent/service/register", body)

    def deregister(self, peer: str) -> None:
        """Takes it away again; returns when the agent has accepted that."""
        self._put(f"/v1/agent/service/deregister/bench-{peer.rpartition(':')[0]}")

    def _put(self, path: str, body: Any = None) -> None:
        try:
            self._http.put(self.consul + path, json=body, timeout=10).raise_for_status()
        except requests.RequestException as error:
            raise BenchmarkError(f"Consul: PUT {path}: {error}") from error


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()
