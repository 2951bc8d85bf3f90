"""What a person sees: columns, colours where there is a terminal, and how far long work has come."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
from msgspec.json import Encoder

from core.logs import printable
from core.models import Summary

_encoder = Encoder(enc_hook=str)

GAP = "  "
"""Between two columns."""

NOTHING = "·"
"""In the place of a zero: what has changed stands out."""


def wants_colour() -> bool | None:
    """None: where there is a terminal. `NO_COLOR`, when it is not empty, means nowhere (no-color.org)."""
    return False if os.environ.get("NO_COLOR") else None


def say(text: str = "", *, end: str = "\n") -> None:
    """A line of the answer, on standard output; what a terminal would obey is escaped, but for our own colours."""
    click.echo(text + end, nl=False)


def note(text: str) -> None:
    """A line about the answer, on standard error."""
    click.echo(click.style(printable(text), dim=True), err=True)


def say_json(value: object) -> None:
    """One object, one line."""
    click.echo(_encoder.encode(value).decode())


def is_watched() -> bool:
    """Somebody looks at standard output as it is written."""
    return sys.stdout.isatty()


def columns(rows: Sequence[Sequence[str]], to_the_right: Sequence[bool]) -> list[str]:
    """Lines with aligned cells. Colours in a cell take no room."""
    widths = [max(len(click.unstyle(row[at])) for row in rows) for at in range(len(to_the_right))]
    return [
        GAP.join(
            _padded(cell, width, is_right) for cell, width, is_right in zip(row, widths, to_the_right, strict=True)
        ).rstrip()
        for row in rows
    ]


def _padded(cell: str, width: int, is_right: bool) -> str:
    blanks = " " * (width - len(click.unstyle(cell)))
    return blanks + cell if is_right else cell + blanks


def count(number: int) -> str:
    """A count in a column."""
    return f"{number:,}" if number else NOTHING


def counts(summaries: Sequence[Summary]) -> str:
    """Summaries in a line."""
    return ", ".join(
        f"{printable(each.order_type)} {number:,} {kind}"
        for each in summaries
        for number, kind in ((each.created, "created"), (each.cancelled, "cancelled"))
        if number
    )


def clock_time(timestamp: str) -> str:
    """The time of day of an ISO timestamp, in UTC as the server writes it."""
    return printable(timestamp).partition("T")[2].removesuffix("Z") or printable(timestamp)


Advance = Callable[[int], None]


@contextmanager
def progress(length: int, label: str) -> Iterator[Advance]:
    """How far work of this length has come, on a terminal's standard error; the function takes what is done so far."""
    if not sys.stderr.isatty():
        yield lambda _done: None
        return
    with click.progressbar(length=max(length, 1), label=label, file=sys.stderr) as bar:
        yield lambda done: bar.update(max(0, min(done, length) - bar.pos))


def secret_of(file: Path | None, variable: str) -> str | None:
    """A key or a token: what a file holds, else what the environment does; never an argument, which every process of
    the machine can read. Raises click.UsageError, which does not repeat it."""
    where = f"the file {file}" if file is not None else f"{variable} in the environment"
    text = os.environ.get(variable) if file is None else file.read_text("ascii", "replace")
    if text is None or not (secret := text.strip()):
        if file is None:
            return None
        raise click.UsageError(f"{where} is empty.")
    if not (secret.isascii() and secret.isprintable() and " " not in secret):
        raise click.UsageError(f"{where} must hold one line of printable ASCII without blanks, and nothing else.")
    return secret
