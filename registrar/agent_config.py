"""What the start script of a container's Consul agent reads (build/config/consul/usr/bin/consul-start)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from registrar.environment import EnvironmentReader, is_address, is_host

_NAME = re.compile(r"[A-Za-z0-9_-]{1,63}")
_DOMAIN = re.compile(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")
_DURATION = re.compile(r"(\d+(\.\d+)?(ns|us|ms|s|m|h))+")
_NO_PORT = -1


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """The agent's settings; README.md has the table of variables.

    Attributes:
        servers: names or addresses of the Consul servers.
        dns_port: -1 for none.
    """

    servers: tuple[str, ...]
    role: str
    dns_port: int

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> AgentConfig:
        """Reads the variables.

        Raises:
            ConfigError: with a line for each variable that is missing or wrong.
        """
        reader = EnvironmentReader(env)
        config = cls(
            servers=_hosts(reader, "CONSUL_SERVER", None),
            role=reader.choice("CONSUL_ROLE", ("agent", "bootstrap"), "agent"),
            dns_port=_dns_port(reader),
        )
        _hosts(reader, "CONSUL_JOIN_WAN", "")
        reader.choice("CONSUL_UI", ("true", "false"), "false")
        reader.choice("CONSUL_BOOTSTRAP_DEBUG", ("true", "false"), "false")
        reader.pattern("CONSUL_DC", _NAME, "dc1", "a name of letters, digits, - and _")
        reader.pattern("CONSUL_DOMAIN", _DOMAIN, "consul", "a DNS domain")
        reader.pattern("CONSUL_RETRY_INTERVAL", _DURATION, "1s", "a duration such as 1s")
        reader.seconds("CONSUL_AVAILABLE_SLEEP", 1, low=0, high=3600)
        reader.port("CONSUL_PORT", 8500)
        for name in ("CONSUL_BIND", "CONSUL_CLIENT", "CONSUL_ADVERTISE_WAN"):
            _addresses(reader, name)
        reader.raise_problems()
        return config


def _dns_port(reader: EnvironmentReader) -> int:
    if reader.text("CONSUL_DNS_PORT", "") == str(_NO_PORT):
        return _NO_PORT
    return reader.port("CONSUL_DNS_PORT", 8600)


def _addresses(reader: EnvironmentReader, name: str) -> None:
    """IP addresses, or a template that the agent makes them of (hashicorp/go-sockaddr)."""
    text = reader.text(name, "")
    if "{{" not in text:
        for address in text.split():
            if not is_address(address):
                reader.problem(
                    name, f"must be an IP address or a template, as {{{{ GetPrivateIP }}}} (got {address!r})"
                )


def _hosts(reader: EnvironmentReader, name: str, default: str | None) -> tuple[str, ...]:
    hosts = tuple(reader.text(name, default).replace(",", " ").split())
    for host in hosts:
        if not is_host(host):
            reader.problem(name, f"{host!r} is no host name and no IP address")
    return hosts
