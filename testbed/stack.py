"""The stack without Docker, in a home of its own."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from common.http import make_session
from local_stack import processes as local_processes
from testbed.calls import wait_for_answers
from testbed.errors import BenchmarkError
from testbed.processes import Processes
from testbed.programs import ROOT
from testbed.wait import wait_for

BALANCER = "load-balancer"
_UP_SECONDS = 60.0
_COMMAND_SECONDS = 300.0


class Stack:
    """``python -m local_stack``; leaving the ``with`` block kills it.

    Args:
        home: its directory; the output of commands in the background goes to files beside it.
        address_base: the first of its loopback addresses.
        port: the balancer's.
        consul_port: the Consul UI's.

    Attributes:
        env: the variables of its commands.
        flags: the addresses and ports, as ``up`` takes them.
        consul: the HTTP API of the Consul UI's agent.
    """

    def __init__(self, home: Path, *, address_base: str, port: int, consul_port: int) -> None:
        self.home = home
        self.address_base = address_base
        self.port = port
        self.consul_port = consul_port
        self.env = {"LOCAL_STACK_HOME": str(home)}
        self.flags = ["--address-base", address_base, "--port", str(port), "--consul-port", str(consul_port)]
        self.consul = f"http://127.0.0.1:{consul_port}"
        self.processes = Processes(home.parent)
        self._http = make_session()
        self._addresses: dict[str, str] = {}
        self._state: tuple[int, str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self.processes:
            self.kill()

    @property
    def target(self) -> str:
        """Returns the address of calls."""
        return f"127.0.0.1:{self.port}"

    def own_address(self, third: int, fourth: int) -> str:
        """Returns an address of the stack's range, by its last two numbers."""
        return ".".join([*self.address_base.split(".")[:2], str(third), str(fourth)])

    def attempt(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Runs a command of local_stack, which may fail."""
        command = [sys.executable, "-m", "local_stack", *arguments]
        return self.processes.attempt(command, cwd=ROOT, env={**self.env, **env}, timeout_seconds=_COMMAND_SECONDS)

    def local_stack(self, *arguments: str, **env: str) -> str:
        """Runs a command of local_stack and returns its output.

        Raises:
            BenchmarkError: it failed; with what it printed.
        """
        done = self.attempt(*arguments, **env)
        if done.returncode:
            printed = f"{done.stdout}{done.stderr}"
            raise BenchmarkError(f"local_stack {' '.join(arguments)}: exit {done.returncode}\n{printed}")
        return done.stdout

    def begin(self, *arguments: str, **env: str) -> subprocess.Popen[bytes]:
        """Starts a command of local_stack and does not wait for its end."""
        command = [sys.executable, "-m", "local_stack", *arguments]
        return self.processes.start(f"local_stack-{arguments[0]}", command, cwd=ROOT, env={**self.env, **env})

    def up(self, replicas: int, **env: str) -> None:
        """Starts it with so many replicas, or gives it so many."""
        self.local_stack("up", *self._up_flags(replicas), **env)

    def begin_up(self, replicas: int) -> subprocess.Popen[bytes]:
        """Starts ``up`` with so many replicas."""
        self._state = (replicas, "dynamic")
        return self.begin("up", *self._up_flags(replicas), NGINX_UPDATE="dynamic")

    def finish_up(self, process: subprocess.Popen[bytes]) -> None:
        """Waits for the end of ``up``.

        Raises:
            BenchmarkError: it failed; with what it printed.
        """
        with suppress(subprocess.TimeoutExpired):
            process.wait(_UP_SECONDS)
        self.processes.stop(process)
        if process.returncode:
            raise BenchmarkError(f"local_stack up failed:\n{self.processes.tail('local_stack-up')}")

    def ensure(self, replicas: int, mode: str = "dynamic") -> None:
        """Starts or scales it, unless it is up with so many replicas and this NGINX_UPDATE."""
        if self._state != (replicas, mode):
            self._state = (replicas, mode)
            self.up(replicas, NGINX_UPDATE=mode)
            if replicas:
                wait_for_answers(self.target, replicas, _UP_SECONDS)

    def _up_flags(self, replicas: int) -> list[str]:
        return ["-d", "--scale", f"hello_server={replicas}", *self.flags]

    def scale(self, replicas: int) -> None:
        """Gives it so many replicas, while it is up."""
        self.local_stack("scale", f"hello_server={replicas}")

    def stop(self, container: str) -> None:
        """Stops a container gracefully."""
        self.local_stack("stop", container)

    def start(self, container: str) -> None:
        """Starts a stopped container."""
        self.local_stack("start", container)

    def down(self) -> None:
        """Ends it gracefully, and removes all of it."""
        self.local_stack("down", "-v")

    def kill(self) -> None:
        """Ends it at once and removes all of it, because a graceful end takes as long as its drains."""
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
        """Returns the containers as ``ps --json`` has them."""
        return list(json.loads(self.local_stack("ps", "--json")))

    def replicas(self) -> list[str]:
        """Returns the names of the containers of hello_server that run."""
        return [row["name"] for row in self.rows() if row["service"] == "hello_server" and row["state"] == "running"]

    def address(self, container: str) -> str:
        """Returns a container's IP address, which it keeps."""
        if container not in self._addresses:
            self._addresses |= {str(row["name"]): str(row["address"]) for row in self.rows()}
        return self._addresses[container]

    def pid(self, container: str, program: str) -> int:
        """Returns the process of a program, 0 while it has none."""
        row = next(row for row in self.rows() if row["name"] == container)
        return next((int(entry["pid"]) for entry in row["programs"] if entry["name"] == program), 0)

    def pids(self) -> dict[str, list[int]]:
        """Returns the processes of every container, by its name."""
        return local_processes.of_stack(self.home)

    def nginx(self) -> list[int]:
        """Returns the processes of the balancer's nginx, master and workers."""
        return [pid for pid in self.pids()[BALANCER] if Path(f"/proc/{pid}/comm").read_text().strip() == "nginx"]

    def state(self) -> dict[str, Any]:
        """Returns the replicas and services of nginx: its answer to /state."""
        return self._ask_nginx("/state")

    def version(self) -> str:
        """Returns the version of the document that nginx has."""
        return str(self._ask_nginx("/configuration")["version"])

    def _ask_nginx(self, path: str) -> dict[str, Any]:
        return dict(self._http.get(f"http://{self.address(BALANCER)}:8080{path}", timeout=10).json())

    def register(
        self, peer: str, metadata: Mapping[str, str] | None = None, *, application: str = "hello_server", **more: Any
    ) -> None:
        """Registers a replica as passing, with more fields of the API; returns when the agent has accepted it."""
        address, _, port = peer.rpartition(":")
        body = {
            "Name": application,
            "ID": f"{application}-{address}",
            "Address": address,
            "Port": int(port),
            "Tags": ["grpc_server"],
            "Meta": metadata or {},
            # A TTL check that starts as passing, and so stays for longer than any run.
            "Check": {"TTL": "24h", "Status": "passing"},
            **more,
        }
        self._put("register", body)

    def deregister(self, peer: str, *, application: str = "hello_server") -> None:
        """Deregisters it; returns when the agent has accepted that."""
        self._put(f"deregister/{application}-{peer.rpartition(':')[0]}")

    def _put(self, path: str, body: Any = None) -> None:
        self._http.put(f"{self.consul}/v1/agent/service/{path}", json=body, timeout=10).raise_for_status()
