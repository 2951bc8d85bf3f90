"""The command line without the server: `server.py` adds `serve` and `demo`."""

import logging
import secrets
from collections.abc import Sequence

import click

from core.access import ROLES, Role, key_of
from core.commands.config import config
from core.commands.doctor import doctor
from core.commands.emit import emit
from core.commands.endings import MEANINGS, ExitCode, ended_in_order, give_up_output
from core.commands.journal import journal
from core.commands.statistics import statistics
from core.commands.tail import tail
from core.commands.terminal import wants_colour
from core.commands.token import token

SECRET_BYTES = 32
"""Nobody guesses so many, so a hash without salt or rounds keeps them."""

EXIT_CODES = "\b\nExit codes:\n" + "\n".join(f"  {code.value:3}  {meaning}" for code, meaning in MEANINGS.items())


class Commands(click.Group):
    """The commands; each ends with a code of the table, and writes colours where they are wanted."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: object
    ) -> click.Context:
        try:
            return super().make_context(info_name, args, parent, **extra)
        except BrokenPipeError:
            # What is printed before there is a command: --help, --version.
            give_up_output()
            raise click.exceptions.Exit(ExitCode.READER_GONE) from None

    def invoke(self, ctx: click.Context) -> object:
        ctx.color = wants_colour()
        with ended_in_order(ctx):
            return super().invoke(ctx)


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=EXIT_CODES,
)
@click.version_option(package_name="tallywire", prog_name="tallywire")
def tallywire() -> None:
    """Tallywire streams batched order events over Server-Sent Events, with counts that are exact."""
    # What commands have to say they print; without a handler the log would say it, too.
    logging.getLogger("tallywire").addHandler(logging.NullHandler())


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


for command in (config, doctor, emit, journal, statistics, tail, token):
    tallywire.add_command(command)
