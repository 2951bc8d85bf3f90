"""File systems of the tests' own, for who may mount them."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def need_mounts(place: Path, *programs: str) -> None:
    """Skip where file systems cannot be mounted at `place`, or one of these programs is missing.

    Found out here and once: a mount that fails later is a failure, for it may be the file system that is damaged.
    """
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    missing = [program for program in ("mount", *programs) if shutil.which(program) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} is not installed")
    tried = _mount("-t", "tmpfs", "none", str(place))
    if tried.returncode:
        pytest.skip(f"the kernel lets root mount nothing here: {tried.stderr.strip()}")
    unmount(str(place))


def mount(*arguments: str) -> None:
    """Mount, or fail."""
    mounted = _mount(*arguments)
    assert not mounted.returncode, mounted.stderr


def _mount(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)


def unmount(place: str) -> None:
    """Harmless when nothing is mounted there."""
    if os.path.ismount(place):
        subprocess.run(["umount", place], check=True)
