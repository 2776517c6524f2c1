"""One replica with one server process and with two."""

from __future__ import annotations

import os

from benchmarks import report
from benchmarks.bench import Bench
from testbed.errors import BenchmarkError
from testbed.load import CONNECTIONS, STREAMS, h2load
from testbed.processes import cpu_seconds, descendants
from testbed.stats import Spread

_COUNTS = (1, 2)
_NAME = "bench-server"


def run(bench: Bench) -> report.Section:
    """Measures both, round by round."""
    rates: dict[int, list[float]] = {count: [] for count in _COUNTS}
    cores: dict[int, list[float]] = {count: [] for count in _COUNTS}
    for number in range(bench.plan.rounds):
        bench.say(f"GRPC_WORKERS: round {number + 1} of {bench.plan.rounds}")
        for count in _COUNTS:
            for found, value in zip((rates, cores), _measure(bench, count), strict=True):
                found[count].append(value)
    section = report.Section(
        title="GRPC_WORKERS in one replica",
        method=(
            f"h2load calls one `grpc_server` directly, {CONNECTIONS * STREAMS} at a time on {CONNECTIONS} connections. "
            f"The client takes its share of the {os.cpu_count()} cores, so two workers don't get two of them here."
        ),
    )
    rows = []
    for count in _COUNTS:
        rate, used = Spread.of(rates[count]), Spread.of(cores[count])
        rows.append([str(count), report.number(rate.median), report.spread(rate), report.number(used.median)])
    columns = ["GRPC_WORKERS", "calls a second", "spread", "cores used by the server"]
    section.tables.append(report.Table(columns=columns, rows=rows))
    return section


def _measure(bench: Bench, workers: int) -> tuple[float, float]:
    """Calls a second, and the cores that the server used."""
    address = bench.address(1)
    target = f"{address}:7777"
    with bench.replica(_NAME, address, workers) as server:
        calls, answer = bench.plan.throughput_calls, f"Hello from {_NAME}."
        h2load(bench.processes, target, max(calls // 10, CONNECTIONS * STREAMS), answer)
        pids = descendants(server.pid)
        before = cpu_seconds(pids)
        load = h2load(bench.processes, target, calls, answer)
        used = cpu_seconds(pids) - before
    if load.failed:
        raise BenchmarkError(f"GRPC_WORKERS={workers}: {load.failed} of {calls} calls were not answered")
    return load.rate, used / load.seconds
