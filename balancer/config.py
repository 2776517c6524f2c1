"""The settings of the control plane, from its environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path

from balancer import certificates, connections
from common.environment import EnvironmentReader, host_port, parse_host_port

Network = IPv4Network | IPv6Network

_PRIVATE = "10.0.0.0/8,172.16.0.0/12,192.168.0.0/16"
# By nginx's ngx_http_limit_conn_module.
_MAX_LIMIT_CONN = 65535
MODES = ("dynamic", "reload", "restart")


@dataclass(frozen=True, kw_only=True)
class BalancerConfig:
    """The settings; docs/variables.md lists them. Paths are below the working directory.

    Attributes:
        mode: with ``dynamic`` nginx has its replicas from the control plane; with ``reload`` and ``restart`` it has
            them from consul-template, and the control plane only answers ``status``.
        networks: a replica must be in one of them, or have its own Consul node's address.
        consul_url: the HTTP API of the local agent.
        consul_token: of Consul's ACL system; empty for the agent's own.
        nginx_url: nginx's status port.
        rendered: the list of registrations from consul-template.
        snapshot: the document on disk, from which nginx and the control plane start.
        current: the same for the other programs of the container, on a disk that is never full.
        socket: the Unix socket of the control plane's HTTP API.
        answers: the Unix socket of health and reflection for all applications.
        certificates: the files for TLS with callers; nginx gets copies in the directory ``copies``.
        listeners: nginx's addresses for calls; empty if one is wrong.
        max_connections: the most connections of a client address; 0 for no limit.
    """

    mode: str
    networks: tuple[Network, ...]
    consul_url: str
    nginx_url: str
    rendered: Path = Path("run/peers")
    snapshot: Path = Path("var/lib/load-balancer/snapshot.json")
    current: Path = Path("run/document.json")
    socket: Path = Path("run/balancer.sock")
    answers: Path = Path("run/answers.sock")
    copies: Path = Path("run")
    certificates: certificates.Files = field(default_factory=certificates.Files)
    listeners: tuple[connections.Listener, ...] = (connections.Listener(port=5000),)
    max_connections: int = 0
    consul_token: str = field(default="", repr=False)

    @property
    def publishes(self) -> bool:
        """Whether nginx has its replicas from the control plane."""
        return self.mode == "dynamic"

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> BalancerConfig:
        """Reads the variables.

        Raises:
            ConfigError: with a line for each variable that is wrong.
        """
        reader = EnvironmentReader(env)
        files = _read_certificates(reader)
        config = cls(
            mode=reader.choice("NGINX_UPDATE", MODES, "dynamic"),
            networks=_read_networks(reader, "PEER_CIDR", _PRIVATE),
            consul_url="http://"
            + host_port(reader.host("CONSUL_ADDRESS", "127.0.0.1"), reader.port("CONSUL_PORT", 8500)),
            nginx_url="http://"
            + host_port(reader.host("LB_STATUS_ADDRESS", "127.0.0.1"), reader.port("LB_STATUS_PORT", 8080)),
            consul_token=reader.text("CONSUL_HTTP_TOKEN", ""),
            certificates=files,
            listeners=_read_listeners(reader, tls=files.certificate is not None),
            max_connections=reader.integer(connections.LIMIT, 0, low=0, high=1_000_000),
        )
        if config.max_connections and not config.publishes:
            reader.add_problem(connections.LIMIT, f"needs NGINX_UPDATE=dynamic (got NGINX_UPDATE={config.mode})")
        # nginx's configuration is rendered from these.
        reader.integer("LB_MAX_CALLS_PER_ADDRESS", 8192, low=1, high=_MAX_LIMIT_CONN)
        reader.integer("LB_MAX_CALLS_PER_SECOND_PER_ADDRESS", 0, low=0, high=1_000_000)
        _read_networks(reader, "LB_ALLOW", "")
        reader.choice("LB_ACCESS_LOG", ("on", "off"), "on")
        reader.integer("METRICS_PORT", 0, low=0, high=65535)
        reader.host("BIND_ADDRESS", "0.0.0.0")  # noqa: S104 - a container's own network
        if reader.text("NGINX_WORKERS", "auto") != "auto":
            reader.integer("NGINX_WORKERS", 1, low=1, high=1024)
        reader.raise_problems()
        return config


def _read_certificates(reader: EnvironmentReader) -> certificates.Files:
    names = (certificates.CERTIFICATE, certificates.KEY, certificates.CLIENT_CA)
    certificate, key, client_ca = (Path(text) if (text := reader.text(name, "")) else None for name in names)
    if (certificate is None) != (key is None):
        reader.add_problem(names[0] if key else names[1], f"must be set, because {names[1] if key else names[0]} is")
    if client_ca and not certificate:
        reader.add_problem(names[2], f"needs {names[0]}")
    files = certificates.Files(certificate=certificate, key=key, client_ca=client_ca)
    for name, problem in certificates.describe(files).items():
        reader.add_problem(name, problem)
    return files


def _read_listeners(reader: EnvironmentReader, *, tls: bool) -> tuple[connections.Listener, ...]:
    listen, problems = reader.text("LB_LISTEN", "0.0.0.0:5000"), len(reader.problems)
    for address in listen.split():
        _check_listen(reader, address, tls=tls)
    return tuple(connections.read_listeners(listen)) if len(reader.problems) == problems else ()


def _check_listen(reader: EnvironmentReader, text: str, *, tls: bool) -> None:
    """Checks an address: a port, or an address and a port, with brackets around an IPv6 address.

    ``grpc://`` before it means clear text, ``grpcs://`` TLS; without either it is TLS if there is a certificate.
    """
    scheme, _, rest = text.rpartition("://")
    if scheme == "grpcs" and not tls:
        reader.add_problem("LB_LISTEN", f"needs {certificates.CERTIFICATE} (got {text!r})")
    if scheme in ("grpc", "grpcs"):
        text = rest
    try:
        if not (text.isdecimal() and 1 <= int(text) <= 65535):
            parse_host_port(text, "")
    except ValueError:
        reader.add_problem("LB_LISTEN", f"must be ADDRESS:PORT, [ADDRESS]:PORT or PORT (got {text!r})")


def _read_networks(reader: EnvironmentReader, name: str, default: str) -> tuple[Network, ...]:
    found = []
    for part in reader.text(name, default).replace(",", " ").split():
        try:
            # Bits behind the prefix are a common and harmless mistake.
            found.append(ip_network(part, strict=False))
        except ValueError:
            reader.add_problem(name, f"must be networks such as 10.0.0.0/8 or fd00::/8 (got {part!r})")
    return tuple(found)
