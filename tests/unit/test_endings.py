"""Streams that end by the clock, or because what they were opened with counts no more."""

import json
from collections import Counter

import pytest
from msgspec.structs import replace

from core.errors import TallywireError, Unauthorized
from core.expiry import LOOK_SECONDS, Expiries
from core.hub import LOOKS_A_STEP
from core.journal.base import RevocationRecord
from core.models import Revocation
from core.principal import Principal
from core.revocations import Revocations
from core.sse import EventParser, ServerSentEvent
from core.subscriber import stream_options
from tests.unit.world import FakeConnection, World

PLAIN = stream_options(chunked=False)


class Reader:
    """A stream whose token ends at a Unix second, and what it has been told."""

    def __init__(self, world: World, expires_at: float | None, user_id: int = 7, issued_at: float = 0.5) -> None:
        self.connection = FakeConnection(user_id, PLAIN)
        principal = Principal(user_id, None, issued_at, expires_at)
        self.refusals: list[TallywireError] = world.open(self.connection, (3,), None, principal)
        world.commit()

    @property
    def events(self) -> list[ServerSentEvent]:
        """All of them, from the first on."""
        return EventParser().feed(self.connection.sent.decode().encode())

    @property
    def retry_ms(self) -> int:
        """After which it is to come back, by what it was told last."""
        parser = EventParser()
        parser.feed(bytes(self.connection.sent))
        assert parser.retry_ms is not None
        return parser.retry_ms

    @property
    def names(self) -> list[str]:
        """Of the events."""
        return [event.event for event in self.events]


def pass_time(world: World, seconds: float, *, wall_seconds: float | None = None) -> None:
    """Both clocks go on, the wall clock by something else when somebody sets it; then what is due is done."""
    world.now += seconds
    world.now_ms += int((seconds if wall_seconds is None else wall_seconds) * 1000)
    world.run_timers()


def test_a_stream_is_warned_once_and_ends_with_its_token() -> None:
    world = World()
    reader = Reader(world, 201.0)
    for _ in range(13):
        pass_time(world, 10)
    assert reader.names == ["stream_open"]

    for _ in range(6):
        pass_time(world, 10)
    assert reader.names == ["stream_open", "stream_expiring"]
    assert json.loads(reader.events[1].data)["data"] == {"expires_at": "1970-01-01T00:03:21.000Z", "seconds_left": 60}

    for _ in range(2):
        pass_time(world, 10)
    assert reader.names == ["stream_open", "stream_expiring", "stream_closing"]
    assert json.loads(reader.events[2].data)["data"] == {"reason": "token_expired", "reconnect": True}
    assert world.hub.closed == Counter(token_expired=1)
    world.close()


def test_a_stream_with_little_time_is_warned_at_once() -> None:
    world = World()
    reader = Reader(world, 31.0)
    pass_time(world, 1)

    assert reader.names == ["stream_open", "stream_expiring"]
    world.close()


def test_a_wall_clock_that_is_set_forwards_ends_what_has_ended() -> None:
    world = World()
    reader = Reader(world, 10_000.0)
    pass_time(world, 1, wall_seconds=20_000)
    pass_time(world, LOOK_SECONDS)

    assert reader.names == ["stream_open", "stream_closing"]
    world.close()


def test_streams_without_a_token_or_gone_before_its_end_are_not_looked_at() -> None:
    world = World()
    endless, gone = Reader(world, None), Reader(world, 101.0)
    gone.connection.close("client_closed")
    for _ in range(20):
        pass_time(world, 10)

    assert endless.names == ["stream_open"]
    assert gone.names == ["stream_open"]
    assert not len(world.hub._expiries)
    world.close()


def test_a_blocked_stream_ends_with_its_token_once_it_reads() -> None:
    world = World()
    reader = Reader(world, 31.0)
    reader.connection.let_in(0)
    world.emit_now(7, 3)
    for _ in range(4):
        pass_time(world, 10)
    reader.connection.let_in(None)

    assert reader.names == ["stream_open", "order_batch_update", "stream_closing"]
    world.close()


def test_streams_rotate_at_their_age_a_fifth_more_or_less() -> None:
    world = World(max_age_seconds=1000)
    readers = [Reader(world, None, user_id) for user_id in range(1, 101)]
    for _ in range(7_900):
        pass_time(world, 0.1)
    assert not world.hub.closed, "nobody before four fifths of it"

    for _ in range(4_300):
        pass_time(world, 0.1)
    assert world.hub.closed == Counter(rotation=100)
    assert {tuple(reader.names) for reader in readers} == {("stream_open", "stream_closing")}
    world.close()


def test_expiries_are_due_in_order_and_never_further_ahead_than_a_look() -> None:
    expiries = Expiries()
    first, second, far = (FakeConnection(7, PLAIN) for _ in range(3))
    expiries.add(second, 10.0, 4.2)
    expiries.add(first, 10.0, 0)
    expiries.add(far, 10.0, 10_000)

    assert expiries.take_due(9.9) == []
    assert expiries.take_due(14.9) == [first]
    assert expiries.take_due(15) == [second]
    assert expiries.take_due(10 + LOOK_SECONDS) == [far]
    expiries.discard(far)


def test_what_is_left_of_those_that_are_due_stays_due_until_it_is_discarded() -> None:
    expiries = Expiries()
    first, second, third, fourth = subscribers = [FakeConnection(7, PLAIN) for _ in range(4)]
    for seconds, subscriber in zip((1, 2, 2, 2), subscribers, strict=True):
        expiries.add(subscriber, 10.0, seconds)

    assert expiries.take_due(12, 2) == [first, second]
    assert list(expiries.due(12)) == [third, fourth]
    expiries.discard(third)
    assert expiries.take_due(12, 2) == [fourth]
    assert not len(expiries)


def test_tokens_that_end_together_are_handled_in_portions() -> None:
    world = World()
    readers = [Reader(world, 201.0, user_id) for user_id in range(1, 2 * LOOKS_A_STEP + 11)]
    for _ in range(14):
        pass_time(world, 10)
        pass_time(world, 0)
        pass_time(world, 0)
    assert {tuple(reader.names) for reader in readers} == {("stream_open", "stream_expiring")}
    readers[-1].connection.close("client_closed")

    ended = []
    pass_time(world, 70)
    for _ in range(4):
        ended.append(world.hub.closed["token_expired"])
        pass_time(world, 0)
    assert ended == [LOOKS_A_STEP, 2 * LOOKS_A_STEP, 2 * LOOKS_A_STEP + 9, 2 * LOOKS_A_STEP + 9]
    assert not len(world.hub._expiries)

    late = Reader(world, 231.0)
    pass_time(world, 1)
    assert late.names == ["stream_open", "stream_expiring"], "those that come later are looked at"
    world.close()


def test_streams_whose_tokens_end_together_come_back_at_about_so_many_a_second() -> None:
    world = World()
    world.hub.limits = replace(world.hub.limits, reconnects_per_second=20, retry_ms=100)
    readers = [Reader(world, 31.0, user_id) for user_id in range(1, 401)]
    staying = [Reader(world, 10_000.0, user_id) for user_id in range(1, 401)]
    for _ in range(40):
        pass_time(world, 2)
    assert world.hub.closed == Counter(token_expired=400)

    retries = sorted(reader.retry_ms for reader in readers)
    usual_ms, spread_ms = 150, 20_000
    assert retries[-1] <= usual_ms + spread_ms
    assert 0.7 * spread_ms / 2 - usual_ms < retries[300] - retries[100] < 1.3 * spread_ms / 2 + usual_ms
    # Of a later portion as well as of the first.
    assert max(reader.retry_ms for reader in readers[-LOOKS_A_STEP:]) > spread_ms / 2
    assert {tuple(reader.names) for reader in staying} == {("stream_open",)}
    world.close()


def test_a_token_that_ends_alone_is_not_spread_because_others_are_looked_at() -> None:
    world = World()
    world.hub.limits = replace(world.hub.limits, reconnects_per_second=20, retry_ms=100)
    others = [Reader(world, 10_000.0, user_id) for user_id in range(1, 401)]
    alone = Reader(world, 61.0)
    # A slot for all of them.
    for reader in (*others, alone):
        world.hub._expiries.discard(reader.connection)
        world.hub._expiries.add(reader.connection, 0, 60)
    for _ in range(6):
        pass_time(world, 60 if alone.names == ["stream_open"] else 0)

    assert alone.names[-1] == "stream_closing"
    assert alone.retry_ms <= 150 + 1000 / 20
    world.close()


# ---- revocations


@pytest.mark.parametrize(
    ("record", "concerned"),
    [
        ((7, 0), {"named", "other strategy", "every one"}),
        ((7, 3), {"named", "every one"}),
        ((0, 3), {"named", "other user", "every one"}),
        ((8, 0), {"other user"}),
        ((8, 5), set()),
    ],
)
def test_a_revocation_concerns_what_was_granted_before(record: tuple[int, int], concerned: set[str]) -> None:
    revocations = Revocations([RevocationRecord(*record, 5_000, 9_000)])
    grants: dict[str, tuple[int, tuple[int, ...] | None]] = {
        "named": (7, (3, 4)),
        "other strategy": (7, (4,)),
        "other user": (8, (3,)),
        "every one": (7, None),
    }

    def concern(issued_at: float | None) -> set[str]:
        return {
            name
            for name, (user_id, strategies) in grants.items()
            if revocations.concern(Principal(user_id, None, issued_at), strategies, counted={3})
        }

    assert concern(4.9) == concern(5.0) == concerned
    assert concern(5.001) == set()
    assert concern(None) == set(), "whoever grants it anew each time refuses it"


def test_every_strategy_is_not_refused_for_one_that_the_user_has_not_counted_in() -> None:
    revocations = Revocations([RevocationRecord(0, 9, 5_000, 9_000)])

    assert not revocations.concern(Principal(7, None, 1.0), None, counted={3})
    assert revocations.concern(Principal(7, None, 1.0), None, counted={3, 9})


def test_a_clock_that_was_set_back_takes_no_revocation_back_and_what_has_ended_is_forgotten() -> None:
    revocations = Revocations([RevocationRecord(7, 0, 5_000, 9_000)])
    revocations.add(RevocationRecord(7, 0, 4_000, 8_000))
    assert revocations.concern(Principal(7, None, 4.5), (3,))

    revocations.add(RevocationRecord(7, 3, 10_000, 19_000))
    assert not revocations.concern(Principal(7, None, 4.5), (4,))


def test_a_stream_that_is_being_opened_while_it_is_revoked_does_not_open() -> None:
    world = World()
    connection = FakeConnection(7, PLAIN)
    revoked = world.start(world.hub.revoke(Revocation(user_id=7)))
    refusals = world.open(connection, (3,), None, Principal(7, None, 0.5, None))
    world.commit()

    assert revoked.result().closed == 0
    assert [type(refusal) for refusal in refusals] == [Unauthorized]
    assert not connection.sent
    world.close()
