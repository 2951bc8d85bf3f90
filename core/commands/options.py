"""Options that commands share: the settings, and the file that they are in."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import click

from core import settings as known_settings

F = TypeVar("F", bound=Callable[..., object])


def config_option(command: F) -> F:
    """`--config`, as `config`."""
    return click.option("--config", type=click.Path(path_type=Path), help="TOML file with settings.")(command)


def setting_options() -> list[click.Parameter]:
    """A flag for each setting."""
    return [_option(field) for field in known_settings.fields()]


def given_flags(flags: Mapping[str, object]) -> dict[str, object]:
    """Those of them that were given."""
    return {name: value for name, value in flags.items() if value not in (None, ())}


def _option(field: known_settings.SettingField) -> click.Option:
    default = ", ".join(field.default) if isinstance(field.default, tuple) else field.default
    return click.Option(
        [field.flag],
        help=f"{field.description}  [{field.variable}; default: {default if default != '' else 'none'}]",
        type=click.Choice(field.choices) if field.choices else str,
        multiple=field.is_list,
    )
