"""The report: targets with the measured values, tables, and their Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from testbed.stats import Spread

MET = "met"
NOT_MET = "**not met**"
NEAR = "met within the noise"
NOT_MEASURED = "not measured"
NO_TARGET = "no target"
_PREFACE = (
    "The program that measures writes this file; all figures are from one run. A figure is the median of its rounds. "
    "The rounds of all candidates alternate, so that noise affects all of them alike. A ratio is computed in each "
    "round. On another machine ratios change less than figures do."
)
_NOT_MET_NOTE = "[targets.md](targets.md) has the profile and the attempts for each target that is not met."


@dataclass(frozen=True, kw_only=True)
class Target:
    """A target and the result against it."""

    what: str
    target: str
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
    """Labels and values of one kind, drawn as bars."""

    title: str
    unit: str
    values: Sequence[tuple[str, float]]


@dataclass(kw_only=True)
class Section:
    """A part of the report.

    Attributes:
        title: its heading.
        method: how it was measured.
        targets: for the table at the top.
        tables: the measured values.
        notes: remarks about the figures.
        charts: for the plot.
    """

    title: str
    method: str
    targets: list[Target] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)


def number(value: float, unit: str = "") -> str:
    """Returns a figure with three significant digits, thousands with a comma."""
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
    """Returns the least and the greatest value."""
    return f"{number(values.low)} to {number(values.high, unit)}"


def judge(
    what: str, values: Spread, unit: str, target: str, holds: Callable[[float], bool], *, noise: float = 0.0
) -> Target:
    """Compares the median of the rounds with a target.

    Args:
        what: the measured quantity.
        values: one a round.
        unit: the values'.
        target: in words.
        holds: whether a value meets it.
        noise: the part of the median by which it may miss the target and be called near, if a round meets the target.
    """
    near = holds(values.median * (1 - noise)) or holds(values.median * (1 + noise))
    if target == NO_TARGET:
        verdict = NO_TARGET
    elif holds(values.median):
        verdict = MET
    else:
        verdict = NEAR if near and any(map(holds, values.values)) else NOT_MET
    measured = number(values.median, unit)
    return Target(what=what, target=target, measured=measured, spread=spread(values, unit), verdict=verdict)


def absent(what: str, target: str, why: str) -> Target:
    """Returns a target that was not measured, with the reason."""
    return Target(what=what, target=target, measured=why, spread="", verdict=NOT_MEASURED)


def markdown_table(table: Table) -> str:
    """Returns a table in Markdown; a vertical bar in a cell is escaped."""
    rows = [table.columns, ["---"] * len(table.columns), *table.rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def render(
    sections: Sequence[Section],
    *,
    machine: Table,
    command: str,
    plot: str = "",
    configs: Sequence[tuple[str, str]] = (),
) -> str:
    """Returns the report as Markdown.

    Args:
        sections: the measurements.
        machine: the machine and the versions.
        command: the command that repeats the run.
        plot: the file name of the plot, empty without one.
        configs: title and link of each candidate's configuration.
    """
    targets = [one for section in sections for one in section.targets]
    columns = ["", "target", "measured (median)", "spread (min to max)", ""]
    rows = [[one.what, one.target, one.measured, one.spread, one.verdict] for one in targets]
    parts = [
        "# Benchmarks",
        _PREFACE,
        f"```console\n$ {command}\n```",
        markdown_table(Table(columns=columns, rows=rows)),
    ]
    if plot:
        # Only a report in docs has targets.md beside it.
        if any(one.verdict == NOT_MET for one in targets):
            parts.append(_NOT_MET_NOTE)
        parts.append(f"![Charts of the sections]({plot})")
    for section in sections:
        parts += [f"## {section.title}", section.method]
        parts += [markdown_table(table) for table in section.tables]
        parts += section.notes
    if configs:
        lines = "\n".join(f"- [{title}]({link})" for title, link in configs)
        parts += ["## Configurations", "All have one worker or thread a core.", lines]
    parts += ["## Machine", markdown_table(machine)]
    return "\n\n".join(parts) + "\n"
