"""What a side-by-side run gives: figures by server and round, ratios by round, as text and as one JSON document."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from bench.report import Machine, Spread
from bench.versus.figures import Figure, Sense

NAME_WIDTH = 22
CELL_WIDTH = 32


class Cell(msgspec.Struct, frozen=True):
    """A quantity of one server; `ratio`: the reference's figure to this one, round by round."""

    server: str
    figure: Spread
    ratio: Spread | None
    note: str


class Row(msgspec.Struct, frozen=True):
    """One quantity of all servers."""

    quantity: str
    unit: str
    sense: Sense
    cells: tuple[Cell, ...]


class LeftOut(msgspec.Struct, frozen=True):
    """A server that was not measured, and why."""

    server: str
    why: str


class Section(msgspec.Struct, frozen=True):
    """One workload."""

    name: str
    what: str
    reference: str
    rows: tuple[Row, ...]
    left_out: tuple[LeftOut, ...]


class Outcome(msgspec.Struct, frozen=True):
    """A whole run."""

    command: str
    started_at: str
    seconds: float
    machine: Machine
    servers: dict[str, str]
    sections: tuple[Section, ...]


class Measured(msgspec.Struct, frozen=True):
    """The rounds of one server: the figures of each, alike in order and number."""

    server: str
    rounds: list[Sequence[Figure]]


def rows_of(measured: Sequence[Measured], reference: str) -> tuple[Row, ...]:
    """The rows of a section, in the order in which the workload gives its figures."""
    of_reference = next((each for each in measured if each.server == reference), None)
    return tuple(
        _row(measured, of_reference, at, measured[0].rounds[0][at])
        for at in range(len(measured[0].rounds[0]) if measured else 0)
    )


def _row(measured: Sequence[Measured], reference: Measured | None, at: int, first: Figure) -> Row:
    cells = []
    for each in measured:
        values = [figures[at].value for figures in each.rounds]
        ratio = None
        if reference is not None and reference is not each and first.sense != "plain" and all(values):
            pairs = zip(reference.rounds, values, strict=True)
            ratio = Spread.of([figures[at].value / value for figures, value in pairs])
        cells.append(Cell(each.server, Spread.of(values), ratio, each.rounds[0][at].note))
    return Row(first.quantity, first.unit, first.sense, tuple(cells))


def table(outcome: Outcome) -> str:
    """The run as text for a terminal."""
    host = outcome.machine
    lines = [
        f"{outcome.command}   {outcome.started_at}, {outcome.seconds:.0f} s",
        f"{host.processor}, {host.cores} cores (servers on {host.server_cores}, client on {host.client_cores}), "
        f"{host.kernel}, {host.python}, tornado {host.tornado}, msgspec {host.msgspec}",
        *(f"{name}: {command}" for name, command in outcome.servers.items()),
        "median (lowest - highest) of the rounds; ratio: the reference to this server, in the same round",
    ]
    for section in outcome.sections:
        lines += ["", *section_lines(section)]
    return "\n".join(lines)


def section_lines(section: Section) -> list[str]:
    """One workload as text."""
    lines = [f"{section.name}: {section.what}"]
    for row in section.rows:
        better = {"cost": "less is better", "rate": "more is better", "plain": ""}[row.sense]
        lines.append(f"  {', '.join(part for part in (row.quantity, row.unit, better) if part)}")
        lines += [_cell_line(cell, section.reference) for cell in row.cells]
    return [*lines, *(f"  left out: {each.server}: {each.why}" for each in section.left_out)]


def _cell_line(cell: Cell, reference: str) -> str:
    ratio = f"{reference} : {cell.server}  {cell.ratio}" if cell.ratio else ""
    note = f"  [{cell.note}]" if cell.note else ""
    return f"    {cell.server:<{NAME_WIDTH}}{cell.figure!s:>{CELL_WIDTH}}   {ratio}{note}".rstrip()
