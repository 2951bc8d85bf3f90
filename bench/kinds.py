"""Which servers are measured, and with which settings."""

from __future__ import annotations

from dataclasses import dataclass

from bench.server import ServerKind

# Logging costs as much as a frame and is not what is measured.
SERVE = ("server.py", "serve", "--log-level", "warning", "--max-connections", "20000", "--journal", "{scratch}/journal")

PLAIN = ServerKind("plain Tornado", ("-m", "bench.peers.plain_tornado"))


def tallywire(durability: str, name: str) -> ServerKind:
    """Tallywire with a durability."""
    return ServerKind(name, (*SERVE, "--durability", durability))


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
