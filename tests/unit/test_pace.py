"""At most so many a second: the clock is the test's."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.pace import BURST_SECONDS, Pace


def spend_all(pace: Pace, now: float) -> int:
    """Whatever may happen now happens."""
    count = int(pace.left(now))
    pace.spend(count)
    return count


def test_without_a_number_any_number_may_happen() -> None:
    pace = Pace(0)
    pace.spend(10**9)

    assert pace.left(0) == math.inf


def test_a_tenth_of_a_second_comes_at_once_and_the_rest_as_time_passes() -> None:
    pace = Pace(2000)

    assert spend_all(pace, 100) == 200
    assert spend_all(pace, 100) == 0
    assert spend_all(pace, 100.01) == 20


def test_time_in_which_nothing_happens_is_not_saved_up() -> None:
    pace = Pace(2000)
    spend_all(pace, 100)

    assert spend_all(pace, 5000) == 200


def test_a_slow_pace_lets_one_through_at_a_time() -> None:
    pace = Pace(1)

    assert [spend_all(pace, now) for now in (0, 0.5, 1.0, 1.5, 2.0)] == [1, 0, 1, 0, 1]


@given(per_second=st.integers(1, 10_000), steps=st.lists(st.floats(0, 0.3, allow_nan=False), min_size=1, max_size=50))
def test_no_more_than_so_many_happen_in_any_time(per_second: int, steps: list[float]) -> None:
    pace, now, happened = Pace(per_second), 0.0, 0
    for step in steps:
        now += step
        happened += spend_all(pace, now)

    assert happened <= now * per_second + max(1, per_second * BURST_SECONDS) + 1e-6


@pytest.mark.parametrize("per_second", [1, 10, 2000])
def test_whoever_waits_as_long_as_told_may_go_on_and_is_counted(per_second: int) -> None:
    pace = Pace(per_second)
    spend_all(pace, 0)
    seconds = pace.delay_seconds()

    assert 0 < seconds <= 1
    assert pace.left(seconds * 1.000001) >= 1
    assert pace.delayed == 1
