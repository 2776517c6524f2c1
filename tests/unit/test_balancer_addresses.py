"""The addresses and ports that a replica may have."""

from __future__ import annotations

import socket
from ipaddress import ip_address, ip_network

import pytest

from balancer.addresses import Addresses

EVERYTHING = ("0.0.0.0/0", "::/0")


def problem(address: str, *networks: str, port: int = 7777, own: tuple[tuple[str, int], ...] = ()) -> str:
    """The problem of an address with these networks."""
    return Addresses(map(ip_network, networks), own=own).find_problem(ip_address(address), port)


@pytest.mark.parametrize("address", ["169.254.169.254", "fe80::1", "::ffff:a9fe:a9fe"])
def test_a_link_local_address_is_never_taken(address: str) -> None:
    assert problem(address, *EVERYTHING, "169.254.0.0/16", "fe80::/10") == f"{address} is a link-local address"


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:7f00:1"])
def test_a_loopback_address_needs_a_network_of_its_own(address: str) -> None:
    reason = f"{address} is a loopback address, and PEER_CIDR has no network of these"
    assert problem(address, *EVERYTHING) == reason
    assert problem(address, *EVERYTHING, "127.0.0.0/8", "::1/128") == ""


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "224.0.0.1", "ff02::1", "::ffff:e000:1"])
def test_an_address_of_many_hosts_is_never_taken(address: str) -> None:
    assert problem(address, *EVERYTHING) == f"{address} is not the address of one host"


@pytest.mark.parametrize("port", [8300, 8301, 8302, 8500, 8501, 8502, 8503, 8600, 18500])
def test_no_port_of_consul_is_taken(port: int) -> None:
    assert not Addresses([], consul_port=18500).allows_port(port)
    assert Addresses([], consul_port=18500).allows_port(port + 1000)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_the_balancers_own_port_is_refused_at_its_own_address_only(host: str) -> None:
    own = ((host, 5000), ("a-name", 7777))
    networks = ("10.0.0.0/8", "127.0.0.0/8")
    assert problem("127.0.0.1", *networks, port=5000, own=own) == "port 5000 of 127.0.0.1 is the balancer's own"
    assert problem("127.0.0.1", *networks, port=5001, own=own) == ""
    # No address of this machine; servers of others may have the port.
    assert problem("10.255.255.254", *networks, port=5000, own=own) == ""


def test_a_wildcard_is_every_address_of_this_machine() -> None:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))
            address = probe.getsockname()[0]
    except OSError:
        address = "127.0.0.2"
    found = problem(address, *EVERYTHING, "127.0.0.0/8", port=5000, own=(("0.0.0.0", 5000),))
    assert found == f"port 5000 of {address} is the balancer's own"
