"""Where a stack lives: its directory, its addresses and its ports."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from local_stack.compose import Service
from local_stack.errors import LocalStackError

ROOT = Path(__file__).resolve().parent.parent
_LOOPBACK = IPv4Network("127.0.0.0/8")
# Services of one container get the base's next addresses; each that can be scaled has a range of its own.
_RANGE = 256


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The choices that ``up`` takes and later commands find again.

    Attributes:
        address_base: the first of the stack's loopback addresses.
        port: the balancer's port on 127.0.0.1.
        consul_port: the Consul UI's and API's port on 127.0.0.1.
    """

    address_base: str = "127.16.0.0"
    port: int = 5000
    consul_port: int = 8500

    def __post_init__(self) -> None:
        """Checks the values."""
        try:
            base = IPv4Address(self.address_base)
        except ValueError as error:
            raise LocalStackError(f"--address-base: {self.address_base!r} is no IPv4 address") from error
        if base not in _LOOPBACK or base + 16 * _RANGE not in _LOOPBACK or int(base) % _RANGE:
            raise LocalStackError(f"--address-base: {base} is no loopback address that ends in .0, such as 127.17.0.0")
        for flag, port in (("--port", self.port), ("--consul-port", self.consul_port)):
            if not 1 <= port <= 65535:
                raise LocalStackError(f"{flag}: {port} is no port from 1 to 65535")
        if self.port == self.consul_port:
            raise LocalStackError(f"--port and --consul-port are both {self.port}")

    def address(self, services: Mapping[str, Service], service: str, number: int) -> str:
        """The address of a container."""
        scalable = [name for name, spec in services.items() if spec.scalable]
        single = [name for name, spec in services.items() if not spec.scalable]
        offset = _RANGE * (1 + scalable.index(service)) + number if service in scalable else 1 + single.index(service)
        return str(IPv4Address(self.address_base) + offset)


@dataclass(frozen=True)
class Directory:
    """The directory of a stack: .local_stack in the checkout, or LOCAL_STACK_HOME."""

    path: Path = field(
        default_factory=lambda: Path(os.environ.get("LOCAL_STACK_HOME") or ROOT / ".local_stack").resolve()
    )

    def check(self) -> None:
        """Raises LocalStackError for a path that search paths can't hold."""
        for path in (self.path, ROOT):
            if os.pathsep in str(path):
                raise LocalStackError(f"{path}: PATH can't hold a path with {os.pathsep!r}; use a checkout without it")

    @property
    def containers(self) -> Path:
        """One directory a container: its file system."""
        return self.path / "containers"

    @property
    def volumes(self) -> Path:
        """One directory a volume."""
        return self.path / "volumes"

    @property
    def logs(self) -> Path:
        """One file a container."""
        return self.path / "logs"

    @property
    def programs(self) -> Path:
        """The outer supervisord's programs, one file a container."""
        return self.path / "programs"

    @property
    def socket(self) -> Path:
        """The outer supervisord's control socket."""
        return self.path / "supervisor.sock"

    def load(self) -> Settings:
        """The settings of the stack that is here, or the defaults."""
        try:
            return Settings(**json.loads((self.path / "settings.json").read_text()))
        except FileNotFoundError:
            return Settings()
        except (ValueError, TypeError) as error:
            raise LocalStackError(f"{self.path / 'settings.json'} can't be read: {error}") from error

    def save(self, settings: Settings) -> None:
        """Keeps the settings for later commands."""
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "settings.json").write_text(json.dumps(asdict(settings)) + "\n")
