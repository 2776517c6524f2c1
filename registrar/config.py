"""What the registrar reads from its environment."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from registrar.checks import Check, GrpcCheck, HttpCheck
from registrar.environment import EnvironmentReader, host_port, hostname, is_address, is_host, parse_host_port

# What both a DNS label (RFC 1123, plus the underscore of Compose's names) and an nginx or Lua string can carry.
NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?")
_TAG = re.compile(r"[\x21-\x2b\x2d-\x7e]{1,128}")
# A gRPC service name: a proto package and a name, as in https://protobuf.dev/reference/protobuf/proto3-spec.
GRPC_SERVICE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")
# Consul's limit for a value of a service's metadata; and how many values a list of services may take, by their keys.
_MAX_VALUE, _MAX_VALUES = 512, 8
SERVICES_KEYS = ("grpc_services", *(f"grpc_services_{number}" for number in range(2, _MAX_VALUES + 1)))
# The metadata grpc_since as the registrar writes it: text that sorts by time.
SINCE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", re.ASCII)
_VERSION = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._+-]{0,127})")
# Services with this tag are balanced.
BALANCED_TAG = "grpc_server"
# The check of every node: whether the cluster has its agent.
NODE_CHECK = "serfHealth"
# Agent weights are 1 to 65535, by Consul's API page "Register Service".
_MAX_WEIGHT = 65535


@dataclass(frozen=True, kw_only=True)
class RegistrarConfig:
    """The registrar's settings; README.md has the table of variables."""

    app_name: str
    app_port: int
    app_address: str
    tags: tuple[str, ...]
    weight: int
    version: str
    grpc_services: tuple[str, ...]
    consul_address: str
    consul_port: int
    check: Check | None
    drain_seconds: float
    hostname: str
    metrics_port: int = 0

    @property
    def service_id(self) -> str:
        """The ID of this instance; it carries the host's name, so it is one of its kind in the cluster."""
        return f"{self.app_name}-{self.hostname}-{self.app_port}"

    @property
    def target(self) -> str:
        """Where the service itself listens, ``host:port``."""
        return host_port(self.app_address or "127.0.0.1", self.app_port)

    @property
    def asks_for_services(self) -> bool:
        """Whether the service is balanced and was not told which gRPC services it has: it is asked itself then."""
        return BALANCED_TAG in self.tags and not self.grpc_services

    def metadata(self, grpc_services: Sequence[str]) -> dict[str, str]:
        """What the balancer and Prometheus read of the instance.

        ``grpc_services``, ``grpc_services_2`` and so on: the services whose calls it gets, separated by commas.
        ``grpc_health``: the name to ask its health service for. A replica that was lost gets no call before its
        health service has said SERVING for this name, so that another service that has its address by then gets
        none. ``version`` is for people. The agent adds ``registered`` and
        ``grpc_since``, which are times. ``metrics_port``: where Prometheus finds metrics.
        """
        found = dict(zip(SERVICES_KEYS, split_services(grpc_services), strict=False))
        if isinstance(self.check, GrpcCheck) and self.check.target == self.target and self.check.service:
            found["grpc_health"] = self.check.service
        if self.version:
            found["version"] = self.version
        if self.metrics_port:
            found["metrics_port"] = str(self.metrics_port)
        return found

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> RegistrarConfig:
        """Reads the variables.

        Raises:
            ConfigError: with a line for each variable that is missing or wrong.
        """
        reader = EnvironmentReader(env)
        app_name = reader.text("APP_NAME")
        if app_name and not NAME.fullmatch(app_name):
            reader.problem("APP_NAME", f"{app_name!r} is no name of 1 to 63 letters, digits, - and _")
        app_port = reader.port("APP_PORT")
        app_address = reader.host("APP_ADDRESS", "")
        tags = _tags(reader)
        if is_host(app_address) and BALANCED_TAG in tags and not is_address(app_address):
            reader.problem("APP_ADDRESS", f"{app_address!r} is a name, and a balancer takes IP addresses only")
        config = cls(
            app_name=app_name,
            app_port=app_port,
            app_address=app_address,
            tags=tags,
            version=_version(reader),
            grpc_services=_grpc_services(reader),
            weight=reader.integer("WEIGHT", 1, low=1, high=_MAX_WEIGHT),
            consul_address=reader.host("CONSUL_ADDRESS", "127.0.0.1"),
            consul_port=reader.port("CONSUL_PORT"),
            check=_check(reader, app_address or "127.0.0.1", app_port),
            drain_seconds=reader.seconds("DRAIN_SECONDS", 2, low=0, high=3600),
            hostname=hostname(reader),
            metrics_port=reader.integer("METRICS_PORT", 0, low=0, high=65535),
        )
        reader.raise_problems()
        return config


def split_services(names: Sequence[str]) -> list[str]:
    """The names joined by commas to as few values as Consul takes; the last ones are left out where they don't fit."""
    values: list[str] = []
    for name in names:
        if values and len(values[-1]) + 1 + len(name) <= _MAX_VALUE:
            values[-1] += "," + name
        elif len(name) <= _MAX_VALUE:
            values.append(name)
    return values[:_MAX_VALUES]


def services_fit(names: Sequence[str]) -> bool:
    """Whether all of the names can be registered."""
    return ",".join(split_services(names)) == ",".join(names)


def _grpc_services(reader: EnvironmentReader) -> tuple[str, ...]:
    names = tuple(name.strip() for name in reader.text("GRPC_SERVICES", "").split(",") if name.strip())
    for name in names:
        if not GRPC_SERVICE.fullmatch(name):
            reader.problem("GRPC_SERVICES", f"{name!r} is no gRPC service name")
    if not services_fit(names):
        reader.problem("GRPC_SERVICES", f"does not fit into {_MAX_VALUES} values of {_MAX_VALUE} characters")
    return names


def _version(reader: EnvironmentReader) -> str:
    version = reader.text("VERSION", "")
    if version and not _VERSION.fullmatch(version):
        reader.problem("VERSION", f"{version!r} is no version of 1 to 128 letters, digits and . _ + -")
    return version


def _tags(reader: EnvironmentReader) -> tuple[str, ...]:
    tags = tuple(tag.strip() for tag in reader.text("TAGS").split(",") if tag.strip())
    for tag in tags:
        if not _TAG.fullmatch(tag):
            reader.problem("TAGS", f"{tag!r} is no tag of 1 to 128 printable characters without spaces")
    return tags


def _check(reader: EnvironmentReader, address: str, port: int) -> Check | None:
    kind = reader.choice("HEALTH_CHECK_TYPE", ("", "http", "grpc"), "")
    endpoint = reader.text("HEALTH_CHECK_ENDPOINT", "")
    interval = reader.seconds("HEALTH_CHECK_INTERVAL", 1, low=0.1, high=3600)
    timeout = reader.seconds("HEALTH_CHECK_TIMEOUT", 1, low=0.1, high=3600)
    if not kind:
        if endpoint:
            reader.problem("HEALTH_CHECK_TYPE", "is not set, but HEALTH_CHECK_ENDPOINT is; set it to http or grpc")
        return None
    try:
        if kind == "http":
            return HttpCheck(url=_http_url(endpoint, address, port), interval_seconds=interval, timeout_seconds=timeout)
        target, service = _grpc_target(endpoint, address, port)
        return GrpcCheck(target=target, service=service, interval_seconds=interval, timeout_seconds=timeout)
    except ValueError as error:
        reader.problem("HEALTH_CHECK_ENDPOINT", str(error))
        return None


def _http_url(endpoint: str, address: str, port: int) -> str:
    if " " in endpoint:
        raise ValueError(f"{endpoint!r} holds a space")
    if not endpoint or endpoint.startswith("/"):
        return f"http://{host_port(address, port)}{endpoint or '/'}"
    if endpoint.startswith(":"):
        endpoint = f"http://{host_port(address, 0).removesuffix(':0')}{endpoint}"
    parts = urlsplit(endpoint)
    printable = all("!" <= character <= "~" for character in endpoint)
    if not printable or parts.scheme not in ("http", "https") or not is_host(parts.hostname or "") or parts.port == 0:
        raise ValueError(f"{endpoint!r} is no path that begins with /, no :port/path and no http or https URL")
    return endpoint


def _grpc_target(endpoint: str, address: str, port: int) -> tuple[str, str]:
    target, _, service = endpoint.partition("/")
    if service and not GRPC_SERVICE.fullmatch(service):
        raise ValueError(f"{service!r} is no gRPC service name")
    if not target:
        return host_port(address, port), service
    try:
        return host_port(*parse_host_port(target, address)), service
    except ValueError as error:
        raise ValueError(f"{endpoint!r} is no host:port, optionally with /service behind it") from error
