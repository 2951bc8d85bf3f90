"""Which servers are measured, and with which settings."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

from bench.server import ROOT, START_SECONDS, ServerError, ServerKind

SERVE = ("server.py", "serve")
# Logging costs as much as a frame and is not what is measured.
SETTINGS = ("--log-level", "warning", "--max-connections", "20000")

PLAIN = ServerKind("plain Tornado", ("-m", "bench.peers.plain_tornado"))


@dataclass(frozen=True, slots=True)
class Kinds:
    """The servers of a run. The peer keeps no journal, so Tallywire is also measured without one.

    Both are the same where this checkout has no journal to turn off.
    """

    tallywire: ServerKind
    tallywire_without_journal: ServerKind

    @property
    def fanned_out(self) -> tuple[ServerKind, ...]:
        """For work in which a journal row is shared by many frames or does not occur."""
        return self.tallywire, PLAIN

    @property
    def emitting(self) -> tuple[ServerKind, ...]:
        """For work in which a journal row is a good part of the cost."""
        if self.tallywire_without_journal == self.tallywire:
            return self.tallywire, PLAIN
        return self.tallywire, self.tallywire_without_journal, PLAIN


def of_this_checkout() -> Kinds:
    """The servers as this checkout can start them: it is asked which settings it has.

    So one benchmark measures versions from before the journal as well, to compare with.
    """
    known = _help()
    journal = ("--journal", "{scratch}/journal") if "--journal " in known else ()
    without = ("--durability", "none") if "--durability " in known else ()
    tallywire = ServerKind("tallywire", (*SERVE, *SETTINGS, *journal))
    if not without:
        return Kinds(tallywire, tallywire)
    return Kinds(tallywire, ServerKind("tallywire, no journal", (*tallywire.arguments, *without)))


def _help() -> str:
    """What `serve --help` prints; ServerError if it fails."""
    asked = subprocess.run(
        [sys.executable, *SERVE, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=START_SECONDS
    )
    if asked.returncode != 0:
        raise ServerError(f"{' '.join(SERVE)} --help failed: {asked.stderr[-2000:].strip()}")
    return asked.stdout
