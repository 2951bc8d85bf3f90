"""Which servers are measured, and with which settings."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from bench.dialect import COUNTING_PEER, FLOOR, NCHAN, TALLYWIRE, Dialect
from bench.peers import nchan
from bench.server import ServerKind

# Crowds of one user, who come at once: what is measured is the work, not the limits.
UNLIMITED = ("--max-connections", "20000", "--max-streams-per-user", "0", "--max-accepts-per-second", "0")
SERVE = ("server.py", "serve", *UNLIMITED, "--journal", "{scratch}/journal")
# Logging costs as much as a frame and is not what is measured.
QUIET = ("--log-level", "warning")

PLAIN = ServerKind("plain Tornado", ("-m", "bench.peers.plain_tornado"))


def tallywire(durability: str, name: str, flags: tuple[str, ...] = QUIET) -> ServerKind:
    """Tallywire with a durability."""
    return ServerKind(name, (*SERVE, "--durability", durability, *flags))


@dataclass(frozen=True, slots=True)
class Kinds:
    """The servers of a run: the first of each tuple is compared with the last."""

    fanned_out: tuple[ServerKind, ...] = (tallywire("power", "tallywire"), PLAIN)
    """For work in which a journal row is shared by many frames or does not occur."""

    emitting: tuple[ServerKind, ...] = (
        tallywire("power", "tallywire"),
        tallywire("none", "tallywire, no journal"),
        PLAIN,
    )
    """For work in which a journal row is a good part of the cost; the peer keeps none."""

    journals: tuple[ServerKind, ...] = (
        tallywire("power", "power"),
        tallywire("process", "process"),
        tallywire("none", "none"),
    )
    """What durability costs."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A server of the side-by-side run, and how it is spoken to."""

    kind: ServerKind
    dialect: Dialect

    @property
    def name(self) -> str:
        """Its name in tables and on the command line."""
        return self.kind.name


@dataclass(frozen=True, slots=True)
class Absent:
    """A server that cannot be measured here, and why."""

    name: str
    why: str


@dataclass(frozen=True, slots=True)
class Variant:
    """Further settings of Tallywire, as servers of their own: `NAME=FLAGS` on the command line."""

    name: str
    flags: tuple[str, ...]


TALLYWIRES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("tallywire", "process", QUIET),
    ("tallywire-none", "none", QUIET),
    ("tallywire-power", "power", QUIET),
    ("tallywire-logged", "process", ()),  # at the default log level
)
"""Name, durability, flags. The first is what the others are compared with."""

LIBRARIES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("tornado", "bench.peers.plain_tornado", ()),
    ("sse-starlette", "bench.peers.sse_starlette", ("sse_starlette", "uvicorn", "uvloop", "httptools")),
    ("aiohttp-sse", "bench.peers.aiohttp_sse", ("aiohttp", "aiohttp_sse", "uvloop")),
)
"""Name, module, and the packages that it needs."""


def contenders(flags: tuple[str, ...], variants: tuple[Variant, ...], floor: Path) -> list[Contender | Absent]:
    """All servers of the side-by-side run. `flags` go to every Tallywire, a variant's to one more of them.

    `floor` is its compiled program.
    """
    return [
        *(_tallywire(name, durability, (*own, *flags)) for name, durability, own in TALLYWIRES),
        *(_tallywire(f"tallywire-{each.name}", "process", (*QUIET, *flags, *each.flags)) for each in variants),
        _nchan(),
        Contender(ServerKind("floor", (), floor), FLOOR),
        *(_library(name, module, packages) for name, module, packages in LIBRARIES),
    ]


def _tallywire(name: str, durability: str, flags: tuple[str, ...]) -> Contender:
    return Contender(tallywire(durability, name, flags), TALLYWIRE)


def _nchan() -> Contender | Absent:
    if why := nchan.missing():
        return Absent("nchan", why)
    return Contender(ServerKind("nchan", ("-m", "bench.peers.nchan", "--scratch", "{scratch}")), NCHAN)


def _library(name: str, module: str, packages: tuple[str, ...]) -> Contender | Absent:
    if missing := [package for package in packages if find_spec(package) is None]:
        return Absent(name, f"not installed: {', '.join(missing)}")
    return Contender(ServerKind(name, ("-m", module)), COUNTING_PEER)
