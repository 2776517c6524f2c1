"""Measures balancers in front of three servers of one kind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.bench import Bench
from benchmarks.servers import ticks
from benchmarks.servers.start import ServerKind
from testbed.balancers import Balancer
from testbed.calls import wait_for_answers
from testbed.errors import BenchmarkError
from testbed.load import USUAL, Shape, timed_h2load
from testbed.programs import ROOT
from testbed.stats import percentile

SERVERS = 3
STREAMS = 4
_PORT = 7777
_START_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """A load.

    Attributes:
        name: for the report.
        size: bytes of the greeting, in both directions.
        shape: connections and calls at a time.
        share: how many calls are made, as a share of the plan's.
    """

    name: str
    size: int
    shape: Shape
    share: float


@dataclass(frozen=True, kw_only=True)
class Figures:
    """A balancer in one round: percentiles of the seconds of its calls, and calls a second."""

    p50: float
    p99: float
    rate: float


@contextmanager
def running(bench: Bench, kind: ServerKind, first: int) -> Iterator[list[str]]:
    """Runs three servers of a kind, at addresses from the number ``first`` on.

    Raises:
        MissingError: the kind is unavailable here.
    """
    command = kind.command()
    peers = [f"{bench.address(first + number)}:{_PORT}" for number in range(SERVERS)]
    servers = [bench.processes.start(f"server-{peer}", [*command, peer], cwd=ROOT) for peer in peers]
    try:
        for peer in peers:
            with bench.processes.explained(kind.name, f"server-{peer}"):
                wait_for_answers(peer, 1, _START_SECONDS)
        yield peers
    finally:
        for server in servers:
            bench.processes.stop(server)


@contextmanager
def started(balancers: Sequence[Balancer], peers: Sequence[str]) -> Iterator[None]:
    """Runs balancers in front of the peers."""
    try:
        for balancer in balancers:
            balancer.start(peers)
        yield
    finally:
        for balancer in balancers:
            balancer.stop()


def warm_up(bench: Bench, balancers: Sequence[Balancer], calls: int) -> None:
    """Makes calls, so that workers have their connections, and servers have compiled their code."""
    for balancer in balancers:
        _load(bench, balancer, Case(name="", size=16, shape=USUAL, share=1), calls)


def one_round(bench: Bench, balancers: Sequence[Balancer], case: Case, calls: int, turns: int) -> dict[str, Figures]:
    """Measures each balancer in several turns, because the speed of a machine changes within seconds."""
    each = max(round(calls * case.share) // turns, case.shape.connections * case.shape.streams)
    times: dict[str, list[float]] = {balancer.name: [] for balancer in balancers}
    seconds = dict.fromkeys(times, 0.0)
    for turn in range(turns):
        # The order changes from turn to turn.
        for balancer in balancers if turn % 2 == 0 else reversed(balancers):
            found = _load(bench, balancer, case, each)
            times[balancer.name] += found[1]
            seconds[balancer.name] += found[0]
    return {
        name: Figures(p50=percentile(found, 50), p99=percentile(found, 99), rate=each * turns / seconds[name])
        for name, found in times.items()
    }


def _load(bench: Bench, balancer: Balancer, case: Case, calls: int) -> tuple[float, list[float]]:
    """Returns the seconds of all calls together, and of each."""
    load, times = timed_h2load(bench.processes, balancer.target, calls, case.shape, "x" * case.size)
    if load.failed or len(times) != calls:
        lost = f"{load.failed} of {calls} calls have no whole answer, {len(times)} are in the log"
        raise BenchmarkError(f"{balancer.name}, {case.name}: {lost}\n{balancer.tail()}")
    return load.seconds, times


def stream_round(balancers: Sequence[Balancer], seconds: float) -> dict[str, Figures]:
    """Measures the delay of the messages of four streams, through one balancer after the other."""
    found = {}
    for balancer in balancers:
        late = ticks.delays(balancer.target, STREAMS, seconds)
        found[balancer.name] = Figures(p50=percentile(late, 50), p99=percentile(late, 99), rate=len(late) / seconds)
    return found
