"""The settings of the control plane, from its environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import NamedTuple

from balancer import connections
from balancer.certificates import CALLERS, CERTIFICATE, CLIENT_CA, REPLICAS
from balancer.engine import EnvoySettings, read_envoy
from balancer.xds.rights import Allowed, parse_allowed
from common.certificates import Files, read_files
from common.consul_access import PLAIN, ConsulAccess
from common.environment import EnvironmentReader, host_port, parse_host_port

Network = IPv4Network | IPv6Network

_PRIVATE = "10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,fc00::/7"
# By nginx's ngx_http_limit_conn_module.
_MAX_LIMIT_CONN = 65535
_REPLICA_TLS = "LB_REPLICA_TLS"
_XDS, _XDS_ALLOW = "XDS_PORT", "XDS_ALLOW"
MODES = ("dynamic", "reload", "restart")


@dataclass(frozen=True, kw_only=True)
class BalancerConfig:
    """The settings; docs/variables.md lists them. Paths are below the working directory.

    Attributes:
        mode: with ``dynamic`` nginx has its replicas from the control plane; with ``reload`` and ``restart`` it has
            them from consul-template, and the control plane only answers ``status``.
        networks: a replica must be in one of them.
        own: the addresses and ports that nginx listens on, which no replica may have.
        consul_url: the HTTP API of the local agent, which has the port ``consul_port``.
        access: the token and the TLS of requests to it.
        nginx_url: nginx's status port.
        consul_template_pid: the process ID of consul-template.
        rendered: the list of registrations from consul-template.
        snapshot: the document on disk, from which nginx and the control plane start.
        current: the same for the other programs of the container, on a disk that is never full.
        socket: the Unix socket of the control plane's HTTP API.
        answers: the Unix socket of health and reflection for all applications.
        certificates: the files for TLS with callers; nginx gets copies in the directory ``copies``.
        replica_certificates: the same for TLS with replicas.
        replica_tls_required: whether replicas without TLS are refused.
        listeners: nginx's addresses for calls; empty if one is wrong.
        max_connections: the most connections of a client address; 0 for no limit.
        xds: the address and port of xDS; None for none.
        xds_allowed: the applications by the names of xDS's clients; empty for all to all.
        envoy: the settings of Envoy, which then passes calls on; None for nginx.
        xds_socket: the Unix socket of xDS for Envoy.
    """

    mode: str
    networks: tuple[Network, ...]
    consul_url: str
    nginx_url: str
    consul_port: int = 8500
    own: tuple[tuple[str, int], ...] = ()
    rendered: Path = Path("run/peers")
    consul_template_pid: Path = Path("run/consul-template.pid")
    snapshot: Path = Path("var/lib/load-balancer/snapshot.json")
    current: Path = Path("run/document.json")
    socket: Path = Path("run/balancer.sock")
    answers: Path = Path("run/answers.sock")
    copies: Path = Path("run")
    certificates: Files = field(default_factory=lambda: Files(variables=CALLERS))
    replica_certificates: Files = field(default_factory=lambda: Files(variables=REPLICAS))
    replica_tls_required: bool = False
    access: ConsulAccess = PLAIN
    listeners: tuple[connections.Listener, ...] = (connections.Listener(port=5000),)
    max_connections: int = 0
    xds: tuple[str, int] | None = None
    xds_allowed: Allowed = field(default_factory=dict)
    xds_report: Path = Path("run/xds.json")
    envoy: EnvoySettings | None = None
    xds_socket: Path = Path("run/xds.sock")

    @property
    def publishes(self) -> bool:
        """Whether nginx has its replicas from the control plane."""
        return self.mode == "dynamic"

    @property
    def no_replica_tls(self) -> str:
        """Why there is no TLS with replicas; empty if there is."""
        if not self.publishes:
            return "NGINX_UPDATE is not dynamic"
        return "" if self.replica_certificates.authority else "LB_REPLICA_CA is not set"

    @property
    def refused_kinds(self) -> dict[bool, str]:
        """Why replicas with TLS (True) or without (False) are refused; without those that are not."""
        found = {True: self.no_replica_tls and f"it has TLS, and {self.no_replica_tls}"}
        if self.replica_tls_required:
            found[False] = "it has no TLS, and LB_REPLICA_TLS is required"
        return {kind: reason for kind, reason in found.items() if reason}

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> BalancerConfig:
        """Reads the variables.

        Raises:
            ConfigError: with a line for each variable that is wrong.
        """
        reader = EnvironmentReader(env)
        access = ConsulAccess.read(reader)
        consul_port = reader.port("CONSUL_PORT", 8500)
        status = reader.host("LB_STATUS_ADDRESS", "127.0.0.1"), reader.port("LB_STATUS_PORT", 8080)
        bind = reader.host("BIND_ADDRESS", "0.0.0.0")  # noqa: S104 - a container's own network
        metrics = reader.host("METRICS_ADDRESS", bind), reader.integer("METRICS_PORT", 0, low=0, high=65535)
        xds = bind, reader.integer(_XDS, 0, low=0, high=65535)
        certificate_files = _read_certificates(reader, CALLERS)
        # nginx's configuration is rendered from these.
        listen = reader.text("LB_LISTEN", "0.0.0.0:5000")
        has_certificate = certificate_files.certificate is not None
        listened = [_read_listen(reader, text, has_certificate=has_certificate) for text in listen.split()]
        addresses = tuple(one.place for one in listened if one)
        replica_files = _read_certificates(reader, REPLICAS)
        mode = reader.choice("NGINX_UPDATE", MODES, "dynamic")
        envoy = EnvoySettings(
            addresses=addresses,
            tls_addresses=frozenset(one.place for one in listened if one and one.tls),
            verifies=certificate_files.authority is not None,
            replica_certificate=replica_files.certificate is not None,
            allowed=_read_networks(reader, "LB_ALLOW", ""),
            access_log=reader.choice("LB_ACCESS_LOG", ("on", "off"), "on") == "on",
            metrics=metrics[1] != 0,
        )
        config = cls(
            mode=mode,
            networks=_read_networks(reader, "PEER_CIDR", _PRIVATE),
            consul_url=access.make_url(reader.host("CONSUL_ADDRESS", "127.0.0.1"), consul_port),
            consul_port=consul_port,
            own=(*addresses, status, metrics, *([xds] if xds[1] else [])),
            nginx_url=f"http://{host_port(*status)}",
            access=access,
            certificates=certificate_files,
            replica_certificates=replica_files,
            replica_tls_required=reader.choice(_REPLICA_TLS, ("optional", "required"), "optional") == "required",
            listeners=tuple(connections.read_listeners(listen)) if all(listened) else (),
            max_connections=reader.integer(connections.LIMIT, 0, low=0, high=1_000_000),
            xds=xds if xds[1] else None,
            xds_allowed=_read_allowed(reader),
            envoy=read_envoy(reader, mode, envoy),
        )
        if config.xds_allowed and not certificate_files.authority:
            reader.add_problem(_XDS_ALLOW, f"needs {CLIENT_CA}")
        for name, is_set in ((_XDS, config.xds), (connections.LIMIT, config.max_connections)):
            if is_set and not config.publishes:
                reader.add_problem(name, f"needs NGINX_UPDATE=dynamic (got NGINX_UPDATE={config.mode})")
        if config.xds and not find_spec("xds"):
            reader.add_problem(_XDS, "needs the package xds-protos (pip install '.[xds]')")
        if config.replica_tls_required and config.no_replica_tls:
            reader.add_problem(_REPLICA_TLS, f"can't be required: {config.no_replica_tls}")
        reader.integer("LB_MAX_CALLS_PER_ADDRESS", 8192, low=1, high=_MAX_LIMIT_CONN)
        reader.integer("LB_MAX_CALLS_PER_SECOND_PER_ADDRESS", 0, low=0, high=1_000_000)
        if reader.text("NGINX_WORKERS", "auto") != "auto":
            reader.integer("NGINX_WORKERS", 1, low=1, high=1024)
        reader.raise_problems()
        return config


def _read_certificates(reader: EnvironmentReader, variables: tuple[str, str, str]) -> Files:
    files = read_files(reader, variables)
    certificate, _, authority = variables
    if variables == CALLERS and files.authority and not files.certificate:
        reader.add_problem(authority, f"needs {certificate}")
    if variables == REPLICAS and files.certificate and files.key and not files.authority:
        reader.add_problem(certificate, f"needs {authority}")
    return files


def _read_allowed(reader: EnvironmentReader) -> Allowed:
    try:
        return parse_allowed(reader.words(_XDS_ALLOW, ""))
    except ValueError as error:
        reader.add_problem(_XDS_ALLOW, f"must be NAME:APPLICATION, NAME:APPLICATION... (got {str(error)!r})")
        return {}


class _Listen(NamedTuple):
    """An address of LB_LISTEN: address and port, and whether it has TLS."""

    place: tuple[str, int]
    tls: bool


def _read_listen(reader: EnvironmentReader, text: str, *, has_certificate: bool) -> _Listen | None:
    """Reads an address: a port, or an address and a port, with brackets around an IPv6 address.

    ``grpc://`` before it means clear text, ``grpcs://`` TLS; without either it is TLS if there is a certificate.
    """
    scheme, _, rest = text.rpartition("://")
    if scheme == "grpcs" and not has_certificate:
        reader.add_problem("LB_LISTEN", f"needs {CERTIFICATE} (got {text!r})")
    if scheme in ("grpc", "grpcs"):
        text = rest
    tls = has_certificate and scheme != "grpc"
    try:
        if text.isdecimal() and 1 <= int(text) <= 65535:
            return _Listen(("0.0.0.0", int(text)), tls)  # noqa: S104 - as nginx has it
        return _Listen(parse_host_port(text, ""), tls)
    except ValueError:
        reader.add_problem("LB_LISTEN", f"must be ADDRESS:PORT, [ADDRESS]:PORT or PORT (got {text!r})")
        return None


def _read_networks(reader: EnvironmentReader, name: str, default: str) -> tuple[Network, ...]:
    found = []
    for part in reader.words(name, default):
        try:
            # Bits behind the prefix are a common and harmless mistake.
            found.append(ip_network(part, strict=False))
        except ValueError:
            reader.add_problem(name, f"must be networks such as 10.0.0.0/8 or fd00::/8 (got {part!r})")
    return tuple(found)
