"""One connection's marks and state: what it has been told, what it is owed, and whether it can be told. Pure.

Everything that a stream delivers leaves through `Subscriber.bring_up_to_date`: live delivery, slow clients, resume
and coalescing differ only in when it is called. A connection is brought up to date as a whole, over all its keys.

States of a connection::

    OPENING ──> READY <──> BLOCKED        BLOCKED: the kernel took a part only; the unsent rest leaves first
       │          │           │
       └──────────┴─────┬─────┘
                        v
                     CLOSING ──> CLOSED   CLOSING: the last bytes are on their way; nothing else is written

and from each of them straight to CLOSED when the transport is lost.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from functools import cache, partial
from itertools import takewhile
from typing import Literal, Self, TypeVar

from msgspec import UNSET, Struct

from core.counters import StreamCounters
from core.models import (
    ControlEvent,
    OrderBatchUpdate,
    Shape,
    Strategies,
    StreamHeartbeat,
    StreamInfo,
    UpdateData,
    iso_timestamp,
)
from core.sse import COMMENT_HEARTBEAT, LAST_CHUNK, chunk, encode_catch_up, encode_control, encode_update
from core.totals import Difference, Row, count, difference, write_position

MAX_SHARED_FRAMES = 16
"""Encoded frames that a stream key keeps for its head. One is the rule; a reconnect storm brings a handful of
positions. Bounds the memory that clients with 10,000 different positions could make a key keep."""

CloseReason = Literal[
    "client_closed",  # the client closed its side
    "client_sent_data",  # bytes behind the GET: not a client of ours
    "reset",  # the peer's kernel refused
    "stalled",  # nothing was read for stall_seconds, or the peer vanished
    "draining",  # the server ended
    "busy",  # it could not be opened for load
    "rotation",  # it had been open for long enough
    "token_expired",  # the token that it was opened with has ended
    "revoked",  # what it was opened with counts no more
    "strategy_deleted",  # a strategy of it is no more
    "account_deactivated",  # its user is no more
    "fault",  # a mistake of the server; the client resumes without loss
]


_T = TypeVar("_T")


class ConnectionLost(Exception):
    """The transport can take nothing any more."""

    def __init__(self, reason: CloseReason) -> None:
        super().__init__(reason)
        self.reason: CloseReason = reason


class State(Enum):
    OPENING = "opening"
    READY = "ready"
    BLOCKED = "blocked"
    CLOSING = "closing"
    CLOSED = "closed"


_MOVES: dict[State, frozenset[State]] = {
    State.OPENING: frozenset({State.READY, State.CLOSING, State.CLOSED}),
    State.READY: frozenset({State.BLOCKED, State.CLOSING, State.CLOSED}),
    State.BLOCKED: frozenset({State.READY, State.CLOSING, State.CLOSED}),
    State.CLOSING: frozenset({State.CLOSED}),
    State.CLOSED: frozenset(),
}


_OWED = (State.READY, State.BLOCKED)
"""What is published is owed to a connection in these."""


class StreamOptions(Struct, frozen=True, eq=False):
    """How a stream wants its frames. Equal options are the same object: they are compared on every frame."""

    shape: Shape
    with_totals: bool
    event_heartbeat: bool
    chunked: bool

    def framed(self, block: bytes) -> bytes:
        """`block` as it goes on the wire: HTTP/1.0 clients get the same bytes without chunk framing."""
        return chunk(block) if self.chunked else block

    def framed_last(self, block: bytes) -> bytes:
        """`block` and the end of the body."""
        return chunk(block) + LAST_CHUNK if self.chunked else block


@cache
def stream_options(
    shape: Shape = "envelope",
    with_totals: bool = False,
    event_heartbeat: bool = False,
    chunked: bool = True,
) -> StreamOptions:
    """The one object for these options."""
    return StreamOptions(shape, with_totals, event_heartbeat, chunked)


class Frame(Struct, frozen=True, gc=False):
    """What brings a stream up to date, as bytes. `counts` and `batches`: how many are in it, of all its keys, by what
    was encoded and not by the totals, which they are checked against."""

    data: bytes
    counts: int
    batches: int
    is_catch_up: bool = False


NO_FRAME = Frame(b"", 0, 0)

_NOBODYS = StreamCounters()
"""Of connections that are not registered: nobody reads it."""


def for_each(items: Iterable[_T], act: Callable[[_T], object]) -> None:
    """`act` on all of them, whatever happens with one. Raises at the end what was raised, several as a group."""
    failures: list[Exception] = []
    for item in items:
        try:
            act(item)
        except Exception as error:
            failures.append(error)
    if failures:
        raise failures[0] if len(failures) == 1 else ExceptionGroup(f"{len(failures)} times", failures)


class StreamKey:
    """The published head of one stream key, and the connections registered under it by name.

    `alone` and `at_head` are the `keys` and the up-to-date `marks` of every connection that follows this key only:
    shared by all of them, so that a connection does not keep two mappings of its own.
    """

    __slots__ = ("_frames", "alone", "at_head", "head", "strategy_id", "subscribers")

    def __init__(self, head: Row) -> None:
        self.strategy_id = head.strategy_id
        self.head = head
        self.subscribers: dict[Subscriber, None] = {}
        self.alone = {head.strategy_id: self}
        self.at_head = {head.strategy_id: head}
        self._frames: dict[tuple[int, StreamOptions], Frame] | None = None

    def publish(self, row: Row) -> None:
        """Move the head to a committed row."""
        self.head = row
        self.at_head = {row.strategy_id: row}
        self._frames = None

    def shared_frame(self, after: int, options: StreamOptions, encode: Callable[[], Frame]) -> Frame:
        """The frame from `after` to the head: encoded for the first who needs it, shared by the others.

        The totals at a position are a fact, so equal `after` and equal options mean equal bytes.
        """
        frame = None if self._frames is None else self._frames.get((after, options))
        if frame is None:
            if self._frames is None or len(self._frames) >= MAX_SHARED_FRAMES:
                self._frames = {}
            frame = self._frames[after, options] = encode()
        return frame

    def bring_up_to_date(self, listeners: Sequence["Subscriber"]) -> None:
        """`Subscriber.bring_up_to_date` for each of them, the comparison made once for those that stand alike.

        Of a thousand connections on one key nearly all follow that key only, from the same position, with the same
        options: what the first of them was owed is what the next one is owed. A third of a microsecond of Python a
        frame instead of five, beside six for the system call. It gives nothing up: whoever follows more takes the long
        way.
        """
        alone, n, is_ready = self.alone, self.head.n, State.READY
        is_one = len(listeners) == 1
        after, options = -1, None
        alike: list[Subscriber] = []
        others: list[Subscriber] = []
        for listener in listeners:
            if listener.keys is not alone or listener.state is not is_ready:
                others.append(listener)
            elif listener.n == after and listener.options is options:
                alike.append(listener)
            elif listener.n < n:
                self._write_alike(alike, is_one=is_one)
                after, options = listener.n, listener.options
                alike = [listener]
        self._write_alike(alike, is_one=is_one)
        # The last: whoever finds that one of these cannot be told anything must not find the others still behind.
        for listener in others:
            listener.bring_up_to_date()

    def _write_alike(self, listeners: Sequence["Subscriber"], *, is_one: bool) -> None:
        """Bring those up to date that follow this key only, and stand READY at one position behind it with the same
        options. `is_one`: nobody else needs the frame."""
        if not listeners:
            return
        first = listeners[0]
        encode = partial(first.encode_alone, self)
        frame = encode() if is_one else self.shared_frame(first.n, first.options, encode)
        n, at_head = self.head.n, self.at_head
        for listener in listeners:
            listener.n = n
            listener.marks = at_head
        first.count_written(frame, len(listeners))
        first.hand_over_to_each(listeners, frame.data, frame.counts)


class Subscriber:
    """One open stream. A transport subclasses it with `transmit`, `watch_writable` and `release`.

    `keys` are the stream keys that it follows, by strategy: its own, or with `follows_all` the user's, which grow and
    stand in order of publication, the newest last. `n` is the place of the position that it has been brought
    up to; `marks` are the rows of its keys there (those of a stream of one key are shared). A key without a mark
    started after `n`. `prologue` goes before the first event, whichever that will be.
    """

    __slots__ = (
        "_ending",
        "_unsent",
        "_unsent_counts",
        "address",
        "counters",
        "ends_at",
        "epoch",
        "expires_at",
        "follows_all",
        "heartbeat_slot",
        "keys",
        "look_at",
        "marks",
        "n",
        "on_closed",
        "opened_at",
        "options",
        "prologue",
        "state",
        "user_id",
    )

    def __init__(self, user_id: int, options: StreamOptions) -> None:
        self.user_id = user_id
        self.options = options
        self.state = State.OPENING
        self.address = ""
        """IP address of the client, where streams are counted by it or a proxy has told it; else empty."""
        self.heartbeat_slot = 0
        self.opened_at = 0.0
        """Monotonic seconds at the first event."""
        self.ends_at = math.inf
        """Monotonic seconds from which on it is to make room for a fresh one."""
        self.expires_at = math.inf
        """Unix seconds at which the token ends that it was opened with."""
        self.look_at = 0
        """See `core.expiry`."""
        self.epoch = ""
        self.n = 0
        self.keys: dict[int, StreamKey] = {}
        self.follows_all = False
        self.marks: dict[int, Row] = {}
        self.on_closed: Callable[[Subscriber, CloseReason], None] | None = None
        self.counters = _NOBODYS
        self.prologue = b""
        self._unsent: memoryview | None = None
        self._unsent_counts = 0
        """Counts whose frame has not left to its last byte."""
        self._ending: CloseReason = "fault"
        """Why it is CLOSING."""

    def transmit(self, data: bytes | memoryview) -> int:
        """Hand bytes to the kernel; answers how many it took, 0 when it takes none now.

        Raises ConnectionLost.
        """
        raise NotImplementedError

    def watch_writable(self, wanted: bool) -> None:
        """Start or stop calling `continue_sending` when the transport can take bytes again."""
        raise NotImplementedError

    def release(self) -> None:
        """Give the transport back. Called once."""
        raise NotImplementedError

    def peer(self) -> str:
        """Who is at the other end, for an operator's eyes."""
        raise NotImplementedError

    @property
    def position(self) -> str:
        """The position that this stream has been brought up to."""
        return write_position(self.epoch, self.n)

    @property
    def has_ended(self) -> bool:
        """Nothing further will be written, the rest of the last bytes aside."""
        return self.state in (State.CLOSING, State.CLOSED)

    @property
    def is_owed(self) -> bool:
        """What is published from now on is owed to it: it has begun, and has not been told to go."""
        return self.state in _OWED

    @property
    def unsent_bytes(self) -> int:
        """The rest of the last frame that the kernel has not taken yet."""
        return 0 if self._unsent is None else len(self._unsent)

    def behind(self) -> list[StreamKey]:
        """The keys whose head is past this stream's position: lagging is derived, never stored."""
        n = self.n
        if not self.follows_all:
            return [key for key in self.keys.values() if key.head.n > n]
        return list(takewhile(lambda key: key.head.n > n, reversed(self.keys.values())))

    def strategies(self) -> Strategies:
        """What it carries, as the wire says it."""
        return "*" if self.follows_all else tuple(sorted(self.keys))

    def heads(self) -> dict[int, Row]:
        """The heads of its keys now, to be marks."""
        if len(self.keys) == 1:
            (key,) = self.keys.values()
            if key.alone is self.keys:
                return key.at_head
        return {strategy_id: key.head for strategy_id, key in self.keys.items()}

    def behind_batches(self) -> int:
        """How many batches of its keys it has not been sent yet."""
        return sum(key.head.number - self._mark(key).number for key in self.behind())

    def pending_counts(self) -> int:
        """How many counts it is owed and has not been sent: by its marks, and in what the kernel has not taken yet.

        Before it has begun, and after its farewell, what is published is not owed to it.
        """
        counts = self._unsent_counts
        if self.state not in _OWED:
            return counts
        # `behind` and `_mark` without their calls: a scrape asks 10,000 connections in one step of the loop.
        n, marks, in_order = self.n, self.marks, self.follows_all
        for key in reversed(self.keys.values()) if in_order else self.keys.values():
            head = key.head
            if head.n > n:
                mark = marks.get(key.strategy_id)
                counts += head.totals.counts - (0 if mark is None else mark.totals.counts)
            elif in_order:
                break
        return counts

    def unsent_since_ms(self) -> int | None:
        """When the first of what it has not been sent was accepted, Unix ms, or somewhat later; None: it has all.

        Later, because a merged frame, and a head that has moved several times, tell of their last batch only.
        """
        if self._unsent_counts:
            n = self.n
            for row in self.marks.values():
                if row.n == n:
                    return row.accepted_ms
        return min((key.head.accepted_ms for key in self.behind()), default=None)

    def owed(self) -> list[Difference]:
        """What it has not been sent yet, by strategy."""
        behind = sorted(self.behind(), key=lambda key: key.strategy_id)
        return [difference(key.head, self._mark(key)) for key in behind]

    def begin(self, opening: bytes, n: int, marks: dict[int, Row]) -> None:
        """Leave OPENING: write the first event, then whatever was published since `n`."""
        if self.state is not State.OPENING:
            raise AssertionError(f"{self.state} has begun")
        self.n = n
        self.marks = marks
        self._move(State.READY)
        self.counters.counts_owed += self.pending_counts()
        self.send(self.prologue + opening)
        self.prologue = b""
        self.bring_up_to_date()

    def bring_up_to_date(self) -> None:
        """The one act. Does nothing unless the stream is READY and a key of it has moved."""
        if self.state is State.READY and (behind := self.behind()):
            frame = self._take(behind)
            self.count_written(frame, 1)
            self.hand_over(frame.data, frame.counts)

    def heartbeat(self, now_ms: int) -> None:
        """Show that the stream is alive. Nothing is written to one that is not READY: it would only queue."""
        if self.options.event_heartbeat:
            beat = StreamHeartbeat(self.position, iso_timestamp(now_ms))
            self.send(encode_framed_control(beat, self.options))
        else:
            self.send(self.options.framed(COMMENT_HEARTBEAT))

    def send(self, data: bytes) -> None:
        """Write what carries no counts. Nothing is written unless the stream is READY."""
        if self.state is State.READY:
            self.counters.controls += 1
            self.counters.sent_bytes += len(data)
            self.hand_over(data, 0)

    def hand_over(self, data: bytes, counts: int) -> None:
        """Write on a stream that is known to be READY, and keep what the kernel does not take."""
        try:
            outcome: int | CloseReason = self.transmit(data)
        except ConnectionLost as lost:
            outcome = lost.reason
        except BaseException:
            # The marks have moved and nobody knows what left. Only the client does: let it resume.
            self.settle(data, counts, "fault")
            raise
        self.settle(data, counts, outcome)

    def hand_over_to_each(self, streams: Sequence[Self], data: bytes, counts: int) -> None:
        """`hand_over` for all of these, which are of one user. What goes wrong with one is raised when all have had it.

        A transport that can write to many at once overrides it.
        """
        for_each(streams, lambda stream: stream.hand_over(data, counts))

    def settle(self, data: bytes, counts: int, outcome: int | CloseReason) -> None:
        """The kernel has been handed this, and has taken so many bytes; or why the transport can take nothing more."""
        if outcome == len(data):
            self.counters.counts_delivered += counts
            return
        self._unsent_counts = counts
        if not isinstance(outcome, int):
            self.close(outcome)
            return
        try:
            self._unsent = memoryview(data)[outcome:]
            self._move(State.BLOCKED)
            self.watch_writable(True)
        except BaseException:
            self.close("fault")
            raise

    def count_written(self, frame: Frame, times: int) -> None:
        """This frame has been written so often, to this stream or to others of its user."""
        counters = self.counters
        if frame.is_catch_up:
            counters.catch_ups += times
        else:
            counters.updates += times
        counters.sent_bytes += times * len(frame.data)
        if frame.batches > 1:
            counters.batches_merged += times * frame.batches

    def continue_sending(self) -> None:
        """The transport takes bytes again: send the rest, then everything missed meanwhile as one frame."""
        rest = self._unsent
        if rest is None:
            return
        try:
            taken = self.transmit(rest)
        except ConnectionLost as lost:
            self.close(lost.reason)
            return
        except BaseException:
            self.close("fault")
            raise
        if taken < len(rest):
            self._unsent = rest[taken:]
            return
        self._unsent = None
        self.counters.counts_delivered += self._unsent_counts
        self._unsent_counts = 0
        if self.state is State.CLOSING:
            self.close(self._ending)
            return
        self._move(State.READY)
        self.watch_writable(False)
        self.bring_up_to_date()

    def finish(self, farewell: bytes, reason: CloseReason) -> None:
        """End the stream from our side: what is unsent, what is owed, then `farewell`, then the end.

        A stream that is still OPENING is owed nothing yet and gets its prologue and the farewell.
        """
        if self.has_ended:
            return
        try:
            unsent = self.prologue if self._unsent is None else bytes(self._unsent)
            behind = [] if self.state is State.OPENING else self.behind()
            owed = NO_FRAME
            if behind:
                owed = self._take(behind)
                self.count_written(owed, 1)
            self._move(State.CLOSING)
            self._ending = reason
            self._unsent = memoryview(unsent + owed.data + farewell)
            self._unsent_counts += owed.counts
            self.counters.controls += 1
            self.counters.sent_bytes += len(farewell)
            self.watch_writable(True)
            self.continue_sending()
        except BaseException:
            # Also when its last frame cannot be made: whoever is told to go may have nothing to read here any more.
            self.close("fault")
            raise

    def close(self, reason: CloseReason) -> None:
        """End the stream at once; harmless when it has ended."""
        if self.state is State.CLOSED:
            return
        self.counters.counts_abandoned += self.pending_counts()
        self._move(State.CLOSED)
        self._unsent = None
        self._unsent_counts = 0
        self.release()
        if self.on_closed is not None:
            self.on_closed(self, reason)

    def _move(self, to: State) -> None:
        if to not in _MOVES[self.state]:
            raise AssertionError(f"{self.state} -> {to}")
        self.state = to

    def _take(self, behind: list[StreamKey]) -> Frame:
        """The frame that brings this stream up to date, its marks moved: whoever takes it must send it."""
        frame = self._frame(behind)
        self.n = self._last(behind)
        self.marks = self._marks_with(behind)
        return frame

    def _marks_with(self, behind: list[StreamKey]) -> dict[int, Row]:
        if self.keys is behind[0].alone:
            return behind[0].at_head
        self.marks.update((key.strategy_id, key.head) for key in behind)
        return self.marks

    def _mark(self, key: StreamKey) -> Row:
        return self.marks.get(key.strategy_id) or Row.before_the_first(self.user_id, key.strategy_id)

    @staticmethod
    def _last(behind: Iterable[StreamKey]) -> int:
        # The id of a merged frame is its last batch: the first would be counted again on resume, and anything
        # above the last would skip a batch that another key of this stream has not been told yet.
        return max(key.head.n for key in behind)

    def encode_alone(self, key: StreamKey) -> Frame:
        """The frame that brings it up to date when it is behind in this key only."""
        owed = difference(key.head, self._mark(key))
        update = self._update(owed, self.position)
        data = self.options.framed(encode_update(update, self.options.shape, write_position(self.epoch, key.head.n)))
        return Frame(data, count(owed.summaries), owed.batches)

    def _frame(self, behind: list[StreamKey]) -> Frame:
        if len(behind) == 1:
            return behind[0].shared_frame(self.n, self.options, partial(self.encode_alone, behind[0]))
        after, last = self.position, write_position(self.epoch, self._last(behind))
        owed = self.owed()
        updates = tuple(self._update(each, after) for each in owed)
        return Frame(
            self.options.framed(encode_catch_up(updates, after, self.options.shape, last)),
            sum(count(each.summaries) for each in owed),
            sum(each.batches for each in owed),
            is_catch_up=True,
        )

    def _update(self, owed: Difference, after: str) -> OrderBatchUpdate:
        totals = owed.totals.summaries if self.options.with_totals else UNSET
        return OrderBatchUpdate(
            UpdateData(owed.summaries, iso_timestamp(owed.accepted_ms)),
            StreamInfo(owed.strategy_id, after, owed.batches, totals),
        )


def encode_framed_control(
    control: ControlEvent,
    options: StreamOptions,
    *,
    event_id: str | None = None,
    retry_ms: int | None = None,
) -> bytes:
    """A control event as it goes on the wire of a stream with these options."""
    return options.framed(encode_control(control, options.shape, event_id=event_id, retry_ms=retry_ms))
