"""What a call costs in nginx: the Lua balancer beside a static upstream, over a backend that costs next to nothing."""

from __future__ import annotations

from benchmarks import report
from benchmarks.balancers import LuaNginx, StaticNginx
from benchmarks.bench import Bench
from benchmarks.errors import BenchmarkError
from benchmarks.load import CONNECTIONS, STREAMS, h2load
from benchmarks.processes import cpu_seconds
from benchmarks.stats import Spread, ratios

PEERS = (3, 100, 1000)
MOST = 1.05
_MICRO = 1_000_000


def run(bench: Bench) -> report.Section:
    """Measures both at each number of peers, round by round."""
    every = bench.cheap_backend(max(PEERS))
    micros: dict[tuple[int, str], list[float]] = {}
    for number in range(bench.plan.rounds):
        bench.say(f"processor time: round {number + 1} of {bench.plan.rounds}")
        for count in PEERS:
            # The first of a pair has the machine as the last one left it: take turns.
            kinds = (LuaNginx, StaticNginx) if number % 2 == 0 else (StaticNginx, LuaNginx)
            for kind in kinds:
                used = _measure(bench, kind(bench.processes, bench.port + 1), every[:count])
                micros.setdefault((count, kind.name), []).append(used)
    return _section({key: Spread.of(values) for key, values in micros.items()})


def _measure(bench: Bench, balancer: LuaNginx, peers: list[str]) -> float:
    """Microseconds of the workers' processor time a call."""
    balancer.start(peers)
    try:
        calls = bench.plan.cpu_calls
        answer = f"Hello from {bench.address(0)}."
        # Every worker makes its connections to replicas before it counts.
        h2load(bench.processes, balancer.target, max(calls // 5, 2 * CONNECTIONS * STREAMS), answer)
        workers = balancer.workers()
        before = cpu_seconds(workers)
        load = h2load(bench.processes, balancer.target, calls, answer)
        used = cpu_seconds(workers) - before
        if load.failed:
            raise BenchmarkError(
                f"{balancer.name}: {load.failed} of {calls} calls were not answered\n{balancer.tail()}"
            )
        return used / calls * _MICRO
    finally:
        balancer.stop()


def _section(micros: dict[tuple[int, str], Spread]) -> report.Section:
    section = report.Section(
        title="Processor time a call in nginx",
        method=(
            f"h2load, {CONNECTIONS * STREAMS} calls at a time, a fixed number of calls; utime and stime of nginx's "
            "workers from /proc. The backend is an nginx that answers every call itself, the peers are loopback "
            "addresses of it. The static upstream has the same rendered configuration with everything in Lua taken "
            "out, so what the balancer does besides its calls (reading its list, probing, counting) is in the ratio."
        ),
    )
    rows = []
    for count in PEERS:
        lua, static = micros[count, LuaNginx.name], micros[count, StaticNginx.name]
        what = f"Processor time a call, Lua balancer over static upstream, {count:,} peers"
        bar = f"at most {MOST} times"
        section.bars.append(report.judge(what, ratios(lua, static), "times", bar, lambda value: value <= MOST))
        for name, found in ((LuaNginx.name, lua), (StaticNginx.name, static)):
            rows.append([f"{count:,}", name, report.number(found.median), report.spread(found)])
    section.tables.append(report.Table(columns=["peers", "balancer", "µs a call", "spread"], rows=rows))
    values = [(f"{name}, {count:,} peers", found.median) for (count, name), found in micros.items()]
    section.charts.append(report.Chart(title=section.title, unit="µs", values=values))
    return section
