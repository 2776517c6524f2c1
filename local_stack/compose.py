"""Reads docker-compose.yaml: the services, as far as running them without Docker needs it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from local_stack.errors import LocalStackError

_VARIABLE = re.compile(r"\$(?:\$|\{(?P<name>\w+)(?::?-(?P<default>[^}]*))?\}|(?P<bare>\w+))")
# A Dockerfile's line that lays parts of build/config over the root of the image.
_OVERLAY = re.compile(r"^COPY ((?:build/config/\S+ )+)/$", re.MULTILINE)
# Without Docker the machine's own resolver is asked, and a port 53 would take root.
_ONLY_IN_CONTAINERS = "resolver"
_BIND = re.compile(r"\./build/config/(\w[\w-]*):")


@dataclass(frozen=True, kw_only=True)
class Service:
    """A service of the compose file.

    Attributes:
        components: the directories of build/config that make up its file system.
        volumes: paths in the container, by the names of the volumes there.
        tmpfs: paths that are empty at each start.
        published: host ports by container ports.
        scalable: whether it may have several replicas.
    """

    name: str
    components: tuple[str, ...]
    environment: Mapping[str, str]
    volumes: Mapping[str, str]
    tmpfs: tuple[str, ...]
    published: Mapping[int, int]
    scalable: bool
    grace_seconds: int


def read(path: Path, env: Mapping[str, str]) -> dict[str, Service]:
    """The services of a compose file, in its order, but for those of a profile, which are not started by default.

    Raises:
        LocalStackError: the file can't be read or says something that this program can't carry out.
    """
    try:
        document = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise LocalStackError(f"{path.name} can't be read: {error}") from error
    services = document.get("services") if isinstance(document, dict) else None
    if not isinstance(services, dict):
        raise LocalStackError(f"{path.name} has no services")
    started = {name: spec for name, spec in services.items() if "profiles" not in spec}
    return {name: _service(path.parent, name, _expand(spec, env)) for name, spec in started.items()}


def _expand(value: Any, env: Mapping[str, str]) -> Any:
    """Compose's variables: ``$NAME``, ``${NAME}``, ``${NAME:-default}``, ``$$`` for a dollar sign."""
    if isinstance(value, dict):
        return {key: _expand(item, env) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, env) for item in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return env.get(match["name"] or match["bare"]) or match["default"] or ""

    return _VARIABLE.sub(replace, value)


def _service(root: Path, name: str, spec: Mapping[str, Any]) -> Service:
    volumes = [volume for volume in spec.get("volumes", []) if isinstance(volume, str)]
    named = {part[0]: part[1] for part in (volume.split(":") for volume in volumes) if part[0][:1] not in "./"}
    components = [match[1] for match in map(_BIND.match, volumes) if match]
    if "build" in spec:
        dockerfile = root / spec["build"].get("context", ".") / spec["build"]["dockerfile"]
        try:
            text = dockerfile.read_text()
        except OSError as error:
            raise LocalStackError(f"service {name}: {error}") from error
        for match in _OVERLAY.finditer(text):
            names = [Path(part).name for part in match[1].split()]
            components += [name for name in names if name != _ONLY_IN_CONTAINERS]
    if not components:
        raise LocalStackError(f"service {name} has nothing of build/config, so it can't be run without Docker")
    published = {}
    for port in spec.get("ports", []):
        host, container = str(port).split(":")[-2:]
        published[int(container)] = int(host)
    return Service(
        name=name,
        components=tuple(dict.fromkeys([*components, "supervisord"])),
        environment={key: str(value) for key, value in (spec.get("environment") or {}).items()},
        volumes=named,
        tmpfs=tuple(str(entry).split(":")[0] for entry in spec.get("tmpfs", [])),
        published=published,
        # As in Compose: a fixed name or a published port can be had once.
        scalable=not published and "hostname" not in spec,
        grace_seconds=int(str(spec.get("stop_grace_period", "10s")).removesuffix("s")),
    )
