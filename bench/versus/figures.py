"""What a workload gives: named figures, and how to compare two of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bench.kinds import Contender
from bench.native import Emitted, Times
from bench.versus.session import Session

Sense = Literal["cost", "rate", "plain"]
"""Less is better; more is better; explains and is not compared."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One quantity of one round. `note` says what is different about this server's."""

    quantity: str
    unit: str
    value: float
    sense: Sense = "cost"
    note: str = ""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of everything; counts, unless a name says otherwise."""

    fanout_connections: int = 1_000
    fanout_emits: int = 40
    keys: int = 2_000
    singles: int = 4_000
    batches_in_calls: int = 18_000
    memory_steps: tuple[int, ...] = (1_000, 10_000, 16_000)
    storm_clients: int = 10_000
    storm_missed: int = 3
    latency_keys: int = 5_000
    latency_per_second: int = 1_000
    latency_seconds: int = 20
    day_minutes: int = 10
    day_listeners: int = 250
    neighbour_connections: int = 10_000
    neighbour_per_second: int = 50
    neighbour_seconds: int = 10
    scaling_connections: tuple[int, ...] = (1_000, 4_000, 16_000)
    scaling_frames: int = 40_000
    scaling_keys: tuple[int, ...] = (100, 1_000, 10_000, 100_000)
    scaling_emits: int = 2_000


FULL = Scale()
QUICK = Scale(
    fanout_emits=15,
    singles=1_500,
    batches_in_calls=6_000,
    memory_steps=(1_000, 4_000),
    storm_clients=2_000,
    latency_seconds=5,
    day_minutes=3,
    day_listeners=100,
    neighbour_connections=2_000,
    neighbour_seconds=4,
    scaling_connections=(1_000, 4_000),
    scaling_frames=20_000,
    scaling_keys=(100, 10_000),
)


def _measures_all(_: Contender) -> str | None:
    return None


@dataclass(frozen=True, slots=True)
class Workload:
    """Something that is done to each server in turn. `leaves_out` gives the reason why one is not measured."""

    name: str
    what: Callable[[Scale], str]
    measure: Callable[[Session, Scale], Sequence[Figure]]
    rounds: int
    leaves_out: Callable[[Contender], str | None] = field(default=_measures_all)
    needs: Path | None = None
    """A file without which it cannot be done at all."""


def micros(name: str, nanoseconds: int, many: int, note: str = "") -> Figure:
    """A cost per piece of work."""
    return Figure(name, "µs", nanoseconds / many / 1e3, "cost", note)


def client_share(what: str, emitted: Sequence[Emitted]) -> Figure:
    """How much of its core the client was busy: near 100 %, it is the client that was measured."""
    busy, wall = sum(each.cpu_ns for each in emitted), sum(each.wall_ns for each in emitted)
    return Figure(f"client's share of its core, {what}", "%", 100 * busy / wall, "plain")


def latencies(what: str, times: Times, has_thousands: bool = True) -> list[Figure]:
    """The usual points of a distribution; one in a thousand only where there are thousands."""
    rarest = [Figure(f"{what}, p99.9", "ms", times.p999_ns / 1e6)] if has_thousands else []
    return [
        Figure(f"{what}, p50", "ms", times.p50_ns / 1e6),
        Figure(f"{what}, p99", "ms", times.p99_ns / 1e6),
        *rarest,
        Figure(f"{what}, slowest", "ms", times.slowest_ns / 1e6),
    ]
