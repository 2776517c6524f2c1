"""From "the agent says passing" to the first answer of a replica, and from "deregistered" to its last."""

from __future__ import annotations

import operator
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import TracebackType

import grpc

from benchmarks import report
from benchmarks.bench import Bench
from protos import api_pb2_grpc
from testbed.calls import greet, open_channel
from testbed.errors import BenchmarkError
from testbed.stats import Spread, percentile
from testbed.wait import wait_for

_NAME = "bench-newcomer"
_REPLICAS = 1
_CALLERS = 2
_MOST_SECONDS = 5.0
# How long calls are watched after a deregistration, and between two of them.
_WATCH_SECONDS = 0.25
_MOST_MILLISECONDS = 100.0
_SERVED_MILLISECONDS, _GONE_MILLISECONDS = 27.0, 31.0
_MILLI = 1000
_PERCENTS = (50, 90, 99, 100)


class Callers:
    """Threads that call, with a pause or without, and note when the newcomer answered."""

    def __init__(self, target: str, pause_seconds: float = 0.0, callers: int = _CALLERS) -> None:
        self._pause_seconds = pause_seconds
        self.failures: list[str] = []
        self.first: float | None = None
        self.last = 0.0
        self._target = target
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(callers)]

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _call(self) -> None:
        with open_channel(self._target) as channel:
            ping = api_pb2_grpc.PingStub(channel)
            while not self._ended.wait(self._pause_seconds):
                try:
                    name = greet(ping, timeout=2)
                except grpc.RpcError as error:
                    self.failures.append(f"{error.code().name} {error.details()}")
                    continue
                if name == _NAME:
                    self.last = time.monotonic()
                    if self.first is None:
                        self.first = self.last


def run(bench: Bench) -> report.Section:
    """Registers and deregisters a replica that is ready, again and again."""
    bench.stack.ensure(_REPLICAS)
    joined: list[Spread] = []
    left: list[Spread] = []
    with newcomer(bench, bench.address(0)) as peer:
        for number in range(bench.plan.rounds if bench.plan.long_rounds > 1 else 1):
            bench.say(f"latency: round {number + 1}, {bench.plan.registrations} registrations")
            first, last = measure(bench, peer, bench.plan.registrations)
            joined.append(Spread.of(first))
            left.append(Spread.of(last))
    return _section(bench, joined, left)


@contextmanager
def newcomer(bench: Bench, address: str) -> Iterator[str]:
    """Runs the server that comes and goes; gives its ``address:port``."""
    with bench.replica(_NAME, address):
        yield f"{address}:7777"


def measure(
    bench: Bench,
    peer: str,
    registrations: int,
    *,
    metadata: Mapping[str, str] | None = None,
    pause_seconds: float = 0.0,
) -> tuple[list[float], list[float]]:
    """Milliseconds to the first answer and to the last one, of each registration of the newcomer.

    Args:
        bench: the run.
        peer: the newcomer.
        registrations: how many.
        metadata: to register it with.
        pause_seconds: of each caller, between two calls.

    Raises:
        BenchmarkError: a call failed meanwhile.
    """
    joined, left = [], []
    with Callers(bench.stack.target, pause_seconds) as callers:
        for _ in range(registrations):
            callers.first = None
            bench.stack.register(peer, metadata)
            accepted = time.monotonic()
            wait_for(lambda: callers.first, bool, _MOST_SECONDS, "the first call of a passing replica", 0.002)
            # It may have answered before this thread had read the agent's answer.
            joined.append(max(0.0, (callers.first or accepted) - accepted) * _MILLI)
            time.sleep(_WATCH_SECONDS / 5)
            bench.stack.deregister(peer)
            accepted = time.monotonic()
            time.sleep(_WATCH_SECONDS)
            wait_for(
                lambda: time.monotonic() - callers.last > _WATCH_SECONDS, bool, _MOST_SECONDS, "the last call", 0.01
            )
            left.append(max(0.0, callers.last - accepted) * _MILLI)
    if callers.failures:
        raise BenchmarkError(
            f"{len(callers.failures)} calls failed while replicas came and went: {callers.failures[0]}"
        )
    return joined, left


def _section(bench: Bench, joined: list[Spread], left: list[Spread]) -> report.Section:
    section = report.Section(
        title="From registered to served",
        method=(
            f"{bench.plan.registrations} times a round, a replica that is ready is registered with its agent as "
            f"passing and deregistered again, in the whole stack, while {_CALLERS} callers call without a pause. "
            "Passing to served: from the agent's answer to the PUT to the replica's first answered call. Deregistered "
            "to its last answer: from the agent's answer to the replica's last answered call. A failed call ends the "
            "run."
        ),
    )
    rows = []
    both = (
        ("Passing to served", joined, _SERVED_MILLISECONDS),
        ("Deregistered to its last answer", left, _GONE_MILLISECONDS),
    )
    for what, rounds, most in both:
        worst = Spread.of([percentile(one.values, 99) for one in rounds])
        section.targets.append(
            report.judge(f"{what}, p99", worst, "ms", "under 100 ms", lambda value: value < _MOST_MILLISECONDS)
        )
        target = f"at most {most:.0f} ms"
        section.targets.append(report.judge(f"{what}, p99", worst, "ms", target, partial(operator.ge, most)))
        medians = [Spread.of([percentile(one.values, percent) for one in rounds]).median for percent in _PERCENTS]
        rows.append([what, *map(report.number, medians)])
    columns = ["", "p50, ms", "p90, ms", "p99, ms", "longest, ms"]
    section.tables.append(report.Table(columns=columns, rows=rows))
    return section
