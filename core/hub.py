"""The use cases: emit a batch, open a stream, drain. The only place where commits become frames.

Order of things, per committed batch and in one step of the loop: publish its head, write to its connections until
the step's time is spent, resolve its answer. Connections that were not reached lag, by definition, and are served in
later steps, round robin over stream keys. Nothing here knows a socket, a driver of the journal, or Tornado.
"""

import asyncio
import logging
import random
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import islice

from msgspec import UNSET, Struct
from msgspec.structs import replace

from core.aggregation import Aggregation
from core.errors import (
    Busy,
    Draining,
    FieldProblem,
    InvalidIdempotencyKey,
    InvalidResults,
    StrategyIdMissing,
    TallywireError,
    TooManyResults,
)
from core.heartbeat import SLOTS, HeartbeatWheel
from core.journal.base import Commit, Entry, IdempotencyKey, Journal, Load, Outcome, Recorded
from core.models import (
    Accepted,
    BatchResult,
    ConnectionFacts,
    ConnectionsReport,
    KeyFacts,
    OrderBatchEvent,
    ResetReason,
    Skipped,
    Strategies,
    StrategyTotals,
    StreamClosing,
    StreamOpen,
    StreamReset,
    iso_timestamp,
)
from core.registry import Registry, User
from core.sse import LAST_CHUNK
from core.subscriber import (
    CloseReason,
    State,
    StreamKey,
    StreamOptions,
    Subscriber,
    encode_framed_control,
)
from core.totals import Position, Row

MAX_RESULTS = 10_000
"""Results of one batch."""

MAX_WAITING_BYTES = 64 * 2**20
"""Emits that wait for their commit, as bodies. Beyond it new calls are told to come back: memory stays bounded when
the journal is slower than the callers."""

STEP_SECONDS = 0.002
"""How long one step may publish and write before others on the loop get their turn."""

COUNT_PORTION = 256
"""Results counted between two looks at the clock: about 0.2 ms."""

WRITES_BETWEEN_LOOKS = 64
"""Connections written to between two looks at the clock: about half a millisecond."""

MAX_IDEMPOTENCY_KEY = 128

SLOWEST_LISTED = 20

_log = logging.getLogger("tallywire.stream")

Answer = Accepted | Skipped | TallywireError


class HubLimits(Struct, frozen=True):
    """What the hub is allowed and how it paces itself; the settings of the same names say more."""

    heartbeat_seconds: float
    retry_ms: int
    coalesce_ms: int
    max_connections: int


class EmitCall(Commit):
    """One call of an order service: its batches are committed together and answered together, in their order."""

    __slots__ = ("answers", "caller", "places", "resolved", "size_bytes")

    def __init__(self, caller: str, size_bytes: int) -> None:
        super().__init__()
        self.caller = caller
        self.size_bytes = size_bytes
        self.answers: list[Answer | None] = []
        self.places: list[_Place] = []
        """For each entry, which answer it will give and what that answer repeats from the request."""
        self.resolved: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def answer(self, answer: Answer) -> None:
        """Answer the next batch without the journal."""
        self.answers.append(answer)


class _Place(Struct, frozen=True, gc=False):
    index: int
    invalid: tuple[FieldProblem, ...]
    idempotency_key: str | None


class _UserLoad(Load):
    __slots__ = ("loaded",)

    def __init__(self, user_id: int) -> None:
        super().__init__(user_id)
        self.loaded: asyncio.Future[User] = asyncio.get_running_loop().create_future()


class _FanOut:
    """One pass over the connections of a stream key. `again`: the head moved on behind the pass."""

    __slots__ = ("again", "key", "next", "targets")

    def __init__(self, key: StreamKey, targets: list[Subscriber]) -> None:
        self.key = key
        self.targets = targets
        self.next = 0
        self.again = False


class Slices:
    """Lets long work on the loop breathe: `breathe` gives way when the slice is used up."""

    def __init__(self, clock: Callable[[], float], seconds: float = STEP_SECONDS) -> None:
        self._clock = clock
        self._seconds = seconds
        self._until = clock() + seconds

    async def breathe(self) -> None:
        """Give way to everything else that is due, if this slice is used up."""
        if self._clock() > self._until:
            await asyncio.sleep(0)
            self._until = self._clock() + self._seconds


class Hub:
    """Emits in, frames out.

    `call_soon` and `call_later` schedule on the loop, `clock` is monotonic seconds, `now_ms` Unix milliseconds.
    """

    def __init__(
        self,
        journal: Journal,
        limits: HubLimits,
        *,
        call_soon: Callable[[Callable[[], None]], object],
        call_later: Callable[[float, Callable[[], None]], object],
        clock: Callable[[], float] = time.perf_counter,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self.journal = journal
        self.limits = limits
        self.registry = Registry()
        self.closed: Counter[str] = Counter()
        """Ended streams by reason, since the start."""
        self.is_draining = False
        self._call_soon = call_soon
        self._call_later = call_later
        self._clock = clock
        self._now_ms = now_ms
        self._wheel = HeartbeatWheel(random.random)
        self._inbox: deque[Iterator[None]] = deque()
        """Publications in the order of the journal, each a sequence of steps."""
        self._fan_outs: OrderedDict[StreamKey, _FanOut] = OrderedDict()
        self._on_closed = self._forget
        """The one bound method that all subscribers share: one each would be 64 bytes a connection."""
        self._is_scheduled = False
        self._waiting_bytes = 0
        self._calls_in_flight = 0
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._is_empty = asyncio.Event()

    def start(self) -> None:
        """Begin to take deliveries from the journal and to beat."""
        self.journal.start(self._deliver)
        self._beat()

    # Emit.

    @contextmanager
    def call(self, caller: str, size_bytes: int = 0) -> Iterator[EmitCall]:
        """A call to put batches into, then to `commit`. Raises Busy and Draining."""
        if self.is_draining:
            raise Draining
        if self._waiting_bytes + size_bytes > MAX_WAITING_BYTES:
            raise Busy(f"{self._waiting_bytes} bytes of emits wait for their commit.")
        self._waiting_bytes += size_bytes
        self._calls_in_flight += 1
        self._is_idle.clear()
        try:
            yield EmitCall(caller, size_bytes)
        finally:
            self._waiting_bytes -= size_bytes
            self._calls_in_flight -= 1
            if not self._calls_in_flight:
                self._is_idle.set()

    async def emit_order_batch_update(
        self,
        user_id: int,
        strategy_id: int | None,
        batch_results: Iterable[BatchResult | FieldProblem],
        *,
        call: EmitCall,
        slices: Slices | None = None,
        idempotency_key: str | None = None,
    ) -> None:
        """Count a batch and put it into `call`; its answer stands in `call.answers` after the commit.

        `batch_results` may be lazy: it is read in portions, with `slices` giving way in between.
        """
        aggregation = Aggregation()
        results = iter(batch_results)
        while portion := list(islice(results, COUNT_PORTION)):
            aggregation.add(portion)
            if slices is not None:
                await slices.breathe()
            if aggregation.seen > MAX_RESULTS:
                call.answer(TooManyResults(aggregation.seen + sum(1 for _ in results), MAX_RESULTS))
                return
        if not strategy_id:
            call.answer(StrategyIdMissing())
            return
        summaries = aggregation.summaries
        if not summaries and aggregation.invalid:
            call.answer(InvalidResults(tuple(aggregation.invalid)))
            return
        self.emit_order_batch_event(
            OrderBatchEvent(summaries, strategy_id, user_id, self._now_ms()),
            call=call,
            ignored=aggregation.ignored,
            invalid=tuple(aggregation.invalid),
            idempotency_key=idempotency_key,
        )

    def emit_order_batch_event(
        self,
        event: OrderBatchEvent,
        *,
        call: EmitCall,
        ignored: int = 0,
        invalid: tuple[FieldProblem, ...] = (),
        idempotency_key: str | None = None,
    ) -> None:
        """Put a counted batch into `call`, to be routed by `(user_id, strategy_id)`.

        A missing strategy is blocked and empty summaries are skipped: neither reaches the journal.
        """
        if not event.strategy_id:
            call.answer(StrategyIdMissing())
            return
        if idempotency_key is not None and not _is_usable(idempotency_key):
            call.answer(
                InvalidIdempotencyKey("An idempotency key is 1 to 128 printable ASCII characters", "$.idempotency_key")
            )
            return
        if not event.summaries:
            call.answer(Skipped("no_successful_orders", ignored, idempotency_key or UNSET))
            return
        call.places.append(_Place(len(call.answers), invalid, idempotency_key))
        call.answers.append(None)
        call.entries.append(
            Entry(
                event.user_id,
                event.strategy_id,
                event.summaries,
                event.timestamp,
                ignored,
                IdempotencyKey(call.caller, idempotency_key) if idempotency_key is not None else None,
            )
        )

    async def commit(self, call: EmitCall) -> list[Answer]:
        """Journal the call in one transaction, publish it, and answer its batches in their order.

        Raises OutcomeUnknown when the journal could not confirm the commit; nothing is published then.
        Cancelling it stops the waiting, not the commit.
        """
        if call.entries:
            self.journal.submit(call)
            await call.resolved
        return [answer for answer in call.answers if answer is not None]

    # Publish.

    def _deliver(self, finished: Sequence[Commit | Load]) -> None:
        for work in finished:
            if isinstance(work, EmitCall):
                self._inbox.append(self._publish_call(work))
            elif isinstance(work, _UserLoad):
                self._inbox.append(self._finish_load(work))
        self._step()

    def _step(self) -> None:
        """Publish what the journal delivered, then serve who was not reached; at most STEP_SECONDS each."""
        deadline = self._clock() + STEP_SECONDS
        while self._inbox:
            if self._advance(self._inbox[0]):
                self._inbox.popleft()
            if self._clock() > deadline:
                break
        deadline = self._clock() + STEP_SECONDS
        while self._fan_outs and self._clock() <= deadline:
            key, fan_out = self._fan_outs.popitem(last=False)
            if not self._serve(fan_out, deadline):
                self._fan_outs[key] = fan_out
        self._schedule()

    def _schedule(self) -> None:
        if (self._inbox or self._fan_outs) and not self._is_scheduled:
            self._is_scheduled = True
            self._call_soon(self._scheduled_step)

    def _scheduled_step(self) -> None:
        self._is_scheduled = False
        self._step()

    @staticmethod
    def _advance(steps: Iterator[None]) -> bool:
        """Take one step; answers whether that was the last."""
        return next(steps, StopIteration) is StopIteration

    def _publish_call(self, call: EmitCall) -> Iterator[None]:
        """One step a batch; the answer goes with the last one."""
        if call.failure is not None:
            if not call.resolved.done():
                call.resolved.set_exception(call.failure)
            return
        last = len(call.places) - 1
        for index, (place, outcome) in enumerate(zip(call.places, call.outcomes, strict=True)):
            call.answers[place.index] = self._publish(call.entries[index], place, outcome)
            if index != last:
                yield
        if not call.resolved.done():
            call.resolved.set_result(None)

    def _publish(self, entry: Entry, place: _Place, outcome: Outcome) -> Answer:
        if not isinstance(outcome, Recorded):
            return outcome
        user = self.registry.user(entry.user_id)
        connections = 0
        if user is not None:
            key = user.key(entry.strategy_id)
            connections = len(key.subscribers) + len(user.everything)
            if outcome.row is not None:
                self._announce(user, user.publish(outcome.row))
        return Accepted(
            self._position(outcome.n),
            outcome.summaries,
            connections,
            outcome.ignored,
            outcome.row is None,
            place.invalid or UNSET,
            UNSET if place.idempotency_key is None else place.idempotency_key,
        )

    def _announce(self, user: User, key: StreamKey) -> None:
        """Bring everyone who listens up to date, now or at the end of the user's open window."""
        if user.undelivered is not None:
            user.undelivered[key] = None
            return
        if self.limits.coalesce_ms:
            self._open_window(user)
        self._fan_out(user, key, self._clock() + STEP_SECONDS)

    def _open_window(self, user: User) -> None:
        user.undelivered = {}
        self._call_later(self.limits.coalesce_ms / 1000, lambda: self._close_window(user))

    def _close_window(self, user: User) -> None:
        undelivered, user.undelivered = user.undelivered, None
        if not undelivered:
            return
        self._open_window(user)
        for key in undelivered:
            self._fan_out(user, key, self._clock() + STEP_SECONDS)
        self._schedule()

    def _fan_out(self, user: User, key: StreamKey, deadline: float) -> None:
        listeners = user.listeners(key)
        if not listeners:
            return
        running = self._fan_outs.get(key)
        if running is not None:
            # Go on where the pass stands: starting over would starve the end of a long list.
            running.again = True
            return
        fan_out = _FanOut(key, listeners)
        if not self._serve(fan_out, deadline):
            self._fan_outs[key] = fan_out

    def _serve(self, fan_out: _FanOut, deadline: float) -> bool:
        """Go on with a pass until `deadline`; answers whether it is complete."""
        targets, index = fan_out.targets, fan_out.next
        while index < len(targets):
            fan_out.key.bring_up_to_date(targets[index : index + WRITES_BETWEEN_LOOKS])
            index += WRITES_BETWEEN_LOOKS
            if index < len(targets) and self._clock() > deadline:
                fan_out.next = index
                return False
        if not fan_out.again:
            return True
        fan_out.again, fan_out.next = False, 0
        return False

    # Open.

    @asynccontextmanager
    async def user(self, user_id: int) -> AsyncIterator[User]:
        """The user's published state, kept as long as the block runs. Raises Draining."""
        if self.is_draining:
            raise Draining
        user = self.registry.user(user_id)
        if user is not None:
            self.registry.hold(user)
        else:
            load = _UserLoad(user_id)
            self.journal.submit(load)
            user = await load.loaded
        try:
            yield user
        finally:
            self.registry.let_go(user)

    def _finish_load(self, load: _UserLoad) -> Iterator[None]:
        if not load.loaded.cancelled():
            user = self.registry.user(load.user_id) or User(load.user_id, load.n, load.heads)
            self.registry.hold(user)
            load.loaded.set_result(user)
        yield from ()

    async def open(
        self,
        subscriber: Subscriber,
        user: User,
        strategies: tuple[int, ...] | None,
        last_event_id: str | None,
        prologue: bytes = b"",
    ) -> None:
        """Start a stream: judge the position, register, read the totals there, then write the first event.

        `strategies` None follows every one. `prologue`: bytes that go before the first event.
        """
        if subscriber.has_ended:
            return
        subscriber.epoch = self.journal.epoch
        subscriber.on_closed = self._on_closed
        judged = self._judge(user, last_event_id)
        # Register before reading: a batch published in between would be in neither half.
        self.registry.add(subscriber, user, strategies)
        if isinstance(judged, Position):
            await self._resume(subscriber, user, judged.n, prologue)
        else:
            self._start_at_head(subscriber, user, prologue, judged)

    def _judge(self, user: User, last_event_id: str | None) -> Position | ResetReason | None:
        """The position to resume from, the reason why it cannot be, or None for a fresh start."""
        if not last_event_id:
            return None
        try:
            position = Position.parse(last_event_id)
        except ValueError:
            return "malformed"
        if position.epoch != self.journal.epoch:
            return "epoch"
        return "future" if position.n > user.n else position

    async def _resume(self, subscriber: Subscriber, user: User, n: int, prologue: bytes) -> None:
        marks = subscriber.heads()
        moved = [strategy_id for strategy_id, head in marks.items() if head.n > n]
        if moved:
            rows = await self.journal.rows_at(user.user_id, n, moved)
            if subscriber.has_ended:
                return
            known = {strategy_id: row for strategy_id, row in rows.items() if row is not None}
            if len(known) < len(rows):
                self._start_at_head(subscriber, user, prologue, "trimmed")
                return
            marks = marks | known
        self._begin(subscriber, prologue, n, marks, None, resumed=True)

    def _start_at_head(self, subscriber: Subscriber, user: User, prologue: bytes, reason: ResetReason | None) -> None:
        self._begin(subscriber, prologue, user.n, subscriber.heads(), reason, resumed=False)

    def _begin(
        self,
        subscriber: Subscriber,
        prologue: bytes,
        n: int,
        marks: dict[int, Row],
        reason: ResetReason | None,
        *,
        resumed: bool,
    ) -> None:
        position = self._position(n)
        strategies = _strategies(subscriber)
        seconds = self.limits.heartbeat_seconds
        totals = _totals(marks, subscriber.follows_all)
        first: StreamOpen | StreamReset
        if reason is not None:
            first = StreamReset(reason, position, strategies, seconds, totals)
        else:
            stated = totals if subscriber.options.with_totals else UNSET
            first = StreamOpen(position, strategies, resumed, seconds, stated)
        opening = encode_framed_control(
            first, subscriber.options, event_id=position, retry_ms=self._jittered_retry_ms()
        )
        subscriber.opened_at = self._clock()
        self._wheel.add(subscriber)
        _log.info(
            "Stream opened",
            extra={
                "user_id": subscriber.user_id,
                "strategies": strategies,
                "position": position,
                "resumed": resumed,
                "reset": reason,
            },
        )
        subscriber.begin(prologue + opening, n, marks)

    def _forget(self, subscriber: Subscriber, reason: CloseReason) -> None:
        self.closed[reason] += 1
        self._wheel.discard(subscriber)
        self.registry.remove(subscriber)
        _log.info(
            "Stream closed",
            extra={
                "user_id": subscriber.user_id,
                "strategies": _strategies(subscriber),
                "reason": reason,
                "position": subscriber.position,
            },
        )
        if not len(self.registry):
            self._is_empty.set()

    # Keep alive.

    def _beat(self) -> None:
        self._call_later(self.limits.heartbeat_seconds / SLOTS, self._beat)
        now_ms = self._now_ms()
        for subscriber in self._wheel.advance():
            subscriber.heartbeat(now_ms)

    def _jittered_retry_ms(self) -> int:
        # Half to one and a half: clients that lost the server together do not come back together.
        return int(self.limits.retry_ms * (0.5 + random.random()))

    # Drain.

    async def drain(self) -> None:
        """Refuse new work, finish what is in flight, end every stream with a word. Does not touch the journal."""
        self.is_draining = True
        await self._is_idle.wait()
        leaving = list(self.registry.subscribers)
        random.shuffle(leaving)
        slices = Slices(self._clock)
        for subscriber in leaving:
            subscriber.finish(self.farewell(subscriber.options, StreamClosing("draining", reconnect=True)))
            await slices.breathe()

    async def wait_until_empty(self) -> None:
        """Until the last stream has taken its last bytes and is gone."""
        while len(self.registry):
            self._is_empty.clear()
            await self._is_empty.wait()

    def cut(self) -> None:
        """End every stream that is left, at once."""
        for subscriber in list(self.registry.subscribers):
            subscriber.close("draining")

    def farewell(self, options: StreamOptions, closing: StreamClosing) -> bytes:
        """The last bytes of a stream: why it ends, a `retry:` of its own, and the end of the body."""
        block = encode_framed_control(closing, options, retry_ms=self._jittered_retry_ms())
        return block + LAST_CHUNK if options.chunked else block

    # Look.

    def is_full(self) -> bool:
        """No further stream may be opened."""
        return len(self.registry) >= self.limits.max_connections

    def connections(self, user_id: int | None) -> ConnectionsReport:
        """Who is connected, of one user or of all; the slowest first."""
        chosen = list(self.registry.subscribers) if user_id is None else list(self.registry.of_user(user_id))
        behind = {subscriber: _behind_batches(subscriber) for subscriber in chosen}
        slowest = sorted(chosen, key=lambda subscriber: (behind[subscriber], subscriber.unsent_bytes), reverse=True)
        now = self._clock()
        return ConnectionsReport(
            connections=len(chosen),
            lagging=sum(1 for batches in behind.values() if batches),
            blocked=sum(subscriber.state is State.BLOCKED for subscriber in chosen),
            slowest=tuple(_facts(each, behind[each], now) for each in slowest[:SLOWEST_LISTED]),
            closed=dict(self.closed),
        )

    async def key_facts(self, user_id: int, strategy_id: int) -> KeyFacts:
        """What is known of a stream key, zero and null for one that nothing was ever accepted for."""
        record = await self.journal.key_record(user_id, strategy_id)
        user = self.registry.user(user_id)
        facts = KeyFacts(user_id, strategy_id, connections=user.count_listeners(strategy_id) if user else 0)
        if record is None:
            return facts
        return replace(
            facts,
            totals=record.head.totals.summaries,
            batches=record.head.number,
            head=self._position(record.head.n),
            oldest_kept=self._position(record.oldest.n),
            last_accepted=iso_timestamp(record.head.accepted_ms),
        )

    def _position(self, n: int) -> str:
        return str(Position(self.journal.epoch, n))


def _is_usable(idempotency_key: str) -> bool:
    return 1 <= len(idempotency_key) <= MAX_IDEMPOTENCY_KEY and all(
        " " <= character <= "~" for character in idempotency_key
    )


def _strategies(subscriber: Subscriber) -> Strategies:
    return "*" if subscriber.follows_all else tuple(sorted(subscriber.keys))


def _totals(marks: dict[int, Row], only_counted: bool) -> tuple[StrategyTotals, ...]:
    """Totals by strategy; of a stream of everything only those that have any."""
    return tuple(
        StrategyTotals(strategy_id, row.totals.summaries)
        for strategy_id, row in sorted(marks.items())
        if row.number or not only_counted
    )


def _behind_batches(subscriber: Subscriber) -> int:
    return sum(owed.batches for owed in subscriber.owed())


def _facts(subscriber: Subscriber, behind_batches: int, now: float) -> ConnectionFacts:
    return ConnectionFacts(
        user_id=subscriber.user_id,
        strategies=_strategies(subscriber),
        state=subscriber.state.value,
        position=subscriber.position,
        behind_batches=behind_batches,
        unsent_bytes=subscriber.unsent_bytes,
        age_seconds=round(now - subscriber.opened_at, 3),
        peer=subscriber.peer(),
    )
