"""One replica with one server process and with two."""

from __future__ import annotations

import os
import sys

from benchmarks import report
from benchmarks.bench import Bench
from testbed.calls import wait_for_answers
from testbed.errors import BenchmarkError
from testbed.load import CONNECTIONS, STREAMS, h2load
from testbed.processes import cpu_seconds, descendants
from testbed.programs import ROOT
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
            rate, used = _measure(bench, count)
            rates[count].append(rate)
            cores[count].append(used)
    section = report.Section(
        title="GRPC_WORKERS in one replica",
        method=(
            f"h2load calls one `grpc_server` directly, {CONNECTIONS * STREAMS} at a time on {CONNECTIONS} connections. "
            f"The client takes its share of the {os.cpu_count()} cores, so two workers can't have two of them here."
        ),
    )
    rows = []
    for count in _COUNTS:
        rates_found, cores_found = Spread.of(rates[count]), Spread.of(cores[count])
        rows.append(
            [
                str(count),
                report.number(rates_found.median),
                report.spread(rates_found),
                report.number(cores_found.median),
            ]
        )
    columns = ["GRPC_WORKERS", "calls a second", "spread", "cores used by the server"]
    section.tables.append(report.Table(columns=columns, rows=rows))
    return section


def _measure(bench: Bench, workers: int) -> tuple[float, float]:
    """Calls a second, and the cores that the server used."""
    address = bench.address(1)
    env = {"HOSTNAME": _NAME, "BIND_ADDRESS": address, "APP_PORT": "7777", "GRPC_WORKERS": str(workers)}
    server = bench.processes.start("server", [sys.executable, "-m", "grpc_server"], cwd=ROOT, env=env)
    target = f"{address}:7777"
    try:
        wait_for_answers(target, 1, 15)
        calls, answer = bench.plan.throughput_calls, f"Hello from {_NAME}."
        h2load(bench.processes, target, max(calls // 10, CONNECTIONS * STREAMS), answer)
        pids = descendants(server.pid)
        before = cpu_seconds(pids)
        load = h2load(bench.processes, target, calls, answer)
        used = cpu_seconds(pids) - before
    finally:
        bench.processes.stop(server)
    if load.failed:
        raise BenchmarkError(f"GRPC_WORKERS={workers}: {load.failed} of {calls} calls were not answered")
    return load.rate, used / load.seconds
