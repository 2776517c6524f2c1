"""What the control plane reads from its environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path

from registrar.environment import EnvironmentReader, host_port

Network = IPv4Network | IPv6Network

_PRIVATE = "10.0.0.0/8,172.16.0.0/12,192.168.0.0/16"
MODES = ("dynamic", "reload", "restart")


@dataclass(frozen=True, kw_only=True)
class BalancerConfig:
    """The settings; README.md has the table of variables. Paths are below the working directory.

    Attributes:
        mode: ``dynamic``: nginx has its replicas from the control plane. ``reload`` and ``restart``: nginx has them
            from consul-template, and the control plane only answers ``status``.
        networks: a replica is in one of them, or has its own Consul node's address.
        consul_url: the HTTP API of the local agent.
        consul_token: of Consul's ACL system; empty for the agent's own.
        nginx_url: nginx's status port.
        rendered: what consul-template renders.
        snapshot: the document on disk, from which nginx and the control plane start.
        socket: where the control plane answers HTTP, a Unix socket.
    """

    mode: str
    networks: tuple[Network, ...]
    consul_url: str
    nginx_url: str
    rendered: Path = Path("run/peers")
    snapshot: Path = Path("var/lib/load-balancer/snapshot.json")
    socket: Path = Path("run/balancer.sock")
    consul_token: str = field(default="", repr=False)

    @property
    def publishes(self) -> bool:
        """Whether nginx has its replicas from here."""
        return self.mode == "dynamic"

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> BalancerConfig:
        """Reads the variables.

        Raises:
            ConfigError: with a line for each variable that is wrong.
        """
        reader = EnvironmentReader(env)
        config = cls(
            mode=reader.choice("NGINX_UPDATE", MODES, "dynamic"),
            networks=_networks(reader),
            consul_url="http://"
            + host_port(reader.host("CONSUL_ADDRESS", "127.0.0.1"), reader.port("CONSUL_PORT", 8500)),
            nginx_url="http://"
            + host_port(reader.host("LB_STATUS_ADDRESS", "127.0.0.1"), reader.port("LB_STATUS_PORT", 8080)),
            consul_token=reader.text("CONSUL_HTTP_TOKEN", ""),
        )
        reader.raise_problems()
        return config


def _networks(reader: EnvironmentReader) -> tuple[Network, ...]:
    found = []
    for part in reader.text("PEER_CIDR", _PRIVATE).replace(",", " ").split():
        try:
            # A host's bits behind the prefix are a common slip and harmless.
            found.append(ip_network(part, strict=False))
        except ValueError:
            reader.problem("PEER_CIDR", f"must be networks such as 10.0.0.0/8 or fd00::/8 (got {part!r})")
    return tuple(found)
