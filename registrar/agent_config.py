"""The settings of a container's Consul agent, for build/config/consul/usr/bin/consul-start."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from common.environment import EnvironmentReader, is_address, is_host

_NAME = re.compile(r"[A-Za-z0-9_-]{1,63}")
_DOMAIN = re.compile(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")
_DURATION = re.compile(r"(\d+(\.\d+)?(ns|us|ms|s|m|h))+")
_NODE_PREFIX = re.compile(r"[A-Za-z0-9_-]{1,63}")
_NO_PORT = -1
# What secure.hcl names, and the agent's own tokens.
_SECRETS = ("agent.hcl", "ca.pem", "consul.pem", "consul-key.pem")


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """The agent's settings; docs/variables.md lists them.

    Attributes:
        servers: names or addresses of the Consul servers.
        dns_port: -1 turns DNS off.
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
            servers=_read_hosts(reader, "CONSUL_SERVER", None),
            role=reader.choice("CONSUL_ROLE", ("agent", "bootstrap"), "agent"),
            dns_port=_read_dns_port(reader),
        )
        _read_hosts(reader, "CONSUL_JOIN_WAN", "")
        reader.choice("CONSUL_UI", ("true", "false"), "false")
        reader.pattern("CONSUL_NODE_PREFIX", _NODE_PREFIX, "", "letters, digits, - and _")
        if reader.choice("CONSUL_SECURE", ("true", "false"), "false") == "true":
            missing = [name for name in _SECRETS if not Path("secrets", name).is_file()]
            if missing:
                reader.add_problem("CONSUL_SECURE", f"needs the files secrets/{', secrets/'.join(missing)}")
        reader.choice("CONSUL_BOOTSTRAP_DEBUG", ("true", "false"), "false")
        reader.pattern("CONSUL_DC", _NAME, "dc1", "a name of letters, digits, - and _")
        reader.pattern("CONSUL_DOMAIN", _DOMAIN, "consul", "a DNS domain")
        reader.pattern("CONSUL_RETRY_INTERVAL", _DURATION, "1s", "a duration such as 1s")
        reader.seconds("CONSUL_AVAILABLE_SLEEP", 1, low=0, high=3600)
        reader.port("CONSUL_PORT", 8500)
        for name in ("CONSUL_BIND", "CONSUL_CLIENT", "CONSUL_ADVERTISE_WAN"):
            _check_addresses(reader, name)
        reader.raise_problems()
        return config


def _read_dns_port(reader: EnvironmentReader) -> int:
    if reader.text("CONSUL_DNS_PORT", "") == str(_NO_PORT):
        return _NO_PORT
    return reader.port("CONSUL_DNS_PORT", 8600)


def _check_addresses(reader: EnvironmentReader, name: str) -> None:
    """Checks for IP addresses, or for a template that the agent evaluates (hashicorp/go-sockaddr)."""
    text = reader.text(name, "")
    if "{{" not in text:
        for address in text.split():
            if not is_address(address):
                reader.add_problem(
                    name, f"must be an IP address or a template such as {{{{ GetPrivateIP }}}} (got {address!r})"
                )


def _read_hosts(reader: EnvironmentReader, name: str, default: str | None) -> tuple[str, ...]:
    hosts = reader.words(name, default)
    for host in hosts:
        if not is_host(host):
            reader.add_problem(name, f"must be host names or IP addresses (got {host!r})")
    return hosts
