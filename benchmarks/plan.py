"""How much is measured: the full run, and the quick one that has everything in it."""

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
    """

    rounds: int
    long_rounds: int
    registrations: int
    throughput_calls: int
    cpu_calls: int
    changes: int


FULL = Plan(
    rounds=5,
    long_rounds=3,
    registrations=100,
    throughput_calls=20_000,
    cpu_calls=60_000,
    changes=40,
)
QUICK = Plan(
    rounds=2,
    long_rounds=1,
    registrations=8,
    throughput_calls=1_000,
    cpu_calls=2_000,
    changes=6,
)
