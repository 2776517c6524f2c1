"""The statistics of the report."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """The values of some rounds.

    Attributes:
        values: one a round, in the order of the rounds.
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuses a measurement without a round."""
        if not self.values:
            raise ValueError("no round was measured")

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Returns the spread of a sequence."""
        return cls(tuple(values))

    @property
    def median(self) -> float:
        """The middle of them."""
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        """The least."""
        return min(self.values)

    @property
    def high(self) -> float:
        """The greatest."""
        return max(self.values)


def ratios(ours: Spread, theirs: Spread) -> Spread:
    """Returns ours divided by theirs, round by round, so that the noise of a round cancels out."""
    return Spread(tuple(a / b for a, b in zip(ours.values, theirs.values, strict=True)))


def percentile(values: Sequence[float], percent: float) -> float:
    """Returns the nearest-rank percentile, which is one of the values.

    Raises:
        ValueError: there are no values, or ``percent`` is not above 0 and up to 100.
    """
    if not values or not 0 < percent <= 100:
        raise ValueError(f"no percentile {percent:g} of {len(values)} values")
    return sorted(values)[math.ceil(percent / 100 * len(values)) - 1]
