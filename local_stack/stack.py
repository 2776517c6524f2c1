"""The stack as a whole: what is wanted, what runs, and how to get from one to the other."""

from __future__ import annotations

import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from local_stack import compose, processes
from local_stack.compose import Service
from local_stack.container import Container, environment
from local_stack.errors import LocalStackError
from local_stack.settings import ROOT, Directory, Settings
from local_stack.supervisor import Supervisor, port_in_use, start_outer
from local_stack.tools import TOOLS, find

# Consul's ports on every agent's address: RPC, gossip, HTTP, DNS (README.md has the table).
_AGENT_PORTS = (8300, 8301, 8500, 8600)
_MAX_REPLICAS = 100
# supervisord's own least (minfds).
_MIN_DESCRIPTORS = 1024
_GONE = ("STOPPED", "EXITED", "FATAL", "UNKNOWN")


def say(message: str) -> None:
    """Progress for the person at the terminal."""
    print(message, file=sys.stderr, flush=True)


class Stack:
    """The stack in a directory.

    Args:
        directory: where it lives.
        env: the shell's, which fills the variables of docker-compose.yaml, beside what .env has.
    """

    def __init__(self, directory: Directory, env: Mapping[str, str]) -> None:
        self.directory = directory
        self.services = compose.read(ROOT / "docker-compose.yaml", compose.variables(ROOT, env))
        self.settings = directory.load()
        self.supervisor = Supervisor(directory.socket)

    @cached_property
    def tools(self) -> dict[str, Path]:
        """The programs that are no Python packages."""
        return {tool: find(tool) for tool in TOOLS}

    def container(self, service: Service, number: int) -> Container:
        """A container of a service; it need not exist."""
        address = self.settings.address(self.services, service.name, number)
        return Container(service=service, number=number, address=address, directory=self.directory)

    def containers(self, names: Sequence[str] = ()) -> list[Container]:
        """The containers that exist, of all services or of those named: SERVICE or SERVICE-N.

        Raises:
            LocalStackError: there is none of a name.
        """
        existing = [
            self.container(service, number)
            for service in self.services.values()
            for number in range(1, _MAX_REPLICAS + 1 if service.scalable else 2)
        ]
        existing = [container for container in existing if container.program.exists()]
        for name in names:
            if not any(name in (container.name, container.service.name) for container in existing):
                known = ", ".join(dict.fromkeys(container.service.name for container in existing)) or "none is up"
                raise LocalStackError(f"no container {name}; services: {known}")
        return [
            container
            for container in existing
            if not names or container.name in names or container.service.name in names
        ]

    def check_scales(self, scales: Mapping[str, int]) -> None:
        """Checks what was asked of ``--scale``.

        Raises:
            LocalStackError: a service is not there or can't be scaled, or a number is out of range.
        """
        for name, count in scales.items():
            if name not in self.services:
                raise LocalStackError(f"--scale: no service {name}; services: {', '.join(self.services)}")
            service = self.services[name]
            if not service.scalable and count != 1:
                raise LocalStackError(f"--scale: {name} has a fixed name or a published port, so there can be only one")
            if not 0 <= count <= _MAX_REPLICAS:
                raise LocalStackError(f"--scale: {name}={count} is not from 0 to {_MAX_REPLICAS}")

    def up(self, scales: Mapping[str, int], settings: Settings) -> None:
        """Starts what is wanted and not there, and removes what is there and not wanted; does not wait for readiness.

        Raises:
            LocalStackError: a port is in use, a tool is missing, the stack is up with other settings.
        """
        self.check_scales(scales)
        if self.supervisor.alive():
            if settings != self.settings:
                raise LocalStackError(
                    f"the stack is up with {self.settings}; take it down before it can have {settings}"
                )
        else:
            self._begin(settings)
        wanted = []
        for service in self.services.values():
            count = scales.get(service.name, 1)
            wanted += [self.container(service, number) for number in range(1, count + 1)]
        names = {container.name for container in wanted}
        for container in wanted:
            self._create(container)
        self.remove([container for container in self.containers() if container.name not in names])

    def scale(self, scales: Mapping[str, int]) -> None:
        """Brings the services named to so many replicas; a replica that goes is stopped gracefully."""
        self.require_up()
        self.check_scales(scales)
        surplus = []
        for name, count in scales.items():
            for number in range(1, count + 1):
                self._create(self.container(self.services[name], number))
            surplus += [container for container in self.containers([name]) if container.number > count]
        self.remove(surplus)

    def require_up(self) -> None:
        """Raises LocalStackError when the stack is not up."""
        if not self.supervisor.alive():
            raise LocalStackError("the stack is not up; start it with: python -m local_stack up -d")

    def stop(self, containers: Sequence[Container]) -> None:
        """Stops containers gracefully, all at once."""
        # A paused container could not stop.
        self.pause(containers, resume=True)
        for container in containers:
            self.supervisor.tell("stopProcess", container.name, False)
        for container in containers:
            self._wait(container, _GONE, container.service.grace_seconds + 10)
            # What a stopped supervisord left behind; in a real container it ends with it.
            processes.kill_all(self.directory.path, container.name)

    def start(self, containers: Sequence[Container]) -> None:
        """Starts containers that exist."""
        for container in containers:
            self._create(container)

    def remove(self, containers: Sequence[Container]) -> None:
        """Stops and removes containers."""
        for container in containers:
            say(f"stopping {container.name}")
        self.stop(containers)
        for container in containers:
            self.supervisor.tell("removeProcessGroup", container.name)
            container.remove()
        if containers:
            self.supervisor.call("reloadConfig")

    def kill(self, containers: Sequence[Container], number: signal.Signals) -> None:
        """Sends a signal to containers as ``docker kill`` does: SIGKILL ends all of it, and it stays down.

        Another signal goes to its first process.
        """
        for container in containers:
            if number == signal.SIGKILL:
                pids = processes.of_stack(self.directory.path).get(container.name, [])
                # Stopped first, so that none of it sees the others go.
                processes.send(pids, signal.SIGSTOP)
                self.supervisor.tell("stopProcess", container.name, False)
                processes.kill_all(self.directory.path, container.name)
                self._wait(container, _GONE, 10)
            else:
                program = self.supervisor.state(container.name)
                processes.send([program.pid] if program and program.pid else [], number)

    def pause(self, containers: Sequence[Container], *, resume: bool) -> None:
        """Stops every process of containers where it is, as ``docker-compose pause`` does, or lets them go on."""
        found = processes.of_stack(self.directory.path)
        for container in containers:
            processes.send(found.get(container.name, []), signal.SIGCONT if resume else signal.SIGSTOP)

    def down(self, *, volumes: bool) -> None:
        """Stops and removes everything; with ``volumes`` also what the Consul servers and the balancer keep."""
        if self.supervisor.alive():
            # The servers last: the others deregister and leave.
            everything = self.containers()
            clients = [container for container in everything if container.service.scalable]
            self.remove(clients)
            rest = [container for container in self.containers() if "registrar" in container.service.components]
            self.remove(rest)
            self.remove(self.containers())
            self._end_outer()
        self._sweep()
        remove = [self.directory.containers, self.directory.programs, self.directory.logs]
        for path in [self.directory.path] if volumes else remove:
            _remove_tree(path)

    def _begin(self, settings: Settings) -> None:
        self.directory.check()
        _check_descriptors()
        tools = self.tools
        self._sweep()
        for path in (self.directory.containers, self.directory.programs):
            _remove_tree(path)
        if settings.address_base != self.settings.address_base:
            # Raft knows its peers by address.
            _remove_tree(self.directory.volumes)
        self.settings = settings
        self._check_ports()
        say("using " + ", ".join(f"{name} ({path})" for name, path in tools.items()))
        self.directory.save(settings)
        self.supervisor = start_outer(self.directory)

    def _check_ports(self) -> None:
        taken = [
            f"{flag} {port}: 127.0.0.1:{port} is already in use"
            for flag, port in (("--port", self.settings.port), ("--consul-port", self.settings.consul_port))
            if port_in_use("127.0.0.1", port)
        ]
        for service in self.services.values():
            address = self.container(service, 1).address
            taken += [
                f"--address-base {self.settings.address_base}: {address}:{port} is already in use"
                for port in _AGENT_PORTS
                if port_in_use(address, port)
            ]
        if taken:
            raise LocalStackError("\n".join([*taken[:3], "end what uses it, or choose another value for the flag"]))

    def _sweep(self) -> None:
        """Ends what a stack whose supervisord was killed has left."""
        count = processes.kill_all(self.directory.path)
        if count:
            say(f"ended {count} processes of an earlier stack that had lost its supervisord")

    def _create(self, container: Container) -> None:
        """Lays a container out and starts it; one that runs and would be the same is left alone."""
        written = container.path / "environment"
        before = written.read_text() if written.exists() else None
        container.prepare(environment(container, self.settings, self.services, self.tools))
        program = self.supervisor.state(container.name)
        if program and program.state not in _GONE and written.read_text() != before:
            say(f"its environment changed, recreating {container.name}")
            self.stop([container])
        self.supervisor.call("reloadConfig")
        self.supervisor.tell("addProcessGroup", container.name)
        self.supervisor.tell("startProcess", container.name, False)

    def _wait(self, container: Container, states: Sequence[str], seconds: float) -> None:
        def reached() -> bool:
            program = self.supervisor.state(container.name)
            return program is None or program.state in states

        if not wait_until(reached, seconds):
            raise LocalStackError(f"{container.name} is not {' or '.join(states).lower()} within {seconds:g} s")

    def _end_outer(self) -> None:
        pid = int(self.supervisor.call("getPID"))
        self.supervisor.call("shutdown")
        if not wait_until(lambda: not Path(f"/proc/{pid}").exists(), 30):
            raise LocalStackError(f"supervisord (process {pid}) does not end")


def wait_until(reached: Callable[[], bool], seconds: float, interval: float = 0.05) -> bool:
    """Polls until ``reached()``; False when that takes longer than ``seconds``."""
    deadline = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > deadline:
            return False
        time.sleep(interval)
    return True


def _remove_tree(path: Path) -> None:
    """Removes a directory, if it is there.

    Raises:
        LocalStackError: something of it can't be removed.
    """
    shutil.rmtree(path, ignore_errors=True)
    if path.exists():
        raise LocalStackError(f"{path} can't be removed: is it another user's, of a stack that sudo has started?")


def _check_descriptors() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _MIN_DESCRIPTORS:
        raise LocalStackError(f"ulimit -n: {hard} open files are allowed, {_MIN_DESCRIPTORS} are needed")
