"""The directory, the addresses and the ports of a stack."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from local_stack.compose import Service
from local_stack.errors import LocalStackError

ROOT = Path(__file__).resolve().parent.parent
_LOOPBACK = IPv4Network("127.0.0.0/8")
# The ports in the containers that docker-compose.yaml publishes: of the balancer, and of the Consul UI and API.
BALANCER_PORT, CONSUL_PORT = 5000, 8500
# Services of one container get the first addresses of the base; each service that can be scaled has its own range.
_RANGE = 256


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of ``up``, which later commands read again."""

    address_base: str = "127.16.0.0"  # the first of the stack's loopback addresses
    port: int = BALANCER_PORT  # the balancer's, on 127.0.0.1
    consul_port: int = CONSUL_PORT  # the Consul UI's and API's, on 127.0.0.1
    secure: bool = False  # whether secure.yaml is merged over docker-compose.yaml

    def __post_init__(self) -> None:
        """Checks the values."""
        try:
            base = IPv4Address(self.address_base)
        except ValueError as error:
            raise LocalStackError(f"--address-base: must be an IPv4 address (got {self.address_base!r})") from error
        if base not in _LOOPBACK or base + 16 * _RANGE not in _LOOPBACK or int(base) % _RANGE:
            raise LocalStackError(
                f"--address-base: must be a loopback address that ends in .0, such as 127.17.0.0 (got '{base}')"
            )
        for flag, port in (("--port", self.port), ("--consul-port", self.consul_port)):
            if not 1 <= port <= 65535:
                raise LocalStackError(f"{flag}: must be an integer from 1 to 65535 (got {port})")
        if self.port == self.consul_port:
            raise LocalStackError(f"--port and --consul-port are both {self.port}")

    def published(self, number: int) -> int:
        """Returns the port of a balancer on 127.0.0.1."""
        return self.port + number - 1

    def address(self, services: Mapping[str, Service], service: str, number: int) -> str:
        """Returns the address of a container."""
        scalable = [name for name, spec in services.items() if spec.scalable]
        single = [name for name, spec in services.items() if not spec.scalable]
        if service in single and number == 1:
            offset = 1 + single.index(service)
        else:
            offset = _RANGE * (1 + [*scalable, *single].index(service)) + number
        return str(IPv4Address(self.address_base) + offset)


class Directory:
    """The directory of a stack."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.containers = path / "containers"  # their file systems, one directory each
        self.volumes = path / "volumes"  # one directory each
        self.logs = path / "logs"  # one file a container
        # The outer supervisord's programs, one file for each container, and its control socket.
        self.programs, self.socket = path / "programs", path / "supervisor.sock"

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Directory:
        """Returns the directory LOCAL_STACK_HOME, or .local_stack in the checkout."""
        return cls(Path(env.get("LOCAL_STACK_HOME") or ROOT / ".local_stack").resolve())

    @staticmethod
    def compose_files(settings: Settings) -> list[Path]:
        """Returns the compose files of a stack."""
        return [ROOT / "docker-compose.yaml", *([ROOT / "secure.yaml"] if settings.secure else [])]

    def check(self, longest_name: str) -> None:
        """Checks that PATH can hold the path, and that it leaves room for the Unix socket of the longest name."""
        for path in (self.path, ROOT):
            if os.pathsep in str(path):
                raise LocalStackError(f"{path}: PATH can't hold a path with {os.pathsep!r}; use a checkout without it")
        # The limit of a Unix socket's path; supervisord appends its process ID while it creates the socket.
        if len(os.fsencode(self.containers / longest_name / "run" / "supervisor.sock.12345")) > 107:
            raise LocalStackError(f"{self.path} is too long a path for Unix sockets; use a checkout in a shorter one")

    def load(self) -> Settings:
        """Returns the settings of the stack in this directory, or the defaults."""
        try:
            return Settings(**json.loads((self.path / "settings.json").read_text()))
        except FileNotFoundError:
            return Settings()
        except (ValueError, TypeError) as error:
            raise LocalStackError(f"{self.path / 'settings.json'} can't be read: {error}") from error

    def save(self, settings: Settings) -> None:
        """Writes the settings for later commands."""
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "settings.json").write_text(json.dumps(asdict(settings)) + "\n")


def port_in_use(address: str, port: int) -> bool:
    """Returns whether a program listens at an address and port."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address, port))
            listener.listen()
        except OSError:
            return True
    return False
