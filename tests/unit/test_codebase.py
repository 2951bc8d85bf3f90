"""What holds for every module: the domain stands alone, and everything that others may use says what it gives them."""

import importlib
import inspect
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import core
import handlers

ROOT = Path(core.__file__).parent.parent

REFUSE_TORNADO = """
import importlib, pkgutil, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "tornado":
            raise ImportError("tornado is refused")

sys.meta_path.insert(0, Refuse())
import {package} as package
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    importlib.import_module(module.name)
    print(module.name)
"""


SAID_ELSEWHERE = {
    "core.subscriber": ["State"],  # drawn, with what each state means, in the docstring of the module
}


def names(package: ModuleType) -> list[str]:
    return [module.name for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]


def import_without_tornado(package: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", REFUSE_TORNADO.format(package=package)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


MODULES = [importlib.import_module(name) for name in ("core", "handlers", *names(core), *names(handlers), "server")]


def test_every_module_of_the_core_imports_without_tornado() -> None:
    imported = import_without_tornado("core")

    assert imported.returncode == 0, imported.stderr
    assert imported.stdout.split() == names(core)


def test_an_import_of_tornado_would_have_been_seen() -> None:
    refused = import_without_tornado("handlers")

    assert refused.returncode != 0
    assert "tornado is refused" in refused.stderr


def public_members(module: ModuleType) -> Iterator[tuple[str, object]]:
    """The public classes and functions that the module defines, and their public methods and properties."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(value) or inspect.isclass(value):
            yield name, value
        if inspect.isclass(value):
            yield from ((f"{name}.{member}", held) for member, held in new_methods(value))


def new_methods(defined: type) -> Iterator[tuple[str, object]]:
    """What the class adds: what it overrides is described where it was first defined."""
    for name, value in vars(defined).items():
        is_method = inspect.isfunction(value) or isinstance(value, staticmethod | classmethod | property)
        if is_method and not name.startswith("_") and not any(hasattr(base, name) for base in defined.__mro__[1:]):
            yield name, value


def says_something(value: object) -> bool:
    """It has a docstring of its own; a class may be one more of a kind that we have described."""
    if not inspect.isclass(value):
        return bool(value.__doc__)
    ours = [base for base in value.__mro__ if base.__module__.partition(".")[0] in ("core", "handlers", "server")]
    return any(vars(base).get("__doc__") for base in ours)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_module_says_what_it_is_for(module: ModuleType) -> None:
    assert (module.__doc__ or "").strip()


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_everything_public_says_what_it_gives(module: ModuleType) -> None:
    silent = [name for name, value in public_members(module) if not says_something(value)]

    assert silent == SAID_ELSEWHERE.get(module.__name__, [])
