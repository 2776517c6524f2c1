"""The server alone: calls without a balancer, beside the smallest server that grpc.aio can be."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

from benchmarks import report
from benchmarks.bench import Bench
from benchmarks.servers.start import AIO, Command
from testbed.calls import wait_for_answers
from testbed.errors import BenchmarkError
from testbed.load import CONNECTIONS, GREETING, STREAMS, h2load
from testbed.processes import cpu_seconds, descendants
from testbed.programs import ROOT
from testbed.stats import Spread, ratios

LEAST = 0.93
# The speed of a machine changes within seconds, so each server has this many turns in a round.
_TURNS = 8
_BARE, _OURS = "bare grpc.aio", "grpc_server as in the stack"
_PORT, _METRICS_PORT = 7777, 7778
_WITH_NAME = ROOT / "build/config/supervisord/usr/bin/with-name"
_MICRO = 1_000_000
_METHOD = (
    f"h2load calls a server directly, {CONNECTIONS * STREAMS} at a time on {CONNECTIONS} connections. The bare server "
    "([aio.py](../benchmarks/servers/aio.py)) has gRPC's and asyncio's defaults and answers with the request. "
    "`grpc_server` does what it does in the stack: metrics, the drain, health and reflection, a log line for each "
    "call, written through `with-name`; its event loop is uvloop's if that is installed. A server's processor time "
    f"includes `with-name`'s. In a round each has {_TURNS} turns."
)


@dataclass
class _Server:
    """A running server, and its figures of one round."""

    name: str
    address: str
    answer: str
    process: subprocess.Popen[bytes]
    seconds: float = 0.0
    used: float = 0.0

    def turn(self, bench: Bench, calls: int) -> None:
        """Makes calls and adds their time and the processor time of the server."""
        pids = descendants(self.process.pid)
        before = cpu_seconds(pids)
        load = h2load(bench.processes, f"{self.address}:{_PORT}", calls, self.answer)
        if load.failed:
            raise BenchmarkError(f"{self.name}: {load.failed} of {calls} calls were not answered")
        self.seconds += load.seconds
        self.used += cpu_seconds(pids) - before


def run(bench: Bench) -> report.Section:
    """Measures both, round by round."""
    rates: dict[str, list[float]] = {_BARE: [], _OURS: []}
    micros: dict[str, list[float]] = {_BARE: [], _OURS: []}
    calls = max(bench.plan.throughput_calls // _TURNS, CONNECTIONS * STREAMS)
    with ExitStack() as stack:
        servers = [stack.enter_context(_bare(bench)), stack.enter_context(_ours(bench))]
        for server in servers:
            server.turn(bench, calls)
        for number in range(bench.plan.rounds):
            bench.say(f"the server alone: round {number + 1} of {bench.plan.rounds}")
            for server in servers:
                server.seconds = server.used = 0.0
            for turn in range(_TURNS):
                for server in servers if turn % 2 == 0 else reversed(servers):
                    server.turn(bench, calls)
            for server in servers:
                rates[server.name].append(calls * _TURNS / server.seconds)
                micros[server.name].append(server.used / (calls * _TURNS) * _MICRO)
    return _section(*({name: Spread.of(values) for name, values in found.items()} for found in (rates, micros)))


@contextmanager
def _started(bench: Bench, name: str, number: int, answer: str, command: Command, **env: str) -> Iterator[_Server]:
    address = bench.address(number)
    directory = bench.processes.directory / f"alone-{number}"
    # with-name's.
    (directory / "run").mkdir(parents=True, exist_ok=True)
    log = f"alone-{number}"
    process = bench.processes.start(log, command, cwd=directory, env={"PYTHONPATH": str(ROOT), **env})
    try:
        with bench.processes.explained(name, log):
            wait_for_answers(f"{address}:{_PORT}", 1, 15)
        yield _Server(name, address, answer, process)
    finally:
        bench.processes.stop(process)


def _bare(bench: Bench) -> AbstractContextManager[_Server]:
    return _started(bench, _BARE, 2, GREETING, [*AIO.command(), f"{bench.address(2)}:{_PORT}"])


def _ours(bench: Bench) -> AbstractContextManager[_Server]:
    command: Command = ["sh", _WITH_NAME, "grpc_server", sys.executable, "-m", "grpc_server"]
    settings = {"HOSTNAME": "alone", "BIND_ADDRESS": bench.address(3), "APP_PORT": str(_PORT), "PYTHONUNBUFFERED": "1"}
    metrics = {"METRICS_PORT": str(_METRICS_PORT), "GRPC_WORKERS": "1"}
    return _started(bench, _OURS, 3, "Hello from alone.", command, **settings, **metrics)


def _section(rates: dict[str, Spread], micros: dict[str, Spread]) -> report.Section:
    section = report.Section(title="One server without a balancer", method=_METHOD)
    what = f"Calls a second of one server, {_OURS} over {_BARE}"
    values = ratios(rates[_OURS], rates[_BARE])
    section.targets.append(report.judge(what, values, "times", f"at least {LEAST} times", lambda value: value >= LEAST))
    rows = []
    for name, rate in rates.items():
        used = micros[name]
        row = [name, report.number(rate.median), report.spread(rate), report.number(used.median), report.spread(used)]
        rows.append(row)
    columns = ["server", "calls a second", "spread", "µs of processor time a call", "spread"]
    section.tables.append(report.Table(columns=columns, rows=rows))
    return section
