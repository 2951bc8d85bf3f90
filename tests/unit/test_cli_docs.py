"""docs/command-line.md knows every command, every option and every exit code, and no others."""

import re
from collections.abc import Iterator

import click
import click.testing
import pytest

import server
from core import settings
from core.cli import tallywire
from core.commands.demo import demo_command
from core.commands.endings import MEANINGS, ExitCode
from core.commands.examination import FINDINGS
from tests.process import ROOT

PAGE = (ROOT / "docs" / "command-line.md").read_text()
SETTINGS = {field.flag for field in settings.fields()}
"""Those of `serve`, which are in the reference."""


def commands(group: click.Group = tallywire, prefix: str = "tallywire") -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, by what is typed."""
    for name, command in {**group.commands, **OF_THE_SERVER}.items() if group is tallywire else group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


OF_THE_SERVER = {"serve": server._serve_command(), "demo": demo_command(server.serve)}
COMMANDS = dict(commands())


def section(name: str) -> str:
    """What the page says about a command: its part, and what several have in common."""
    first = name.split()[1]
    common = re.search(r"^## Which server.*?(?=^## )", PAGE, re.M | re.S)
    own = re.search(rf"^## {first}$.*?(?=^## |\Z)", PAGE, re.M | re.S)
    assert common is not None
    return (own[0] if own else "") + common[0]


def test_every_command_is_in_the_table_and_no_other() -> None:
    assert set(re.findall(r"^\| `(tallywire [a-z -]+)` \|", PAGE, re.M)) == set(COMMANDS)


@pytest.mark.parametrize(
    "name", [name for name in COMMANDS if name not in ("tallywire serve", "tallywire internal-key")]
)
def test_every_option_of_a_command_is_said(name: str) -> None:
    options = [
        option
        for parameter in COMMANDS[name].params
        if isinstance(parameter, click.Option)
        for option in parameter.opts
        if option not in SETTINGS or " journal " in name
    ]

    assert [option for option in options if f"`{option}" not in section(name)] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_says_what_it_does(name: str) -> None:
    command = COMMANDS[name]

    assert (command.help or "").strip()
    assert [each.name for each in command.params if isinstance(each, click.Option) and not each.help] == []


def test_every_option_that_the_page_names_is_one() -> None:
    known = {option for command in COMMANDS.values() for each in command.params for option in each.opts}

    assert set(re.findall(r"`(--[a-z-]+)", PAGE)) - known - {"--help", "--version", "--dry-run"} == set()


def test_every_exit_code_is_in_the_page_and_in_the_help_as_it_is() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", PAGE, re.M)

    assert rows == [(str(code.value), MEANINGS[code]) for code in ExitCode]
    helped = click.testing.CliRunner().invoke(tallywire, ["--help"]).output
    assert [
        code for code in ExitCode if not re.search(rf"^ +{code.value}  {re.escape(MEANINGS[code])}$", helped, re.M)
    ] == []


def test_every_check_of_the_doctor_is_in_the_page() -> None:
    assert [name for name in FINDINGS if f"`{name}`" not in section("tallywire doctor")] == []


def test_every_variable_of_the_commands_is_in_the_page() -> None:
    for variable in ("TALLYWIRE_URL", "TALLYWIRE_KEY", "TALLYWIRE_TOKEN", "TALLYWIRE_JWT_SECRET", "NO_COLOR"):
        assert f"`{variable}`" in PAGE


def test_no_secret_can_be_an_argument() -> None:
    names = {option for command in COMMANDS.values() for each in command.params for option in each.opts}
    suspicious = {name for name in names if re.search(r"key|token|secret|password", name)}

    assert suspicious == {
        *("--key-file", "--token-file", "--secret-file", "--idempotency-key"),
        *("--jwt-keys", "--internal-keys"),  # names of files
    }
