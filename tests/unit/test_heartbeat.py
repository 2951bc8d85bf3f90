"""The wheel: every stream once a turn, not all at once."""

from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.heartbeat import SLOTS, HeartbeatWheel
from core.subscriber import Subscriber, stream_options

LARGEST = 1 - 2**-53
"""The largest number that `random` can answer."""


def stream() -> Subscriber:
    return Subscriber(7, stream_options())


def steps_until_due(wheel: HeartbeatWheel, subscriber: Subscriber) -> int:
    return next(step for step in range(1, 2 * SLOTS) if subscriber in wheel.advance())


@given(st.lists(st.tuples(st.floats(0, LARGEST), st.integers(0, SLOTS)), min_size=1, max_size=20))
def test_each_stream_beats_exactly_once_a_turn_whenever_it_came(arrivals: list[tuple[float, int]]) -> None:
    jitters = iter([jitter for jitter, _pause in arrivals])
    wheel = HeartbeatWheel(lambda: next(jitters))
    streams = []
    for _jitter, pause in arrivals:
        for _ in range(pause):
            wheel.advance()
        streams.append(stream())
        wheel.add(streams[-1])

    for _turn in range(3):
        beats = Counter(due for _ in range(SLOTS) for due in wheel.advance())
        assert beats == Counter(streams)


@pytest.mark.parametrize("already", [0, 1, SLOTS - 1, SLOTS, 5 * SLOTS + 7])
@pytest.mark.parametrize("random", [0.0, 0.3, 0.5, 0.99, LARGEST])
def test_the_first_beat_comes_within_a_turn_and_then_once_a_turn(already: int, random: float) -> None:
    wheel = HeartbeatWheel(lambda: random)
    for _ in range(already):
        wheel.advance()
    subscriber = stream()
    wheel.add(subscriber)

    assert 1 <= steps_until_due(wheel, subscriber) <= SLOTS
    # From then on a full period, or clients that expect one would think the stream dead.
    assert [steps_until_due(wheel, subscriber) for _ in range(3)] == [SLOTS] * 3


def test_a_crowd_that_comes_at_once_is_spread_over_the_whole_turn() -> None:
    randoms = iter([(index + 0.5) / 1500 for index in range(1500)])
    wheel = HeartbeatWheel(lambda: next(randoms))
    for _ in range(1500):
        wheel.add(stream())

    assert [len(wheel.advance()) for _ in range(SLOTS)] == [1500 // SLOTS] * SLOTS


def test_a_discarded_stream_beats_no_more_and_the_others_go_on() -> None:
    wheel = HeartbeatWheel(lambda: 0.0)
    gone, stays = stream(), stream()
    wheel.add(gone)
    wheel.add(stays)

    wheel.discard(gone)

    assert [due for _ in range(2 * SLOTS) for due in wheel.advance()] == [stays, stays]


def test_discarding_what_never_beat_is_harmless() -> None:
    wheel = HeartbeatWheel(lambda: 0.0)
    stays = stream()
    wheel.add(stays)

    wheel.discard(stream())
    wheel.discard(stays)
    wheel.discard(stays)

    assert not any(wheel.advance() for _ in range(SLOTS))


def test_streams_may_be_discarded_while_those_that_are_due_are_served() -> None:
    wheel = HeartbeatWheel(lambda: 0.0)
    crowd = [stream() for _ in range(10)]
    for subscriber in crowd:
        wheel.add(subscriber)

    def beats() -> Iterator[Subscriber]:
        for _ in range(SLOTS):
            for due in wheel.advance():
                # A heartbeat that cannot be written closes its stream, which discards it.
                wheel.discard(due)
                yield due

    assert list(beats()) == crowd
