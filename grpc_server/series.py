"""The numbers of each method, and how Prometheus reads them."""

from __future__ import annotations

import functools
import itertools
import os
from bisect import bisect_left
from collections.abc import Iterator
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

LABELS = ("grpc_type", "grpc_service", "grpc_method")
CODE = "grpc_code"
Labels = tuple[str, str, str]
# Names without the suffixes that Prometheus' form gives them, and their explanations.
STARTED = ("grpc_server_started", "Calls that have begun.")
HANDLED = ("grpc_server_handled", "Calls that have ended, by status.")
RECEIVED = ("grpc_server_msg_received", "Messages from clients.")
SENT = ("grpc_server_msg_sent", "Messages to clients.")
SECONDS = ("grpc_server_handling_seconds", "Time from a call's begin to its end.")
_BOUNDS = Histogram.DEFAULT_BUCKETS


class Series(Protocol):
    """Takes what happens to the calls of one method."""

    def start(self) -> None:
        """Counts the begin of a call."""

    def receive(self) -> None:
        """Counts a message from a client."""

    def send(self) -> None:
        """Counts a message to a client."""

    def end(self, status: str, seconds: float) -> None:
        """Counts the end of a call."""


class Numbers(Collector):
    """The numbers of this process: plain ones, because counters of prometheus_client take ten times as long.

    Only the event loop's thread counts; the thread that serves the metrics reads.

    Args:
        registry: gets the metrics.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._series: dict[Labels, _OwnSeries] = {}
        registry.register(self)

    def series(self, labels: Labels) -> Series:
        """Returns the series of a method; its metrics exist from now on."""
        return self._series.setdefault(labels, _OwnSeries())

    def collect(self) -> Iterator[Any]:
        """Returns the metrics of this moment."""
        started, received, sent = (CounterMetricFamily(*name, labels=LABELS) for name in (STARTED, RECEIVED, SENT))
        handled = CounterMetricFamily(*HANDLED, labels=(*LABELS, CODE))
        seconds = HistogramMetricFamily(*SECONDS, labels=LABELS)
        # Copies: the other thread may add to both at any time.
        for labels, one in list(self._series.items()):
            started.add_metric(labels, one.started)
            received.add_metric(labels, one.received)
            sent.add_metric(labels, one.sent)
            for status, count in list(one.handled.items()):
                handled.add_metric((*labels, status), count)
            bounds = map(floatToGoString, _BOUNDS)
            buckets = list(zip(bounds, itertools.accumulate(one.buckets), strict=True))
            seconds.add_metric(labels, buckets, one.seconds)
        yield from (started, handled, received, sent, seconds)


class _OwnSeries:
    __slots__ = ("buckets", "handled", "received", "seconds", "sent", "started")

    def __init__(self) -> None:
        self.started = self.received = self.sent = 0
        self.handled: dict[str, int] = {}
        self.buckets = [0] * len(_BOUNDS)
        self.seconds = 0.0

    def start(self) -> None:
        self.started += 1

    def receive(self) -> None:
        self.received += 1

    def send(self) -> None:
        self.sent += 1

    def end(self, status: str, seconds: float) -> None:
        self.handled[status] = self.handled.get(status, 0) + 1
        self.buckets[bisect_left(_BOUNDS, seconds)] += 1
        self.seconds += seconds


class SharedNumbers:
    """The numbers of a worker, which the process that serves the metrics reads from files.

    Args:
        registry: gets the metrics of this worker alone.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._started, self._received, self._sent = (
            Counter(*name, LABELS, registry=registry) for name in (STARTED, RECEIVED, SENT)
        )
        self._handled = Counter(*HANDLED, (*LABELS, CODE), registry=registry)
        self._seconds = Histogram(*SECONDS, LABELS, registry=registry)

    def series(self, labels: Labels) -> Series:
        """Returns the series of a method; its metrics exist from now on."""
        return _SharedSeries(
            self._started.labels(*labels).inc,
            self._received.labels(*labels).inc,
            self._sent.labels(*labels).inc,
            functools.cache(lambda status: self._handled.labels(*labels, status).inc),
            self._seconds.labels(*labels).observe,
        )


class _SharedSeries:
    def __init__(self, start: Any, receive: Any, send: Any, handled: Any, observe: Any) -> None:
        self.start, self.receive, self.send = start, receive, send
        self._handled, self._observe = handled, observe

    def end(self, status: str, seconds: float) -> None:
        self._handled(status)()
        self._observe(seconds)


def numbers(registry: CollectorRegistry) -> Numbers | SharedNumbers:
    """Returns the numbers of this process, shared if it is one of several workers (:func:`share` of metrics.py)."""
    return SharedNumbers(registry) if "PROMETHEUS_MULTIPROC_DIR" in os.environ else Numbers(registry)
