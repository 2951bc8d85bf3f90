"""Client programs, one library each: they print every event as a JSON line and nothing else.

Those that `read` one stream print `[event, data, id]`; a `crowd`, with a stream for each of many users, puts the user
first: `[user_id, event, data, id]`.
"""

import shutil
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).parent


def installed(program: str) -> str:
    """Where it is. Skips the test, which is about this very program, where it is not."""
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
    if path is None:
        pytest.skip(f"{program} is not installed")
    return path


def node_command(program: str, *arguments: str) -> list[str]:
    """One of the programs here that run on Node, with the libraries that `npm ci` installs."""
    node = installed("node")
    if not (PROGRAMS.parent / "node_modules" / "eventsource").is_dir():
        pytest.skip("npm ci has not been run in tests/e2e: `make test` does it where there is npm")
    return [node, str(PROGRAMS / program), *arguments]
