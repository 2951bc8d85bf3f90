"""A day of orders as batches: the real one where it is at hand, else one made up with a fixed seed."""

import csv
import os
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from tests.e2e.tally import COUNTED, Counts
from tests.process import ROOT

REAL_DAY = "amzn-2012-06-21-order-events.csv"
REAL_DAY_COUNTS = {"created": 27_845, "cancelled": 18_251}

ORDER_TYPES = ("LIMIT", "MARKET", "STOP_LIMIT", "STOP_MARKET")
STRATEGIES = (1, 2, 3, 4)

MADE_UP_EVENTS = 57_515
BATCH_RESULTS = 10


class OrderEvent(NamedTuple):
    """One line of the day: what happened to which order."""

    event_type: str
    order_id: int

    @property
    def strategy_id(self) -> int:
        return STRATEGIES[self.order_id % len(STRATEGIES)]

    @property
    def order_type(self) -> str:
        return ORDER_TYPES[self.order_id // len(STRATEGIES) % len(ORDER_TYPES)]


class DayBatch(NamedTuple):
    """Order events of one strategy that are emitted together."""

    strategy_id: int
    events: tuple[OrderEvent, ...]

    def counts(self) -> Counts:
        return count(self.events)

    def fields(self, user_id: int, idempotency_key: str | None = None) -> dict[str, object]:
        """The batch as it is emitted."""
        results = [{"order_type": e.order_type, "event_type": e.event_type, "success": True} for e in self.events]
        key = {} if idempotency_key is None else {"idempotency_key": idempotency_key}
        return {"user_id": user_id, "strategy_id": self.strategy_id, "batch_results": results, **key}


def day_of_orders() -> tuple[list[OrderEvent], bool]:
    """The events of a day, and whether it is the real one."""
    path = Path(os.environ.get("TALLYWIRE_DAY", ROOT.parent / "shared" / "data" / REAL_DAY))
    if not path.exists():
        return list(_made_up_day()), False
    with path.open(newline="") as lines:
        return [OrderEvent(row["event"], int(row["order_id"])) for row in csv.DictReader(lines)], path.name == REAL_DAY


def batches(events: Iterable[OrderEvent], size: int = BATCH_RESULTS) -> Iterator[DayBatch]:
    """Each strategy's events in batches of `size`, in the order in which the batches fill; the rest at the end."""
    filling: dict[int, list[OrderEvent]] = {strategy_id: [] for strategy_id in STRATEGIES}
    for event in events:
        batch = filling[event.strategy_id]
        batch.append(event)
        if len(batch) == size:
            yield DayBatch(event.strategy_id, tuple(batch))
            batch.clear()
    for strategy_id, batch in filling.items():
        if batch:
            yield DayBatch(strategy_id, tuple(batch))


def count(events: Iterable[OrderEvent]) -> Counts:
    """What the events count."""
    return Counts((e.strategy_id, e.order_type, COUNTED[e.event_type]) for e in events if e.event_type in COUNTED)


def _made_up_day() -> Iterator[OrderEvent]:
    chance = random.Random(20120621)
    open_orders: list[int] = []
    last_order_id = 0
    for _ in range(MADE_UP_EVENTS):
        kind = chance.choices(("order_created", "order_cancelled", "order_executed"), (48, 32, 20))[0]
        if kind == "order_created" or not open_orders:
            last_order_id += chance.randint(1, 900)
            open_orders.append(last_order_id)
            yield OrderEvent("order_created", last_order_id)
            continue
        at = chance.randrange(len(open_orders))
        open_orders[at], open_orders[-1] = open_orders[-1], open_orders[at]
        yield OrderEvent(kind, open_orders.pop())
