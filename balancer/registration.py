"""Reads the registrations that consul-template renders.

Each field is checked, because any program that reaches Consul can register anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from balancer.addresses import Addresses
from common.environment import host_port
from common.names import GRPC_IDEMPOTENT, GRPC_SERVICE, GRPC_TLS, NAME, SERVICES_KEYS, SINCE

# The last line of a whole file.
_END = "# end"
# By Consul's API page "Register Service".
_MAX_WEIGHT = 65535
_LARGEST = 10**9
MAX_REPLICAS = 10_000
# Characters in all the different lists of services, because the document must fit into nginx's shared memory.
_MAX_LISTS = 4_000_000
_SHOWN = 80


@dataclass(frozen=True, kw_only=True)
class Registration:
    """A replica as it is registered.

    Attributes:
        weight: its share of the calls, 1 to 65535.
        services: its gRPC services, sorted; empty if it registers none.
        health: the name in its health service; empty if it registers none.
        since: the time from which its application has had its services, in ISO 8601; empty if it registers none.
        tls: whether it speaks TLS.
        idempotent: whether its calls may be executed twice.
        own_node: whether its address is that of its own Consul node.
    """

    application: str
    address: str
    port: int
    weight: int
    services: tuple[str, ...] = ()
    health: str = ""
    since: str = ""
    tls: bool = False
    idempotent: bool = False
    own_node: bool = field(default=True, compare=False)

    # Both are read many times at each change of the fleet.
    @cached_property
    def key(self) -> str:
        """Identifies the replica."""
        return f"{self.application} {self.target}"

    @cached_property
    def target(self) -> str:
        """``address:port``."""
        return host_port(self.address, self.port)


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A registration that is not taken, with values of limited size, and the reason."""

    application: str
    address: str
    port: int
    reason: str


class _RefusedError(Exception):
    """The reason for which a registration is not taken."""


class Parser:
    """Reads the rendered file, and parses only the lines that the last file did not have.

    Args:
        addresses: the rules for the addresses of replicas.
        refused_kinds: why replicas with TLS (True) or without (False) are refused.
    """

    def __init__(self, addresses: Addresses, refused_kinds: Mapping[bool, str] | None = None) -> None:
        self._addresses = addresses
        self._refused_kinds = refused_kinds or {}
        self._known: dict[str, Registration | Refusal | None] = {}

    def parse(self, text: str, present: Iterable[str] = ()) -> tuple[list[Registration], list[Refusal]] | None:
        """Returns the registrations of a file in the order of their keys, and the refusals; None for half a file.

        A registration of weight 0 is in neither list. Replicas with keys in ``present`` are taken before others, so
        that new registrations beyond a limit do not displace them.
        """
        lines = text.split("\n")
        if len(lines) < 2 or lines[-1] or lines[-2] != _END:
            return None
        # Keeps only the lines of this file, because old lines would fill the memory.
        self._known = {
            line: self._known[line] if line in self._known else self._parse_line(line) for line in lines[:-2]
        }
        found: dict[str, Registration] = {}
        refused = []
        for one in self._known.values():
            if isinstance(one, Refusal):
                refused.append(one)
            elif one is not None:
                # Every balancer must take the same one of two with the same key.
                other = found.get(one.key)
                found[one.key] = one if other is None else max(one, other, key=_rank)
        if len(found) > MAX_REPLICAS or sum(map(_measure, {one.services for one in found.values()})) > _MAX_LISTS:
            refused += _remove_excess(found, set(present))
        return [found[key] for key in sorted(found)], refused

    def _parse_line(self, line: str) -> Registration | Refusal | None:
        if not line.strip():
            return None
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError):
            fields = None
        if not isinstance(fields, list) or len(fields) != 6:
            return Refusal(application="", address="", port=0, reason=f"not of the expected form: {line[:_SHOWN]!r}")
        try:
            return self._parse_fields(fields)
        except _RefusedError as error:
            name, address, port = fields[0], fields[1] or fields[4], fields[2]
            return Refusal(
                application=name[:_SHOWN] if isinstance(name, str) else "",
                address=address[:_SHOWN] if isinstance(address, str) else "",
                # Consul takes any number, and status compares it.
                port=port if _is_integer(port, -_LARGEST, _LARGEST) else 0,
                reason=str(error),
            )

    def _parse_fields(self, fields: Sequence[Any]) -> Registration | None:
        name, address, port, weight, node_address, meta = fields
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise _RefusedError("the name is not of 1 to 63 letters, digits, - and _")
        if not _is_integer(port, 1, 65535) or not self._addresses.allows_port(port):
            raise _RefusedError(
                f"a replica's port must be from 1 to 65535 and none of Consul's own (got {_show(port)})"
            )
        if not _is_integer(weight, 0, _MAX_WEIGHT):
            raise _RefusedError(f"the weight must be from 0 to {_MAX_WEIGHT} (got {_show(weight)})")
        ip = self._parse_address(address or node_address, port)
        meta = meta if isinstance(meta, dict) else {}
        registration = Registration(
            application=name,
            address=str(ip),
            port=port,
            weight=weight,
            services=_read_services(meta),
            health=_read_name(meta, "grpc_health"),
            since=_read_since(meta),
            tls=_read_bool(meta, GRPC_TLS),
            idempotent=_read_bool(meta, GRPC_IDEMPOTENT),
            own_node=ip == _parse_ip(node_address),
        )
        if registration.tls in self._refused_kinds:
            raise _RefusedError(self._refused_kinds[registration.tls])
        return registration if weight else None

    def _parse_address(self, text: object, port: int) -> IPv4Address | IPv6Address:
        ip = _parse_ip(text)
        if ip is None:
            raise _RefusedError(f"the address must be an IP address (got {_show(text)})")
        problem = self._addresses.find_problem(ip, port)
        if problem:
            raise _RefusedError(problem)
        return ip


def _rank(registration: Registration) -> tuple[bool, str]:
    """Ranks the registration by a replica's own node above those by other nodes."""
    return registration.own_node, repr(registration)


def _measure(services: Sequence[str]) -> int:
    return sum(map(len, services))


def _remove_excess(found: dict[str, Registration], present: set[str]) -> list[Refusal]:
    """Removes the registrations beyond the limits, and returns them as refusals."""
    refused = []
    room, lists = _MAX_LISTS, set[tuple[str, ...]]()
    for number, key in enumerate(sorted(found, key=lambda key: (key not in present, key))):
        services = found[key].services
        if number >= MAX_REPLICAS:
            reason = f"there are more than {MAX_REPLICAS} replicas"
        elif services in lists or (room := room - _measure(services)) >= 0:
            lists.add(services)
            continue
        else:
            reason = "there are too many lists of services"
        one = found.pop(key)
        refused.append(Refusal(application=one.application, address=one.address, port=one.port, reason=reason))
    return refused


def _is_integer(value: object, low: int, high: int) -> bool:
    # True is an int in Python.
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _show(value: object) -> str:
    """Returns the start of a value as text; of a list or an object, which may be deep, only the type."""
    if isinstance(value, str):
        return repr(value[:_SHOWN])
    return repr(value)[:_SHOWN] if isinstance(value, int | float | None) else f"a {type(value).__name__}"


def _parse_ip(text: object) -> IPv4Address | IPv6Address | None:
    try:
        # A scope such as %eth0 is one host's own.
        return ip_address(text) if isinstance(text, str) and "%" not in text else None
    except ValueError:
        return None


def _read_name(meta: Mapping[str, object], key: str) -> str:
    value = meta.get(key)
    if not value:
        return ""
    if not isinstance(value, str) or not GRPC_SERVICE.fullmatch(value):
        raise _RefusedError(f"{key} must be a gRPC service's name (got {_show(value)})")
    return value


def _read_services(meta: Mapping[str, object]) -> tuple[str, ...]:
    found: set[str] = set()
    for key in SERVICES_KEYS:
        value = meta.get(key)
        if value:
            names = [name.strip() for name in value.split(",")] if isinstance(value, str) else []
            wrong = [name for name in names if name and not GRPC_SERVICE.fullmatch(name)]
            if wrong or not names:
                raise _RefusedError(f"{key} must be gRPC services' names (got {_show(wrong[0] if wrong else value)})")
            found.update(filter(None, names))
    return tuple(sorted(found))


def _read_since(meta: Mapping[str, object]) -> str:
    """Returns the time as the registrar writes it, so that it sorts as text; empty for any other form."""
    value = meta.get("grpc_since")
    return value if isinstance(value, str) and SINCE.fullmatch(value) else ""


def _read_bool(meta: Mapping[str, object], key: str) -> bool:
    value = meta.get(key) or "false"
    if value not in ("true", "false"):
        raise _RefusedError(f"{key} must be true or false (got {_show(value)})")
    return value == "true"
