"""A container without Docker: a directory laid out like the image, an address, an environment, a supervisord."""

from __future__ import annotations

import math
import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from local_stack.compose import Service
from local_stack.settings import ROOT, Directory, Settings

# Every process of a container carries this variable, so that none is overlooked.
MARK = "LOCAL_STACK_CONTAINER"


@dataclass(frozen=True, kw_only=True)
class Container:
    """One container of a service; ``number`` counts from 1."""

    service: Service
    number: int
    address: str
    directory: Directory

    @property
    def name(self) -> str:
        """As Compose numbers them; a service that can't be scaled has its own name."""
        return f"{self.service.name}-{self.number}" if self.service.scalable else self.service.name

    @property
    def path(self) -> Path:
        """Its file system."""
        return self.directory.containers / self.name

    @property
    def log(self) -> Path:
        """What its programs print."""
        return self.directory.logs / f"{self.name}.log"

    @property
    def program(self) -> Path:
        """Its entry in the outer supervisord's configuration."""
        return self.directory.programs / f"{self.name}.conf"

    def prepare(self, environment: Mapping[str, str]) -> None:
        """Lays out the file system, its start script and its program."""
        for component in self.service.components:
            _overlay(ROOT / "build" / "config" / component, self.path)
        (self.path / "var" / "lib" / "load-balancer").mkdir(parents=True, exist_ok=True)
        for volume, mount in self.service.volumes.items():
            target = self.path / mount.lstrip("/")
            source = self.directory.volumes / volume
            source.mkdir(parents=True, exist_ok=True)
            if not target.is_symlink():
                shutil.rmtree(target, ignore_errors=True)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(source)
        emptied = " ".join(shlex.quote(path.lstrip("/")) for path in self.service.tmpfs)
        lines = [f"export {name}={shlex.quote(value)}" for name, value in sorted(environment.items())]
        (self.path / "environment").write_text("\n".join(lines) + "\n")
        # A supervisord that was killed leaves its file, and its programs, which end with it in a real container.
        leftovers = shlex.join([sys.executable, "-m", "local_stack.processes", str(self.directory.path), self.name])
        lines = [
            "# Written by local_stack: how the outer supervisord starts this container.",
            "set -eu",
            f"[ ! -e run/supervisord.pid ] || {leftovers}",
            f"rm -rf run {emptied}",
            f"mkdir -p run {emptied}",
            # Nothing of the shell that the stack was started from, as in a real container.
            f"exec env -i /bin/sh -c {shlex.quote('. ./environment; exec supervisord-start')}",
        ]
        (self.path / "start").write_text("\n".join(lines) + "\n")
        self.program.parent.mkdir(parents=True, exist_ok=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.program.write_text(self._program())

    def remove(self) -> None:
        """Removes everything of it but its volumes and its log."""
        self.program.unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)

    def _program(self) -> str:
        # The outer supervisord does what Compose's restart: unless-stopped does. Its paths are below its working
        # directory: any character may be in the path of that, but not in a value here.
        return "\n".join(
            [
                f"[program:{self.name}]",
                "command=/bin/sh start",
                f"directory={self.path.relative_to(self.directory.path)}",
                "autostart=false",
                "autorestart=true",
                "startsecs=1",
                "startretries=1000000",
                f"stopwaitsecs={math.ceil(self.service.grace_seconds)}",
                "redirect_stderr=true",
                f"stdout_logfile={self.log.relative_to(self.directory.path)}",
                # Not the only one that writes there, so that it can't rename it (rotation.py).
                "stdout_logfile_maxbytes=0",
                "",
            ]
        )


def environment(
    container: Container, settings: Settings, services: Mapping[str, Service], tools: Mapping[str, Path]
) -> dict[str, str]:
    """The environment of a container: the compose file's, and what differs without Docker: addresses and paths."""
    address = container.address
    result = dict(container.service.environment)
    names = result.get("CONSUL_SERVER", "").replace(",", " ").split()
    result["CONSUL_SERVER"] = ",".join(
        settings.address(services, name, 1) if name in services else name for name in names
    )
    result |= {
        MARK: container.name,
        "LOCAL_STACK_DIRECTORY": str(container.directory.path),
        "HOSTNAME": container.name,
        "CONTAINER_STDOUT": str(container.log),
        "PATH": _search_path(container, tools),
        "PYTHONPATH": str(ROOT),
        "APP_ADDRESS": address,
        "BIND_ADDRESS": address,
        "CONSUL_BIND": address,
        "CONSUL_CLIENT": address,
        "CONSUL_ADDRESS": address,
        "CONSUL_PORT": "8500",
        "CONSUL_CONFIG_DIR": str(container.path / "etc" / "consul" / "conf.d"),
        "CONSUL_DATA_DIR": str(container.path / "consul" / "data"),
        "LB_LISTEN": f"{address}:5000 127.0.0.1:{settings.port}",
        "LB_STATUS_ADDRESS": address,
        "PEER_CIDR": "127.0.0.0/8",
    }
    if 8500 in container.service.published:
        result |= {
            "CONSUL_CLIENT": "127.0.0.1",
            "CONSUL_ADDRESS": "127.0.0.1",
            "CONSUL_PORT": str(settings.consul_port),
            # On 127.0.0.1, where another stack may have its own.
            "CONSUL_DNS_PORT": "-1",
        }
    # consul-template and the consul command read this one.
    result["CONSUL_HTTP_ADDR"] = f"{result['CONSUL_ADDRESS']}:{result['CONSUL_PORT']}"
    return result


def _search_path(container: Container, tools: Mapping[str, Path]) -> str:
    directories = [container.path / "usr" / "bin", Path(sys.executable).parent]
    directories += [path.parent for path in tools.values()]
    return os.pathsep.join([*dict.fromkeys(map(str, directories)), "/usr/local/bin", "/usr/bin", "/bin"])


def _overlay(source: Path, target: Path) -> None:
    """Links every file of ``source`` into ``target``, directory by directory, as COPY lays it over an image."""
    for path in source.rglob("*"):
        link = target / path.relative_to(source)
        if path.is_file():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(path)
