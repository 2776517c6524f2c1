"""Counts calls while they are made."""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from grpc_client.errors import one_line
from grpc_client.histogram import LatencyHistogram
from protos import api_pb2

# Bounds for the texts of servers, because a long run must not fill the memory.
MAX_REPLICAS = 1000
MAX_ERROR_EVENTS = 10_000
OTHER_REPLICAS = "(others)"
_NAME_CHARACTERS = 60
_HELLO = re.compile(r"Hello from (\S+)\.")


@dataclass(frozen=True, kw_only=True)
class ErrorEvent:
    """A failed call: its end in seconds since the load started, and the name of the gRPC status."""

    seconds: float
    status: str


@dataclass(frozen=True, kw_only=True)
class SlowestCall:
    """The call that took longest, answered or not; its start is in seconds since the load started."""

    milliseconds: float
    started_seconds: float


def replica_name(message: str) -> str:
    """Returns the host name in ``Hello from <hostname>.``, or the message itself, shortened."""
    match = _HELLO.fullmatch(message)
    return one_line(match[1] if match else message, limit=_NAME_CHARACTERS) or "(empty)"


class Tally:
    """Counts answers by replica and failures by status in a few microseconds a call.

    The event loop of the load may read it at any time.

    Args:
        clock: returns the time in seconds, from any origin.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.failed = 0
        self.latencies = LatencyHistogram()
        self.replicas: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.error_samples: dict[str, str] = {}
        self.error_events: list[ErrorEvent] = []
        self._started: float = math.nan
        self._ended: float = math.nan
        self._slowest = (0.0, 0.0)
        self._names: dict[bytes, str] = {}

    @property
    def ok(self) -> int:
        """Calls answered OK."""
        return self.latencies.count

    @property
    def calls(self) -> int:
        """Calls that have ended."""
        return self.ok + self.failed

    @property
    def started(self) -> bool:
        """Whether the clock has started; true after the end too."""
        return not math.isnan(self._started)

    @property
    def seconds(self) -> float:
        """Time since the load started, until it ended."""
        if not self.started:
            return 0.0
        return (self.clock() if math.isnan(self._ended) else self._ended) - self._started

    @property
    def slowest(self) -> SlowestCall:
        """The slowest call up to now; zeros before the first call."""
        seconds, started = self._slowest
        return SlowestCall(milliseconds=seconds * 1000, started_seconds=started)

    def start(self) -> None:
        """Starts the clock."""
        self._started = self.clock()

    def end(self) -> None:
        """Stops the clock."""
        self._ended = self.clock()

    def answered(self, answer: bytes, *, started: float, ended: float) -> None:
        """Counts an answered call.

        Args:
            answer: the serialized ``PingMessage``, parsed once because few differ.
            started: the clock before the call.
            ended: the clock after it.
        """
        name = self._names.get(answer)
        self.replicas[name if name is not None else self._learn(answer)] += 1
        self.latencies.add(ended - started)
        if ended - started > self._slowest[0]:
            self._slowest = (ended - started, started - self._started)

    def refused(self, status: str, detail: str, *, started: float, ended: float) -> None:
        """Counts a failed call; keeps the first message of each status."""
        self.failed += 1
        self.errors[status] += 1
        if status not in self.error_samples:
            self.error_samples[status] = one_line(detail or "no message")
        if len(self.error_events) < MAX_ERROR_EVENTS:
            self.error_events.append(ErrorEvent(seconds=ended - self._started, status=status))
        if ended - started > self._slowest[0]:
            self._slowest = (ended - started, started - self._started)

    def _learn(self, answer: bytes) -> str:
        try:
            name = replica_name(api_pb2.PingMessage.FromString(answer).greeting)
        except DecodeError:
            name = "(unreadable)"
        if name not in self.replicas and len(self.replicas) >= MAX_REPLICAS:
            return OTHER_REPLICAS
        if len(self._names) < MAX_REPLICAS:
            self._names[answer] = name
        return name
