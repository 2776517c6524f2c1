"""``ps``: every container with its address, state, health and programs."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from local_stack.errors import LocalStackError
from local_stack.readiness import health_by_node
from local_stack.stack import Stack
from local_stack.supervisor import Program


@dataclass(frozen=True, kw_only=True)
class Row:
    """One container; ``health`` is the worst status of its checks in Consul, empty when it has none."""

    name: str
    service: str
    address: str
    state: str
    health: str
    programs: list[Program]


def rows(stack: Stack) -> list[Row]:
    """Returns the containers of a stack as they are now."""
    try:
        health = health_by_node(stack)
    except LocalStackError:
        health = {}
    states = {program.name: program.state for program in stack.supervisor.programs()}
    result = []
    for container in stack.containers():
        state = states.get(container.name, "GONE")
        # supervisord calls a program STARTING for its first second; Docker calls such a container running.
        running = state in ("STARTING", "RUNNING")
        result.append(
            Row(
                name=container.name,
                service=container.service.name,
                address=container.address,
                state="running" if running else state.lower(),
                health=health.get(container.name, "") if running else "",
                programs=[one for one in container.programs() if one.name != "exit-on-fatal"] if running else [],
            )
        )
    return result


def print_table(listing: list[Row]) -> None:
    """Prints the rows for people."""
    result = Table(box=None, pad_edge=False)
    for heading in ("NAME", "ADDRESS", "STATE", "HEALTH", "PROGRAMS"):
        result.add_column(heading, overflow="fold")
    for row in listing:
        programs = ", ".join(f"{program.name} {program.state.lower()} {program.pid or '-'}" for program in row.programs)
        result.add_row(row.name, row.address, row.state, row.health or "-", programs or "-")
    Console(soft_wrap=not sys.stdout.isatty()).print(result)
