"""The day of the demo: its rhythm, its orders, and that it is the same again."""

from collections import Counter

import pytest

from core.commands.orders import DAY_MINUTES, PlannedBatch, activity, day_of_batches, market_time

DAY = list(day_of_batches(seed=7, users=5, batches_per_minute=8))


def between(first: float, last: float) -> int:
    return sum(batch.orders for batch in DAY if first <= batch.minute / DAY_MINUTES < last)


def test_a_day_has_the_rhythm_of_one() -> None:
    opening, noon, closing = between(0, 0.1), between(0.45, 0.55), between(0.9, 1)

    assert opening > 2.5 * noon
    assert closing > 2 * noon
    assert activity(0) > activity(DAY_MINUTES) > activity(DAY_MINUTES / 2) > 0


def test_batches_come_in_order_within_the_day_and_for_several_users_and_strategies() -> None:
    minutes = [batch.minute for batch in DAY]

    assert minutes == sorted(minutes)
    assert 0 <= minutes[0] <= minutes[-1] < DAY_MINUTES
    assert {batch.user_id for batch in DAY} == {1, 2, 3, 4, 5}
    assert {batch.strategy_id for batch in DAY} == {1, 2, 3, 4}
    assert (market_time(0), market_time(DAY_MINUTES)) == ("09:30", "16:00")


def test_nothing_is_cancelled_that_was_not_created() -> None:
    resting: Counter[tuple[int, int, str]] = Counter()
    types = set()
    for batch in DAY:
        assert 1 <= len(batch.batch_results) <= 24
        for result in batch.batch_results:
            if result["success"]:
                key = batch.user_id, batch.strategy_id, str(result["order_type"])
                resting[key] += 1 if result["event_type"] == "order_created" else -1
                assert resting[key] >= 0
                types.add(key[2])

    assert types == {"LIMIT", "MARKET", "STOP_LIMIT", "STOP_MARKET"}


@pytest.mark.parametrize("seed", [1, 7])
def test_the_same_seed_is_the_same_day(seed: int) -> None:
    def day(seed: int) -> list[PlannedBatch]:
        return list(day_of_batches(seed, 3, 2))

    assert day(seed) == day(seed) != day(seed + 1)
