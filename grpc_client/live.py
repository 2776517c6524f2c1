"""Shows a running load, and its report, on a terminal. Needs rich, which the extra ``cli`` brings."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from grpc_client.histogram import LatencyHistogram
from grpc_client.options import Options
from grpc_client.report import LatencySummary, LoadReport, summary_lines, tables
from grpc_client.tally import Tally

REFRESH_SECONDS = 0.25
WINDOW_SECONDS = 5.0
# A replica without an answer for so long leaves the view; the report has all replicas.
_FORGET_SECONDS = 30.0
_BAR_CHARACTERS = 36
_NAME_CHARACTERS = 24
_COLOURS = ("cyan", "green", "yellow", "magenta", "blue", "bright_red", "bright_cyan", "bright_green")


@dataclass(frozen=True, kw_only=True)
class _Snapshot:
    """The counts of the tally at one time."""

    seconds: float
    replicas: Counter[str]
    latencies: LatencyHistogram


class LiveView:
    """Draws a tally: the calls of the last seconds, a bar for each replica, errors.

    It compares snapshots, so the view adds nothing to the cost of a call.

    Args:
        options: the settings of the load.
        tally: the counts of the load.
        block: the character of the bars.
    """

    def __init__(self, options: Options, tally: Tally, *, block: str = "█") -> None:
        self._options = options
        self._tally = tally
        self._block = block
        nothing = _Snapshot(seconds=0.0, replicas=Counter(), latencies=LatencyHistogram())
        self._snapshots = deque([nothing])
        self._last_answer: dict[str, float] = {}

    def draw(self) -> Text:
        """Takes a snapshot and draws the difference to the oldest one in the window."""
        if not self._tally.started:
            return Text(f"connecting to {self._options.address}", style="dim")
        now = _Snapshot(
            seconds=self._tally.seconds,
            replicas=self._tally.replicas.copy(),
            latencies=self._tally.latencies.copy(),
        )
        for name, calls in now.replicas.items():
            if calls != self._snapshots[-1].replicas[name]:
                self._last_answer[name] = now.seconds
        self._snapshots.append(now)
        while len(self._snapshots) > 2 and self._snapshots[1].seconds <= now.seconds - WINDOW_SECONDS:
            self._snapshots.popleft()
        lines = [self._progress(), *self._rates(now), *self._errors(), Text(), *self._bars(now)]
        return Text("\n", no_wrap=True, overflow="crop").join(lines)

    def _progress(self) -> Text:
        seconds = self._tally.seconds
        if self._options.duration_seconds is None:
            done = self._tally.calls / (self._options.count or 1)
            amount = f"{self._tally.calls} of {self._options.count} calls"
        else:
            done = seconds / self._options.duration_seconds
            amount = f"{seconds:.0f} of {self._options.duration_seconds:g} s"
        filled = round(min(done, 1.0) * _BAR_CHARACTERS)
        return Text.assemble(
            (f"{self._options.address}  ", "bold"),
            (self._block * filled, "green"),
            (self._block * (_BAR_CHARACTERS - filled), "bright_black"),
            f"  {amount}",
        )

    def _rates(self, now: _Snapshot) -> list[Text]:
        oldest = self._snapshots[0]
        recent = now.latencies.since(oldest.latencies)
        counts = f"{self._tally.ok} OK, {self._tally.failed} failed"
        if not recent.count:
            return [Text(counts), Text("no answer in the last seconds", style="yellow")]
        rate = recent.count / (now.seconds - oldest.seconds)
        return [
            Text(f"{counts}, {rate:.0f} calls/s"),
            Text(f"latency: {LatencySummary.from_histogram(recent)}"),
        ]

    def _errors(self) -> list[Text]:
        samples = self._tally.error_samples
        return [
            Text(f"{status} {calls}  {samples[status]}", style="red") for status, calls in self._tally.errors.items()
        ]

    def _bars(self, now: _Snapshot) -> list[Text]:
        oldest = self._snapshots[0]
        span_seconds = now.seconds - oldest.seconds
        recent = {name: calls - oldest.replicas[name] for name, calls in now.replicas.items()}
        largest, total = max(recent.values(), default=0), sum(recent.values())
        lines = []
        for index, (name, last) in enumerate(self._last_answer.items()):
            label = (f"{name[:_NAME_CHARACTERS]:{_NAME_CHARACTERS}} ", "")
            if recent[name]:
                bar = self._block * max(1, round(_BAR_CHARACTERS * recent[name] / largest))
                rate = f" {recent[name] / span_seconds:.0f}/s {recent[name] / total:.1%}"
                lines.append(Text.assemble(label, (bar, _COLOURS[index % len(_COLOURS)]), rate))
            elif now.seconds - last < _FORGET_SECONDS:
                lines.append(Text.assemble(label, (f"no answer for {now.seconds - last:.0f} s", "dim")))
        return lines


@contextlib.asynccontextmanager
async def shown(options: Options, tally: Tally) -> AsyncIterator[None]:
    """Shows the view until the block ends, then removes it from the terminal."""
    console = Console()
    view = LiveView(options, tally, block="█" if console.encoding.startswith("utf") else "#")
    with Live(console=console, auto_refresh=False, transient=True) as live:
        task = asyncio.create_task(_refresh(view, live))
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _refresh(view: LiveView, live: Live) -> None:
    while True:
        live.update(view.draw(), refresh=True)
        await asyncio.sleep(REFRESH_SECONDS)


def print_report(report: LoadReport) -> None:
    """Prints the report with ruled tables."""
    console = Console()
    for line in summary_lines(report):
        console.print(Text(line))
    for table in tables(report):
        ruled = Table()
        for header in table.headers:
            style = "red" if header == "error" else None
            ruled.add_column(header, justify="right" if header in table.right else "left", style=style)
        for row in table.rows:
            # Text, because rich reads a str of the server as markup.
            ruled.add_row(*map(Text, row))
        console.print(ruled)
