"""One connection: its states, what it owes its client, the unsent rest, and the frames it shares with others."""

import json
import random
from collections.abc import Callable, Collection, Sequence
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct

from core.models import Summary
from core.registry import Registry, User
from core.sse import COMMENT_HEARTBEAT, LAST_CHUNK, EventParser, ServerSentEvent, chunk
from core.subscriber import (
    MAX_SHARED_FRAMES,
    CloseReason,
    State,
    StreamKey,
    StreamOptions,
    stream_options,
)
from core.totals import Row
from tests.unit.world import FakeConnection

EPOCH = "1k7q2m9x4v0ce"
PLAIN = stream_options(chunked=False)
OPENING, FAREWELL = b"<opening>", b"<farewell>"
NO_ROOM = 0


class Line(FakeConnection):
    """A fake connection that also remembers the very objects that it was handed, and how it ended."""

    def __init__(self, options: StreamOptions = PLAIN) -> None:
        super().__init__(7, options)
        self.epoch = EPOCH
        self.handed: list[bytes | memoryview] = []
        self.is_faulty = False
        self.endings: list[CloseReason] = []
        self.on_closed = lambda _subscriber, reason: self.endings.append(reason)

    def transmit(self, data: bytes | memoryview) -> int:
        self.handed.append(data)
        if self.is_faulty:
            raise OSError("no memory")
        return super().transmit(data)

    def take_sent(self) -> bytes:
        """What has been sent since this was last asked."""
        sent = bytes(self.sent)
        self.sent.clear()
        return sent


class OneUser:
    """The hub's part: one user, its batches, its connections."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.user = User(7, 0, [])
        self.rows: list[Row] = []
        """Every row of the user, the oldest first."""

    def add(
        self, line: Line, strategies: tuple[int, ...] | None = (3,), at: int | None = None, begin: bool = True
    ) -> Line:
        """Register a connection and, unless it is to stay OPENING, begin it at a position: the head by default."""
        self.registry.add(line, self.user, strategies)
        if begin:
            n = self.user.n if at is None else at
            line.begin(OPENING, n, line.heads() if n == self.user.n else self.marks(line.keys, n))
        return line

    def marks(self, strategies: Collection[int], n: int) -> dict[int, Row]:
        """The rows of these keys at a position."""
        return {row.strategy_id: row for row in self.rows if row.n <= n and row.strategy_id in strategies}

    def publish(self, strategy_id: int = 3, *summaries: Summary) -> StreamKey:
        """Accept a batch without telling anybody; one LIMIT created by default."""
        head = self.user.key(strategy_id).head
        row = head.next(self.user.n + 1, 1_000, summaries or (Summary("LIMIT", 1, 0),))
        self.rows.append(row)
        return self.user.publish(row)

    def emit(self, strategy_id: int = 3, *summaries: Summary) -> None:
        """Accept a batch and bring everyone who listens up to date."""
        key = self.publish(strategy_id, *summaries)
        key.bring_up_to_date(self.user.listeners(key))


def events(sent: bytes) -> list[ServerSentEvent]:
    return EventParser().feed(sent.removeprefix(OPENING).removesuffix(FAREWELL))


def line_in(state: State, one_user: OneUser | None = None) -> Line:
    """A connection of strategy 3 in this state, with nothing sent yet that a test would mistake for its own."""
    one_user = one_user or OneUser()
    line = one_user.add(Line(), begin=state is not State.OPENING)
    if state in (State.BLOCKED, State.CLOSING):
        line.room = NO_ROOM
        if state is State.BLOCKED:
            line.send(b"<rest>")
        else:
            line.finish(b"<rest>", "draining")
    elif state is State.CLOSED:
        line.close("client_closed")
        line.endings.clear()
    line.take_sent()
    assert line.state is state
    return line


# ---- the transition table

LEGAL = {
    (State.OPENING, State.READY),
    (State.OPENING, State.CLOSING),
    (State.OPENING, State.CLOSED),
    (State.READY, State.BLOCKED),
    (State.READY, State.CLOSING),
    (State.READY, State.CLOSED),
    (State.BLOCKED, State.READY),
    (State.BLOCKED, State.CLOSING),
    (State.BLOCKED, State.CLOSED),
    (State.CLOSING, State.CLOSED),
}


@pytest.mark.parametrize(("start", "to"), product(State, State), ids=lambda state: state.value)
def test_a_connection_makes_every_legal_move_and_no_other(start: State, to: State) -> None:
    line = Line()
    line.state = start

    if (start, to) in LEGAL:
        line._move(to)
        assert line.state is to
    else:
        with pytest.raises(AssertionError, match=f"{start} -> {to}"):
            line._move(to)
        assert line.state is start


def finish(line: Line) -> None:
    line.finish(FAREWELL, "draining")


def close(line: Line) -> None:
    line.close("reset")


def send(line: Line) -> None:
    line.send(b"<sent>")


def make_room(line: Line) -> None:
    line.room = None
    line.continue_sending()


def lose_the_peer_and_send(line: Line) -> None:
    line.is_gone = True
    line.send(b"<lost>")
    line.continue_sending()


ACTS: list[tuple[Callable[[Line], None], dict[State, tuple[State, bytes, list[CloseReason]]]]] = [
    (
        send,
        {
            State.OPENING: (State.OPENING, b"", []),
            State.READY: (State.READY, b"<sent>", []),
            State.BLOCKED: (State.BLOCKED, b"", []),
            State.CLOSING: (State.CLOSING, b"", []),
            State.CLOSED: (State.CLOSED, b"", []),
        },
    ),
    (
        lambda line: line.heartbeat(0),
        {
            State.OPENING: (State.OPENING, b"", []),
            State.READY: (State.READY, COMMENT_HEARTBEAT, []),
            State.BLOCKED: (State.BLOCKED, b"", []),
            State.CLOSING: (State.CLOSING, b"", []),
            State.CLOSED: (State.CLOSED, b"", []),
        },
    ),
    (
        make_room,
        {
            State.OPENING: (State.OPENING, b"", []),
            State.READY: (State.READY, b"", []),
            State.BLOCKED: (State.READY, b"<rest>", []),
            State.CLOSING: (State.CLOSED, b"<rest>", ["draining"]),
            State.CLOSED: (State.CLOSED, b"", []),
        },
    ),
    (
        finish,
        {
            # Nothing is owed before the first event.
            State.OPENING: (State.CLOSED, FAREWELL, ["draining"]),
            State.READY: (State.CLOSED, FAREWELL, ["draining"]),
            # No room: what is unsent and the farewell wait for it.
            State.BLOCKED: (State.CLOSING, b"", []),
            State.CLOSING: (State.CLOSING, b"", []),
            State.CLOSED: (State.CLOSED, b"", []),
        },
    ),
    (
        close,
        {
            State.OPENING: (State.CLOSED, b"", ["reset"]),
            State.READY: (State.CLOSED, b"", ["reset"]),
            State.BLOCKED: (State.CLOSED, b"", ["reset"]),
            State.CLOSING: (State.CLOSED, b"", ["reset"]),
            State.CLOSED: (State.CLOSED, b"", []),
        },
    ),
    (
        lose_the_peer_and_send,
        {
            State.OPENING: (State.OPENING, b"", []),
            State.READY: (State.CLOSED, b"", ["reset"]),
            State.BLOCKED: (State.CLOSED, b"", ["reset"]),
            State.CLOSING: (State.CLOSED, b"", ["reset"]),
            State.CLOSED: (State.CLOSED, b"", []),
        },
    ),
]


@pytest.mark.parametrize(
    ("act", "state", "after"),
    [(act, state, after) for act, outcomes in ACTS for state, after in outcomes.items()],
)
def test_what_happens_to_a_connection_in_each_state(
    act: Callable[[Line], None], state: State, after: tuple[State, bytes, list[CloseReason]]
) -> None:
    line = line_in(state)

    act(line)

    assert (line.state, line.take_sent(), line.endings) == after
    assert line.is_released == (line.state is State.CLOSED)
    assert line.has_ended == (line.state in (State.CLOSING, State.CLOSED))


@pytest.mark.parametrize("state", [State.READY, State.CLOSING, State.CLOSED])
def test_a_stream_begins_only_once(state: State) -> None:
    line = line_in(state)

    with pytest.raises(AssertionError):
        line.begin(OPENING, 0, {})
    assert line.take_sent() == b""


@pytest.mark.parametrize("state", [State.OPENING, State.BLOCKED, State.CLOSING, State.CLOSED])
def test_only_a_ready_stream_is_brought_up_to_date(state: State) -> None:
    one_user = OneUser()
    line = line_in(state, one_user)

    one_user.emit()
    line.bring_up_to_date()

    assert line.take_sent() == b""
    assert line.n == 0


def test_closing_gives_the_transport_back_once_and_forgets_the_rest() -> None:
    line = line_in(State.BLOCKED)
    assert line.unsent_bytes == len(b"<rest>")

    line.close("stalled")
    line.close("reset")

    assert line.endings == ["stalled"]
    assert line.is_released
    assert line.unsent_bytes == 0


def test_a_stream_may_close_before_anybody_wants_to_know() -> None:
    line = Line()
    line.on_closed = None

    line.close("client_closed")

    assert line.state is State.CLOSED


def test_a_peer_that_is_gone_at_the_first_bytes_is_told_nothing_more() -> None:
    one_user = OneUser()
    line = Line()
    line.is_gone = True
    one_user.publish()

    one_user.add(line, at=0)

    assert line.state is State.CLOSED
    assert len(line.handed) == 1


# ---- the first bytes


def test_a_stream_begins_with_its_opening_and_then_what_was_published_since() -> None:
    one_user = OneUser()
    one_user.publish(3, Summary("LIMIT", 1, 0))
    one_user.publish(3, Summary("LIMIT", 0, 2))

    line = one_user.add(Line(), at=0)

    assert line.sent.startswith(OPENING)
    (event,) = events(line.take_sent())
    assert event.last_event_id == line.position == f"{EPOCH}-2"
    assert json.loads(event.data)["data"]["summaries"] == [{"order_type": "LIMIT", "created": 1, "cancelled": 2}]
    assert json.loads(event.data)["stream"] == {"strategy_id": 3, "after": f"{EPOCH}-0", "batches": 2}


def test_a_stream_that_begins_at_the_head_is_sent_its_opening_only() -> None:
    one_user = OneUser()
    one_user.publish()

    assert one_user.add(Line()).take_sent() == OPENING


def test_the_prologue_goes_before_the_first_event_and_nowhere_else() -> None:
    one_user = OneUser()
    line = Line()
    line.prologue = b"<prologue>"
    one_user.publish()

    one_user.add(line, at=0)
    line.finish(FAREWELL, "draining")

    sent = line.take_sent()
    assert sent.startswith(b"<prologue>" + OPENING)
    assert sent.endswith(FAREWELL)
    assert sent.count(b"<prologue>") == 1


def test_what_is_published_while_the_opening_cannot_leave_follows_it() -> None:
    one_user = OneUser()
    line = Line()
    line.room = 4
    one_user.add(line)
    one_user.emit()
    assert line.take_sent() == OPENING[:4]

    line.let_in(None)

    sent = line.take_sent()
    assert sent.startswith(OPENING[4:])
    assert [event.last_event_id for event in events(sent[len(OPENING) - 4 :])] == [f"{EPOCH}-1"]


# ---- being behind


def strategies_of(keys: Sequence[StreamKey]) -> list[int]:
    return sorted(key.strategy_id for key in keys)


@pytest.mark.parametrize(
    ("followed", "at", "behind"),
    [
        ((3,), 5, []),
        ((3,), 4, []),
        ((3,), 3, [3]),
        ((3,), 0, [3]),
        ((6,), 0, []),
        ((3, 4), 5, []),
        ((3, 4), 4, [4]),
        ((3, 4), 0, [3, 4]),
        ((5, 6), 1, []),
        (None, 5, []),
        (None, 4, [4]),
        (None, 3, [3, 4]),
        (None, 0, [3, 4, 5]),
    ],
)
def test_the_keys_behind_are_those_whose_head_is_past_the_position(
    followed: tuple[int, ...] | None, at: int, behind: list[int]
) -> None:
    one_user = OneUser()
    for strategy_id in (5, 3, 4, 3, 4):
        one_user.publish(strategy_id)
    line = one_user.add(Line(), followed, begin=False)
    line.n, line.marks = at, one_user.marks(line.keys, at)

    assert strategies_of(line.behind()) == behind
    assert line.behind_batches() == sum(row.n > at and row.strategy_id in behind for row in one_user.rows)


def test_a_follower_of_everything_is_told_of_a_key_that_nobody_had_named() -> None:
    one_user = OneUser()
    one_user.publish(3)
    line = one_user.add(Line(), None)
    one_user.add(Line(), (8,))

    one_user.emit(9, Summary("MARKET", 2, 0))

    (event,) = events(line.take_sent())
    assert json.loads(event.data)["stream"]["strategy_id"] == 9
    assert not line.behind()


def test_what_is_owed_is_the_difference_of_each_key_by_strategy() -> None:
    one_user = OneUser()
    one_user.publish(4, Summary("LIMIT", 5, 0))
    line = one_user.add(Line(), (3, 4))
    one_user.publish(4, Summary("LIMIT", 1, 1))
    one_user.publish(3, Summary("MARKET", 2, 0))
    one_user.publish(4, Summary("STOP_LIMIT", 0, 1))

    three, four = line.owed()

    assert (three.strategy_id, three.batches, three.summaries) == (3, 1, (Summary("MARKET", 2, 0),))
    assert (four.strategy_id, four.batches) == (4, 2)
    assert four.summaries == (Summary("LIMIT", 1, 1), Summary("STOP_LIMIT", 0, 1))


def test_one_key_behind_is_an_update_and_several_are_one_catch_up() -> None:
    one_user = OneUser()
    line = one_user.add(Line(), (3, 4, 5))
    one_user.publish(4)
    one_user.emit(3)
    one_user.emit(5)

    catch_up, update = events(line.take_sent())

    assert (catch_up.event, catch_up.last_event_id) == ("order_batch_catch_up", f"{EPOCH}-2")
    assert [one["stream"]["strategy_id"] for one in json.loads(catch_up.data)["updates"]] == [3, 4]
    assert json.loads(catch_up.data)["after"] == f"{EPOCH}-0"
    assert (update.event, update.last_event_id) == ("order_batch_update", f"{EPOCH}-3")
    assert json.loads(update.data)["stream"]["after"] == f"{EPOCH}-2"


@pytest.mark.parametrize("followed", [(3, 4), None], ids=["several", "everything"])
def test_after_a_catch_up_each_key_owes_only_what_came_later(followed: tuple[int, ...] | None) -> None:
    one_user = OneUser()
    line = one_user.add(Line(), followed)
    one_user.publish(4, Summary("LIMIT", 1, 0))
    one_user.emit(3, Summary("LIMIT", 2, 0))
    line.take_sent()

    one_user.emit(3, Summary("LIMIT", 30, 0))
    one_user.emit(4, Summary("LIMIT", 40, 0))

    updates = [json.loads(event.data) for event in events(line.take_sent())]
    assert [update["stream"]["batches"] for update in updates] == [1, 1]
    assert [update["data"]["summaries"][0]["created"] for update in updates] == [30, 40]


def test_a_stream_that_is_up_to_date_is_sent_nothing() -> None:
    one_user = OneUser()
    line = one_user.add(Line())
    one_user.emit()
    line.take_sent()

    line.bring_up_to_date()
    one_user.user.keys[3].bring_up_to_date([line])

    assert line.take_sent() == b""


def test_the_options_decide_the_shape_the_totals_and_the_framing() -> None:
    one_user = OneUser()
    plain, flat, totals, chunked = (
        one_user.add(Line(options))
        for options in (
            PLAIN,
            stream_options(shape="flat", chunked=False),
            stream_options(with_totals=True, chunked=False),
            stream_options(),
        )
    )
    for line in (plain, flat, totals, chunked):
        line.take_sent()
    one_user.emit()
    one_user.emit()

    bodies = [json.loads(events(bytes(line.sent))[1].data) for line in (plain, flat, totals)]
    assert list(bodies[0]) == ["type", "data", "stream"]
    assert list(bodies[1]) == ["summaries", "timestamp", "stream"]
    assert bodies[2]["stream"].pop("totals") == [{"order_type": "LIMIT", "created": 2, "cancelled": 0}]
    assert bodies[2] == bodies[0]
    assert chunked.sent == b"".join(chunk(bytes(frame)) for frame in plain.handed[1:])


def test_the_last_bytes_of_a_chunked_body_end_it() -> None:
    assert stream_options(chunked=True).framed_last(b"bye") == chunk(b"bye") + LAST_CHUNK
    assert stream_options(chunked=False).framed_last(b"bye") == b"bye"


# ---- heartbeats


def test_an_event_heartbeat_states_the_last_position_written_to_this_stream() -> None:
    one_user = OneUser()
    line = one_user.add(Line(stream_options(event_heartbeat=True, chunked=False)))
    one_user.emit()
    one_user.publish()
    line.take_sent()

    line.heartbeat(1761827696789)

    (event,) = events(line.take_sent())
    assert event.event == "stream_heartbeat"
    assert json.loads(event.data)["data"] == {"position": f"{EPOCH}-1", "timestamp": "2025-10-30T12:34:56.789Z"}
    assert event.last_event_id == "", "a heartbeat has no id"


@pytest.mark.parametrize(("chunked", "sent"), [(False, b":\n"), (True, b"2\r\n:\n\r\n")])
def test_the_default_heartbeat_is_a_comment(chunked: bool, sent: bytes) -> None:
    line = OneUser().add(Line(stream_options(chunked=chunked)))
    line.take_sent()

    line.heartbeat(0)

    assert line.take_sent() == sent


# ---- the unsent rest


def test_a_partial_send_keeps_one_rest_and_nothing_is_written_until_it_has_left() -> None:
    one_user = OneUser()
    line = one_user.add(Line())
    line.take_sent()
    line.room = 10
    one_user.emit()
    frame = line.handed[-1]
    handed = len(line.handed)
    assert (line.state, line.unsent_bytes, line.is_watched) == (State.BLOCKED, len(frame) - 10, True)

    one_user.emit()
    one_user.emit()
    line.heartbeat(0)
    line.send(b"<not now>")
    assert len(line.handed) == handed, "nothing is written while a rest waits"

    for room in (1, 0, 7):
        line.room = room
        line.continue_sending()
    assert (line.state, line.unsent_bytes, line.is_watched) == (State.BLOCKED, len(frame) - 18, True)
    assert line.take_sent() == frame[:18]

    line.let_in(None)
    assert (line.state, line.unsent_bytes, line.is_watched) == (State.READY, 0, False)
    sent = line.take_sent()
    assert sent.startswith(frame[18:])
    (merged,) = events(sent[len(frame) - 18 :])
    assert merged.last_event_id == f"{EPOCH}-3"
    assert json.loads(merged.data)["stream"]["batches"] == 2


def test_a_kernel_that_takes_nothing_leaves_the_whole_frame_as_the_rest() -> None:
    one_user = OneUser()
    line = one_user.add(Line())
    line.room = NO_ROOM

    one_user.emit()

    assert line.state is State.BLOCKED
    assert line.unsent_bytes == len(line.handed[-1])


def test_a_merged_frame_that_does_not_fit_becomes_the_next_rest() -> None:
    one_user = OneUser()
    line = one_user.add(Line())
    line.room = NO_ROOM
    one_user.emit()
    one_user.emit()
    rest = line.unsent_bytes

    line.let_in(rest + 5)

    assert line.state is State.BLOCKED
    assert line.is_watched
    assert line.unsent_bytes == len(line.handed[-1]) - 5
    line.let_in(None)
    assert [event.last_event_id for event in events(line.take_sent())] == [f"{EPOCH}-1", f"{EPOCH}-2"]


def test_the_rest_does_not_grow_with_what_is_missed() -> None:
    one_user = OneUser()
    line = one_user.add(Line())
    line.room = NO_ROOM
    one_user.emit()
    unsent = line.unsent_bytes

    for _ in range(100):
        one_user.emit()

    assert line.unsent_bytes == unsent


@pytest.mark.parametrize("others", [0, 2], ids=["alone", "behind others alike"])
def test_a_frame_that_a_fault_kept_from_leaving_does_not_count_as_sent(others: int) -> None:
    one_user = OneUser()
    healthy = [one_user.add(Line()) for _ in range(others)]
    line = one_user.add(Line())
    line.is_faulty = True

    with pytest.raises(OSError, match="no memory"):
        one_user.emit()

    # The marks have moved, and nobody knows what left: only the client can say, when it resumes.
    assert (line.state, line.endings) == (State.CLOSED, ["fault"])
    assert all(not other.behind() and other.state is State.READY for other in healthy)


def test_a_fault_while_the_rest_is_sent_ends_the_stream() -> None:
    line = line_in(State.BLOCKED)
    line.is_faulty = True

    with pytest.raises(OSError, match="no memory"):
        line.continue_sending()

    assert (line.state, line.endings) == (State.CLOSED, ["fault"])


# ---- the end


def test_finishing_sends_what_is_unsent_then_what_is_owed_then_the_farewell() -> None:
    one_user = OneUser()
    line = one_user.add(Line())
    line.room = NO_ROOM
    one_user.emit()
    one_user.emit()
    one_user.emit()

    line.finish(FAREWELL, "draining")
    assert (line.state, line.is_watched) == (State.CLOSING, True)
    assert not line.is_released
    line.let_in(3)
    assert line.state is State.CLOSING
    line.let_in(None)

    sent = bytes(line.sent)
    assert sent.endswith(FAREWELL)
    assert [event.last_event_id for event in events(sent)] == [f"{EPOCH}-1", f"{EPOCH}-3"]
    assert (line.state, line.endings, line.is_released) == (State.CLOSED, ["draining"], True)


def test_finishing_a_ready_stream_that_lags_brings_it_up_to_date_first() -> None:
    one_user = OneUser()
    line = one_user.add(Line(), (3, 4))
    one_user.publish(3)
    one_user.publish(4)
    line.take_sent()

    line.finish(FAREWELL, "draining")

    sent = line.take_sent()
    assert sent.endswith(FAREWELL)
    assert [(event.event, event.last_event_id) for event in events(sent)] == [("order_batch_catch_up", f"{EPOCH}-2")]
    assert line.position == f"{EPOCH}-2"


@pytest.mark.parametrize("reason", ["draining", "fault"])
@pytest.mark.parametrize("state", [State.OPENING, State.READY, State.BLOCKED])
def test_a_stream_ends_for_the_reason_it_was_finished_with(state: State, reason: CloseReason) -> None:
    line = line_in(state)

    line.finish(FAREWELL, reason)
    line.let_in(None)

    assert line.endings == [reason]


def test_a_stream_that_was_never_begun_is_told_farewell_and_nothing_that_was_published() -> None:
    one_user = OneUser()
    line = one_user.add(Line(), begin=False)
    line.prologue = b"<prologue>"
    one_user.emit()

    line.finish(FAREWELL, "draining")

    assert line.take_sent() == b"<prologue>" + FAREWELL


def test_nothing_is_written_behind_the_farewell() -> None:
    one_user = OneUser()
    line = one_user.add(Line())
    line.room = NO_ROOM
    line.finish(FAREWELL, "draining")

    one_user.emit()
    line.heartbeat(0)
    line.finish(b"<another>", "fault")
    line.let_in(None)

    assert line.take_sent() == OPENING + FAREWELL


# ---- shared frames


def frames(line: Line) -> list[bytes | memoryview]:
    return line.handed[1:]


def test_streams_alike_are_handed_the_identical_bytes() -> None:
    one_user = OneUser()
    lines = [one_user.add(Line()) for _ in range(3)]

    one_user.emit()
    one_user.emit()

    for first, second in ((lines[0], lines[1]), (lines[0], lines[2])):
        assert [one is other for one, other in zip(frames(first), frames(second), strict=True)] == [True, True]


@pytest.mark.parametrize("followed", [(3, 4), None], ids=["several", "everything"])
def test_a_stream_of_more_keys_shares_the_frame_of_the_one_that_moved(followed: tuple[int, ...] | None) -> None:
    one_user = OneUser()
    alone, other = one_user.add(Line()), one_user.add(Line(), followed)

    one_user.emit()

    assert frames(alone)[0] is frames(other)[0]


def test_streams_with_other_options_are_handed_frames_of_their_own() -> None:
    one_user = OneUser()
    options = [
        stream_options(shape, totals, beats, chunked)
        for shape, totals, beats, chunked in product(("envelope", "flat"), (False, True), (False, True), (False, True))
    ]
    pairs = [(one_user.add(Line(each)), one_user.add(Line(each))) for each in options]

    one_user.emit()

    assert len({id(frames(line)[0]) for line, _twin in pairs}) == len(options)
    assert all(frames(line)[0] is frames(twin)[0] for line, twin in pairs)


def test_equal_options_are_the_same_object() -> None:
    assert stream_options("flat", True, False, True) is stream_options("flat", True, False, True)
    assert stream_options("flat") is not stream_options("envelope")


def test_streams_at_other_positions_are_handed_frames_of_their_own() -> None:
    one_user = OneUser()
    for _ in range(3):
        one_user.publish()
    lines = [one_user.add(Line(), at=at) for at in (0, 1, 2, 1)]

    sent = [frames(line)[0] for line in lines]

    assert sent[1] is sent[3]
    assert len({id(frame) for frame in sent}) == 3
    assert [json.loads(events(bytes(frame))[0].data)["stream"]["batches"] for frame in sent] == [3, 2, 1, 2]


def test_a_frame_is_forgotten_when_the_head_moves() -> None:
    one_user = OneUser()
    one_user.publish(3, Summary("LIMIT", 1, 0))
    one_user.add(Line(), at=0)
    one_user.publish(3, Summary("LIMIT", 5, 0))

    late = one_user.add(Line(), at=0)

    (event,) = events(late.take_sent())
    assert json.loads(event.data)["data"]["summaries"][0]["created"] == 6


def test_a_key_keeps_a_bounded_number_of_frames_however_many_positions_come_back() -> None:
    one_user = OneUser()
    for _ in range(5 * MAX_SHARED_FRAMES):
        one_user.publish()
    key = one_user.user.keys[3]
    assert key._frames is None, "whatever is kept is kept for the head only"

    kept = []
    for at in range(5 * MAX_SHARED_FRAMES):
        one_user.add(Line(), at=at)
        kept.append(len(key._frames or ()))

    assert max(kept) == MAX_SHARED_FRAMES
    assert min(kept) > 0


def test_a_single_key_stream_keeps_no_mapping_of_its_own() -> None:
    one_user = OneUser()
    one_user.publish()
    lines = [one_user.add(Line()), one_user.add(Line(), at=0), one_user.add(Line())]
    key = one_user.user.keys[3]
    assert all(line.marks is key.at_head for line in lines)

    one_user.emit()

    assert all(line.keys is key.alone for line in lines)
    assert all(line.marks is key.at_head for line in lines)


@pytest.mark.parametrize("followed", [(3, 4), None], ids=["several", "everything"])
def test_a_stream_of_more_keys_is_not_taken_for_one_of_a_single_key(followed: tuple[int, ...] | None) -> None:
    one_user = OneUser()
    one_user.publish(4)
    one_user.publish(3)
    lines = [one_user.add(Line()), one_user.add(Line(), followed), one_user.add(Line())]
    one_user.publish(4)
    one_user.emit(3)

    assert [[event.event for event in events(bytes(line.sent))] for line in lines] == [
        ["order_batch_update"],
        ["order_batch_catch_up"],
        ["order_batch_update"],
    ]
    assert sorted(lines[1].marks) == [3, 4]


# ---- many at once


class Stand(Struct, frozen=True):
    """A connection as the property draws it."""

    options: StreamOptions
    strategies: tuple[int, ...] | None
    behind: int
    state: State
    room: int | None
    is_gone: bool


STANDS = st.builds(
    Stand,
    st.sampled_from([PLAIN, PLAIN, PLAIN, stream_options(), stream_options("flat", with_totals=True, chunked=False)]),
    st.sampled_from([(3,), (3,), (3,), (4,), (3, 4), None]),
    st.sampled_from([0, 0, 1, 2, 9]),
    st.sampled_from([State.READY] * 5 + [State.OPENING, State.BLOCKED, State.CLOSING, State.CLOSED]),
    st.sampled_from([None, None, None, 5, 200, 400]),
    st.sampled_from([False] * 9 + [True]),
)


def crowd(stands: Sequence[Stand], history: Sequence[int]) -> tuple[OneUser, list[Line]]:
    """The connections of `stands` after the batches of `history`, the last of which nobody has been told."""
    one_user, lines = OneUser(), []
    for strategy_id in history[:-1]:
        one_user.publish(strategy_id)
    for stand in stands:
        line = one_user.add(Line(stand.options), stand.strategies, begin=False)
        if stand.state is not State.OPENING:
            line.begin(OPENING, one_user.user.n, line.heads())
            line.n = max(0, one_user.user.n - stand.behind)
            line.marks = one_user.marks(line.keys, line.n)
        if stand.state in (State.BLOCKED, State.CLOSING):
            line.room = NO_ROOM
            if stand.state is State.BLOCKED:
                line.send(b"<rest>")
            else:
                line.finish(FAREWELL, "draining")
        elif stand.state is State.CLOSED:
            line.close("client_closed")
        line.room = NO_ROOM if line.state in (State.BLOCKED, State.CLOSING) else stand.room
        line.is_gone = stand.is_gone
        lines.append(line)
    one_user.publish(history[-1])
    return one_user, lines


def seen(line: Line) -> tuple[object, ...]:
    return bytes(line.sent), line.state, line.n, line.marks, line.unsent_bytes, line.is_watched, line.endings


@settings(max_examples=200, deadline=None)
@given(
    st.lists(STANDS, max_size=8),
    st.lists(st.sampled_from([3, 3, 4, 5]), min_size=1, max_size=6),
    st.randoms(use_true_random=False),
)
def test_bringing_a_key_up_to_date_is_bringing_up_each_of_its_connections(
    stands: list[Stand], history: list[int], order: random.Random
) -> None:
    together, one_by_one = crowd(stands, history), crowd(stands, history)
    turns = [order.sample(range(len(stands)), len(stands)) for _ in range(2)]

    for turn in turns:
        key = together[0].user.key(history[-1])
        key.bring_up_to_date([together[1][index] for index in turn])
        for index in turn:
            one_by_one[1][index].bring_up_to_date()
        # The second time after another batch: what the first left behind is now owed on top.
        for one_user, _lines in (together, one_by_one):
            one_user.publish(history[-1], Summary("MARKET", 0, 1))

    assert [seen(line) for line in together[1]] == [seen(line) for line in one_by_one[1]]
