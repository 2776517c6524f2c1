"""Counts latencies in a memory that does not grow with the number of calls."""

from __future__ import annotations

import math
from array import array

_SMALLEST_SECONDS = 1e-6
_LARGEST_SECONDS = 3600.0
# Each bucket's upper end is 1 % above its lower end: a percentile is off by 0.5 % at most.
_GROWTH = 1.01
_SCALE = 1 / math.log(_GROWTH)
_BUCKETS = math.ceil(math.log(_LARGEST_SECONDS / _SMALLEST_SECONDS) * _SCALE) + 1


class LatencyHistogram:
    """Counts latencies in buckets whose width grows with the latency, from 1 microsecond to 1 hour.

    The buckets take about 18 kB. The smallest and the largest latency are exact.
    """

    __slots__ = ("_buckets", "count", "largest_seconds", "smallest_seconds")

    def __init__(self) -> None:
        self._buckets = array("Q", bytes(8 * _BUCKETS))
        self.count = 0
        self.smallest_seconds = math.inf
        self.largest_seconds = 0.0

    def add(self, seconds: float) -> None:
        """Counts one latency."""
        self.count += 1
        if seconds > self.largest_seconds:
            self.largest_seconds = seconds
        if seconds < self.smallest_seconds:
            self.smallest_seconds = seconds
        index = int(math.log(seconds / _SMALLEST_SECONDS) * _SCALE) if seconds > _SMALLEST_SECONDS else 0
        self._buckets[index if index < _BUCKETS else _BUCKETS - 1] += 1

    def percentile_seconds(self, percent: float) -> float:
        """Returns the latency that ``percent`` of all latencies do not exceed (nearest rank).

        Raises:
            ValueError: no latency was counted.
        """
        if not self.count:
            raise ValueError("no latency was counted")
        rank = max(1, math.ceil(self.count * percent / 100))
        seen = 0
        for index, bucket in enumerate(self._buckets):
            seen += bucket
            if seen >= rank:
                middle: float = _SMALLEST_SECONDS * _GROWTH ** (index + 0.5)
                return min(max(middle, self.smallest_seconds), self.largest_seconds)
        raise AssertionError("the buckets hold fewer latencies than were counted")

    def copy(self) -> LatencyHistogram:
        """Returns a copy, to which :meth:`since` compares."""
        twin = LatencyHistogram()
        twin._buckets = self._buckets[:]
        twin.count = self.count
        twin.smallest_seconds = self.smallest_seconds
        twin.largest_seconds = self.largest_seconds
        return twin

    def since(self, earlier: LatencyHistogram) -> LatencyHistogram:
        """Returns the latencies counted after the copy ``earlier``; the extremes are the ends of buckets."""
        difference = LatencyHistogram()
        difference._buckets = array("Q", map(int.__sub__, self._buckets, earlier._buckets))
        difference.count = self.count - earlier.count
        used = [index for index, bucket in enumerate(difference._buckets) if bucket]
        if used:
            difference.smallest_seconds = max(_SMALLEST_SECONDS * _GROWTH ** used[0], self.smallest_seconds)
            difference.largest_seconds = min(_SMALLEST_SECONDS * _GROWTH ** (used[-1] + 1), self.largest_seconds)
        return difference
