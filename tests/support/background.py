"""Calls that go on while a test does something else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from grpc_client.load import run_load
from grpc_client.options import Options
from grpc_client.report import LoadReport

# So that the callers themselves leave most of two cores to others.
CALLERS, CONNECTIONS, RATE = 32, 8, 200.0


class Load:
    """A load; ``report`` is there when it has ended."""

    report: LoadReport

    def lost_nothing(self) -> None:
        """Asserts that every call was answered, and prints the counts."""
        print(f"{self.report.ok} answered, {self.report.failed} failed {dict(self.report.errors)}", end="; ")
        print(f"latency {self.report.latency}")
        assert self.report.failed == 0, dict(self.report.error_samples)
        assert self.report.ok > 0


def options(port: int, seconds: float) -> Options:
    """Callers at a fixed rate, without retries."""
    return Options(
        host="127.0.0.1",
        port=port,
        duration_seconds=seconds,
        concurrency=CALLERS,
        connections=CONNECTIONS,
        rate=RATE,
        retry=False,
    )


@contextmanager
def calls_at_a_rate(port: int) -> Iterator[Load]:
    """Callers all the while."""
    load = Load()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    def run() -> None:
        load.report = loop.run_until_complete(run_load(options(port, 600), stop=stop))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield load
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def measure(port: int, seconds: float) -> Load:
    """Callers for a time."""
    load = Load()
    load.report = asyncio.run(run_load(options(port, seconds)))
    return load
