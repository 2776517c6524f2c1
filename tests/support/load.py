"""A load during a fault, from two clients: grpc_client and ghz."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from testbed import programs
from testbed.errors import MissingError
from testbed.load import client_command, ghz_command
from testbed.stats import percentile
from testbed.wait import wait_for
from tests.support.drivers import ROOT, Driver

CALLERS, CONNECTIONS = 32, 8
# Of each client; the two cores also run the stack. Without a rate the clients take all of them.
CALLS_A_SECOND = 400
# For tests of the balancer's part of a call's time: the clients leave most of two cores to others.
FEW_CALLS_A_SECOND = 100
DEADLINE_SECONDS = 10
_LIMIT_SECONDS = 3600
# A client that has its connections makes its first calls within this time.
_CALLS_SECONDS = 0.3
_FEW_CONNECTIONS = 4


@dataclass
class Outcome:
    """The calls of one client."""

    calls: int = 0
    lost: int = 0
    slowest_seconds: float = 0.0
    p99_seconds: float = 0.0
    errors: Counter[str] = field(default_factory=Counter)
    replicas: Counter[str] = field(default_factory=Counter)


@dataclass
class Load:
    """The calls of both clients, when the load has ended; ``other`` is None where Go is missing."""

    ours: Outcome = field(default_factory=Outcome)
    other: Outcome | None = None

    @property
    def outcomes(self) -> list[Outcome]:
        """Of all clients."""
        return [self.ours] if self.other is None else [self.ours, self.other]

    @property
    def calls(self) -> int:
        return sum(outcome.calls for outcome in self.outcomes)

    @property
    def lost(self) -> int:
        """Calls with any status but OK."""
        return sum(outcome.lost for outcome in self.outcomes)

    @property
    def slowest_seconds(self) -> float:
        """The slowest call that was answered."""
        return max(outcome.slowest_seconds for outcome in self.outcomes)

    @property
    def p99_seconds(self) -> float:
        """Of the client whose calls took longer."""
        return max(outcome.p99_seconds for outcome in self.outcomes)

    def assert_no_failed_calls(self) -> None:
        assert self.lost == 0, self

    def assert_lost_at_most(self, count: int) -> None:
        """Asserts that grpc_client, which has a retry policy, lost no call, and ghz at most ``count``."""
        assert self.ours.lost == 0, self
        assert self.other is None or self.other.lost <= count, self

    def __str__(self) -> str:
        parts = []
        for name, outcome in zip(("grpc_client", "ghz"), self.outcomes, strict=False):
            errors = ", ".join(f"{count} {what}" for what, count in outcome.errors.items())
            parts.append(
                f"{name}: {outcome.calls} calls, {outcome.lost} lost, slowest {outcome.slowest_seconds * 1000:.0f} ms"
                + (f" ({errors})" if errors else "")
            )
        return "; ".join(parts)


@contextmanager
def two_clients(
    driver: Driver, *, retry: bool = False, rate: int | None = CALLS_A_SECOND, deadline: float = DEADLINE_SECONDS
) -> Iterator[Load]:
    """Runs both clients, with 32 callers on 8 connections, until the block ends; only grpc_client can ``retry``."""
    load = Load()
    with tempfile.TemporaryDirectory() as directory:
        ours = _start([*_ours(driver.port, retry, rate, deadline), *driver.client_flags], Path(directory, "ours"))
        program = ghz()
        others = _ghz(program, driver.port, rate, deadline, driver.ghz_flags) if program else None
        other = _start(others, Path(directory, "other")) if others else None
        processes = [process for process in (ours, other) if process]
        try:
            _wait_for_calls(processes, CONNECTIONS)
            yield load
        finally:
            for process in processes:
                process.send_signal(signal.SIGINT)
            for process in processes:
                process.wait(deadline + 30)
        load.ours = _our_outcome(_read(Path(directory, "ours")))
        if other:
            load.other = _ghz_outcome(_read(Path(directory, "other")))
    print(load)
    assert all(outcome.calls for outcome in load.outcomes), load


@contextmanager
def round_robin(target: str, *, retry: bool = True, deadline: float = DEADLINE_SECONDS) -> Iterator[Outcome]:
    """Runs grpc_client, which calls all balancers of a gRPC target in turn, until the block ends."""
    outcome = Outcome()
    command = [sys.executable, "-m", "grpc_client", "--target", target, "--json"]
    command += ["--duration", str(_LIMIT_SECONDS), "--concurrency", "12", "--connections", str(_FEW_CONNECTIONS)]
    command += ["--rate", str(FEW_CALLS_A_SECOND), "--timeout", str(deadline), *([] if retry else ["--no-retry"])]
    with tempfile.TemporaryDirectory() as directory:
        client = _start(command, Path(directory, "report"))
        try:
            _wait_for_calls([client], _FEW_CONNECTIONS)
            yield outcome
        finally:
            client.send_signal(signal.SIGINT)
            client.wait(deadline + 30)
        vars(outcome).update(vars(_our_outcome(_read(Path(directory, "report")))))
    print(f"{'with' if retry else 'without'} retries: {outcome}")
    assert outcome.calls, outcome


def measure(driver: Driver, seconds: float) -> Load:
    """Runs a load of few calls for a time."""
    with two_clients(driver, rate=FEW_CALLS_A_SECOND) as load:
        time.sleep(seconds)
    return load


def ghz() -> Path | None:
    """Returns ghz where Go is installed; CI must have it."""
    try:
        return programs.ghz()
    except MissingError:
        if os.environ.get("CI") == "true":
            raise
        return None


def _start(command: list[str], output: Path) -> subprocess.Popen[bytes]:
    with output.open("wb") as file:
        return subprocess.Popen(command, stdout=file, cwd=ROOT)


def _wait_for_calls(processes: Iterable[subprocess.Popen[bytes]], connections: int) -> None:
    """Waits until each client has its connections and makes calls, or has ended."""
    for process in processes:
        look = partial(_has_connections, process, connections)
        wait_for(look, bool, 60, f"{connections} connections of the client")
    time.sleep(_CALLS_SECONDS)


def _has_connections(process: subprocess.Popen[bytes], connections: int) -> bool:
    sockets = 0
    for one in Path(f"/proc/{process.pid}/fd").iterdir():
        with suppress(OSError):
            sockets += str(one.readlink()).startswith("socket:")
    return sockets >= connections or process.poll() is not None


def _read(output: Path) -> dict[str, Any]:
    return dict(json.loads(output.read_text()))


def _ours(port: int, retry: bool, rate: int | None, deadline: float) -> list[str]:
    command = [*client_command(port, _LIMIT_SECONDS, CALLERS, CONNECTIONS), "--timeout", str(deadline)]
    return command + (["--rate", str(rate)] if rate else []) + ([] if retry else ["--no-retry"])


def _our_outcome(report: dict[str, Any]) -> Outcome:
    return Outcome(
        calls=report["calls"],
        lost=report["failed"],
        slowest_seconds=(report["latency_ms"]["max"] or 0) / 1000,
        p99_seconds=(report["latency_ms"]["p99"] or 0) / 1000,
        errors=Counter({f"{name}: {report['error_samples'].get(name)}": n for name, n in report["errors"].items()}),
        replicas=Counter(report["replicas"]),
    )


def _ghz(program: Path, port: int, rate: int | None, deadline: float, flags: Sequence[str]) -> list[str]:
    command = [*ghz_command(program, _LIMIT_SECONDS, CALLERS, CONNECTIONS, flags), "--timeout", f"{deadline}s"]
    command += ["--rps", str(rate)] if rate else []
    return [*command, "--format", "json", f"127.0.0.1:{port}"]


def _ghz_outcome(report: dict[str, Any]) -> Outcome:
    # Without an answer ghz omits the list; its details have the last million calls.
    details = report.get("details") or []
    answered = [detail["latency"] for detail in details if detail["status"] == "OK"]
    statuses = Counter(report.get("statusCodeDistribution") or {})
    return Outcome(
        calls=report["count"],
        lost=report["count"] - statuses.get("OK", 0),
        slowest_seconds=max(answered, default=0) / 1e9,
        p99_seconds=percentile(answered, 99) / 1e9 if answered else 0.0,
        errors=Counter(report.get("errorDistribution") or {}),
    )
