"""Reads the services of docker-compose.yaml by the Compose Specification, to run them without Docker.

A key that can't be carried out without Docker is refused by name and line, or has no effect (``_WITHOUT_EFFECT``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local_stack.errors import LocalStackError
from local_stack.interpolation import InterpolationError, interpolate
from local_stack.yaml_lines import Ambiguous, Lined, YamlError, load

# Without Docker the programs ask the machine's own resolver; port 53 would need root.
_ONLY_IN_CONTAINERS = "resolver"
_BIND = re.compile(r"\./build/config/(\w[\w-]*)")
# Other parts of build/config, such as the resolver's file, are only in containers.
_OTHER_BIND = re.compile(r"(?!\./build/)\.?/.+")
_DURATION = re.compile(r"(?=.)(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+)ms)?(?:(\d+)us)?")
_UNITS = (3600, 60, 1, 1e-3, 1e-6)
_PORT = re.compile(r"(?:(?P<address>\[[^\]]+\]|[^:]+):)?(?:(?P<host>\d+):)(?P<container>\d+)(?:/(?P<protocol>\w+))?")
_BUILD_DEFAULTS = {"context": ".", "dockerfile": "Dockerfile"}
_TOP = {"configs", "name", "networks", "secrets", "services", "version", "volumes"}
_CARRIED_OUT = {
    "build", "container_name", "environment", "hostname", "ports", "profiles", "restart", "stop_grace_period", "tmpfs",
    "volumes",
}  # fmt: skip
# Limits, networks and rights of a container, which the processes of local_stack do not have.
_WITHOUT_EFFECT = {
    "annotations", "cap_add", "cap_drop", "cpus", "depends_on", "entrypoint", "expose", "healthcheck", "image", "init",
    "labels", "logging", "mem_limit", "mem_reservation", "memswap_limit", "networks", "pids_limit", "platform",
    "pull_policy", "read_only", "security_opt", "stdin_open", "stop_signal", "sysctls", "tty", "ulimits",
    "user",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Service:
    """A service of the compose file."""

    name: str
    components: tuple[str, ...]  # the parts of build/config that make up its file system
    environment: Mapping[str, str]
    volumes: Mapping[str, str]  # the paths in the container, by the names of the volumes
    binds: Mapping[str, str]  # the paths on the host, by those in the container
    tmpfs: tuple[str, ...]  # the paths that are empty at each start
    published: Mapping[int, int]  # the ports of the host, by those of the container
    scalable: bool  # whether it may have any number of containers, which are numbered
    fixed: bool  # whether it can have one container only
    grace_seconds: float  # the time that it may take to stop
    job: tuple[str, ...] = ()  # the command of a container that runs once at each `up` (restart: "no")
    needs: tuple[str, ...] = ()  # the services that it needs


def read(paths: Path | Sequence[Path], env: Mapping[str, str]) -> dict[str, Service]:
    """Returns the services of a compose file, in its order, without those of a profile (they start on request).

    Of several files each is merged over those before it, by the Compose Specification ("Merge").
    """
    files = [paths] if isinstance(paths, Path) else paths
    services = _load_services(files[0])
    origins = {name: (files[0], line) for name, line in services.lines.items()}
    for path in files[1:]:
        for name, spec in (more := _load_services(path)).items():
            services[name] = _merge(services[name], spec) if name in services else spec
            origins.setdefault(name, (path, more.lines[name]))
    return {
        name: service
        for name, spec in services.items()
        if (service := _Reader(*origins[name], name, env).read(spec)) is not None
    }


def _load_services(path: Path) -> Lined:
    try:
        document = load(path.read_text())
    except (OSError, UnicodeDecodeError, YamlError) as error:
        raise LocalStackError(f"{path.name} can't be read: {error}") from error
    if isinstance(document, Lined):
        for key, line in document.lines.items():
            if key not in _TOP and not str(key).startswith("x-"):
                raise LocalStackError(f"{path.name}, line {line}: {key} is not known to local_stack")
    services = document.get("services") if isinstance(document, Lined) else None
    if not isinstance(services, Lined) or not services:
        raise LocalStackError(f"{path.name} has no services")
    return services


def _merge(under: Any, over: Any) -> Any:
    """Merges mappings key by key, and appends lists; another value replaces the one below it."""
    if isinstance(under, Lined) and isinstance(over, Lined):
        items = {key: _merge(under[key], value) if key in under else value for key, value in over.items()}
        return Lined({**under, **items}, {**under.lines, **over.lines})
    if isinstance(under, list) and isinstance(over, list):
        return [*under, *over]
    return over


class _Reader:
    """Reads one service; its errors have the file, the line and the name."""

    def __init__(self, path: Path, line: int, name: str, env: Mapping[str, str]) -> None:
        self._path = path
        self._name = name
        self._line = line
        self._env = env

    def _refuse(self, what: str, line: int | None = None) -> LocalStackError:
        return LocalStackError(f"{self._path.name}, line {line or self._line}: service {self._name}: {what}")

    def read(self, spec: Any) -> Service | None:
        """Returns the service; None for one of a profile."""
        if not isinstance(spec, Lined):
            raise self._refuse(f"must be a mapping (got {spec!r})")
        spec = self._expand(spec, self._line)
        if spec.get("profiles"):
            return None
        for key in spec:
            if key not in _CARRIED_OUT | _WITHOUT_EFFECT and not str(key).startswith("x-"):
                raise self._refuse(f"{key} is not known to local_stack, which can't carry it out", spec.lines[key])
        published = dict(self._port(port, line) for port, line in self._items(spec, "ports"))
        volumes = [self._volume(volume, line) for volume, line in self._items(spec, "volumes")]
        job = self._job(spec)
        fixed = bool(job or {"hostname", "container_name"} & set(spec))
        return Service(
            name=self._name,
            components=() if job else self._components(spec, [source for source, _ in volumes]),
            environment=self._environment(spec),
            volumes={source: target for source, target in volumes if source and source[0] not in "./~"},
            binds={target: source for source, target in volumes if _OTHER_BIND.fullmatch(source)},
            tmpfs=tuple(str(entry).split(":")[0] for entry, _ in self._items(spec, "tmpfs")),
            published=published,
            # Each further container with a published port has a port of its own, which Compose can't give it.
            scalable=not published and not fixed,
            fixed=fixed,
            grace_seconds=self._duration(spec, "stop_grace_period", 10),
            job=job,
            needs=tuple(str(one) for one in spec.get("depends_on") or ()),
        )

    def _job(self, spec: Lined) -> tuple[str, ...]:
        """Returns the command of a job; nothing for a service that is restarted when it ends."""
        if spec.get("restart") != "no":
            return ()
        command = spec.get("entrypoint")
        if not isinstance(command, list) or not command:
            raise self._refuse('a service with restart: "no" must have a list as its entrypoint', spec.lines["restart"])
        return tuple(map(str, command))

    def _expand(self, value: Any, line: int) -> Any:
        if isinstance(value, Lined):
            items = {key: self._expand(item, value.lines[key]) for key, item in value.items()}
            return Lined(items, value.lines)
        if isinstance(value, list):
            return [self._expand(item, line) for item in value]
        if not isinstance(value, str) or isinstance(value, Ambiguous):
            return value
        try:
            return interpolate(value, self._env)
        except InterpolationError as error:
            raise self._refuse(str(error), line) from error

    def _items(self, spec: Lined, key: str) -> list[tuple[Any, int]]:
        """Returns the items of a list, each with its line; a single value is a list of one."""
        if key not in spec:
            return []
        value, line = spec[key], spec.lines[key]
        if value is None or isinstance(value, Lined):
            raise self._refuse(f"{key}: must be a list (got {value!r})", line)
        items = value if isinstance(value, list) else [value]
        return [(item, min(item.lines.values(), default=line) if isinstance(item, Lined) else line) for item in items]

    def _environment(self, spec: Lined) -> dict[str, str]:
        """Reads a mapping or a list of NAME=VALUE; a name without a value has the shell's value, if it is set there."""
        if "environment" not in spec:
            return {}
        given, line = spec["environment"], spec.lines["environment"]
        if isinstance(given, Lined):
            pairs = [(str(name), value) for name, value in given.items()]
        elif isinstance(given, list) and all(isinstance(item, str) for item in given):
            split = [item.partition("=") for item in given]
            pairs = [(name, value if equals else None) for name, equals, value in split]
        else:
            raise self._refuse(f"environment: must be a mapping or a list of NAME=VALUE (got {given!r})", line)
        result = {}
        for name, value in pairs:
            if isinstance(value, Lined | list):
                raise self._refuse(
                    f"environment: {name}: must be a string, a number or a boolean (got {value!r})", line
                )
            if isinstance(value, Ambiguous):
                raise self._refuse(f"environment: {name}: must be in quotes, or Compose changes it (got {value})", line)
            if value is not None:
                result[name] = str(value).lower() if isinstance(value, bool) else str(value)
            elif name in self._env:
                result[name] = self._env[name]
        return result

    def _port(self, given: Any, line: int) -> tuple[int, int]:
        """Returns the container's port and the host's."""
        if isinstance(given, Lined):
            container, host, protocol = given.get("target"), given.get("published"), given.get("protocol")
        else:
            match = _PORT.fullmatch(str(given))
            container, host, protocol = match.group("container", "host", "protocol") if match else (None, None, None)
        try:
            ports = int(str(container)), int(str(host))
        except ValueError:
            raise self._refuse(f"ports: must be one host port and one container port (got {given!r})", line) from None
        if (protocol or "tcp") != "tcp":
            raise self._refuse(f"ports: {protocol} can't be published without Docker", line)
        if not all(1 <= port <= 65535 for port in ports):
            raise self._refuse(f"ports: must be integers from 1 to 65535 (got {ports[1]}:{ports[0]})", line)
        return ports

    def _volume(self, given: Any, line: int) -> tuple[str, str]:
        """Returns the source and the target."""
        if isinstance(given, Lined):
            source, target = given.get("source"), given.get("target")
        else:
            source, _, rest = str(given).partition(":")
            target = rest.split(":")[0]
        if not source or not target:
            raise self._refuse("volumes: an anonymous volume can't be created without Docker", line)
        return str(source), str(target)

    def _duration(self, spec: Lined, key: str, default: float) -> float:
        """Returns the seconds of a duration, such as 1m30s."""
        if spec.get(key) is None:
            return default
        match = _DURATION.fullmatch(str(spec[key]))
        if not match:
            raise self._refuse(f"{key}: must be a duration such as 90s or 1m30s (got {spec[key]!r})", spec.lines[key])
        return sum(float(number) * unit for number, unit in zip(match.groups(), _UNITS, strict=True) if number)

    def _components(self, spec: Lined, sources: list[str]) -> tuple[str, ...]:
        components = [match[1] for match in map(_BIND.fullmatch, sources) if match]
        if build := spec.get("build"):
            described = build if isinstance(build, Lined) else {"context": str(build)}
            context, dockerfile = (str(described.get(*item)) for item in _BUILD_DEFAULTS.items())
            image = Path(context, dockerfile)
            parts = image_parts(self._path.parent, image)
            if not parts:
                raise self._refuse(f"build: {image} is not in build/images", spec.lines["build"])
            components += [part for part in parts if part != _ONLY_IN_CONTAINERS]
        if not components:
            raise self._refuse("no part of build/config belongs to it, so it can't run without Docker")
        return tuple(dict.fromkeys([*components, "supervisord"]))


def image_parts(root: Path, dockerfile: Path) -> list[str]:
    """Returns the parts of build/config that make up an image (``build/images``); none of an unknown image."""
    table = root / "build" / "images"
    rows = [line.split() for line in table.read_text().splitlines()] if table.exists() else []
    return next((parts for name, *parts in filter(None, rows) if name == str(dockerfile)), [])
