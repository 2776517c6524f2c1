"""The registrar's settings, from its environment."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from common.consul_access import PLAIN, ConsulAccess
from common.environment import (
    EnvironmentReader,
    host_port,
    is_address,
    is_host,
    parse_host_port,
    read_drain_seconds,
    read_hostname,
)
from common.names import BALANCED_TAG, GRPC_IDEMPOTENT, GRPC_SERVICE, GRPC_TLS, MAX_VALUE, NAME, SERVICES_KEYS
from registrar.checks import Check, GrpcCheck, HttpCheck
from registrar.tls import ServiceTls, read_tls

_VERSION = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._+-]{0,127})")
_TAG = re.compile(r"[\x21-\x2b\x2d-\x7e]{1,128}")
# Agent weights are 1 to 65535, by Consul's API page "Register Service".
_MAX_WEIGHT = 65535


@dataclass(frozen=True, kw_only=True)
class RegistrarConfig:
    """The registrar's settings; docs/variables.md lists them."""

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
    metrics_address: str = ""
    # What the agent's own start script reads (registrar/agent_config.py checks it).
    consul_servers: tuple[str, ...] = ()
    access: ConsulAccess = PLAIN
    tls: ServiceTls | None = None
    idempotent: bool = False

    @property
    def service_id(self) -> str:
        """The ID of this replica, unique in the cluster by the host's name."""
        return f"{self.app_name}-{self.hostname}-{self.app_port}"

    @property
    def target(self) -> str:
        """The address of the service, ``host:port``."""
        return host_port(self.app_address or "127.0.0.1", self.app_port)

    @property
    def asks_for_services(self) -> bool:
        """Whether the gRPC services come from reflection: the service is balanced and GRPC_SERVICES is not set."""
        return BALANCED_TAG in self.tags and not self.grpc_services

    def build_metadata(self, grpc_services: Sequence[str]) -> dict[str, str]:
        """Builds the replica's metadata, for the balancer and Prometheus.

        ``grpc_services``, ``grpc_services_2`` and so on: its gRPC services, separated by commas. ``grpc_health``: the
        name for its health service. An ejected replica is restored only when its health service says SERVING for this
        name, because another service may have its address by then. ``version``: shown to people. ``metrics_port``: the
        port of its metrics, ``metrics_address`` their address if it is another one. ``grpc_tls``: it speaks TLS.
        ``grpc_idempotent``: its calls may be executed twice. The agent adds the times ``registered`` and
        ``grpc_since``.
        """
        found = dict(zip(SERVICES_KEYS, split_services(grpc_services), strict=False))
        if isinstance(self.check, GrpcCheck) and self.check.target == self.target and self.check.service:
            found["grpc_health"] = self.check.service
        if self.tls:
            found[GRPC_TLS] = "true"
        if self.idempotent:
            found[GRPC_IDEMPOTENT] = "true"
        if self.version:
            found["version"] = self.version
        if self.metrics_port:
            found["metrics_port"] = str(self.metrics_port)
            if self.metrics_address:
                found["metrics_address"] = self.metrics_address
        return found

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> RegistrarConfig:
        """Reads the variables.

        Raises:
            ConfigError: with a line for each variable that is missing or wrong.
        """
        reader = EnvironmentReader(env)
        app_name = reader.pattern("APP_NAME", NAME, None, "1 to 63 letters, digits, - and _")
        app_port = reader.port("APP_PORT")
        app_address = reader.host("APP_ADDRESS", "")
        tags = _read_tags(reader)
        if is_host(app_address) and BALANCED_TAG in tags and not is_address(app_address):
            reader.add_problem("APP_ADDRESS", f"must be an IP address for a balanced service (got {app_address!r})")
        tls = read_tls(reader, app_name)
        config = cls(
            app_name=app_name,
            app_port=app_port,
            app_address=app_address,
            tags=tags,
            version=reader.pattern("VERSION", _VERSION, "", "1 to 128 letters, digits and . _ + -"),
            grpc_services=_read_grpc_services(reader),
            weight=reader.integer("WEIGHT", 1, low=1, high=_MAX_WEIGHT),
            consul_address=reader.host("CONSUL_ADDRESS", "127.0.0.1"),
            consul_port=reader.port("CONSUL_PORT"),
            check=_read_check(reader, app_address or "127.0.0.1", app_port, tls),
            drain_seconds=read_drain_seconds(reader),
            hostname=read_hostname(reader),
            metrics_port=reader.integer("METRICS_PORT", 0, low=0, high=65535),
            metrics_address=reader.host("METRICS_ADDRESS", ""),
            consul_servers=reader.words("CONSUL_SERVER", ""),
            access=ConsulAccess.read(reader, "REGISTRAR_TOKEN_FILE"),
            tls=tls,
            idempotent=reader.choice("GRPC_IDEMPOTENT", ("true", "false"), "false") == "true",
        )
        reader.raise_problems()
        return config


def split_services(names: Sequence[str]) -> list[str]:
    """Joins names by commas into as few values as possible, without the last ones when not all fit."""
    values: list[str] = []
    for name in names:
        if values and len(values[-1]) + 1 + len(name) <= MAX_VALUE:
            values[-1] += "," + name
        elif len(name) <= MAX_VALUE:
            values.append(name)
    return values[: len(SERVICES_KEYS)]


def services_fit(names: Sequence[str]) -> bool:
    """Returns whether all of the names can be registered."""
    return ",".join(split_services(names)) == ",".join(names)


def _read_grpc_services(reader: EnvironmentReader) -> tuple[str, ...]:
    names = tuple(name.strip() for name in reader.text("GRPC_SERVICES", "").split(",") if name.strip())
    for name in names:
        if not GRPC_SERVICE.fullmatch(name):
            reader.add_problem("GRPC_SERVICES", f"must be names of gRPC services (got {name!r})")
    if not services_fit(names):
        reader.add_problem(
            "GRPC_SERVICES",
            f"must fit into {len(SERVICES_KEYS)} values of {MAX_VALUE} characters (got {len(names)} names)",
        )
    return names


def _read_tags(reader: EnvironmentReader) -> tuple[str, ...]:
    tags = tuple(tag.strip() for tag in reader.text("TAGS").split(",") if tag.strip())
    for tag in tags:
        if not _TAG.fullmatch(tag):
            reader.add_problem("TAGS", f"must be tags of 1 to 128 printable characters without spaces (got {tag!r})")
    return tags


def _read_check(reader: EnvironmentReader, address: str, port: int, tls: ServiceTls | None) -> Check | None:
    kind = reader.choice("HEALTH_CHECK_TYPE", ("", "http", "grpc"), "")
    endpoint = reader.text("HEALTH_CHECK_ENDPOINT", "")
    interval = reader.seconds("HEALTH_CHECK_INTERVAL", 1, low=0.1, high=3600)
    timeout = reader.seconds("HEALTH_CHECK_TIMEOUT", 1, low=0.1, high=3600)
    if not kind:
        if endpoint:
            reader.add_problem("HEALTH_CHECK_TYPE", "must be http or grpc when HEALTH_CHECK_ENDPOINT is set (got '')")
        return None
    try:
        if kind == "http":
            url = _build_http_url(endpoint, address, port)
            return HttpCheck(url=url, interval_seconds=interval, timeout_seconds=timeout)
        target, service = _parse_grpc_target(endpoint, address, port)
        # A check of another port is one of another server.
        own = tls if target.endswith(f":{port}") else None
        return GrpcCheck(target=target, service=service, interval_seconds=interval, timeout_seconds=timeout, tls=own)
    except ValueError as error:
        reader.add_problem("HEALTH_CHECK_ENDPOINT", str(error))
        return None


def _build_http_url(endpoint: str, address: str, port: int) -> str:
    if " " in endpoint:
        raise ValueError(f"must not contain spaces (got {endpoint!r})")
    if not endpoint or endpoint.startswith("/"):
        return f"http://{host_port(address, port)}{endpoint or '/'}"
    if endpoint.startswith(":"):
        endpoint = f"http://{host_port(address, 0).removesuffix(':0')}{endpoint}"
    parts = urlsplit(endpoint)
    printable = all("!" <= character <= "~" for character in endpoint)
    if not printable or parts.scheme not in ("http", "https") or not is_host(parts.hostname or "") or parts.port == 0:
        raise ValueError(f"must be /path, :port/path or an http or https URL (got {endpoint!r})")
    return endpoint


def _parse_grpc_target(endpoint: str, address: str, port: int) -> tuple[str, str]:
    target, _, service = endpoint.partition("/")
    if service and not GRPC_SERVICE.fullmatch(service):
        raise ValueError(f"must name a gRPC service behind / (got {service!r})")
    if not target:
        return host_port(address, port), service
    try:
        return host_port(*parse_host_port(target, address)), service
    except ValueError as error:
        raise ValueError(f"must be host:port, host:port/service or /service (got {endpoint!r})") from error
