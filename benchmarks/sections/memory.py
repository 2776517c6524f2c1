"""Memory of the whole stack with five replicas, by container and program."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from benchmarks import report
from benchmarks.bench import Bench
from testbed.load import h2load
from testbed.processes import pss_bytes
from testbed.stats import Spread

_REPLICAS = 5
_MOST_GB = 1.5
_MEGA = 1_000_000


def run(bench: Bench) -> report.Section:
    """Measures after some load, several times."""
    bench.stack.ensure(_REPLICAS)
    h2load(bench.processes, bench.stack.target, bench.plan.throughput_calls, "Hello from hello_server-1.")
    rounds = [_parts(bench) for _ in range(max(bench.plan.rounds, 3))]
    total = Spread.of([sum(parts.values()) / _MEGA / 1000 for parts in rounds])
    section = report.Section(
        title="Memory with five replicas",
        method=("The Pss of every process of the stack without Docker (/proc/PID/smaps_rollup), after a load."),
    )
    target = f"under {_MOST_GB} GB"
    judged = report.judge(
        "Memory of the whole stack, five replicas", total, "GB", target, lambda value: value < _MOST_GB
    )
    section.targets.append(judged)
    rows = []
    for container, program in sorted(rounds[0]):
        found = Spread.of([parts.get((container, program), 0) / _MEGA for parts in rounds])
        rows.append([container, program, report.number(found.median), report.spread(found)])
    section.tables.append(report.Table(columns=["container", "program", "MB", "spread"], rows=rows))
    return section


def _parts(bench: Bench) -> dict[tuple[str, str], int]:
    """Bytes by container and program; what belongs to no container is the outer supervisord."""
    found: dict[tuple[str, str], int] = defaultdict(int)
    pids = {**bench.stack.pids(), "(all)": bench.stack.supervisors()}
    for container, ids in pids.items():
        for pid in ids:
            found[container, program_of(pid)] += pss_bytes(pid)
    return dict(found)


def program_of(pid: int) -> str:
    """The program that a process runs."""
    command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    return program_name(command.rstrip("\0").split("\0"))


def program_name(command: list[str]) -> str:
    """A program's name from its command line: of Python's the module or script, of a title its first word."""
    words = command[0].split(" ") if len(command) == 1 else command
    name = Path(words[0].rstrip(":")).name
    if name.startswith(("python", "sh", "dash", "bash")) and len(words) > 1:
        rest = [word for word in words[1:] if word not in {"-m", "-u", "-c"}]
        return Path(rest[0]).name if rest else name
    return name
