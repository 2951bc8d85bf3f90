"""`python -m bench.chart IN.json OUT.svg`: the chart of a side-by-side run, how much each server costs beside nchan.

One panel a quantity, a bar a server, its length the median of the ratios to nchan in the same round, on one scale, and
a line where nchan is. What is longer than the scale is cut and says its figure.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import msgspec

from bench.versus.outcome import Outcome

PEER = "nchan"
LONGEST = 5.0
"""Times nchan: a bar that would be longer is cut."""

LABEL_WIDTH, BAR_WIDTH, FIGURE_WIDTH = 150, 460, 70
BAR_HEIGHT, BAR_GAP, PANEL_GAP, TITLE_HEIGHT, MARGIN = 13, 3, 16, 20, 16

OURS, PYTHON, FLOOR, OTHER = "#1f6feb", "#9a9a9a", "#c9c9c9", "#d97706"

PANELS = (
    ("fanout", "server CPU per frame, client wakes for each", "CPU a frame, 1,000 connections on one key"),
    ("memory", "RSS per connection, 10,000 connections", "Memory a connection at 10,000"),
    ("singles", "server CPU per emit", "CPU a single emit"),
    ("calls", "server CPU per emit, calls of 30, array", "CPU an emit in calls of 30 (nchan: single publishes)"),
    ("storm", "server CPU per connect", "CPU a connect, 10,000 at once"),
    ("latency", "due to read, p99", "Emit to read, p99, 1,000 a second over 5,000 connections"),
)


class Bar(msgspec.Struct, frozen=True):
    """A server's ratio to the peer."""

    server: str
    ratio: float


class Panel(msgspec.Struct, frozen=True):
    """One quantity."""

    title: str
    bars: tuple[Bar, ...]


def main() -> None:
    """Reads a run, writes its chart."""
    parser = argparse.ArgumentParser(prog="python -m bench.chart", description="The chart of a side-by-side run.")
    parser.add_argument("run", type=Path)
    parser.add_argument("svg", type=Path)
    options = parser.parse_args()
    outcome = msgspec.json.decode(options.run.read_bytes(), type=Outcome)
    options.svg.write_text(drawn(panels_of(outcome), caption_of(outcome)), encoding="utf-8")


def panels_of(outcome: Outcome) -> list[Panel]:
    """The panels that the run has figures for."""
    found = []
    for section_name, quantity, title in PANELS:
        rows = [
            row
            for section in outcome.sections
            if section.name == section_name
            for row in section.rows
            if row.quantity == quantity
        ]
        rounds = {cell.server: cell.figure.rounds for row in rows for cell in row.cells}
        if PEER in rounds:
            found.append(
                Panel(title, tuple(Bar(server, _ratio(each, rounds[PEER])) for server, each in rounds.items()))
            )
    return found


def _ratio(figures: Sequence[float], of_peer: Sequence[float]) -> float:
    return statistics.median(figure / peer for figure, peer in zip(figures, of_peer, strict=True))


def caption_of(outcome: Outcome) -> str:
    """Where the figures come from."""
    host = outcome.machine
    return f"{host.processor}, {host.cores} cores, {host.kernel}, {host.python}; {outcome.started_at[:10]}"


def drawn(panels: Sequence[Panel], caption: str) -> str:
    """The chart as SVG."""
    parts, top = [], float(MARGIN)
    for panel in panels:
        parts.append(_text(MARGIN, top + 12, panel.title, weight="bold"))
        top += TITLE_HEIGHT
        bottom = top + len(panel.bars) * (BAR_HEIGHT + BAR_GAP)
        for bar in panel.bars:
            parts += _bar(bar, top)
            top += BAR_HEIGHT + BAR_GAP
        at = MARGIN + LABEL_WIDTH + BAR_WIDTH / LONGEST
        parts.append(
            f'<line x1="{at:.0f}" x2="{at:.0f}" y1="{bottom - len(panel.bars) * (BAR_HEIGHT + BAR_GAP) - 2:.0f}" '
            f'y2="{bottom:.0f}" stroke="#333" stroke-dasharray="3 2"/>'
        )
        top = bottom + PANEL_GAP
    parts.append(_text(MARGIN, top + 4, f"Times {PEER} (dashed line), median of the rounds; less is better."))
    top += 16
    parts.append(_text(MARGIN, top + 4, caption))
    width = 2 * MARGIN + LABEL_WIDTH + BAR_WIDTH + FIGURE_WIDTH
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top + 16:.0f}" width="{width}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="11">\n<rect width="100%" height="100%" fill="#fff"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _bar(bar: Bar, top: float) -> list[str]:
    length = max(1.0, min(bar.ratio, LONGEST) / LONGEST * BAR_WIDTH)
    left = MARGIN + LABEL_WIDTH
    figure = f"{bar.ratio:.2f}" if bar.ratio < LONGEST else f"{bar.ratio:.0f}"
    return [
        _text(left - 6, top + 10, bar.server, anchor="end"),
        f'<rect x="{left}" y="{top:.0f}" width="{length:.1f}" height="{BAR_HEIGHT}" fill="{_colour(bar.server)}"/>',
        _text(left + max(length, BAR_WIDTH / LONGEST) + 5, top + 10, figure + (" →" if bar.ratio > LONGEST else "")),
    ]


def _colour(server: str) -> str:
    if server.startswith("tallywire"):
        return OURS
    return {PEER: OTHER, "floor": FLOOR}.get(server, PYTHON)


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal") -> str:
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" font-weight="{weight}" fill="#222">{escape(text)}</text>'
    )


if __name__ == "__main__":
    main()
