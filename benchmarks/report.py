"""The report: bars with what was measured, tables, and how they become Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from testbed.stats import Spread

MET = "met"
NOT_MET = "**not met**"
NEAR = "met within the noise"
NOT_MEASURED = "not measured"
NO_BAR = "no bar"
_PREFACE = (
    "Written by the program that measured it, in one run; no figure is typed in. Each is the median of its rounds, and "
    "the rounds of all candidates are interleaved, so that noise hits all alike. A ratio is taken round by round. "
    "Ratios carry over to other machines better than figures do."
)
_NOT_MET_NOTE = "What was tried where a target is not met, and what the profile shows, is in [targets.md](targets.md)."


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A bar and how it was met."""

    what: str
    bar: str
    measured: str
    spread: str
    verdict: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """Columns and rows, all of them texts."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Bars of one kind, side by side: labels and values."""

    title: str
    unit: str
    values: Sequence[tuple[str, float]]


@dataclass(kw_only=True)
class Section:
    """A part of the report.

    Attributes:
        title: its heading.
        method: how it was measured.
        bars: for the table at the top.
        tables: what was measured.
        notes: what a reader should know of the figures.
        charts: for the plot.
    """

    title: str
    method: str
    bars: list[Bar] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)


def number(value: float, unit: str = "") -> str:
    """A figure with three significant digits, thousands with a comma."""
    if abs(value) >= 100:
        text = f"{value:,.0f}"
    elif abs(value) >= 10:
        text = f"{value:.1f}"
    elif abs(value) >= 1 or value == 0:
        text = f"{value:.2f}"
    else:
        text = f"{value:.3f}"
    return f"{text} {unit}".rstrip()


def spread(values: Spread, unit: str = "") -> str:
    """From the least to the greatest."""
    return f"{number(values.low)} to {number(values.high, unit)}"


def judge(what: str, values: Spread, unit: str, bar: str, holds: Callable[[float], bool], *, noise: float = 0.0) -> Bar:
    """A bar, held against the median of what was measured.

    Args:
        what: what was measured.
        values: of each round.
        unit: the values'.
        bar: in words.
        holds: whether a value meets it.
        noise: the part of the median by which it may miss the bar and be called near, if a round meets the bar.
    """
    near = holds(values.median * (1 - noise)) or holds(values.median * (1 + noise))
    if bar == NO_BAR:
        verdict = NO_BAR
    elif holds(values.median):
        verdict = MET
    else:
        verdict = NEAR if near and any(map(holds, values.values)) else NOT_MET
    return Bar(what=what, bar=bar, measured=number(values.median, unit), spread=spread(values, unit), verdict=verdict)


def absent(what: str, bar: str, why: str) -> Bar:
    """A bar that was not measured, and why."""
    return Bar(what=what, bar=bar, measured=why, spread="", verdict=NOT_MEASURED)


def markdown_table(table: Table) -> str:
    """A table in Markdown; a bar in a cell does not end it."""
    rows = [table.columns, ["---"] * len(table.columns), *table.rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def bars_table(sections: Sequence[Section]) -> Table:
    """All bars of a report."""
    rows = [[bar.what, bar.bar, bar.measured, bar.spread, bar.verdict] for part in sections for bar in part.bars]
    return Table(columns=["", "bar", "measured (median)", "spread (min to max)", ""], rows=rows)


def render(
    sections: Sequence[Section],
    *,
    machine: Table,
    command: str,
    plot: str = "",
    configs: Sequence[tuple[str, str]] = (),
) -> str:
    """The report as Markdown.

    Args:
        sections: what was measured.
        machine: where.
        command: how to do it again.
        plot: the file name of the plot, empty without one.
        configs: title and link of each candidate's configuration.
    """
    parts = [
        "# Benchmarks",
        _PREFACE,
        f"```console\n$ {command}\n```",
        markdown_table(bars_table(sections)),
    ]
    if plot:
        # The report is in docs then, beside the file that the note links to.
        if any(bar.verdict == NOT_MET for section in sections for bar in section.bars):
            parts.append(_NOT_MET_NOTE)
        parts.append(f"![The charts of what follows]({plot})")
    for section in sections:
        parts += [f"## {section.title}", section.method]
        parts += [markdown_table(table) for table in section.tables]
        parts += section.notes
    if configs:
        lines = "\n".join(f"- [{title}]({link})" for title, link in configs)
        parts += ["## Configurations", "All with one worker or thread a core.", lines]
    parts += ["## Machine", markdown_table(machine)]
    return "\n\n".join(parts) + "\n"
