"""Two small C programs: the least that a server can cost, and a load client that is never the limit.

They are compiled for each run with whatever C compiler there is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from bench.server import ServerError

HERE = Path(__file__).resolve().parent
COMPILE_SECONDS = 60


def compiler() -> str | None:
    """The C compiler of this machine, or None. `CC` chooses one."""
    return shutil.which(os.environ.get("CC", "cc"))


def compiled(name: str, directory: Path) -> Path:
    """The program made of `name`.c, in `directory`. Raises ServerError when it does not compile."""
    program = compiler()
    if program is None:
        raise ServerError("no C compiler: install one (cc), or leave out what needs it")
    target = directory / name
    made = subprocess.run(
        [program, "-O2", "-o", str(target), str(HERE / f"{name}.c")],
        capture_output=True,
        text=True,
        timeout=COMPILE_SECONDS,
        check=False,
    )
    if made.returncode:
        raise ServerError(f"{name}.c does not compile: {made.stderr[-2000:]}")
    return target
