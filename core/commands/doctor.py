"""`tallywire doctor`: what is wrong between the server and its readers, and what to change."""

from pathlib import Path

import click

from core.commands.calls import EXAMINED, EXAMINED_INSIDE, FILE, KEY_VARIABLE, TOKEN_VARIABLE, target_of
from core.commands.endings import ExitCode
from core.commands.examination import Finding, Outcome, Plan, examine
from core.commands.terminal import is_watched, say, say_json, secret_of
from core.logs import printable
from core.models import MAX_ID

COLOURS: dict[Outcome, str] = {"ok": "green", "warning": "yellow", "fault": "red", "unknown": "blue"}


@click.command("doctor")
@click.argument("url")
@click.option(
    "--internal", metavar="URL", help="The internal listener of the same server, a URL or unix:PATH: shows more."
)
@click.option(
    "--user",
    type=click.IntRange(1, MAX_ID),
    help="Whose streams are opened. Default: the token's, else one that nobody is.",
)
@click.option("--origin", metavar="ORIGIN", help="May pages of this origin read, as https://app.example.com?")
@click.option(
    "--emit",
    "emits_to",
    type=click.IntRange(1, MAX_ID),
    metavar="STRATEGY",
    help="Emit one order for --user and this strategy: it counts.",
)
@click.option("--quick", is_flag=True, help="Do not wait for heartbeats.")
@click.option("--key-file", type=FILE, help=f"File with a key for --internal.  [{KEY_VARIABLE}: the key]")
@click.option("--token-file", type=FILE, help=f"File with the token of a reader.  [{TOKEN_VARIABLE}: the token]")
@click.option("--ca-file", type=FILE, help="Certificates to trust besides the system's, as PEM.")
@click.option("--json", "as_json", is_flag=True, help="Print each finding as one object a line.")
def doctor(
    url: str,
    internal: str | None,
    user: int | None,
    origin: str | None,
    emits_to: int | None,
    quick: bool,
    key_file: Path | None,
    token_file: Path | None,
    ca_file: Path | None,
    as_json: bool,
) -> None:
    """Look for what holds streams back or cuts them, between here and the server at URL.

    URL is what browsers use: through every proxy. It opens streams, holds one for two heartbeats, and says for each
    fault what to change. Exit code 7 when there is a fault.
    """
    if emits_to is not None and (internal is None or user is None):
        raise click.UsageError("--emit counts an order for somebody: name --user and --internal.")
    token = secret_of(token_file, TOKEN_VARIABLE)
    plan = Plan(
        target_of(url, token, ca_file, EXAMINED),
        None if internal is None else target_of(internal, secret_of(key_file, KEY_VARIABLE), ca_file, EXAMINED_INSIDE),
        user or (MAX_ID if token is None else None),
        origin,
        emits_to,
        quick,
    )
    faults = 0
    for finding in examine(plan):
        faults += finding.verdict == "fault"
        if as_json:
            say_json(finding)
        else:
            _say(finding)
    if not as_json:
        _conclude(faults)
    if faults:
        click.get_current_context().exit(ExitCode.FOUND)


def _say(finding: Finding) -> None:
    verdict = click.style(f"{finding.verdict:8}", fg=COLOURS[finding.verdict], bold=finding.verdict == "fault")
    say(f"{verdict} {finding.check:12} {printable(finding.said)}")
    if finding.fix:
        say(f"{'':21} {click.style('->', bold=True)} {printable(finding.fix)}")


def _conclude(faults: int) -> None:
    if is_watched():
        say()
    if not faults:
        say(click.style("No fault found.", fg="green"))
    else:
        say(click.style(f"{faults} fault{'s' if faults > 1 else ''} found.", fg="red", bold=True))
