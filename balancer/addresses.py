"""Which addresses and ports a replica may have. Consul's ACLs do not check them, not even a node's own address."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address

from balancer.config import Network

Address = IPv4Address | IPv6Address

# A replica must not have one of Consul's own ports, because every caller could reach its API.
_CONSUL_PORTS = frozenset((8300, 8301, 8302, 8500, 8501, 8502, 8503, 8600))


class Addresses:
    """The rules.

    Args:
        networks: a replica's address must be in one of them.
        consul_port: the port of the agent's HTTP API, besides Consul's default ones.
        own: the addresses and ports that the balancer listens on.
    """

    def __init__(self, networks: Iterable[Network], consul_port: int = 0, own: Iterable[tuple[str, int]] = ()) -> None:
        self._networks = tuple(networks)
        self._ports = _CONSUL_PORTS | {consul_port}
        self._own = tuple(own)

    def allows_port(self, port: int) -> bool:
        """Returns whether a port is none of Consul's."""
        return port not in self._ports

    def find_problem(self, ip: Address, port: int) -> str:
        """Returns why a replica can't have this address; empty if it can."""
        # An IPv4 address in the form of IPv6 reaches the same host.
        plain = ip.ipv4_mapped or ip if isinstance(ip, IPv6Address) else ip
        if plain.is_unspecified or plain.is_multicast:
            return f"{ip} is not the address of one host"
        if plain.is_link_local:
            # Clouds serve secrets at such addresses.
            return f"{ip} is a link-local address"
        networks = [one for one in self._networks if plain in one]
        if not networks:
            return f"{ip} is not in PEER_CIDR"
        if plain.is_loopback and not any(one.is_loopback for one in networks):
            # Not by a network such as 0.0.0.0/0: the balancer itself is there.
            return f"{ip} is a loopback address, and PEER_CIDR has no network of these"
        if any(number == port and _listens_at(host, plain) for host, number in self._own):
            return f"port {port} of {ip} is the balancer's own"
        return ""


def _listens_at(host: str, ip: Address) -> bool:
    """Returns whether a program that listens on ``host`` has connections to an address."""
    try:
        listening = ip_address(host)
    except ValueError:
        return False
    return listening == ip or (listening.is_unspecified and _is_local(ip))


def _is_local(ip: Address) -> bool:
    """Returns whether an address is this host's, to which connections come from the same address (route(8))."""
    if ip.is_loopback:
        return True
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            # Nothing is sent.
            probe.connect((str(ip), 9))
            return ip_address(probe.getsockname()[0]) == ip
    except OSError:
        return False
