"""The command line without the server: `server.py` adds `serve`."""

import logging
import os
from pathlib import Path

import click

from core import settings as known_settings
from core.journal.base import JournalError
from core.journal.sqlite.opening import begin_new_epoch
from core.settings import SettingsError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="tallywire", prog_name="tallywire")
def tallywire() -> None:
    """Tallywire streams batched order events over Server-Sent Events, with counts that are exact."""


@tallywire.group()
def journal() -> None:
    """Work on the journal of a server that is stopped."""


@journal.command("new-epoch")
@click.option("--config", type=click.Path(path_type=Path), help="TOML file with settings.")
@click.option("--journal", "path", help="File of the journal, as for serve.")
def new_epoch(config: Path | None, path: str | None) -> None:
    """Begin a new epoch: for whoever restored a backup in place.

    Positions from after the backup would otherwise be given out a second time, for other batches. Every client that
    comes back is told the totals anew.
    """
    # What happens is said below; without a handler the log would say it, too.
    logging.getLogger("tallywire").addHandler(logging.NullHandler())
    try:
        given = {} if path is None else {"journal": path}
        settings = known_settings.load(known_settings.read_file(config), os.environ, given)
        before, now = begin_new_epoch(known_settings.journal_path(settings, os.environ))
    except (SettingsError, JournalError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"New epoch {now}, before {before}.")
