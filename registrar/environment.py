"""Reads environment variables and collects every problem, so that a person sees all of them at once."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from ipaddress import ip_address

# A host name by RFC 1123, or one label of it with the underscore that Compose's service names use.
_HOST = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,62}))*\Z")


class ConfigError(Exception):
    """The environment does not make a configuration; ``problems`` has a line for each thing wrong."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class EnvironmentReader:
    """Typed access to environment variables.

    A variable that is unset or blank takes its default; without a default it is a problem. After the last
    variable is read, :meth:`raise_problems` raises what was found.
    """

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env
        self.problems: list[str] = []

    def problem(self, name: str, message: str) -> None:
        """Notes that the variable ``name`` is wrong."""
        self.problems.append(f"{name}: {message}")

    def text(self, name: str, default: str | None = None) -> str:
        """The stripped text of a variable; control characters are a problem."""
        value = self._env.get(name, "").strip()
        if any(ord(character) < 0x20 or ord(character) == 0x7F for character in value):
            self.problem(name, f"{value!r} holds a control character")
            return ""
        if value:
            return value
        if default is None:
            self.problem(name, "is not set")
            return ""
        return default

    def integer(self, name: str, default: int | None = None, *, low: int, high: int) -> int:
        """A whole number from ``low`` to ``high``."""
        text = self.text(name, None if default is None else str(default))
        if text and (not re.fullmatch(r"[0-9]{1,10}", text) or not low <= int(text) <= high):
            self.problem(name, f"{text[:40]!r} is no whole number from {low} to {high}")
            return low
        return int(text or low)

    def port(self, name: str, default: int | None = None) -> int:
        """A TCP port, 1 to 65535."""
        return self.integer(name, default, low=1, high=65535)

    def seconds(self, name: str, default: float, *, low: float, high: float) -> float:
        """A number of seconds from ``low`` to ``high``; a trailing ``s`` is allowed."""
        text = self.text(name, str(default))
        if not text:
            # A problem already noted.
            return default
        if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?s?", text, re.ASCII) or not low <= float(text.rstrip("s")) <= high:
            self.problem(name, f"{text!r} is no number of seconds from {low:g} to {high:g}")
            return default
        return float(text.rstrip("s"))

    def choice(self, name: str, choices: tuple[str, ...], default: str) -> str:
        """One of ``choices``, in any case of letters."""
        text = self.text(name, default).lower()
        if text and text not in choices:
            self.problem(name, f"{text!r} is none of {', '.join(filter(None, choices))}")
            return default
        return text

    def pattern(self, name: str, form: re.Pattern[str], default: str, what: str) -> str:
        """A text of a form, which ``what`` names."""
        text = self.text(name, default)
        if text and not form.fullmatch(text):
            self.problem(name, f"{text!r} is not {what}")
            return default
        return text

    def host(self, name: str, default: str | None = None) -> str:
        """A host name or an IP address (IPv6 without brackets)."""
        text = self.text(name, default)
        if text and not is_host(text):
            self.problem(name, f"{text!r} is no host name and no IP address")
        return text

    def raise_problems(self) -> None:
        """Raises :class:`ConfigError` when anything was wrong."""
        if self.problems:
            raise ConfigError(self.problems)


def is_address(text: str) -> bool:
    """Whether ``text`` is an IP address."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def is_host(text: str) -> bool:
    """Whether ``text`` is an IP address or a host name."""
    # All digits and dots is a mistyped IPv4 address, not a name.
    return is_address(text) or (_HOST.match(text) is not None and not re.fullmatch(r"[\d.]+", text))


def host_port(host: str, port: int) -> str:
    """``host:port``, with the brackets that an IPv6 address needs."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_host_port(text: str, default_host: str) -> tuple[str, int]:
    """The host and the port of ``host:port``, with brackets around an IPv6 address; no host is the default one.

    Raises:
        ValueError: it is not of that form.
    """
    match = re.fullmatch(r"(?:\[([^\]]+)\]|([^:]*)):(\d{1,5})", text)
    host = match and (match[1] or match[2] or default_host)
    bracketed = bool(match and match[1])
    if not match or not host or not is_host(host) or bracketed != (":" in host) or not 1 <= int(match[3]) <= 65535:
        raise ValueError(f"{text!r} is no host:port")
    return host, int(match[3])


def hostname(reader: EnvironmentReader) -> str:
    """The name of this container: HOSTNAME, which Docker sets, else the host's."""
    return reader.host("HOSTNAME", socket.gethostname())
