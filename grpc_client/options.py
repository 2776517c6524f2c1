"""The settings of one run, checked."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from grpc_client.errors import UsageError

LARGEST_PORT = 65535


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to call, how often and how to show it.

    Args:
        host: name or address of the server.
        port: TCP port of the server.
        greeting: the text sent in ``PingMessage.greeting``.
        timeout_seconds: deadline of a call, retries included.
        count: end after this many calls; one call if neither this nor ``duration_seconds`` is given.
        duration_seconds: start no call after this time.
        concurrency: calls in flight at a time.
        connections: HTTP/2 connections that the calls take in turn.
        rate: most calls started a second, over all connections; unlimited if not given.
        retry: retry calls that end UNAVAILABLE.
        json_output: print one JSON document instead of text.
        list_services: list services and methods instead of calling Ping.
        method: call this method, ``package.Service/Method``, instead of Ping.
        data: the request of ``method`` in JSON.
        application: which application's reflection to ask, where several are behind one port.

    Raises:
        UsageError: with every problem found.

    """

    host: str = "localhost"
    port: int = 10000
    greeting: str = "Hello"
    timeout_seconds: float = 5.0
    count: int | None = None
    duration_seconds: float | None = None
    concurrency: int = 1
    connections: int = 1
    rate: float | None = None
    retry: bool = True
    json_output: bool = False
    list_services: bool = False
    method: str | None = None
    data: str | None = None
    application: str | None = None

    def __post_init__(self) -> None:
        problems = [*_range_problems(self), *_combination_problems(self)]
        if problems:
            raise UsageError(problems)

    @property
    def address(self) -> str:
        """``host:port``, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with the calls of ``list_services`` and ``method``: the balancer reads it where it must choose."""
        return (("x-application", self.application),) if self.application else ()

    @property
    def is_load(self) -> bool:
        """Whether more than one call was asked for."""
        return self.duration_seconds is not None or (self.count or 1) > 1


def _range_problems(options: Options) -> Iterator[str]:
    host = options.host
    if not host or not host.isprintable() or host.count(":") == 1 or set(host) & set("/[] "):
        yield f"--host: must be a host name or an address without a port, got {host!r}"
    if not 1 <= options.port <= LARGEST_PORT:
        yield f"--port: must be from 1 to {LARGEST_PORT}, got {options.port}"
    if not _is_unicode(options.greeting):
        yield "--greeting: must be valid UTF-8"
    for flag, whole in (
        ("--count", options.count),
        ("--concurrency", options.concurrency),
        ("--connections", options.connections),
    ):
        if whole is not None and whole < 1:
            yield f"{flag}: must be 1 or more, got {whole}"
    for flag, number in (
        ("--timeout", options.timeout_seconds),
        ("--duration", options.duration_seconds),
        ("--rate", options.rate),
    ):
        if number is not None and not 0 < number < math.inf:
            yield f"{flag}: must be a number above 0, got {number}"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _combination_problems(options: Options) -> Iterator[str]:
    if options.count is not None and options.duration_seconds is not None:
        yield "--count: can't be given together with --duration"
    if options.list_services and options.method is not None:
        yield "--list: can't be given together with --call"
    if options.data is not None and options.method is None:
        yield "--data: needs --call"
    if options.application is not None:
        if not options.list_services and options.method is None:
            yield "--application: needs --list or --call"
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,63}", options.application):
            yield f"--application: must be 1 to 63 letters, digits, - and _, got {options.application!r}"
    if options.method is not None:
        service, _, name = options.method.removeprefix("/").partition("/")
        if not service or not name or "/" in name or not options.method.isascii():
            yield f"--call: must be package.Service/Method, got {options.method!r}"
    yield from _load_flag_problems(options)


def _load_flag_problems(options: Options) -> Iterator[str]:
    paced = [
        flag
        for flag, given in (
            ("--concurrency", options.concurrency != Options.concurrency),
            ("--connections", options.connections != Options.connections),
            ("--rate", options.rate is not None),
        )
        if given
    ]
    if not options.list_services and options.method is None:
        if options.count is None and options.duration_seconds is None:
            yield from (f"{flag}: needs --count or --duration" for flag in paced)
        return
    other = "--list" if options.list_services else "--call"
    if options.count is not None:
        paced.insert(0, "--count")
    if options.duration_seconds is not None:
        paced.insert(0, "--duration")
    if options.greeting != Options.greeting:
        paced.append("--greeting")
    yield from (f"{flag}: is for Ping only, not for {other}" for flag in paced)
