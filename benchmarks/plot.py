"""Draws the charts of a report as one SVG of horizontal bars."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from benchmarks.report import Chart, number

_WIDTH = 860
_LABEL = 400
_LINE = 24
_GAP = 30


def svg(charts: Sequence[Chart]) -> str:
    """Returns all charts, one below the other; a value of 0 has its figure only."""
    parts, top = [], _GAP
    for chart in charts:
        parts.append(f'<text x="10" y="{top}" font-weight="bold">{escape(chart.title)} ({escape(chart.unit)})</text>')
        greatest = max((value for _, value in chart.values), default=0) or 1
        for label, value in chart.values:
            top += _LINE
            width = (_WIDTH - _LABEL - 110) * value / greatest
            parts.append(f'<text x="{_LABEL - 8}" y="{top}" text-anchor="end">{escape(label)}</text>')
            parts.append(f'<rect x="{_LABEL}" y="{top - 13}" width="{width:.1f}" height="16" fill="#3b75af"/>')
            parts.append(f'<text x="{_LABEL + width + 6:.1f}" y="{top}">{number(value)}</text>')
        top += _LINE + _GAP
    size = f'width="{_WIDTH}" height="{top}"'
    style = 'font-family="sans-serif" font-size="13"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {_WIDTH} {top}" {style}>'
    return "\n".join([head, f'<rect {size} fill="white"/>', *parts, "</svg>\n"])
