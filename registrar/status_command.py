"""The ``status`` command, of the registrar and of local_stack: tables, and why a replica gets no calls."""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from collections.abc import Mapping, Sequence

from registrar.environment import EnvironmentReader, host_port, parse_host_port
from registrar.status import HELD, SERVING, Replica, Source, Status, StatusError

_WATCH_SECONDS = 1.0
# Home, and clear to the end of the screen (ECMA-48).
_CLEAR = "\x1b[H\x1b[J"
_SERVES = (SERVING, HELD)
_MARK, _NO_MARK, _NOT_KNOWN = "!", " ", "-"


def add_status_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """The options that say what is shown."""
    parser.add_argument("--why", metavar="NAME", help="the way of an application's replicas, step by step")
    parser.add_argument("--watch", action="store_true", help="again every second until interrupted; default: once")
    parser.add_argument("--json", action="store_true", help="for machines; default: tables")


def status_source(consul: str | None, balancer: str | None, env: Mapping[str, str]) -> Source:
    """Where to look: what was given, else the variables that the programs of the stack have.

    Raises:
        ConfigError: that is no address.
    """
    reader = EnvironmentReader(env)
    source = Source(
        *_address(reader, "--consul", consul, ("CONSUL_ADDRESS", "CONSUL_PORT"), 8500),
        host_port(*_address(reader, "--balancer", balancer, ("LB_STATUS_ADDRESS", "LB_STATUS_PORT"), 8080)),
    )
    reader.raise_problems()
    return source


def _address(
    reader: EnvironmentReader, option: str, given: str | None, names: tuple[str, str], default_port: int
) -> tuple[str, int]:
    if given is None:
        return reader.host(names[0], "127.0.0.1"), reader.port(names[1], default_port)
    try:
        return parse_host_port(given, "127.0.0.1")
    except ValueError as error:
        reader.problem(option, str(error))
        return "", default_port


def show_status(source: Source, *, name: str | None, watch: bool, as_json: bool) -> int:
    """Prints it; with a name, the way of that application's replicas, or of that replica.

    Exit code: 0, or 1 when Consul can't be read or has nothing of that name.
    """
    try:
        while True:
            try:
                shown, code = _shown(source.read(), name, as_json), 0
            except StatusError as error:
                shown, code = str(error), 1
            if watch and sys.stdout.isatty():
                print(_CLEAR, end="")
            print(shown, file=sys.stderr if code else sys.stdout, flush=True)
            if not watch:
                return code
            time.sleep(_WATCH_SECONDS)
    except KeyboardInterrupt:
        return 130


def _shown(found: Status, name: str | None, as_json: bool) -> str:
    if name:
        found = found.of(name)
    if as_json:
        return json.dumps(found.as_json(), indent=2)
    return ways(found) if name else tables(found, datetime.datetime.now(datetime.UTC))


def tables(status: Status, now: datetime.datetime) -> str:
    """The tables for people; a line with a mark is of a replica in which the two views differ."""
    heading = ("", "APPLICATION", "REPLICA", "ADDRESS", "WEIGHT", "VERSION", "CHECK", "AGE", "BALANCER", "")
    rows = [
        (
            _MARK if one.difference else _NO_MARK,
            one.application,
            one.node or _NOT_KNOWN,
            host_port(one.address, one.port),
            str(one.weight),
            one.version or _NOT_KNOWN,
            one.check or _NOT_KNOWN,
            age(one.registered, now),
            "?" if status.problem else one.balancer or _NOT_KNOWN,
            one.difference,
        )
        for one in status.replicas
    ]
    parts = [columns([heading, *rows])]
    if status.services:
        heading_of_services = ("", "GRPC SERVICE", "APPLICATION", "REPLICAS", "ALSO REGISTERED BY")
        parts.append(
            columns(
                [heading_of_services]
                + [
                    ("", *(str(one[key]) or _NOT_KNOWN for key in ("service", "application", "replicas", "also")))
                    for one in status.services
                ]
            )
        )
    parts += [f"{_MARK} refused: {printable(_refused(one))}" for one in status.refused]
    if status.problem:
        parts.append(f"{_MARK} {status.problem}")
    return "\n\n".join(parts)


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows as aligned columns."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def printable(cell: str) -> str:
    """What anybody may have registered, without what a terminal would take for a command."""
    return "".join(character if character.isprintable() else "?" for character in cell)


def age(registered: str, now: datetime.datetime) -> str:
    """How long ago that was, such as ``12 s`` or ``3 h``; ``-`` where it is not known."""
    try:
        seconds = (now - datetime.datetime.fromisoformat(registered)).total_seconds()
    except (ValueError, TypeError):
        return _NOT_KNOWN
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def ways(status: Status) -> str:
    """The way of each replica from its agent to the balancer, step by step."""
    return "\n\n".join(_way(one, status) for one in status.replicas)


def _way(one: Replica, status: Status) -> str:
    unknown = None if status.problem else False
    steps: list[tuple[str, bool | None, str]] = [
        ("agent", one.node_check == "passing" if one.node_check else bool(one.node) or None, one.node or "no node"),
        ("check", one.check in ("passing", "warning") if one.check else None, f"{one.check or 'none'}: {one.output}"),
        ("catalogue", bool(one.id), f"{one.id or 'not registered'}, weight {one.weight}"),
        ("rendered list", one.rendered if one.id else unknown, _refusal(one, status)),
        ("balancer", one.balancer in _SERVES if not status.problem else None, one.balancer or status.problem),
        ("last call", bool(one.last_call) or None, _last_call(one)),
    ]
    lines = [f"{one.application} {one.node or '?'} {host_port(one.address, one.port)}"]
    lines += [
        f"  {'?' if good is None else 'ok' if good else 'NO':2}  {step:14} {remark}".rstrip()
        for step, good, remark in steps
    ]
    broken = next((step for step, good, _ in steps if good is False), "")
    if one.balancer in _SERVES and broken:
        # For the moment until the balancer's list has changed, or for as long as it holds to it.
        lines.append(f"  it still gets its share of the calls, in spite of: {broken}")
    elif broken:
        lines.append(f"  it gets no calls because of: {broken}")
    else:
        lines.append("  it gets its share of the calls" + (", as far as can be seen" if status.problem else ""))
    return "\n".join(map(printable, lines))


def _last_call(one: Replica) -> str:
    if not one.last_call:
        return "none in a day, or not counted"
    ended = datetime.datetime.fromtimestamp(one.last_call, datetime.UTC)
    return f"{age(ended.isoformat(), datetime.datetime.now(datetime.UTC))} ago, {one.last_status}"


def _refusal(one: Replica, status: Status) -> str:
    known = (one.application, one.address, one.port)
    refused = (each for each in status.refused if (each["application"], each["address"], each["port"]) == known)
    return next((str(each["reason"]) for each in refused), "")


def _refused(one: Mapping[str, object]) -> str:
    return f"{one['application'] or '?'} {one['address'] or '?'}:{one['port'] or '?'}: {one['reason']}"
