"""Two ways to run the stack with one set of verbs, so that every scenario is written once."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import requests

from common.http import make_session
from local_stack import processes
from testbed.stack import BALANCER, Stack
from testbed.wait import wait_for

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(os.environ.get("TEST_RESULTS", "/tmp/grpc-load-balancing-tests"))  # noqa: S108 - logs for people
# More than any election takes, on a busy machine too.
ELECTION_SECONDS = 20.0


class Driver(Protocol):
    """The stack under test."""

    port: int
    consul_port: int
    consul: str
    # What the clients of load.py need for TLS.
    client_flags: Sequence[str]
    ghz_flags: Sequence[str]

    def consul_session(self) -> requests.Session:
        """Returns a session for Consul's HTTP API at ``consul``."""

    def up(self, replicas: int) -> None:
        """Starts everything, with so many replicas."""

    def down(self) -> None:
        """Stops and removes everything."""

    def leftovers(self) -> list[str]:
        """Returns the processes and files that are left after :meth:`down`."""

    def replicas(self) -> list[str]:
        """Returns the containers of hello_server."""

    def stop(self, container: str) -> None:
        """Stops a container gracefully."""

    def start(self, container: str) -> None:
        """Starts a stopped container."""

    def execute(self, container: str, *command: str) -> str:
        """Runs a command in a container and returns its output."""

    def logs(self, container: str) -> list[str]:
        """Returns the lines that a container has printed."""

    def server_at(self, address: str) -> str:
        """Returns the container of the Consul server with an address; empty when none has it."""

    def run_server(self, name: str) -> str:
        """Starts a grpc_server called ``name`` without agent and registrar; returns its address."""

    def registrar_environment(self, name: str) -> Mapping[str, str]:
        """Returns the variables of the registrar of ``name`` that differ between the two ways."""

    def run_registrar(self, name: str, environment: Mapping[str, str]) -> None:
        """Starts a registrar for the server ``name``."""

    def stop_extras(self) -> None:
        """Ends the programs of run_server and run_registrar."""

    def attach(self) -> str:
        """Returns logs and the rendered configuration, for a failed test."""


def run(
    command: Sequence[str | Path],
    env: Mapping[str, str] | None = None,
    timeout: float = 300,
    text: str | None = None,
) -> str:
    """Runs a command that reads ``text``, and returns its output; a failure has it too."""
    done = subprocess.run(
        command,
        env={**os.environ, **(env or {})},
        cwd=ROOT,
        input=text,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


class LocalDriver(Stack):
    """``python -m local_stack``, with programs beside it."""

    client_flags: Sequence[str] = ()
    ghz_flags: Sequence[str] = ("--insecure",)

    def __init__(self, home: Path, *, address_base: str, port: int, consul_port: int) -> None:
        super().__init__(home, address_base=address_base, port=port, consul_port=consul_port)
        # A line a call would be most of the logs; test_access_log.py turns it on.
        self.env["LB_ACCESS_LOG"] = "off"
        self._extras: list[tuple[str, subprocess.Popen[bytes]]] = []
        self._extra_addresses: dict[str, str] = {}

    def consul_session(self) -> requests.Session:
        return self._http

    def server_environment(self, application: str) -> Mapping[str, str]:  # noqa: ARG002 - a secure stack's depends on it
        """Returns the variables of a server beside the stack."""
        return {}

    def down(self) -> None:
        self.stop_extras()
        super().down()

    def leftovers(self) -> list[str]:
        mark = os.fsencode(self.home)
        found = [str(self.home)] if self.home.exists() else []
        for pid, _ in processes.running():
            entry = processes.PROC / str(pid)
            with suppress(OSError):
                command = (entry / "cmdline").read_bytes()
                if mark in (entry / "environ").read_bytes() + command + os.fsencode((entry / "cwd").readlink()):
                    found.append(f"{pid} {command!r}")
        return found

    def execute(self, container: str, *command: str) -> str:
        return self.local_stack("exec", container, *command)

    def logs(self, container: str) -> list[str]:
        return [line.partition(" | ")[2] for line in self.local_stack("logs", container).splitlines()]

    def wait_for_log(self, container: str, text: str) -> None:
        """Waits until a container has printed a text."""
        wait_for(lambda: "\n".join(self.logs(container)), lambda printed: text in printed, 30, f"{container}: {text}")

    def server_at(self, address: str) -> str:
        return next((str(row["name"]) for row in self.rows() if row["address"] == address), "")

    def run_server(self, name: str) -> str:
        address = self.own_address(200, len(self._extra_addresses) + 1)
        self._extra_addresses[name] = address
        env = {"HOSTNAME": name, "BIND_ADDRESS": address, "APP_PORT": "7777"}
        self._run("grpc_server", {**env, **self.server_environment("hello_server")})
        return address

    def registrar_environment(self, name: str) -> Mapping[str, str]:
        return {
            "HOSTNAME": name,
            "APP_ADDRESS": self._extra_addresses[name],
            "CONSUL_ADDRESS": "127.0.0.1",
            "CONSUL_PORT": str(self.consul_port),
            "CONSUL_URL": self.consul,
        }

    def run_registrar(self, name: str, environment: Mapping[str, str]) -> None:
        self._run("registrar", {**self.registrar_environment(name), **environment})

    def stop_extras(self) -> None:
        # The registrars first: a server that stops gets no calls any more.
        for wanted in ("registrar", "grpc_server"):
            processes = [process for module, process in self._extras if module == wanted]
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait(30)
        self._extras.clear()

    def attach(self) -> str:
        parts = [
            f"== {path.name}\n{path.read_text(errors='replace')[-6000:]}" for path in sorted(self.home.glob("logs/*"))
        ]
        balancer = self.home / "containers" / BALANCER
        parts += [
            f"== {path}\n{(balancer / path).read_text()}"
            for path in ("etc/nginx/conf.d/load-balancer.conf", "run/peers", "var/lib/load-balancer/snapshot.json")
            if (balancer / path).exists()
        ]
        return "\n".join(parts)

    def _run(self, module: str, environment: Mapping[str, str]) -> None:
        name, command = f"{module}-{len(self._extras)}", [sys.executable, "-m", module]
        self._extras.append((module, self.processes.start(name, command, cwd=ROOT, env=environment)))


class ComposeDriver:
    """``docker-compose``, of either major version, as a project of its own."""

    client_flags: Sequence[str] = ()
    ghz_flags: Sequence[str] = ("--insecure",)

    def __init__(self, compose: Sequence[str], project: str, *, port: int, consul_port: int) -> None:
        self.port = port
        self.consul_port = consul_port
        self.consul = f"http://127.0.0.1:{consul_port}"
        self.project = project
        self._compose = list(compose)
        self.env = {
            "COMPOSE_PROJECT_NAME": project,
            "LB_PUBLISHED_PORT": str(port),
            "CONSUL_PUBLISHED_PORT": str(consul_port),
        }

    def compose(self, *arguments: str, text: str | None = None) -> str:
        """Runs a command of docker-compose, which reads ``text``."""
        return run([*self._compose, *arguments], self.env, timeout=900, text=text)

    def consul_session(self) -> requests.Session:
        return make_session()

    def rollout(self, **env: str) -> subprocess.CompletedProcess[str]:
        """Runs build/rollout."""
        variables = {**os.environ, **self.env, "COMPOSE": shlex.join(self._compose), **env}
        command = ["sh", "build/rollout", "hello_server"]
        return subprocess.run(
            command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=600, check=False
        )

    def up(self, replicas: int) -> None:
        self.compose("up", "-d", "--scale", f"hello_server={replicas}")

    def down(self) -> None:
        self.stop_extras()
        self.compose("down", "-v", "--timeout", "60")

    def hurry(self) -> None:
        """Ends the containers without their drains.

        Not by ``kill``, which does not wait for their end: an engine that is told to remove one meanwhile may keep its
        endpoint of a network for good.
        """
        self.compose("stop", "--timeout", "1")

    def leftovers(self) -> list[str]:
        mark = f"label=com.docker.compose.project={self.project}"
        found = run(["docker", "ps", "-aq", "--filter", mark]).split()
        found += run(["docker", "volume", "ls", "-q", "--filter", mark]).split()
        return found + run(["docker", "network", "ls", "-q", "--filter", mark]).split()

    def _containers(self, service: str) -> list[str]:
        marks = [
            f"label=com.docker.compose.project={self.project}",
            f"label=com.docker.compose.service={service}",
        ]
        filters = [part for mark in marks for part in ("--filter", mark)]
        return sorted(run(["docker", "ps", "-a", "--format", "{{.Names}}", *filters]).split())

    def replicas(self) -> list[str]:
        return self._containers("hello_server")

    def container(self, name: str) -> str:
        """Returns a container by its name, or the first one of a service."""
        return name if name in self.replicas() else self._containers(name)[0]

    def stop(self, container: str) -> None:
        run(["docker", "stop", "--time", "60", self.container(container)])

    def start(self, container: str) -> None:
        run(["docker", "start", self.container(container)])

    def execute(self, container: str, *command: str) -> str:
        return run(["docker", "exec", self.container(container), *command])

    def logs(self, container: str) -> list[str]:
        done = subprocess.run(["docker", "logs", self.container(container)], capture_output=True, text=True, check=True)
        return (done.stdout + done.stderr).splitlines()

    def server_at(self, address: str) -> str:
        # A stopped container has no address, and Consul may still name it as the leader for a moment.
        names = ("server-1", "server-2", "server-3")
        return next((name for name in names if self._address(self.container(name)) == address), "")

    def run_server(self, name: str) -> str:
        container = self._run(name, ["--entrypoint", "python3"], ["-m", "grpc_server"])
        return self._address(container)

    def registrar_environment(self, name: str) -> Mapping[str, str]:
        return {
            "HOSTNAME": name,
            "APP_ADDRESS": self._address(f"{self.project}-{name}"),
            "CONSUL_ADDRESS": "consul-ui",
            "CONSUL_PORT": "8500",
            "CONSUL_URL": "http://consul-ui:8500",
        }

    def run_registrar(self, name: str, environment: Mapping[str, str]) -> None:
        variables = {**self.registrar_environment(name), **environment}
        options = ["--entrypoint", "python3"]
        for key, value in variables.items():
            options += ["--env", f"{key}={value}"]
        self._run(f"{name}-registrar", options, ["-m", "registrar"])

    def stop_extras(self) -> None:
        extras = run(["docker", "ps", "-aq", "--filter", f"label=extra-of={self.project}"]).split()
        if extras:
            run(["docker", "stop", "--time", "30", *extras])
            run(["docker", "rm", "--force", *extras])

    def attach(self) -> str:
        return self.compose("logs", "--tail", "60")

    def _run(self, name: str, options: Sequence[str], command: Sequence[str]) -> str:
        container = f"{self.project}-{name}"
        base = ["docker", "run", "--detach", "--name", container, "--hostname", name]
        base += ["--network", f"{self.project}_default", "--label", f"extra-of={self.project}"]
        run([*base, *options, "server", *command])
        return container

    def _address(self, container: str) -> str:
        form = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        return run(["docker", "inspect", "--format", form, container]).strip()


class ConsulApi:
    """Consul's HTTP API as a person would use it with curl."""

    def __init__(self, driver: Driver) -> None:
        self._base, self._session = driver.consul, driver.consul_session()

    def get(self, path: str) -> Any:
        """Returns the decoded answer; asks again during an election, when Consul answers 500."""
        deadline = time.monotonic() + ELECTION_SECONDS
        while True:
            response = self._session.get(self._base + path, timeout=10)
            if response.status_code != 500 or time.monotonic() > deadline:
                response.raise_for_status()
                return response.json()
            time.sleep(0.1)

    def put(self, path: str, body: Any = None) -> None:
        self._session.put(self._base + path, json=body, timeout=10).raise_for_status()

    def instances(self, service: str) -> dict[str, str]:
        """Returns the worst check status of each instance of a service, by its ID."""
        found = {}
        for entry in self.get(f"/v1/health/service/{service}"):
            statuses = {check["Status"] for check in entry["Checks"]}
            worst = next(status for status in ("critical", "warning", "passing") if status in statuses)
            found[entry["Service"]["ID"]] = worst
        return found


def compose_commands() -> dict[str, list[str]]:
    """Returns the Compose commands on this machine by major version: ``1`` and ``2``."""
    found = {}
    if shutil.which("docker-compose"):
        found["1"] = ["docker-compose"]
    binary = os.environ.get("COMPOSE_V2")
    if binary:
        found["2"] = [binary, "compose"] if Path(binary).name == "docker" else [binary]
    return found
