"""Reads environment variables and collects all problems, so that they are reported at once."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

# A host name by RFC 1123, or one label of it with the underscore that Compose's service names use.
_HOST = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,62}))*\Z")

# These may be a network: the container's own address in it. A container with several networks does not know its
# addresses before it starts.
_ADDRESSES = ("APP_ADDRESS", "BIND_ADDRESS", "CONSUL_BIND", "METRICS_ADDRESS")
# The default of GRPC_MAX_MESSAGE_BYTES.
MAX_MESSAGE_BYTES = 16 * 1024 * 1024


class ConfigError(Exception):
    """The environment is not a valid configuration; ``problems`` has a line for each problem."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class EnvironmentReader:
    """Typed access to environment variables.

    A variable that is unset or blank takes its default; without a default it is a problem. After the last
    variable is read, :meth:`raise_problems` raises all problems.
    """

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env
        self.problems: list[str] = []

    def add_problem(self, name: str, message: str) -> None:
        """Notes a problem with the variable ``name``."""
        self.problems.append(f"{name}: {message}")

    def text(self, name: str, default: str | None = None) -> str:
        """Reads the stripped text of a variable; control characters are a problem."""
        value = self._env.get(name, "").strip()
        if any(ord(character) < 0x20 or ord(character) == 0x7F for character in value):
            self.add_problem(name, f"must not contain control characters (got {value!r})")
            return ""
        if value:
            return value
        if default is None:
            self.add_problem(name, "must be set")
            return ""
        return default

    def integer(self, name: str, default: int | None = None, *, low: int, high: int) -> int:
        """Reads an integer from ``low`` to ``high``."""
        text = self.text(name, None if default is None else str(default))
        if text and (not re.fullmatch(r"[0-9]{1,10}", text) or not low <= int(text) <= high):
            self.add_problem(name, f"must be an integer from {low} to {high} (got {text[:40]!r})")
            return low
        return int(text or low)

    def port(self, name: str, default: int | None = None) -> int:
        """Reads a TCP port, 1 to 65535."""
        return self.integer(name, default, low=1, high=65535)

    def seconds(self, name: str, default: float, *, low: float, high: float) -> float:
        """Reads a number of seconds from ``low`` to ``high``; a trailing ``s`` is allowed."""
        text = self.text(name, str(default))
        if not text:
            return default  # The problem is already noted.
        if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?s?", text, re.ASCII) or not low <= float(text.rstrip("s")) <= high:
            self.add_problem(name, f"must be a number of seconds from {low:g} to {high:g} (got {text!r})")
            return default
        return float(text.rstrip("s"))

    def choice(self, name: str, choices: tuple[str, ...], default: str) -> str:
        """Reads one of ``choices``, in any case of letters."""
        text = self.text(name, default).lower()
        if text and text not in choices:
            self.add_problem(name, f"must be one of {', '.join(filter(None, choices))} (got {text!r})")
            return default
        return text

    def pattern(self, name: str, form: re.Pattern[str], default: str | None, description: str) -> str:
        """Reads a text of a form, which ``description`` names."""
        text = self.text(name, default)
        if text and not form.fullmatch(text):
            self.add_problem(name, f"must be {description} (got {text!r})")
            return default or ""
        return text

    def host(self, name: str, default: str | None = None) -> str:
        """Reads a host name or an IP address (IPv6 without brackets)."""
        text = self.text(name, default)
        if text and not is_host(text):
            self.add_problem(name, f"must be a host name or an IP address (got {text!r})")
        return text

    def words(self, name: str, default: str | None = None) -> tuple[str, ...]:
        """Reads words that are separated by commas or spaces."""
        return tuple(self.text(name, default).replace(",", " ").split())

    def raise_problems(self) -> None:
        """Raises :class:`ConfigError` when there are problems."""
        if self.problems:
            raise ConfigError(self.problems)


def is_address(text: str) -> bool:
    """Returns whether ``text`` is an IP address."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def is_host(text: str) -> bool:
    """Returns whether ``text`` is an IP address or a host name."""
    # Only digits and dots: a mistyped IPv4 address.
    return is_address(text) or (_HOST.match(text) is not None and not re.fullmatch(r"[\d.]+", text))


def find_own_address(network: IPv4Network | IPv6Network) -> str | None:
    """Returns this host's own address in a network; None if it has none."""
    family = socket.AF_INET if network.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            # The kernel chooses the address of a directly connected network as the source; nothing is sent.
            probe.connect((str(network[1]), 9))
        except OSError:
            return None
        address = str(probe.getsockname()[0])
    return address if ip_address(address) in network else None


def resolve_addresses(env: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment with the container's own addresses in place of the networks that variables name.

    Raises:
        ConfigError: the container has no address in such a network.
    """
    found: dict[str, str] = {}
    problems: list[str] = []
    for name in _ADDRESSES:
        text = env.get(name, "").strip()
        # A template of the Consul agent is not a network.
        if "/" not in text or "{" in text:
            continue
        try:
            address = find_own_address(ip_network(text))
        except ValueError:
            problems.append(f"{name}: must be an IP address or a network such as 10.0.0.0/24 (got {text!r})")
            continue
        if address is None:
            problems.append(f"{name}: this container has no address in the network (got {text!r})")
        else:
            found[name] = address
    if problems:
        raise ConfigError(problems)
    return {**env, **found}


def host_port(host: str, port: int) -> str:
    """Returns ``host:port``, with the brackets that an IPv6 address needs."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_host_port(text: str, default_host: str) -> tuple[str, int]:
    """Splits ``host:port``, with brackets around an IPv6 address; without a host it has the default one.

    Raises:
        ValueError: ``text`` has another form.
    """
    match = re.fullmatch(r"(?:\[([^\]]+)\]|([^:]*)):(\d{1,5})", text)
    host = match and (match[1] or match[2] or default_host)
    bracketed = bool(match and match[1])
    if not match or not host or not is_host(host) or bracketed != (":" in host) or not 1 <= int(match[3]) <= 65535:
        raise ValueError(f"must be HOST:PORT (got {text!r})")
    return host, int(match[3])


def read_hostname(reader: EnvironmentReader) -> str:
    """Reads the name of this container: HOSTNAME, which Docker sets, else the host's."""
    return reader.host("HOSTNAME", socket.gethostname())


def read_drain_seconds(reader: EnvironmentReader) -> float:
    """Reads DRAIN_SECONDS, the time between a replica's deregistration and its stop."""
    return reader.seconds("DRAIN_SECONDS", 2, low=0, high=3600)


def read_grace_seconds(reader: EnvironmentReader) -> float:
    """Reads GRPC_GRACE_SECONDS, the time that calls in flight get when a server stops."""
    return reader.seconds("GRPC_GRACE_SECONDS", 20, low=0, high=3600)


def read_max_message_bytes(reader: EnvironmentReader) -> int:
    """Reads GRPC_MAX_MESSAGE_BYTES, the largest message that a server takes."""
    return reader.integer("GRPC_MAX_MESSAGE_BYTES", MAX_MESSAGE_BYTES, low=1, high=2**31 - 1)
