"""The busiest minutes of a real day of orders, sixty times as fast, to many listeners of its four strategies.

The day is no part of the repository: `TALLYWIRE_DAY` names the file, else it is looked for beside the repository.
Batches are made as the end-to-end tests make them: ten order events of one strategy, due when the tenth has happened.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import msgspec

from bench.dialect import Batch
from bench.load import StreamKey
from bench.peers.counting import Result, summarize
from bench.server import ROOT
from bench.versus.figures import Figure, Scale, latencies, micros
from bench.versus.latency import SECOND_NS, SENDERS, about_the_client
from bench.versus.session import Due, Session

DAY = Path(os.environ.get("TALLYWIRE_DAY", ROOT.parent / "shared" / "data" / "amzn-2012-06-21-order-events.csv"))
SPEED = 60
USER = 7
STRATEGIES = 4
ORDER_TYPES = ("LIMIT", "MARKET", "STOP_LIMIT", "STOP_MARKET")
BATCH_RESULTS = 10
COUNTED = ("order_created", "order_cancelled")


@dataclass(frozen=True, slots=True)
class OrderEvent:
    """What happened to which order, in seconds after midnight."""

    seconds: float
    event_type: str
    order_id: int

    @property
    def strategy_id(self) -> int:
        """One of four, as in the end-to-end tests."""
        return self.order_id % STRATEGIES + 1

    @property
    def order_type(self) -> str:
        """One of four, as in the end-to-end tests."""
        return ORDER_TYPES[self.order_id // STRATEGIES % len(ORDER_TYPES)]


def replay(session: Session, scale: Scale) -> list[Figure]:
    """CPU of the whole slice, and the latency of each frame of it."""
    keys = [StreamKey(USER, strategy) for strategy in range(1, STRATEGIES + 1)]
    session.open([key for key in keys for _ in range(scale.day_listeners)])
    session.rest()
    dues = list(_dues(_busiest(_read(), scale.day_minutes * 60)))
    session.load(dues[: len(dues) // 10])
    session.client.emit(0, SENDERS)
    session.rest()
    session.load(dues)
    emitted, cpu_ns = session.measured(lambda: session.client.emit(0, SENDERS, is_timed=True))
    return [
        Figure("server CPU, whole slice", "ms", cpu_ns / 1e6),
        micros("server CPU per frame", cpu_ns, emitted.batches),
        *latencies("due to read", emitted.latency),
        Figure("batches", "", emitted.calls, "plain"),
        *about_the_client(emitted),
    ]


def _read() -> list[OrderEvent]:
    with DAY.open(newline="", encoding="ascii") as lines:
        return [
            OrderEvent(float(row["seconds_after_midnight"]), row["event"], int(row["order_id"]))
            for row in csv.DictReader(lines)
        ]


def _busiest(events: Sequence[OrderEvent], seconds: float) -> Sequence[OrderEvent]:
    """The run of events within so many seconds that has most of them."""
    first, best = 0, (0, 0)
    for last, event in enumerate(events):
        while event.seconds - events[first].seconds > seconds:
            first += 1
        best = max(best, (last + 1 - first, first))
    many, first = best
    return list(islice(events, first, first + many))


def _dues(events: Sequence[OrderEvent]) -> Iterator[Due]:
    """The batches with their times; one of executions alone is left out, since there is nothing to send."""
    filling: dict[int, list[OrderEvent]] = {}
    for event in events:
        batch = filling.setdefault(event.strategy_id, [])
        batch.append(event)
        if len(batch) < BATCH_RESULTS:
            continue
        del filling[event.strategy_id]
        if any(each.event_type in COUNTED for each in batch):
            yield Due(_batch(batch), round((event.seconds - events[0].seconds) / SPEED * SECOND_NS))


def _batch(events: Sequence[OrderEvent]) -> Batch:
    results = [Result(True, event.order_type, event.event_type) for event in events]
    return Batch(
        StreamKey(USER, events[0].strategy_id), msgspec.json.encode(results), msgspec.json.encode(summarize(results))
    )
