"""Servers of other kinds, with default options: calls of several loads and sizes, and streams, by each balancer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import ge, le

from benchmarks import report
from benchmarks.bench import Bench
from benchmarks.servers import measure
from benchmarks.servers.measure import Case, Figures
from benchmarks.servers.start import GO, KINDS, ServerKind
from testbed.balancers import Balancer, Envoy, HAProxy, LuaNginx, StaticNginx
from testbed.errors import MissingError
from testbed.load import USUAL, Shape
from testbed.stats import Spread, ratios

_KIB = 1024
# The targets are for these loads.
LOADS = (
    Case(name="1x1", size=16, shape=Shape(1, 1), share=1),
    Case(name="4x4", size=16, shape=Shape(4, 4), share=2),
    Case(name="8x16", size=16, shape=USUAL, share=3),
)
SIZES = (
    Case(name="4x4, 64 KiB", size=64 * _KIB, shape=Shape(4, 4), share=0.4),
    Case(name="4x4, 1 MiB", size=_KIB * _KIB, shape=Shape(4, 4), share=0.04),
)
STREAM = "stream"
P50_MOST, P99_MOST, RATE_LEAST, GO_RATE_LEAST = 1.0, 1.1, 1.0, 1.1
NOISE = 0.03
_BALANCERS: Sequence[Callable[..., Balancer]] = (LuaNginx, StaticNginx, HAProxy, Envoy)
_METHOD = (
    "Every balancer is in front of the same three servers of a kind, which have the default options of its library "
    "([servers](../benchmarks/servers)) and answer with the request. h2load makes the calls, CONNECTIONSxSTREAMS at a "
    "time, with greetings of 16 bytes unless a size is named; the percentiles are of the times of all calls in its "
    "log. In a round each balancer has several turns, in a changing order. A call without a whole answer ends the "
    "run.\n\n"
    "The targets compare the Lua balancer with nginx's own static upstream, which has the same configuration without "
    f"Lua: p50 at most {P50_MOST} times, p99 at most {P99_MOST} times, calls a second at least {RATE_LEAST} times "
    f'({GO_RATE_LEAST} with {GO.name}). "{report.MET}": the median of the rounds meets the target. "{report.NEAR}": '
    f"the median misses it by no more than {NOISE:.0%}, the difference between nginx and a copy of itself, and at "
    "least one round meets it.\n\n"
    f"Streams: a server sends its time every 10 ms, and a client reads {measure.STREAMS} streams on one connection. "
    "The delay is from the server's reading of the clock to the client's, of the same clock."
)


@dataclass
class Results:
    """What a kind's rounds found: figures by load and balancer, one a round; and the balancers that are missing."""

    figures: dict[tuple[str, str], list[Figures]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def add(self, case: str, found: Mapping[str, Figures]) -> None:
        """Adds a round's."""
        for name, figures in found.items():
            self.figures.setdefault((case, name), []).append(figures)

    def spread(self, case: str, balancer: str, figure: str) -> Spread:
        """One of ``p50``, ``p99`` and ``rate``."""
        return Spread.of([getattr(one, figure) for one in self.figures[case, balancer]])

    def ratios(self, case: str, balancer: str, figure: str) -> Spread:
        """The same over the static upstream's, round by round."""
        return ratios(self.spread(case, balancer, figure), self.spread(case, StaticNginx.name, figure))


def run(bench: Bench) -> report.Section:
    """Measures one kind after the other, each through all balancers at once, round by round."""
    found: dict[str, Results] = {}
    missing: dict[str, str] = {}
    kinds = KINDS if bench.plan.every_kind else KINDS[:2]
    for number, kind in enumerate(kinds):
        try:
            found[kind.name] = _measure(bench, kind, number * measure.SERVERS)
        except MissingError as error:
            missing[kind.name] = str(error)
    return section([kind.name for kind in kinds], found, missing)


def _measure(bench: Bench, kind: ServerKind, first: int) -> Results:
    results = Results()
    balancers = []
    for number, make in enumerate(_BALANCERS):
        # A balancer has up to three ports.
        balancer = make(bench.processes, bench.port + 1 + 3 * number)
        try:
            balancer.require()
            balancers.append(balancer)
        except MissingError as error:
            results.missing[balancer.name] = str(error)
    plan = bench.plan
    with measure.running(bench, kind, first) as peers, measure.started(balancers, peers):
        measure.warm_up(bench, balancers, max(3 * plan.kind_calls, 2 * USUAL.connections * USUAL.streams))
        for number in range(plan.kind_rounds):
            bench.say(f"{kind.name}: round {number + 1} of {plan.kind_rounds}")
            ordered = balancers if number % 2 == 0 else balancers[::-1]
            for case in (*LOADS, *SIZES):
                results.add(case.name, measure.one_round(bench, ordered, case, plan.kind_calls, plan.kind_turns))
            results.add(STREAM, measure.stream_round(ordered, plan.tick_seconds))
    return results


def section(kinds: Sequence[str], found: Mapping[str, Results], missing: Mapping[str, str]) -> report.Section:
    """The report of what was found of each kind, and of the kinds that are missing."""
    made = report.Section(title="Servers of other kinds", method=_METHOD)
    for kind in kinds:
        for case in LOADS:
            made.targets += _targets(kind, case, found.get(kind), missing.get(kind, ""))
    for kind, results in found.items():
        made.tables.append(_table(kind, results))
    if found:
        made.tables.append(_streams(found))
    made.notes += [f"{kind} was not measured: {why}" for kind, why in missing.items()]
    for name, why in {name: why for one in found.values() for name, why in one.missing.items()}.items():
        made.notes.append(f"{name} was not measured: {why}")
    values = [
        (f"{kind}, {name}", 1000 * results.spread(LOADS[1].name, name, "p50").median)
        for kind, results in found.items()
        for name in (LuaNginx.name, StaticNginx.name)
    ]
    made.charts.append(report.Chart(title=f"p50 of a call, {LOADS[1].name}", unit="ms", values=values))
    return made


def _targets(kind: str, case: Case, results: Results | None, why: str) -> list[report.Target]:
    least = GO_RATE_LEAST if kind == GO.name else RATE_LEAST
    targets = []
    for figure, words, target, holds in (
        ("p50", "p50", f"at most {P50_MOST} times", partial(ge, P50_MOST)),
        ("p99", "p99", f"at most {P99_MOST} times", partial(ge, P99_MOST)),
        ("rate", "calls a second", f"at least {least} times", partial(le, least)),
    ):
        what = f"{kind} {case.name}: {words}, Lua balancer over static upstream"
        if results:
            values = results.ratios(case.name, LuaNginx.name, figure)
            targets.append(report.judge(what, values, "times", target, holds, noise=NOISE))
        else:
            targets.append(report.absent(what, target, why))
    return targets


def _table(kind: str, results: Results) -> report.Table:
    rows = []
    for case, name in results.figures:
        if case == STREAM:
            continue
        row = [case, name]
        for figure, factor in (("p50", 1000), ("p99", 1000), ("rate", 1)):
            row.append(report.number(factor * results.spread(case, name, figure).median))
        for figure in ("p50", "p99", "rate"):
            over = results.ratios(case, name, figure)
            row.append("" if name == StaticNginx.name else f"{report.number(over.median)} ({report.spread(over)})")
        rows.append(row)
    columns = [kind, "balancer", "p50, ms", "p99, ms", "calls a second", "p50 over static", "p99 over static"]
    return report.Table(columns=[*columns, "calls over static"], rows=rows)


def _streams(found: Mapping[str, Results]) -> report.Table:
    rows = []
    for kind, results in found.items():
        for case, name in results.figures:
            if case == STREAM:
                spreads = [results.spread(case, name, figure) for figure in ("p50", "p99")]
                rows.append([kind, name, *(report.number(1000 * spread.median) for spread in spreads)])
    return report.Table(columns=["a message each 10 ms", "balancer", "delay p50, ms", "delay p99, ms"], rows=rows)
