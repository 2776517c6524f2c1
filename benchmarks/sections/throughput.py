"""Calls a second with three replicas: this stack beside other balancers in front of the same replicas."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from operator import le

from benchmarks import report
from benchmarks.bench import Bench
from benchmarks.servers import measure
from benchmarks.servers.start import ORIGINAL
from testbed.balancers import (
    Balancer,
    Envoy,
    FedEnvoy,
    HAProxy,
    OriginalNginx,
    OriginalStack,
    TlsHAProxy,
    TlsNginx,
    start_available,
)
from testbed.errors import BenchmarkError, MissingError
from testbed.load import CONNECTIONS, STREAMS, Load, h2load
from testbed.processes import cpu_seconds, descendants
from testbed.stats import Spread, ratios

REPLICAS = 3
# nginx by default ends a connection after 1,000 calls, and h2load makes no new one.
TURN_CALLS = 4000
OURS = "this stack"
_NAME = "hello_server-1"
_MICRO = 1_000_000


@dataclass(frozen=True)
class Target:
    """The address of a candidate and its processes."""

    address: str
    pids: list[int]
    tls: bool = False

    @classmethod
    def of(cls, balancer: Balancer) -> Target:
        """Returns that of a balancer that has been started."""
        assert balancer.process is not None  # noqa: S101 - it has just been started
        return cls(balancer.target, descendants(balancer.process.pid), balancer.tls)


@dataclass
class Figures:
    """Of each round of a candidate: calls a second, and the balancer's processor time of a call in microseconds."""

    rates: list[float] = field(default_factory=list)
    micros: list[float] = field(default_factory=list)


@contextmanager
def started(bench: Bench, candidates: Sequence[Balancer]) -> Iterator[tuple[dict[str, Target], dict[str, str]]]:
    """Runs other balancers in front of the stack's replicas; yields all balancers, and why some are missing."""
    bench.stack.ensure(REPLICAS)
    peers = [f"{row['address']}:7777" for row in bench.stack.rows() if row["service"] == "hello_server"]
    targets = {OURS: Target(bench.stack.target, bench.stack.nginx())}
    with ExitStack() as stops:
        found, missing = start_available(candidates, peers, stops)
        targets |= {one.name: Target.of(one) for one in found}
        yield targets, missing


@contextmanager
def _original(bench: Bench, targets: dict[str, Target], missing: dict[str, str]) -> Iterator[None]:
    """Runs the original as a whole, with servers of its own, and adds it to the targets or to what is missing."""
    with ExitStack() as stops:
        try:
            peers = stops.enter_context(measure.running(bench, ORIGINAL, 0))
        except MissingError as error:
            missing[OriginalStack.name] = str(error)
        else:
            original = OriginalStack(bench.processes, bench.port + 15)
            original.start(peers)
            stops.callback(original.stop)
            targets[original.name] = Target.of(original)
        yield


def run(bench: Bench) -> report.Section:
    """Measures all candidates, round by round."""
    with (
        started(bench, bench.candidates() + bench.tls_candidates()) as (targets, missing),
        _original(bench, targets, missing),
    ):
        for target in targets.values():
            _load(bench, target)
        figures = {name: Figures() for name in targets}
        for number in range(bench.plan.rounds):
            bench.say(f"throughput: round {number + 1} of {bench.plan.rounds}")
            _round(bench, targets, figures)
    return _section(figures, missing)


def _round(bench: Bench, targets: dict[str, Target], figures: dict[str, Figures]) -> None:
    """Measures all candidates in turns, because the speed of a machine changes within seconds."""
    turns = max(1, bench.plan.throughput_calls // TURN_CALLS)
    seconds, used = dict.fromkeys(targets, 0.0), dict.fromkeys(targets, 0.0)
    answered = 0
    for turn in range(turns):
        # The order changes from turn to turn.
        for name in list(targets) if turn % 2 == 0 else reversed(targets):
            target = targets[name]
            before = cpu_seconds(target.pids)
            load = _load(bench, target)
            used[name] += cpu_seconds(target.pids) - before
            seconds[name] += load.seconds
        answered += load.answered
    for name in targets:
        figures[name].rates.append(answered / seconds[name])
        figures[name].micros.append(used[name] / answered * _MICRO)


def _load(bench: Bench, target: Target) -> Load:
    calls = min(TURN_CALLS, bench.plan.throughput_calls)
    load = h2load(bench.processes, target.address, calls, f"Hello from {_NAME}.", tls=target.tls)
    if load.failed:
        raise BenchmarkError(f"{target.address}: {load.failed} of {calls} calls were not answered")
    return load


def _section(figures: dict[str, Figures], missing: dict[str, str]) -> report.Section:
    section = report.Section(
        title="Calls a second with three replicas",
        method=(
            "h2load makes unary calls to three replicas of the stack (`grpc_server`, one process each), "
            f"{CONNECTIONS * STREAMS} at a time on {CONNECTIONS} connections, through each candidate in turns. Client, "
            "balancer and replicas share the machine, so the result depends on the processor time of a call in all of "
            f"them. {OriginalStack.name.capitalize()} has replicas of its own: three servers of grpc-go, which write a "
            "line for each call, behind nginx with its settings. Answers are counted by their bytes; a call without an "
            "answer ends the run. With TLS the handshakes of the connections, one for "
            f"{TURN_CALLS // CONNECTIONS} calls, belong to the time; certificates are of P-256."
        ),
    )
    rates = {name: Spread.of(found.rates) for name, found in figures.items()}
    for one, other, least in (
        (OURS, OriginalStack.name, 1.3),
        (OURS, OriginalNginx.name, 1.6),
        (OURS, HAProxy.name, 1.0),
        (OURS, Envoy.name, 0.95),
        (FedEnvoy.name, Envoy.name, 0.97),
        (TlsNginx.name, OURS, 0.85),
        (TlsNginx.name, TlsHAProxy.name, 0.0),
    ):
        what = f"Calls a second, {one} over {other}"
        target = f"at least {least} times" if least else report.NO_TARGET
        if one in rates and other in rates:
            compared = ratios(rates[one], rates[other])
            section.targets.append(report.judge(what, compared, "times", target, partial(le, least)))
        else:
            section.targets.append(report.absent(what, target, "not installed"))
    rows = []
    for name, found in figures.items():
        micros = Spread.of(found.micros)
        rows.append([name, report.number(rates[name].median), report.spread(rates[name]), report.number(micros.median)])
    rows += [[name, f"not installed ({why.partition(': ')[2]})", "", ""] for name, why in missing.items()]
    columns = ["balancer", "calls a second", "spread", "processor time of the balancer, µs a call"]
    section.tables.append(report.Table(columns=columns, rows=rows))
    values = [(name, spread.median) for name, spread in rates.items()]
    section.charts.append(report.Chart(title=section.title, unit="calls a second", values=values))
    return section
