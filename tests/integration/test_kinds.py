"""Servers that nobody here tuned, behind the balancer and behind the same nginx without Lua: `make bench` in short.

The machine may be busy with something else in any round, so the best of several short rounds counts, and the bounds are
wide: a call that waits for a timer of TCP's, which is 40 ms long, is far beyond them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from benchmarks.bench import Bench
from benchmarks.plan import QUICK
from benchmarks.sections.kinds import LOADS
from benchmarks.servers import measure
from benchmarks.servers.measure import Case, Figures
from benchmarks.servers.start import AIO, GO, ServerKind
from testbed.balancers import LuaNginx, StaticNginx
from testbed.errors import MissingError
from tests.support.local import SLOT
from tests.support.missing import missing

ROUNDS = 5
CALLS = 300
WARM_UP_CALLS = 1000
STREAM_SECONDS = 0.5
P50_TIMES, P99_TIMES = 1.5, 3.0
P50_SECONDS, LATE_SECONDS = 0.02, 0.02
SMALL = LOADS[:2]


class Pair:
    """Both balancers in front of three servers of one kind."""

    def __init__(self, bench: Bench, kind: ServerKind) -> None:
        self.bench = bench
        self.kind = kind
        self.balancers = [LuaNginx(bench.processes, bench.port + 1), StaticNginx(bench.processes, bench.port + 4)]

    def rounds(self, case: Case) -> Iterator[tuple[Figures, Figures]]:
        """The figures of both, round by round."""
        for _ in range(ROUNDS):
            found = measure.one_round(self.bench, self.balancers, case, CALLS, 2)
            yield found[LuaNginx.name], found[StaticNginx.name]

    def attach(self) -> str:
        """Returns the last lines of both, for the report of a failed test."""
        return "\n".join(f"{one.name}:\n{one.tail()}" for one in self.balancers)


@pytest.fixture(scope="module", params=[GO, AIO], ids=lambda kind: kind.name)
def pair(request: pytest.FixtureRequest, tools: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:  # noqa: ARG001
    if not shutil.which("h2load"):
        missing("h2load is not installed: apt-get install nghttp2-client")
    bench = Bench(
        QUICK,
        tmp_path_factory.mktemp("kinds"),
        address_base=f"127.{100 + SLOT}.0.0",
        port=20000 + 30 * SLOT,
        consul_port=18600 + SLOT,
    )
    made = Pair(bench, request.param)
    try:
        with measure.running(bench, made.kind, 0) as peers, measure.started(made.balancers, peers):
            measure.warm_up(bench, made.balancers, WARM_UP_CALLS)
            yield made
    except MissingError as error:
        missing(str(error))
    finally:
        bench.close()


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_a_call_takes_no_longer_than_through_a_static_upstream(pair: Pair, case: Case) -> None:
    rounds = list(pair.rounds(case))
    for ours, theirs in rounds:
        print(f"p50 {1000 * ours.p50:.2f} ms, static {1000 * theirs.p50:.2f} ms", end="; ")
        print(f"p99 {1000 * ours.p99:.2f} ms, static {1000 * theirs.p99:.2f} ms")
    assert min(ours.p50 for ours, _ in rounds) < P50_SECONDS
    assert min(ours.p50 / theirs.p50 for ours, theirs in rounds) < P50_TIMES
    assert min(ours.p99 / theirs.p99 for ours, theirs in rounds) < P99_TIMES


def test_a_message_of_a_stream_arrives_within_20_ms(pair: Pair) -> None:
    assert measure.stream_round(pair.balancers[:1], STREAM_SECONDS)[LuaNginx.name].p50 < LATE_SECONDS
