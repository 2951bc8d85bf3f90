"""File systems of the tests' own, for who may mount them."""

import os
import shutil
import subprocess

import pytest


def need_mounts(*programs: str) -> None:
    """Skip where file systems cannot be mounted, or one of these programs is missing."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    missing = [program for program in ("mount", *programs) if shutil.which(program) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} is not installed")


def mount(*arguments: str) -> None:
    """Skip where the kernel does not allow it."""
    mounted = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no such mounts here: {mounted.stderr.strip()}")


def unmount(place: str) -> None:
    """Harmless when nothing is mounted there."""
    if os.path.ismount(place):
        subprocess.run(["umount", place], check=True)
