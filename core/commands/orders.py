"""Orders as a day has them, for `tallywire demo`: pure, and the same again with the same seed.

Much at the open, little at noon, much at the close; strategies of different temper; now and then a burst. Of an order,
what is cancelled has been created before.
"""

import math
import random
from collections.abc import Iterator

from msgspec import Struct

OPEN_MINUTE, CLOSE_MINUTE = 9 * 60 + 30, 16 * 60
DAY_MINUTES = CLOSE_MINUTE - OPEN_MINUTE

QUIET, LOUD = 0.35, 2.2
"""Activity at noon and at the open, where 1 is about the mean of a day."""

BURST_CHANCE = 0.02
MOST_IN_BATCH = 24

TEMPERS = (
    ("LIMIT", "LIMIT", "LIMIT", "MARKET"),
    ("LIMIT", "LIMIT", "STOP_LIMIT", "STOP_LIMIT"),
    ("MARKET", "MARKET", "STOP_MARKET", "LIMIT"),
    ("LIMIT", "STOP_LIMIT", "STOP_MARKET", "MARKET"),
)
"""What a strategy tends to order, by its number."""


class PlannedBatch(Struct, frozen=True):
    """A batch, and when it is emitted: minutes since the open."""

    minute: float
    user_id: int
    strategy_id: int
    batch_results: list[dict[str, object]]

    @property
    def orders(self) -> int:
        """How many of its results count."""
        return sum(result["success"] is True for result in self.batch_results)


def activity(minute: float) -> float:
    """How much goes on, `minute` minutes after the open: a U, higher on its left side."""
    along = min(max(minute / DAY_MINUTES, 0.0), 1.0)
    morning, evening = math.exp(-along * 7), math.exp(-(1 - along) * 9)
    return QUIET + (LOUD - QUIET) * morning + (LOUD - QUIET) * 0.8 * evening


def day_of_batches(seed: int, users: int, batches_per_minute: float) -> Iterator[PlannedBatch]:
    """One day, in order. `batches_per_minute` of the market's own time, on average about."""
    chance = random.Random(seed)
    resting: dict[tuple[int, int], list[str]] = {}
    minute = 0.0
    while True:
        minute += chance.expovariate(batches_per_minute * activity(minute))
        if minute >= DAY_MINUTES:
            return
        for _ in range(chance.randint(4, 12) if chance.random() < BURST_CHANCE else 1):
            # Some users trade more than others.
            user_id = 1 + int(users * chance.random() ** 2)
            strategy_id = chance.choice((1, 1, 1, 2, 2, 3, 4))
            results = _results(chance, resting.setdefault((user_id, strategy_id), []), strategy_id)
            yield PlannedBatch(minute, user_id, strategy_id, results)


def _results(chance: random.Random, resting: list[str], strategy_id: int) -> list[dict[str, object]]:
    temper = TEMPERS[strategy_id % len(TEMPERS)]
    size = min(MOST_IN_BATCH, 1 + int(chance.expovariate(1 / 6)))
    results: list[dict[str, object]] = []
    for _ in range(size):
        if chance.random() < 0.03:
            results.append({"success": False, "error": "insufficient margin"})
        elif resting and chance.random() < 0.42:
            order_type = resting.pop(chance.randrange(len(resting)))
            results.append({"success": True, "event_type": "order_cancelled", "order_type": order_type})
        else:
            order_type = chance.choice(temper)
            # A market order is filled at once: there is nothing left to cancel.
            if not order_type.endswith("MARKET") or order_type == "STOP_MARKET":
                resting.append(order_type)
            results.append({"success": True, "event_type": "order_created", "order_type": order_type})
    return results


def market_time(minute: float) -> str:
    """HH:MM of the market's own clock."""
    at = OPEN_MINUTE + int(minute)
    return f"{at // 60:02d}:{at % 60:02d}"
