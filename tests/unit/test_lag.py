"""How late the loop is, on a clock and a loop of the test."""

from collections.abc import Callable

import pytest

from core.lag import RECENT_SAMPLES, SAMPLE_SECONDS, LoopLag


class Loop:
    """Calls back when the test says so, as late as the test says."""

    def __init__(self) -> None:
        self.now = 0.0
        self.due: list[tuple[float, Callable[[], None]]] = []

    def call_later(self, seconds: float, function: Callable[[], None]) -> None:
        self.due.append((self.now + seconds, function))

    def run(self, late_seconds: float = 0) -> None:
        ((at, function),) = self.due
        self.due.clear()
        self.now = at + late_seconds
        function()


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def lag(loop: Loop) -> LoopLag:
    lag = LoopLag(loop.call_later, lambda: loop.now)
    lag.start()
    return lag


def test_nothing_is_known_before_the_first_sample(lag: LoopLag) -> None:
    assert (lag.recent_max_seconds, lag.max_seconds) == (0, 0)


def test_a_loop_on_time_or_a_little_early_has_no_lag(loop: Loop, lag: LoopLag) -> None:
    loop.run()
    loop.run(-SAMPLE_SECONDS / 100)

    assert (lag.recent_max_seconds, lag.max_seconds) == (0, 0)


def test_a_step_that_holds_the_loop_is_one_sample_of_its_length(loop: Loop, lag: LoopLag) -> None:
    loop.run(3)
    loop.run()

    assert lag.recent_max_seconds == pytest.approx(3)
    assert lag.max_seconds == pytest.approx(3)


def test_the_largest_stays_and_the_recent_one_goes(loop: Loop, lag: LoopLag) -> None:
    loop.run(3)
    for _ in range(RECENT_SAMPLES):
        loop.run(0.001)

    assert lag.recent_max_seconds == pytest.approx(0.001)
    assert lag.max_seconds == pytest.approx(3)
