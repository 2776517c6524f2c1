"""What a call costs in nginx: the Lua balancer beside a static upstream, over a backend that costs next to nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks import report
from benchmarks.bench import Bench
from testbed.balancers import CountingNginx, LoggingNginx, LuaNginx, StaticNginx
from testbed.errors import BenchmarkError
from testbed.load import CONNECTIONS, STREAMS, h2load
from testbed.processes import exact_cpu_seconds
from testbed.stats import Spread, ratios

PEERS = (3, 100, 1000)
MOST = 1.05
# A machine's speed changes within seconds, and how the kernel shares out the connections to the workers decides how
# much each does at a time: both balancers run side by side, and each has its calls in so many turns.
CHUNKS = 20
_MICRO = 1_000_000


def run(bench: Bench) -> report.Section:
    """Measures both at each number of peers, round by round."""
    every = bench.cheap_backend(max(PEERS))
    micros: dict[tuple[int, str], list[float]] = {}
    seen: dict[str, list[float]] = {}
    for number in range(bench.plan.rounds):
        bench.say(f"processor time: round {number + 1} of {bench.plan.rounds}")
        for count in PEERS:
            for name, used in _measure(bench, every[:count], [LuaNginx, StaticNginx]).items():
                micros.setdefault((count, name), []).append(used)
        for name, used in _measure(bench, every[: PEERS[0]], [LuaNginx, CountingNginx, LoggingNginx]).items():
            seen.setdefault(name, []).append(used)
    section = _section({key: Spread.of(values) for key, values in micros.items()})
    section.tables.append(_what_is_seen({name: Spread.of(values) for name, values in seen.items()}))
    return section


def _measure(bench: Bench, peers: list[str], kinds: Sequence[type[LuaNginx]]) -> dict[str, float]:
    """Microseconds of the workers' processor time a call, of each."""
    # A balancer has up to three ports.
    balancers = [kind(bench.processes, bench.port + 1 + 3 * number) for number, kind in enumerate(kinds)]
    used = dict.fromkeys((balancer.name for balancer in balancers), 0.0)
    calls = bench.plan.cpu_calls // CHUNKS
    try:
        for balancer in balancers:
            balancer.start(peers)
            # Every worker makes its connections to replicas before it counts.
            _load(bench, balancer, max(2 * calls, 2 * len(peers), 2 * CONNECTIONS * STREAMS))
        for number in range(CHUNKS):
            # The first has the machine as the last one left it: take turns.
            for balancer in balancers if number % 2 == 0 else reversed(balancers):
                workers = balancer.workers()
                before = exact_cpu_seconds(workers)
                _load(bench, balancer, calls)
                used[balancer.name] += exact_cpu_seconds(workers) - before
    finally:
        for balancer in balancers:
            balancer.stop()
    return {name: seconds / (calls * CHUNKS) * _MICRO for name, seconds in used.items()}


def _load(bench: Bench, balancer: LuaNginx, calls: int) -> None:
    load = h2load(bench.processes, balancer.target, calls, f"Hello from {bench.address(0)}.")
    if load.failed:
        raise BenchmarkError(f"{balancer.name}: {load.failed} of {calls} calls were not answered\n{balancer.tail()}")


def _section(micros: dict[tuple[int, str], Spread]) -> report.Section:
    section = report.Section(
        title="Processor time a call in nginx",
        method=(
            f"h2load makes a fixed number of calls, {CONNECTIONS * STREAMS} at a time, in {CHUNKS} turns that "
            "alternate between the balancers; the figure is the processor time of nginx's workers. The backend is an "
            "nginx that answers every call itself, the peers are loopback addresses of it. The static upstream is the "
            "configuration that consul-template renders for the same peers with NGINX_UPDATE=reload, without any Lua, "
            "so the ratio includes the balancer's work beside its calls: reading the document, probing, counting."
        ),
    )
    rows = []
    for count in PEERS:
        lua, static = micros[count, LuaNginx.name], micros[count, StaticNginx.name]
        what = f"Processor time a call, Lua balancer over static upstream, {count:,} peers"
        target = f"at most {MOST} times"
        section.targets.append(report.judge(what, ratios(lua, static), "times", target, lambda value: value <= MOST))
        for name, found in ((LuaNginx.name, lua), (StaticNginx.name, static)):
            rows.append([f"{count:,}", name, report.number(found.median), report.spread(found)])
    section.tables.append(report.Table(columns=["peers", "balancer", "µs a call", "spread"], rows=rows))
    values = [(f"{name}, {count:,} peers", found.median) for (count, name), found in micros.items()]
    section.charts.append(report.Chart(title=section.title, unit="µs", values=values))
    return section


def _what_is_seen(micros: Mapping[str, Spread]) -> report.Table:
    """What metrics and log cost."""
    without = micros[LuaNginx.name]
    rows = []
    for name, found in micros.items():
        times = ratios(found, without)
        rows.append([name, report.number(found.median), report.spread(found), report.number(times.median)])
    return report.Table(columns=["what a call leaves behind", "µs a call", "spread", "times"], rows=rows)
