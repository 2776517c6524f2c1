"""The length of the tests of faults, the death of a program, and the table of all faults."""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed.wait import wait_for
from tests.support.drivers import LocalDriver
from tests.support.load import CALLERS, CALLS_A_SECOND, CONNECTIONS, FEW_CALLS_A_SECOND, Load

# The whole form is ``make chaos``, the short one ``make test``.
FULL = os.environ.get("CHAOS") == "full"


def rounds(whole: int, short: int) -> int:
    """Returns how often a fault is made; the conditions are the same in both forms."""
    return whole if FULL else short


def kill_program(stack: LocalDriver, container: str, program: str) -> None:
    """Kills a program and waits until supervisord has started it again."""
    before = stack.pid(container, program)
    os.kill(before, signal.SIGKILL)
    wait_for(
        lambda: stack.pid(container, program), lambda now: now not in (0, before), 30, f"{program} is started again"
    )


def lose_catalogue(stack: LocalDriver, servers: Sequence[str]) -> None:
    """Kills all Consul servers and starts them again without their data."""
    stack.local_stack("kill", *servers)
    for server in servers:
        volume = stack.home / "volumes" / server
        shutil.rmtree(volume)
        volume.mkdir()
    stack.local_stack("start", *servers)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One fault."""

    fault: str
    calls: int
    lost: str
    slowest: str
    remark: str = ""


ROWS: list[Row] = []


def record(fault: str, load: Load, remark: str = "") -> None:
    """Notes the result of a load; pytest prints the table at the end, and ``make chaos`` writes it."""
    lost: int | str = load.lost
    if load.other and load.lost:
        lost = f"{load.ours.lost} of grpc_client, {load.other.lost} of ghz"
    note(fault, load.calls, lost, f"{load.slowest_seconds * 1000:.0f} ms", remark)


def note(fault: str, calls: int, lost: int | str, slowest: str = "", remark: str = "") -> None:
    """Notes calls that were counted in another way."""
    ROWS.append(Row(fault=fault, calls=calls, lost=str(lost), slowest=slowest, remark=remark))


def table() -> str:
    """Returns the rows as Markdown."""
    lines = ["| fault | calls | lost | slowest answer | |", "|---|---:|---:|---:|---|"]
    lines += [f"| {row.fault} | {row.calls:,} | {row.lost} | {row.slowest} | {row.remark} |" for row in ROWS]
    return "\n".join(lines)


# What the report says about the stack and the load; tests of another stack replace it when they are imported.
introduction = f"""The faults that `make chaos` caused in the stack without Docker while calls went on, and the
results of the calls. {{where}}
The clients, the balancer, the replicas and Consul share the cores.

The load: `grpc_client` and [ghz](https://github.com/bojand/ghz), each with {CALLERS} concurrent callers on
{CONNECTIONS} connections and {CALLS_A_SECOND} calls a second (abuse: {FEW_CALLS_A_SECOND}), deadline 10 s.
ghz has no retry policy, and grpc_client has one only where the row says so. A call is lost when its status is not OK.
The slowest answer is of both clients. The calls of streams are the tests' own.

`make test` runs the same tests with fewer rounds."""


def write(failed: Sequence[str], path: Path) -> None:
    """Writes the report; ``failed`` has the names of failed tests."""
    names = ", ".join(f"`{name}`" for name in failed)
    verdict = f"Failed or not run: {names}; see [targets.md](targets.md)." if failed else "Every test passed."
    cores = len(os.sched_getaffinity(0))
    where = f"Run on {datetime.date.today().isoformat()}, {platform.system()} {platform.release().split('-')[0]}, "
    where += f"{cores} cores, Python {platform.python_version()}."
    path.write_text(
        f"""# Reliability

{introduction.format(where=where)}

{verdict}

{table()}
"""
    )
