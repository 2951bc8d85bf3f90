"""`tallywire journal`: look through it, copy it, put a copy back."""

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import click
from msgspec import UNSET

from core import settings as known_settings
from core.commands.endings import ExitCode
from core.commands.options import config_option
from core.commands.terminal import columns, note, progress, say, say_json
from core.journal.sqlite.copies import back_up
from core.journal.sqlite.copies import restore as put_back
from core.journal.sqlite.inspection import Contents, Wanted
from core.journal.sqlite.inspection import check as look_through
from core.journal.sqlite.inspection import export as exported
from core.journal.sqlite.opening import begin_new_epoch
from core.logs import printable
from core.models import BatchFacts, iso_timestamp
from core.totals import Position

THOUSANDTHS = 1000
FILE = click.Path(path_type=Path, dir_okay=False)

F = TypeVar("F", bound=Callable[..., object])


@click.group("journal")
def journal() -> None:
    """Look through a journal, copy it, and put a copy back."""


def _journal_options(command: F) -> F:
    option = click.option("--journal", "path", help="File of the journal, as for serve.")
    return config_option(option(command))


def _path(config: Path | None, path: str | None) -> Path:
    given = {} if path is None else {"journal": path}
    settings = known_settings.load(known_settings.read_file(config), os.environ, given)
    return known_settings.journal_path(settings, os.environ)


@journal.command("check")
@click.argument("file", type=FILE, required=False)
@click.option("--quick", is_flag=True, help="Without comparing indexes with their tables.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as one object.")
@_journal_options
def check(file: Path | None, quick: bool, as_json: bool, config: Path | None, path: str | None) -> None:
    """Look through the journal, or a backup of it: FILE.

    Whether the file is whole; places are dense; totals grow by what was counted; hours add up; records belong to
    batches. The server may run meanwhile.
    """
    # A backup lies there alone: nothing is made beside it.
    where = file or _path(config, path)
    with progress(THOUSANDTHS, "Looking through") as advance:
        verdict = look_through(where, advance, quick=quick, immutable=file is not None and not _has_log(file))
    if as_json:
        say_json(verdict)
    elif verdict.contents is not None:
        _say_contents(where, verdict.contents)
    if not as_json:
        for sentence in verdict.found:
            say(f"{click.style('wrong', fg='red')}  {printable(sentence)}")
    if verdict.found:
        click.get_current_context().exit(ExitCode.FOUND)
    if not as_json:
        say(f"{click.style('ok', fg='green')}  everything in it is as it must be")


@journal.command("export")
@click.option("--user", type=click.IntRange(1), help="Of one user.")
@click.option("--strategy", type=click.IntRange(1), help="Of one strategy.")
@click.option("--from", "since", metavar="TIME", help="Accepted from this time on, as 2026-01-31T14:00Z.")
@click.option("--to", "until", metavar="TIME", help="Accepted up to this time, not included.")
@_journal_options
def export(
    user: int | None, strategy: int | None, since: str | None, until: str | None, config: Path | None, path: str | None
) -> None:
    """Print the kept batches, in order, one JSON object a line.

    Those that have been trimmed are not among them. The server may run meanwhile.
    """
    wanted = Wanted(user, strategy, _unix_ms(since, "--from", 0), _unix_ms(until, "--to", 2**62))
    hides = sys.stdout.isatty()
    with nullcontext(lambda _done: None) if hides else progress(THOUSANDTHS, "Exporting") as advance:
        for batch in exported(_path(config, path), wanted, advance):
            record = batch.record
            say_json(
                BatchFacts(
                    record.user_id,
                    record.strategy_id,
                    str(Position(batch.epoch, record.n)),
                    iso_timestamp(record.accepted_ms),
                    record.summaries,
                    UNSET,
                )
            )


@journal.command("backup")
@click.argument("target", type=FILE)
@click.option("--replace", is_flag=True, help="Replace TARGET if it is there.")
@_journal_options
def backup(target: Path, replace: bool, config: Path | None, path: str | None) -> None:
    """Copy the journal to TARGET, while the server runs or not.

    The copy holds one moment, is looked through, and has its name only once it is on the disk.
    """
    where = _path(config, path)
    with progress(THOUSANDTHS, "Copying") as advance:
        contents = back_up(where, target, advance, replace=replace)
    _say_contents(target, contents)
    note(f"To put it in place: stop the server, tallywire journal restore {target}, start it.")


@journal.command("restore")
@click.argument("source", type=FILE, metavar="BACKUP")
@_journal_options
def restore(source: Path, config: Path | None, path: str | None) -> None:
    """Put BACKUP in the place of the journal, with the server stopped.

    It is looked through first, and gets a new epoch: every client that comes back is told the totals anew. The
    journal that was there is kept beside it, with its log.
    """
    where = _path(config, path)
    with progress(THOUSANDTHS, "Restoring") as advance:
        restored = put_back(source, where, advance)
    _say_contents(where, restored.contents)
    say(f"New epoch {restored.epoch}, before {restored.contents.epoch}.")
    if restored.replaced is not None:
        note(f"The journal that was there is {restored.replaced}: remove it when you do not need it.")


@journal.command("new-epoch")
@_journal_options
def new_epoch(config: Path | None, path: str | None) -> None:
    """Begin a new epoch: for whoever restored a backup in place by other means than `restore`.

    Positions from after the backup would otherwise be given out a second time, for other batches. Every client that
    comes back is told the totals anew.
    """
    before, now = begin_new_epoch(_path(config, path))
    click.echo(f"New epoch {now}, before {before}.")


def _has_log(path: Path) -> bool:
    return path.with_name(f"{path.name}-wal").exists()


def _say_contents(path: Path, contents: Contents) -> None:
    say(click.style(str(path), bold=True))
    rows = [
        ("batches", f"{contents.batches:,}"),
        ("users", f"{contents.users:,}"),
        ("stream keys", f"{contents.stream_keys:,}"),
        ("hours", f"{contents.hours:,}"),
        ("idempotency keys", f"{contents.idempotency_keys:,}"),
        ("epoch", contents.epoch),
        ("schema", f"{contents.schema}"),
    ]
    for line in columns(rows, (False, False)):
        say(f"  {line}")


def _unix_ms(text: str | None, option: str, default: int) -> int:
    if text is None:
        return default
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise click.BadParameter("write a time as 2026-01-31T14:00Z", param_hint=option) from error
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
