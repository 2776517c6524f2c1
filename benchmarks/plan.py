"""The size of a run: the full one, and the quick one, which has all sections."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Rounds and counts.

    Attributes:
        rounds: rounds of a section whose rounds take seconds.
        long_rounds: rounds of a section whose rounds take longer.
        registrations: in a round of latencies.
        throughput_calls: a candidate's calls in a round of throughput.
        cpu_calls: a configuration's calls in a round of processor time.
        changes: membership changes in a round.
        fleets: sizes of fleets, ascending.
        fleet_rounds: rounds of each size.
        fleet_registrations: in such a round, for latencies.
        fleet_changes: in such a round, for processor time.
        every_kind: all kinds of servers, or the first two.
        kind_rounds: rounds of each kind.
        kind_turns: turns of a balancer in such a round.
        kind_calls: a balancer's calls one at a time in such a round; other loads have a share of it.
        connections: numbers of client connections, ascending.
        tick_seconds: how long the streams of such a round are read.
    """

    rounds: int
    long_rounds: int
    registrations: int
    throughput_calls: int
    cpu_calls: int
    changes: int
    fleets: tuple[int, ...]
    fleet_rounds: int
    fleet_registrations: int
    fleet_changes: int
    every_kind: bool
    kind_rounds: int
    kind_turns: int
    kind_calls: int
    connections: tuple[int, ...]
    tick_seconds: float


FULL = Plan(
    rounds=5,
    long_rounds=3,
    registrations=100,
    throughput_calls=20_000,
    cpu_calls=60_000,
    changes=40,
    fleets=(10, 100, 500, 1000, 2000),
    fleet_rounds=3,
    fleet_registrations=30,
    fleet_changes=20,
    every_kind=True,
    kind_rounds=5,
    kind_turns=8,
    kind_calls=2_000,
    connections=(1_000, 10_000),
    tick_seconds=1.0,
)
QUICK = Plan(
    rounds=2,
    long_rounds=1,
    registrations=8,
    throughput_calls=1_000,
    cpu_calls=2_000,
    changes=6,
    fleets=(10, 100),
    fleet_rounds=1,
    fleet_registrations=4,
    fleet_changes=6,
    every_kind=False,
    kind_rounds=1,
    kind_turns=2,
    kind_calls=200,
    connections=(200,),
    tick_seconds=0.3,
)
