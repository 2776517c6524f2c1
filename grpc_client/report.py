"""The report of a load, as JSON and as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpc_client.histogram import LatencyHistogram
from grpc_client.tally import ErrorEvent, SlowestCall, Tally


@dataclass(frozen=True, kw_only=True)
class LatencySummary:
    """Latencies of the calls answered OK, in milliseconds."""

    p50: float
    p95: float
    p99: float
    max: float

    @classmethod
    def from_histogram(cls, latencies: LatencyHistogram) -> LatencySummary:
        """Summarizes a histogram; raises ValueError if it is empty."""
        p50, p95, p99 = (latencies.percentile_seconds(percent) * 1000 for percent in (50, 95, 99))
        return cls(p50=p50, p95=p95, p99=p99, max=latencies.largest_seconds * 1000)

    def __str__(self) -> str:
        return f"p50 {self.p50:.2f} ms  p95 {self.p95:.2f} ms  p99 {self.p99:.2f} ms  max {self.max:.2f} ms"


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """The result of a load.

    Attributes:
        ok: calls answered OK.
        failed: calls that failed, after their retries.
        seconds: from the first call's start to the last one's end.
        latency: latencies of the calls answered OK; None without such a call.
        replicas: answers by replica, sorted by name.
        errors: failed calls by the gRPC status' name, sorted.
        error_samples: the first message of each status.
        error_events: the first 10,000 failed calls.
        slowest: the slowest call, failed ones included.
    """

    ok: int
    failed: int
    seconds: float
    latency: LatencySummary | None
    replicas: Mapping[str, int]
    errors: Mapping[str, int]
    error_samples: Mapping[str, str]
    error_events: Sequence[ErrorEvent]
    slowest: SlowestCall

    @classmethod
    def from_tally(cls, tally: Tally) -> LoadReport:
        """Returns the report of the counts up to now."""
        return cls(
            ok=tally.ok,
            failed=tally.failed,
            seconds=tally.seconds,
            latency=LatencySummary.from_histogram(tally.latencies) if tally.ok else None,
            replicas=dict(sorted(tally.replicas.items())),
            errors=dict(sorted(tally.errors.items())),
            error_samples=dict(sorted(tally.error_samples.items())),
            error_events=tuple(tally.error_events),
            slowest=tally.slowest,
        )

    @property
    def calls(self) -> int:
        """All calls that ended."""
        return self.ok + self.failed

    @property
    def calls_per_second(self) -> float:
        """Calls answered OK in a second."""
        return self.ok / self.seconds if self.seconds > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        """Returns the document that ``--json`` prints; its fields are stable.

        ``seconds`` is the whole run; ``calls_per_second`` and ``latency_ms`` are of the calls answered OK, and without
        such a call each latency is ``null``; ``error_samples`` is the first message of each status in ``errors``.
        """
        latency = {
            name: round(getattr(self.latency, name), 3) if self.latency else None
            for name in ("p50", "p95", "p99", "max")
        }
        return {
            "calls": self.calls,
            "ok": self.ok,
            "failed": self.failed,
            "seconds": round(self.seconds, 3),
            "calls_per_second": round(self.calls_per_second, 1),
            "latency_ms": latency,
            "replicas": dict(self.replicas),
            "errors": dict(self.errors),
            "error_samples": dict(self.error_samples),
        }


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text under headers; the columns named in ``right`` are aligned to the right."""

    headers: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    right: frozenset[str] = frozenset({"calls", "share"})


def summary_lines(report: LoadReport) -> list[str]:
    """Returns the lines above the tables."""
    counts = f"{report.calls} calls in {report.seconds:.2f} s: {report.ok} OK, {report.failed} failed"
    lines = [f"{counts}, {report.calls_per_second:.0f} calls/s"]
    if report.latency:
        lines.append(f"latency: {report.latency}")
    return lines


def tables(report: LoadReport) -> list[Table]:
    """Returns the tables of answers by replica and of errors by status, without empty tables."""
    replicas = [(name, str(calls), f"{calls / report.ok:.1%}") for name, calls in report.replicas.items()]
    errors = [(status, str(calls), report.error_samples[status]) for status, calls in report.errors.items()]
    found = [
        Table(headers=("replica", "calls", "share"), rows=replicas),
        Table(headers=("error", "calls", "first message"), rows=errors),
    ]
    return [table for table in found if table.rows]


def text_report(report: LoadReport) -> str:
    """Returns the report in plain text."""
    blocks = ["\n".join(summary_lines(report)), *(_text_table(table) for table in tables(report))]
    return "\n\n".join(blocks)


def _text_table(table: Table) -> str:
    rows = [tuple(header.upper() for header in table.headers), *table.rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = [
        [
            cell.rjust(width) if header in table.right else cell.ljust(width)
            for header, cell, width in zip(table.headers, row, widths, strict=True)
        ]
        for row in rows
    ]
    return "\n".join("  ".join(row).rstrip() for row in aligned)
