"""The status as text: tables, and the reason why a replica gets no calls."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence

from common.environment import host_port
from common.names import HELD, SERVING
from status.model import Replica, Status

_SERVES = (SERVING, HELD)
_MARK, _NO_MARK, _UNKNOWN = "!", " ", "-"


def format_tables(status: Status, now: datetime.datetime) -> str:
    """Formats the tables; a mark shows a replica for which the two views differ."""
    heading = ["", *["APPLICATION", "REPLICA", "ADDRESS", "WEIGHT", "VERSION", "CHECK", "AGE", "BALANCER"], ""]
    rows = [
        (
            _MARK if one.difference else _NO_MARK,
            one.application,
            one.node or _UNKNOWN,
            host_port(one.address, one.port),
            str(one.weight),
            one.version or _UNKNOWN,
            one.check or _UNKNOWN,
            format_age(one.registered, now),
            "?" if status.problem else one.balancer or _UNKNOWN,
            one.difference,
        )
        for one in status.replicas
    ]
    parts = [align_columns([heading, *rows])]
    if status.services:
        heading = ["", "GRPC SERVICE", "APPLICATION", "REPLICAS", "ALSO REGISTERED BY"]
        keys = ("service", "application", "replicas", "also")
        services = [("", *(str(one[key]) or _UNKNOWN for key in keys)) for one in status.services]
        parts.append(align_columns([heading, *services]))
    if status.balancers:
        heading = ["", "BALANCER", "ADDRESS", "SERVING", ""]
        balancers = [
            (
                _MARK if one.difference else _NO_MARK,
                one.node,
                host_port(one.address, one.port),
                str(one.serving),
                one.difference,
            )
            for one in status.balancers
        ]
        parts.append(align_columns([heading, *balancers]))
    parts += [f"{_MARK} refused: {mask_unprintable(_describe_refused(one))}" for one in status.refused]
    parts += [f"{_MARK} {mask_unprintable(line)}" for line in status.access.splitlines()]
    parts += [f"{_MARK} xDS: {mask_unprintable(line)}" for line in status.xds]
    if status.problem:
        parts.append(f"{_MARK} {status.problem}")
    return "\n\n".join(parts)


def align_columns(rows: Sequence[Sequence[str]]) -> str:
    """Formats rows as aligned columns."""
    rows = [[mask_unprintable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def mask_unprintable(cell: str) -> str:
    """Replaces control characters, which a terminal would execute and anyone may have registered."""
    return "".join(character if character.isprintable() else "?" for character in cell)


def format_age(registered: str, now: datetime.datetime) -> str:
    """Formats the time since a registration, such as ``12 s`` or ``3 h``; ``-`` when unknown."""
    try:
        seconds = (now - datetime.datetime.fromisoformat(registered)).total_seconds()
    except (ValueError, TypeError):
        return _UNKNOWN
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def explain(status: Status) -> str:
    """Lists the steps of each replica from its agent to the balancer, and names the first one that is missing."""
    return "\n\n".join(_explain_replica(one, status) for one in status.replicas)


def _explain_replica(one: Replica, status: Status) -> str:
    unknown = None if status.problem else False
    steps: list[tuple[str, bool | None, str]] = [
        ("agent", one.node_check == "passing" if one.node_check else bool(one.node) or None, one.node or "no node"),
        ("check", one.check in ("passing", "warning") if one.check else None, f"{one.check or 'none'}: {one.output}"),
        ("catalogue", bool(one.id), f"{one.id or 'not registered'}, weight {one.weight}"),
        ("rendered list", one.rendered if one.id else unknown, _find_refusal(one, status)),
        ("balancer", one.balancer in _SERVES if not status.problem else None, _describe_state(one) or status.problem),
        ("last call", bool(one.last_call) or None, _describe_last_call(one)),
    ]
    lines = [f"{one.application} {one.node or '?'} {host_port(one.address, one.port)}"]
    lines += [
        f"  {'?' if good is None else 'ok' if good else 'NO':2}  {step:14} {remark}".rstrip()
        for step, good, remark in steps
    ]
    broken = next((step for step, good, _ in steps if good is False), "")
    if one.balancer in _SERVES and broken:
        # Until the balancer's list changes, or as long as the balancer holds the replica.
        lines.append(f"  it still gets its share of the calls, in spite of: {broken}")
    elif broken:
        lines.append(f"  it gets no calls because of: {broken}")
    else:
        lines.append("  it gets its share of the calls" + (", as far as can be seen" if status.problem else ""))
    return "\n".join(map(mask_unprintable, lines))


def _describe_state(one: Replica) -> str:
    return f"{one.balancer}: {one.reason}" if one.reason else one.balancer


def _describe_last_call(one: Replica) -> str:
    if not one.last_call:
        return "none in a day, or not counted"
    ended = datetime.datetime.fromtimestamp(one.last_call, datetime.UTC)
    return f"{format_age(ended.isoformat(), datetime.datetime.now(datetime.UTC))} ago, {one.last_status}"


def _find_refusal(one: Replica, status: Status) -> str:
    known = (one.application, one.address, one.port)
    refused = (each for each in status.refused if (each["application"], each["address"], each["port"]) == known)
    return next((str(each["reason"]) for each in refused), "")


def _describe_refused(one: Mapping[str, object]) -> str:
    return f"{one['application'] or '?'} {one['address'] or '?'}:{one['port'] or '?'}: {one['reason']}"
