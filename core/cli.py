"""The command line without the server: `server.py` adds `serve`."""

import logging
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

import click

from core import settings as known_settings
from core.access import ROLES, Role, key_of
from core.journal.base import JournalError
from core.journal.sqlite.opening import begin_new_epoch
from core.settings import SettingsError

SECRET_BYTES = 32
"""Nobody guesses so many, so a hash without salt or rounds keeps them."""


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


@tallywire.command("internal-key")
@click.argument("name")
@click.option("--role", "roles", type=click.Choice(ROLES), multiple=True, required=True, help="May be repeated.")
def internal_key(name: str, roles: Sequence[Role]) -> None:
    """Make a key for the caller NAME of the internal listener.

    Prints its secret, which is shown only here, and the line for the file of --internal-keys, which does not hold it.
    """
    secret = secrets.token_urlsafe(SECRET_BYTES)
    try:
        key = key_of(name, roles, secret)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="NAME") from error
    click.echo(f"Secret, for Authorization: Bearer\n  {secret}\nLine for the file of --internal-keys\n  {key.line}")
