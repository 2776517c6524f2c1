"""What is registered, as consul-template has rendered it: checked field by field.

Anybody who reaches Consul can put something into it, so nothing is taken that is not of the expected form.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from balancer.config import Network
from common.environment import host_port
from common.names import GRPC_SERVICE, NAME, SERVICES_KEYS, SINCE

# The last line of a whole file.
_END = "# end"
# Consul's own ports are no replica's, whatever is registered: its API would be within reach of every caller.
_CONSUL_PORTS = frozenset((8300, 8301, 8302, 8500, 8501, 8502, 8503, 8600))
# By Consul's API page "Register Service".
_MAX_WEIGHT = 65535
_LARGEST = 10**9
MAX_REPLICAS = 10_000
# Characters in all the different lists of services: the document must fit into nginx's shared memory.
_MAX_LISTS = 4_000_000
_SHOWN = 80


@dataclass(frozen=True, kw_only=True)
class Registration:
    """A replica as it is registered.

    Attributes:
        weight: its share of the calls, 1 to 65535.
        services: the gRPC services that it has, sorted; empty where it does not say.
        health: the name that its health service knows; empty where it does not say.
        since: since when its application has had its services, in ISO 8601; empty where it does not say.
        own_node: whether its address is that of the Consul node which registered it.
    """

    application: str
    address: str
    port: int
    weight: int
    services: tuple[str, ...] = ()
    health: str = ""
    since: str = ""
    own_node: bool = field(default=True, compare=False)

    # Both are asked for many times at each change of the fleet.
    @cached_property
    def key(self) -> str:
        """What tells it from all others."""
        return f"{self.application} {self.target}"

    @cached_property
    def target(self) -> str:
        """``address:port``."""
        return host_port(self.address, self.port)


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A registration that is not taken, as far as it can be shown, and why."""

    application: str
    address: str
    port: int
    reason: str


class _RefusedError(Exception):
    """Why a registration is not taken."""


class Parser:
    """Reads the rendered file; a line that it has read before costs next to nothing.

    Args:
        networks: a replica's address is in one of them, or its own Consul node's.
    """

    def __init__(self, networks: Iterable[Network]) -> None:
        self._networks = tuple(networks)
        self._known: dict[str, Registration | Refusal | None] = {}

    def parse(self, text: str, present: Iterable[str] = ()) -> tuple[list[Registration], list[Refusal]] | None:
        """The registrations of a file in the order of their keys, and those that are refused.

        One of weight 0 is neither. Beyond ``MAX_REPLICAS`` those are taken first whose keys are in ``present``: nobody
        puts a replica out by registering others.

        None while the file is not whole.
        """
        lines = text.split("\n")
        if len(lines) < 2 or lines[-1] or lines[-2] != _END:
            return None
        # Only the lines of this file: what was registered once must not stay in memory for ever.
        self._known = {
            line: self._known[line] if line in self._known else self._parse_line(line) for line in lines[:-2]
        }
        found: dict[str, Registration] = {}
        refused = []
        for one in self._known.values():
            if isinstance(one, Refusal):
                refused.append(one)
            elif one is not None:
                # Of two with the same key, one decides for every balancer: the greater.
                other = found.get(one.key)
                found[one.key] = one if other is None else max(one, other, key=_rank)
        if len(found) > MAX_REPLICAS:
            known = set(present)
            order = sorted(found, key=lambda key: (key not in known, key))
            reason = f"there are more than {MAX_REPLICAS} replicas"
            refused += [_refuse(found.pop(key), reason) for key in order[MAX_REPLICAS:]]
        if sum(map(_measure, {one.services for one in found.values()})) > _MAX_LISTS:
            known, room, lists = set(present), _MAX_LISTS, set[tuple[str, ...]]()
            for key in sorted(found, key=lambda key: (key not in known, key)):
                services = found[key].services
                if services not in lists:
                    room -= _measure(services)
                    if room < 0:
                        refused.append(_refuse(found.pop(key), "there are too many lists of services"))
                        continue
                    lists.add(services)
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
                # Consul takes any number; status looks for it.
                port=port if _is_integer(port, -_LARGEST, _LARGEST) else 0,
                reason=str(error),
            )

    def _parse_fields(self, fields: Sequence[Any]) -> Registration | None:
        name, address, port, weight, node_address, meta = fields
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise _RefusedError("the name is not of 1 to 63 letters, digits, - and _")
        if not _is_integer(port, 1, 65535) or port in _CONSUL_PORTS:
            raise _RefusedError(
                f"a replica's port must be from 1 to 65535 and none of Consul's own (got {_show(port)})"
            )
        if not _is_integer(weight, 0, _MAX_WEIGHT):
            raise _RefusedError(f"the weight must be from 0 to {_MAX_WEIGHT} (got {_show(weight)})")
        ip = self._parse_address(address or node_address, node_address)
        meta = meta if isinstance(meta, dict) else {}
        registration = Registration(
            application=name,
            address=str(ip),
            port=port,
            weight=weight,
            services=_read_services(meta),
            health=_read_name(meta, "grpc_health"),
            since=_read_since(meta),
            own_node=ip == _parse_ip(node_address),
        )
        return registration if weight else None

    def _parse_address(self, text: object, node_address: object) -> IPv4Address | IPv6Address:
        ip = _parse_ip(text)
        if ip is None:
            raise _RefusedError(f"the address must be an IP address (got {_show(text)})")
        if ip.is_unspecified or ip.is_multicast:
            raise _RefusedError(f"{ip} is not the address of one host")
        if ip != _parse_ip(node_address) and not any(ip in network for network in self._networks):
            raise _RefusedError(f"{ip} is neither its node's address nor in PEER_CIDR")
        return ip


def _rank(registration: Registration) -> tuple[bool, str]:
    """A replica's own node speaks for it, whatever another node says of its address."""
    return registration.own_node, repr(registration)


def _measure(services: Sequence[str]) -> int:
    return sum(map(len, services))


def _refuse(registration: Registration, reason: str) -> Refusal:
    return Refusal(
        application=registration.application, address=registration.address, port=registration.port, reason=reason
    )


def _is_integer(value: object, low: int, high: int) -> bool:
    # True is an int in Python.
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _show(value: object) -> str:
    """What is shown of a value; of a list or an object, which may be deep, only that it is one."""
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
    """Of another form than the registrar's, which is text that sorts by time, it is as if there were none."""
    value = meta.get("grpc_since")
    return value if isinstance(value, str) and SINCE.fullmatch(value) else ""
