"""`tallywire config`: what the settings are, where each comes from, and what is wrong with them."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import click
import msgspec
from msgspec import Struct

from core import settings as known_settings
from core.commands.endings import ExitCode
from core.commands.options import given_flags, setting_options
from core.commands.terminal import columns, note, say, say_json
from core.logs import printable
from core.settings import Settings, SettingsError, Source

_USERINFO = re.compile(r"//[^/@\s]*@")
"""Before the host of a URL."""


class FurtherChecks(Struct, frozen=True):
    """What a start would refuse besides: the server knows."""

    check: Callable[[Settings], list[SettingsError]]


class Shown(Struct, frozen=True):
    """One setting as `config show --json` writes it."""

    name: str
    value: object
    source: Source


@click.group("config")
def config() -> None:
    """Look at the settings: defaults, a TOML file, the environment, flags."""


def _check(config: Path | None, **flags: object) -> None:
    """Would a server start with these settings?

    Names every setting that cannot be used, where it stands, and the fix; once each is in order by itself, also what
    a start would refuse of them together. Takes the flags of `serve`.
    """
    context = click.get_current_context()
    try:
        file = known_settings.read_file(config)
        found = known_settings.problems(file, os.environ, given_flags(flags))
        if not found:
            settings = known_settings.load(file, os.environ, given_flags(flags))
            if isinstance(context.obj, FurtherChecks):
                found = context.obj.check(settings)
    except SettingsError as error:
        found = [error]
    for problem in found:
        say(f"{click.style('wrong', fg='red')}  {printable(_redacted(str(problem)))}")
    if found:
        context.exit(ExitCode.FOUND)
    say(f"{click.style('ok', fg='green')}  a server would start with these settings")
    _warn_of_unknown_variables()


def _show(config: Path | None, as_json: bool, **flags: object) -> None:
    """Every setting with its value, and where that comes from.

    Takes the flags of `serve`. A password within a URL is left out; keys and secrets are in files, of which only the
    names are settings.
    """
    sources = known_settings.read_file(config), os.environ, given_flags(flags)
    settings = known_settings.load(*sources)
    origins = known_settings.origins(*sources)
    shown = [Shown(name, _without_secrets(getattr(settings, name)), origins[name]) for name in origins]
    if as_json:
        for setting in shown:
            say_json(setting)
        return
    rows = [("setting", "value", "from")]
    for setting in shown:
        source: str = setting.source
        rows.append(
            (setting.name, _written(setting.value), source if source == "default" else click.style(source, fg="cyan"))
        )
    head, *lines = columns(rows, (False, False, False))
    say(click.style(head, bold=True))
    for line in lines:
        say(line)


@config.command("schema")
def schema() -> None:
    """The JSON Schema of a TOML file with settings, for editors."""
    document = msgspec.json.schema(Settings)
    described = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Tallywire settings", **document}
    say(msgspec.json.format(msgspec.json.encode(described), indent=2).decode())


def _warn_of_unknown_variables() -> None:
    """A variable with a mistake in its name does nothing, and nobody says so."""
    known = {field.variable for field in known_settings.fields()} | OTHER_VARIABLES
    for name in sorted(os.environ):
        if name.startswith("TALLYWIRE_") and name not in known:
            note(f"{name} in the environment is no setting, and is not looked at.")


OTHER_VARIABLES = frozenset(
    {
        "TALLYWIRE_URL",
        "TALLYWIRE_PUBLIC_URL",
        "TALLYWIRE_KEY",
        "TALLYWIRE_TOKEN",
        "TALLYWIRE_JWT_SECRET",
        "TALLYWIRE_NO_SKIPS",
    }
)
"""Variables that are no settings, of the commands and of the tests."""


def _without_secrets(value: object) -> object:
    if isinstance(value, tuple):
        return [_without_secrets(each) for each in value]
    return _redacted(value) if isinstance(value, str) else value


def _redacted(text: str) -> str:
    return _USERINFO.sub("//***@", text)


def _written(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(printable(str(each)) for each in value) or "none"
    return printable(str(value)) or "none"


_FILE = click.Option(["--config"], type=click.Path(path_type=Path), help="TOML file with settings.")
_JSON = click.Option(["--json", "as_json"], is_flag=True, help="Print each setting as one object a line.")

config.add_command(click.Command("check", callback=_check, params=[_FILE, *setting_options()], help=_check.__doc__))
config.add_command(click.Command("show", callback=_show, params=[_FILE, _JSON, *setting_options()], help=_show.__doc__))
