"""What a stream hands over, in the words of docs/protocol.md."""

from collections.abc import Mapping
from dataclasses import dataclass

from tallywire_client.results import Summary

Totals = Mapping[int, tuple[Summary, ...]]
"""By strategy, the counts since the journal began."""


@dataclass(frozen=True, slots=True)
class Opened:
    """`stream_open`: the stream stands at `position`. `totals` are those there."""

    position: str
    strategies: tuple[int, ...] | str
    resumed: bool
    totals: Totals


@dataclass(frozen=True, slots=True)
class Reset:
    """`stream_reset`: it cannot be shown that nothing is missing, and `totals` replace whatever has been added up."""

    position: str
    strategies: tuple[int, ...] | str
    reason: str
    totals: Totals


@dataclass(frozen=True, slots=True)
class Update:
    """`order_batch_update`: add `summaries`, or show `totals`, which are those with the summaries added."""

    position: str
    strategy_id: int
    summaries: tuple[Summary, ...]
    totals: tuple[Summary, ...]
    batches: int
    timestamp: str


@dataclass(frozen=True, slots=True)
class CatchUp:
    """`order_batch_catch_up`: several strategies at once, after a gap. Each of its updates has its position."""

    position: str
    updates: tuple[Update, ...]


@dataclass(frozen=True, slots=True)
class Expiring:
    """`stream_expiring`: the token ends soon."""

    expires_at: str
    seconds_left: int


@dataclass(frozen=True, slots=True)
class Closing:
    """`stream_closing`: the server ends the stream. With `reconnect` the iteration goes on, else it ends."""

    reason: str
    reconnect: bool


@dataclass(frozen=True, slots=True)
class HourlySummary:
    """`order_hourly_summary`: what a whole hour counted. A notice, not to be added."""

    strategy_id: int
    hour: str
    summaries: tuple[Summary, ...]


Event = Opened | Reset | Update | CatchUp | Expiring | Closing | HourlySummary
