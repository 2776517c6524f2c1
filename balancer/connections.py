"""The client addresses with more connections than LB_MAX_CONNECTIONS_PER_ADDRESS allows.

nginx can't count idle HTTP/2 connections, because its limit_conn counts calls. The kernel has a list of all.
"""

from __future__ import annotations

import asyncio
import logging
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from common.environment import parse_host_port

LOG = logging.getLogger("balancer")

LIMIT = "LB_MAX_CONNECTIONS_PER_ADDRESS"
# proc(5), "/proc/net/tcp". A kernel without IPv6 does not have the second file.
_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
# Number, local address and port, remote address and port, and one of the states in which nginx has the connection open:
# ESTABLISHED, and CLOSE_WAIT, in which the client has closed its side.
_ROW = re.compile(r"^ *\d+: ([0-9A-F]+):([0-9A-F]{4}) ([0-9A-F]+):[0-9A-F]{4} (?:01|08) ", re.MULTILINE)
_COUNT_SECONDS = 1.0
# An address is free again after so many counts in a row within the limit, so that a client that opens and closes
# connections all the time does not cause a document a second.
_CALM_COUNTS = 5
_LOGGED_ADDRESSES = 20

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, kw_only=True)
class Listener:
    """An address of LB_LISTEN; ``address`` is None for all addresses of the machine."""

    port: int
    address: Address | None = None


def read_listeners(text: str) -> list[Listener]:
    """Reads a valid LB_LISTEN."""
    return [_read_listener(one.rpartition("://")[2]) for one in text.split()]


def _read_listener(text: str) -> Listener:
    host, port = ("", int(text)) if text.isdecimal() else parse_host_port(text, "")
    try:
        address = ip_address(host)
    except ValueError:
        # A name may be any address of the machine.
        return Listener(port=port)
    return Listener(port=port, address=None if address.is_unspecified else _unmap(address))


class Connections:
    """The crowded addresses: those with more connections than allowed.

    Args:
        limit: the most connections of an address; 0 for no limit.
        listeners: the addresses of nginx.
        changed: called after the set of crowded addresses has changed.
        tables: the kernel's lists.

    Attributes:
        crowded: the crowded addresses.
    """

    def __init__(
        self,
        limit: int,
        listeners: Iterable[Listener],
        changed: Callable[[], None],
        tables: Iterable[Path] = _TABLES,
    ) -> None:
        self._limit = limit
        self._listeners = frozenset(listeners)
        self._changed = changed
        self._tables = tuple(tables)
        self._calm: dict[str, int] = {}
        self._problem = ""
        self.crowded: list[str] = []

    async def follow(self) -> None:
        """Counts once a second; returns at once without a limit."""
        while self._limit:
            self.apply(await asyncio.to_thread(self._count))
            await asyncio.sleep(_COUNT_SECONDS)

    def apply(self, counts: Counter[str]) -> None:
        """Takes the connections by address."""
        above = {address for address, count in counts.items() if count > self._limit}
        calm = {address: counted + 1 for address, counted in self._calm.items() if address not in above}
        self._calm = {address: counted for address, counted in calm.items() if counted < _CALM_COUNTS}
        self._calm.update(dict.fromkeys(above, 0))
        crowded = sorted(self._calm)
        if crowded == self.crowded:
            return
        added, freed = sorted(set(crowded) - set(self.crowded)), sorted(set(self.crowded) - set(crowded))
        if added:
            names = ", ".join(f"{one} ({counts[one]})" for one in added[:_LOGGED_ADDRESSES])
            LOG.warning("more than %d connections, refusing addresses=%d %s", self._limit, len(added), names)
        if freed:
            LOG.info("no longer refused addresses=%d %s", len(freed), ", ".join(freed[:_LOGGED_ADDRESSES]))
        self.crowded = crowded
        self._changed()

    def _count(self) -> Counter[str]:
        counts: Counter[str] = Counter()
        try:
            for table in self._tables:
                if table.exists():
                    counts += count(table.read_text("ascii"), self._listeners)
            self._problem = ""
        except OSError as error:
            if str(error) != self._problem:
                LOG.warning("the connections can't be counted, %s has no effect reason=%s", LIMIT, error)
            self._problem = str(error)
            counts.clear()
        return counts


def count(table: str, listeners: Iterable[Listener]) -> Counter[str]:
    """Returns the connections of the listeners by remote address, from the text of a kernel's list."""
    addresses: dict[str, set[Address | None]] = {}
    for one in listeners:
        addresses.setdefault(f"{one.port:04X}", set()).add(one.address)
    found: Counter[str] = Counter()
    for local, port, remote in _ROW.findall(table):
        wanted = addresses.get(port)
        if wanted and (None in wanted or _parse(local) in wanted):
            found[remote] += 1
    counts: Counter[str] = Counter()
    for remote, number in found.items():
        counts[str(_parse(remote))] += number
    return counts


def _parse(text: str) -> Address:
    """Parses an address: words of four bytes, each written as a number of this machine."""
    words = (int(text[start : start + 8], 16) for start in range(0, len(text), 8))
    return _unmap(ip_address(b"".join(word.to_bytes(4, sys.byteorder) for word in words)))


def _unmap(address: Address) -> Address:
    """Returns the IPv4 address that an IPv6 address stands for on a socket of both families, or the address itself."""
    return (isinstance(address, IPv6Address) and address.ipv4_mapped) or address
