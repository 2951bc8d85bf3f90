"""Figures, and how they are shown: medians with their spread, one table, one JSON document."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path

import msgspec
import tornado

QUANTITY_WIDTH = 44
CELL_WIDTH = 25


class Spread(msgspec.Struct, frozen=True):
    """A figure measured once or in several rounds: the median, lowest and highest, and each of them."""

    median: float
    low: float
    high: float
    rounds: tuple[float, ...]

    @staticmethod
    def of(rounds: Sequence[float]) -> Spread:
        """The spread of at least one figure."""
        return Spread(statistics.median(rounds), min(rounds), max(rounds), tuple(rounds))

    def __str__(self) -> str:
        if len(self.rounds) == 1:
            return _number(self.median)
        return f"{_number(self.median)} ({_number(self.low)} - {_number(self.high)})"


class Row(msgspec.Struct, frozen=True):
    """One quantity for each server; `factor`: how many times better the first server is than the last.

    The factor is taken round by round (round k of one against round k of the other, which ran next to each
    other) and is above 1 where the first server is better. None where better has no meaning.
    """

    quantity: str
    unit: str
    cells: tuple[Spread, ...]
    factor: Spread | None = None


class Section(msgspec.Struct, frozen=True):
    """One workload: what was done, to which servers, and what it cost."""

    name: str
    what: str
    servers: tuple[str, ...]
    rows: tuple[Row, ...]


class Machine(msgspec.Struct, frozen=True):
    """Where the figures come from; without this they say nothing."""

    processor: str
    cores: int
    server_cores: tuple[int, ...]
    client_cores: tuple[int, ...]
    kernel: str
    python: str
    tornado: str
    msgspec: str


class Report(msgspec.Struct, frozen=True):
    """A whole run."""

    command: str
    started_at: str
    seconds: float
    machine: Machine
    servers: dict[str, str]
    sections: tuple[Section, ...]


def cost_row(quantity: str, unit: str, rounds: Sequence[Sequence[float]]) -> Row:
    """A row of costs (less is better) from the rounds of each server."""
    return Row(quantity, unit, _spreads(rounds), _factor(rounds[-1], rounds[0]))


def rate_row(quantity: str, unit: str, rounds: Sequence[Sequence[float]]) -> Row:
    """A row of rates (more is better) from the rounds of each server."""
    return Row(quantity, unit, _spreads(rounds), _factor(rounds[0], rounds[-1]))


def plain_row(quantity: str, unit: str, rounds: Sequence[Sequence[float]]) -> Row:
    """A row which explains and does not compare."""
    return Row(quantity, unit, _spreads(rounds))


def machine(server_cores: frozenset[int], client_cores: frozenset[int]) -> Machine:
    """This machine, now."""
    return Machine(
        processor=_processor(),
        cores=os.cpu_count() or 1,
        server_cores=tuple(sorted(server_cores)),
        client_cores=tuple(sorted(client_cores)),
        kernel=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=f"{platform.python_implementation()} {platform.python_version()}",
        tornado=tornado.version,
        msgspec=msgspec.__version__,
    )


def table(report: Report) -> str:
    """The run as text for a terminal."""
    host = report.machine
    lines = [
        f"{report.command}   {report.started_at}, {report.seconds:.0f} s",
        f"{host.processor}, {host.cores} cores (server on {_cores(host.server_cores)}, "
        f"client on {_cores(host.client_cores)}), {host.kernel}",
        f"{host.python}, tornado {host.tornado}, msgspec {host.msgspec}",
        *(f"{name}: {command}" for name, command in report.servers.items()),
        "median (lowest - highest) of the rounds; 'factor': how many times better the first is than the last",
    ]
    for section in report.sections:
        lines += ["", *_section_lines(section)]
    return "\n".join(lines)


def _section_lines(section: Section) -> list[str]:
    factor_title = "factor" if any(row.factor for row in section.rows) else ""
    head = "".join(f"{name:>{CELL_WIDTH}}" for name in (*section.servers, factor_title))
    return [
        f"{section.name}: {section.what}",
        f"{'':{QUANTITY_WIDTH}}{head}",
        *(_row_line(row) for row in section.rows),
    ]


def _row_line(row: Row) -> str:
    cells = "".join(f"{cell!s:>{CELL_WIDTH}}" for cell in (*row.cells, row.factor or ""))
    return f"{f'  {row.quantity}, {row.unit}':{QUANTITY_WIDTH}}{cells}".rstrip()


def _spreads(rounds: Sequence[Sequence[float]]) -> tuple[Spread, ...]:
    return tuple(Spread.of(figures) for figures in rounds)


def _factor(above: Sequence[float], below: Sequence[float]) -> Spread | None:
    if above is below or not all(below):
        return None
    return Spread.of([a / b for a, b in zip(above, below, strict=True)])


def _number(figure: float) -> str:
    """Three significant digits, without exponents."""
    if abs(figure) >= 100:
        return f"{figure:,.0f}"
    return f"{figure:.1f}" if abs(figure) >= 10 else f"{figure:.2f}"


def _cores(cores: tuple[int, ...]) -> str:
    return "+".join(str(core) for core in cores)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
