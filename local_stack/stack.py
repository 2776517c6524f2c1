"""The stack as a whole: which containers are wanted, which exist, and how to get from one to the other."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from local_stack import processes
from local_stack.compose import Service, read
from local_stack.container import Container
from local_stack.environment import container_environment
from local_stack.errors import LocalStackError, say
from local_stack.interpolation import variables
from local_stack.settings import BALANCER_PORT, ROOT, Directory, Settings, port_in_use
from local_stack.supervisor import Supervisor, start_outer
from local_stack.tools import TOOLS, find

# Consul's ports on every agent's address: RPC, gossip, HTTP, DNS.
_AGENT_PORTS = (8300, 8301, 8500, 8600)
_MAX_REPLICAS = 100
# supervisord's own minimum (minfds).
_MIN_DESCRIPTORS = 1024


class Stack:
    """The stack in a directory; docker-compose.yaml may refer to variables of the shell (``env``) and of .env."""

    def __init__(self, directory: Directory, env: Mapping[str, str]) -> None:
        self.directory = directory
        self._env = variables(ROOT, env)
        self._take(directory.load())
        self.supervisor = Supervisor(directory.socket)

    def _take(self, settings: Settings) -> None:
        self.settings = settings
        everything = read(self.directory.compose_files(settings), self._env)
        self.jobs = [one for one in everything.values() if one.job]
        self.services = {name: one for name, one in everything.items() if not one.job}

    @property
    def secrets(self) -> Path:
        """The directory of the secrets of secure.yaml."""
        return ROOT / self._env.get("SECRETS", "secrets")

    @cached_property
    def tools(self) -> dict[str, Path]:
        """The paths of the programs that are not Python packages."""
        return {tool: find(tool) for tool in TOOLS}

    def container(self, service: Service, number: int) -> Container:
        """Returns a container of a service; it need not exist."""
        address = self.settings.address(self.services, service.name, number)
        return Container(service=service, number=number, address=address, directory=self.directory)

    def environment(self, container: Container) -> dict[str, str]:
        """Returns the variables of a container."""
        return container_environment(container, self.settings, self.services, self.tools)

    def _run_job(self, job: Service) -> None:
        """Starts the services that a job needs, and runs it."""
        self.start([self.container(self.services[name], 1) for name in job.needs])
        one = Container(service=job, number=1, address="127.0.0.1", directory=self.directory)
        one.run_job(self.environment(one))

    def publisher(self, port: int) -> Container:
        """Returns the container that has this port, which docker-compose.yaml publishes on the host."""
        for service in self.services.values():
            if port in service.published:
                return self.container(service, 1)
        raise LocalStackError(f"docker-compose.yaml: no service publishes port {port}")

    def containers(self, names: Sequence[str] = ()) -> list[Container]:
        """Returns the containers that exist, of all services or of those named: SERVICE or SERVICE-N."""
        existing = [
            container
            for service in self.services.values()
            for number in range(1, 2 if service.fixed else _MAX_REPLICAS + 1)
            if (container := self.container(service, number)).program.exists()
        ]
        for name in names:
            if not any(container.has_name([name]) for container in existing):
                known = ", ".join(dict.fromkeys(container.service.name for container in existing)) or "none is up"
                raise LocalStackError(f"no container {name}; services: {known}")
        return [container for container in existing if container.has_name(names)]

    def balancer_ports(self) -> list[int]:
        """Returns the ports of the balancers on 127.0.0.1."""
        balancer = self.publisher(BALANCER_PORT).service.name
        return [self.settings.published(one.number) for one in self.containers([balancer])]

    def check_scales(self, scales: Mapping[str, int]) -> None:
        """Checks the names and numbers of ``--scale``."""
        for name, count in scales.items():
            if name not in self.services:
                raise LocalStackError(f"--scale: no service {name}; services: {', '.join(self.services)}")
            service = self.services[name]
            if service.fixed and count != 1:
                raise LocalStackError(f"--scale {name}: must be 1, because it has a fixed name (got {count})")
            if service.published and count < 1:
                raise LocalStackError(f"--scale {name}: must be at least 1, because it has a published port (got 0)")
            if not 0 <= count <= _MAX_REPLICAS:
                raise LocalStackError(f"--scale {name}: must be an integer from 0 to {_MAX_REPLICAS} (got {count})")

    def up(self, scales: Mapping[str, int], settings: Settings) -> None:
        """Starts the containers that are wanted and removes the others; does not wait for readiness."""
        self.check_scales(scales)
        if self.supervisor.alive():
            if settings != self.settings:
                raise LocalStackError(
                    f"the stack is up with {self.settings}; take it down before it can have {settings}"
                )
        else:
            self._start_outer(settings)
        for job in self.jobs:
            self._run_job(job)
        self._scale({**dict.fromkeys(self.services, 1), **scales})

    def scale(self, scales: Mapping[str, int]) -> None:
        """Changes the number of replicas of services; surplus ones are stopped gracefully."""
        self.require_up()
        self.check_scales(scales)
        self._scale(scales)

    def _scale(self, scales: Mapping[str, int]) -> None:
        self._check_more_ports(scales)
        for name, count in scales.items():
            self.start([self.container(self.services[name], number) for number in range(1, count + 1)])
        self.remove([one for one in self.containers() if one.number > scales.get(one.service.name, one.number)])

    def _check_more_ports(self, scales: Mapping[str, int]) -> None:
        """Checks the ports of further balancers."""
        for name, count in scales.items():
            if BALANCER_PORT in self.services[name].published:
                for number in range(2, count + 1):
                    port = self.settings.published(number)
                    new = not self.container(self.services[name], number).program.exists()
                    if new and port_in_use("127.0.0.1", port):
                        raise LocalStackError(f"--scale {name}: 127.0.0.1:{port} is already in use")

    def require_up(self) -> None:
        """Raises LocalStackError when the stack is not up."""
        if not self.supervisor.alive():
            raise LocalStackError("the stack is not up; start it with: python -m local_stack up -d")

    def start(self, containers: Sequence[Container]) -> None:
        """Starts containers, new ones too."""
        for container in containers:
            container.start(self.environment(container))

    def stop(self, containers: Sequence[Container]) -> None:
        """Stops containers gracefully, all at once."""
        for container in containers:
            container.request_stop()
        for container in containers:
            container.wait_stopped()

    def remove(self, containers: Sequence[Container]) -> None:
        """Stops and removes containers."""
        for container in containers:
            say(f"stopping {container.name}")
        self.stop(containers)
        for container in containers:
            container.remove()

    def down(self, *, volumes: bool) -> None:
        """Stops and removes everything; with ``volumes`` also the data of the Consul servers and the balancer."""
        if self.supervisor.alive():
            # Replicas, then the balancer, then the Consul servers, at which the others deregister.
            self.remove([container for container in self.containers() if container.service.scalable])
            self.remove([one for one in self.containers() if "registrar" in one.service.components])
            self.remove(self.containers())
            self._stop_outer()
        self._kill_leftovers()
        remove = [self.directory.containers, self.directory.programs, self.directory.logs]
        for path in [self.directory.path] if volumes else remove:
            _remove_tree(path)

    def _start_outer(self, settings: Settings) -> None:
        longest = max((self.container(service, _MAX_REPLICAS).name for service in self.services.values()), key=len)
        self.directory.check(longest)
        _check_descriptors()
        tools = self.tools
        self._kill_leftovers()
        for path in (self.directory.containers, self.directory.programs):
            _remove_tree(path)
        if settings.address_base != self.settings.address_base:
            # Raft knows its peers by address.
            _remove_tree(self.directory.volumes)
        self._take(settings)
        self._check_binds()
        self._check_ports()
        say("using " + ", ".join(f"{name} ({path})" for name, path in tools.items()))
        self.directory.save(settings)
        self.supervisor = start_outer(self.directory)

    def _check_binds(self) -> None:
        wanted = {ROOT / source for service in self.services.values() for source in service.binds.values()}
        missing = sorted(str(path) for path in wanted if not path.exists())
        if missing:
            hint = "; python -m local_stack secure makes it" if self.settings.secure else ""
            raise LocalStackError(f"{missing[0]} is not there{hint}")

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
            raise LocalStackError(
                "\n".join([*taken[:3], "stop the program that uses it, or choose another value for the flag"])
            )

    def _kill_leftovers(self) -> None:
        """Kills the processes of a stack whose supervisord was killed."""
        count = processes.kill_all(self.directory.path)
        if count:
            say(f"ended {count} processes of an earlier stack that had lost its supervisord")

    def _stop_outer(self) -> None:
        pid = int(self.supervisor.call("getPID"))
        self.supervisor.call("shutdown")
        if not processes.wait_until(lambda: not processes.is_alive(pid), 30):
            raise LocalStackError(f"supervisord (process {pid}) has not stopped within 30 s")


def _remove_tree(path: Path) -> None:
    """Removes a directory, if it is there; raises LocalStackError if it can't be removed."""
    shutil.rmtree(path, ignore_errors=True)
    if path.exists():
        raise LocalStackError(f"{path} can't be removed: it may belong to another user, if sudo started the stack")


def _check_descriptors() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _MIN_DESCRIPTORS:
        raise LocalStackError(f"ulimit -n: {hard} open files are allowed, {_MIN_DESCRIPTORS} are needed")
