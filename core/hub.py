"""The use cases: emit a batch, open a stream, drain. No socket, no driver of the journal and no Tornado in here."""

import asyncio
import logging
import math
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Container, Coroutine, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Literal, TypeVar

from msgspec import UNSET, Struct

from core.aggregation import Aggregation
from core.counters import Counters
from core.errors import (
    Busy,
    Draining,
    FieldProblem,
    InternalError,
    InvalidIdempotencyKey,
    InvalidResults,
    OutcomeUnknown,
    StrategyIdMissing,
    TallywireError,
    Unauthorized,
    Unavailable,
)
from core.expiry import Expiries
from core.heartbeat import SLOTS, HeartbeatWheel
from core.journal.base import (
    Commit,
    Deletion,
    Entry,
    IdempotencyKey,
    Journal,
    JournalFailed,
    Load,
    Outcome,
    Recorded,
    RevocationRecord,
    Revoke,
    Work,
)
from core.lag import LoopLag
from core.models import (
    Accepted,
    BatchResult,
    ClosingReason,
    DeletedUser,
    OrderBatchEvent,
    ResetReason,
    Revocation,
    Revoked,
    Skipped,
    StrategyTotals,
    StreamClosing,
    StreamExpiring,
    StreamOpen,
    StreamReset,
    UserTotals,
    iso_timestamp,
)
from core.pace import Pace
from core.principal import Principal
from core.publisher import Publisher, Slices
from core.registry import Registry, User
from core.revocations import Revocations
from core.sse import encode_control
from core.subscriber import CloseReason, StreamOptions, Subscriber, encode_framed_control
from core.totals import Position, Row, count, write_position

MAX_HELD_BYTES = 64 * 2**20
"""Bodies of emits that are being received or wait for their commit. Beyond it callers are told to come back: memory
stays bounded when the journal is slower than they are."""

MAX_IDEMPOTENCY_KEY = 128

FINAL_REASONS: frozenset[ClosingReason] = frozenset({"revoked", "strategy_deleted", "account_deactivated"})
"""A stream that is closed for one of these is told not to come back."""

EXPIRY_LOOK_SECONDS = 0.5
"""Between two looks at the tokens that end."""

BEATS_AT_ONCE = 4
"""Heartbeats sent in one step of the loop: an emit that comes meanwhile waits for these, not for the 33 of 5,000
streams that are due at once."""

LOOKS_A_STEP = 100
"""Tokens looked at in one step of the loop: some 4 ms when all of them end."""

StreamLimit = Literal["draining", "connections", "streams_per_user", "streams_per_address"]
"""What a stream can be refused for before its connection is touched."""

_WHY_BUSY: dict[StreamLimit, str] = {
    "connections": "No further stream may be opened.",
    "streams_per_user": "No further stream of this user may be opened.",
    "streams_per_address": "No further stream of this address may be opened.",
}

Answer = Accepted | Skipped | TallywireError

UNRESOLVED = OutcomeUnknown()
"""Stands for an answer until there is one."""

_T = TypeVar("_T")

_log = logging.getLogger("tallywire.stream")


class HubLimits(Struct, frozen=True):
    """What the hub is allowed and how it paces itself; the settings of the same names say more."""

    heartbeat_seconds: float
    retry_ms: int
    coalesce_ms: int
    max_connections: int
    max_age_seconds: float = 0
    """0: streams are not rotated."""
    expiring_seconds: float = 60
    grant_seconds: float = 0
    """Longest time for which anything is granted that can be revoked."""
    grant_leeway_seconds: float = 0
    """How far ahead the clock may be that grants are made by."""
    max_streams_per_user: int = 0
    max_streams_per_address: int = 0
    max_accepts_per_second: int = 0
    reconnects_per_second: int = 1000


class Intake:
    """One emit on its way in: it holds its bytes, and a shutdown waits for it, until it is released."""

    __slots__ = ("_hub", "_is_released", "held_bytes")

    def __init__(self, hub: "Hub") -> None:
        self._hub = hub
        self._is_released = False
        self.held_bytes = 0

    def hold(self, size_bytes: int) -> None:
        """Take on some more of the body. Raises Busy when all emits together hold too much."""
        if self._hub.held_bytes + size_bytes > MAX_HELD_BYTES:
            raise Busy(f"Emits of {self._hub.held_bytes} bytes wait for their commit.")
        self.held_bytes += size_bytes
        self._hub.held_bytes += size_bytes

    def release(self) -> None:
        """The answer has been written, or nobody waits for it; harmless the second time."""
        if not self._is_released:
            self._is_released = True
            self._hub.held_bytes -= self.held_bytes
            self._hub.end_intake(self)


class EmitCall(Commit):
    """One call of an order service: its batches are committed together and answered together, in their order.

    Whoever makes one overrides `resolved`. A method instead of a future: the answer leaves in the same turn of the
    loop, 4 us of an emit earlier and cheaper; and instead of a callback: with one of its own every call would be a
    cycle, and the collector would hold the loop for 30 ms every few seconds.
    """

    __slots__ = ("answers", "caller", "error", "pending")

    def __init__(self, caller: str) -> None:
        super().__init__()
        self.caller = caller
        self.answers: list[Answer] = []
        """While a batch waits for its commit, UNRESOLVED stands in the place of its answer."""
        self.pending: list[_Pending] = []
        """For each entry, what its answer needs beside the outcome."""
        self.error: TallywireError | None = None

    def resolved(self) -> None:
        """Called once: within `Hub.commit` when nothing is to be journalled, else in the step of the loop that
        publishes the last batch. By then `answers` are complete, or `error` says why there are none."""
        raise NotImplementedError


class _Pending(Struct, frozen=True, gc=False):
    """An answer that waits for its commit: which one of the call's, and what it repeats from the request."""

    index: int
    invalid: tuple[FieldProblem, ...]
    idempotency_key: str | None


class Wanted(Struct, frozen=True):
    """A stream that is asked for. `strategies` None: every one, future ones included. `principal` None: nobody asks
    who reads."""

    user_id: int
    strategies: tuple[int, ...] | None
    last_event_id: str | None
    principal: Principal | None = None
    address: str = ""
    """Of the client: see `Subscriber`."""


class _Opening(Struct, frozen=True):
    """See `Hub.open`."""

    wanted: Wanted
    connect: Callable[[], Subscriber | None]
    refuse: Callable[[TallywireError], None]


class _UserLoad(Load):
    """`then` gets the user, or why there is none."""

    __slots__ = ("then",)

    def __init__(self, user_id: int, then: Callable[[User | Busy], None]) -> None:
        super().__init__(user_id)
        self.then = then


class _UserDeletion(Deletion):
    __slots__ = ("closed", "done")

    def __init__(self, user_id: int) -> None:
        super().__init__(user_id)
        self.closed = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class _Revoke(Revoke):
    __slots__ = ("done",)

    def __init__(self, revocation: Revocation, revoked_ms: int, grant_seconds: float) -> None:
        until_ms = revoked_ms + int(grant_seconds * 1000)
        super().__init__(RevocationRecord(revocation.user_id or 0, revocation.strategy_id or 0, revoked_ms, until_ms))
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Hub:
    """Emits in, frames out.

    `call_soon`, `call_later` and `spawn` (a task) schedule on the loop; `clock` is monotonic seconds, `now_ms` Unix
    milliseconds.
    """

    def __init__(
        self,
        journal: Journal,
        limits: HubLimits,
        *,
        call_soon: Callable[[Callable[[], None]], object],
        call_later: Callable[[float, Callable[[], None]], object],
        spawn: Callable[[Coroutine[None, None, None]], asyncio.Task[None]],
        clock: Callable[[], float] = time.perf_counter,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self.journal = journal
        self.limits = limits
        self.counters = Counters()
        self.registry = Registry()
        self.slices = Slices(clock)
        self.clock = clock
        self.closed: Counter[str] = Counter()
        """Ended streams by reason, since the start."""
        self.refused: Counter[str] = Counter()
        """Streams that were refused for load, by the limit that was reached or else the code, since the start."""
        self.lag = LoopLag(call_later, clock)
        self.accepts = Pace(limits.max_accepts_per_second)
        """For whoever accepts connections that may become streams."""
        self.held_bytes = 0
        self.is_draining = False
        self.is_leaving = False
        """Still at work, but nobody new should be sent here: a shutdown has been asked for."""
        self._call_soon = call_soon
        self._call_later = call_later
        self._create_task = spawn
        self._resuming: set[asyncio.Task[None]] = set()
        self.now_ms = now_ms
        self._publisher = Publisher(
            coalesce_ms=limits.coalesce_ms, call_soon=call_soon, call_later=call_later, clock=clock
        )
        self._wheel = HeartbeatWheel(random.random)
        self._due: deque[Subscriber] = deque()
        """For a heartbeat."""
        self._expiries = Expiries()
        self._is_looking = False
        """At tokens, now and then: as long as there are streams whose token ends."""
        self._revocations = Revocations(journal.revocations)
        self._on_closed = self._forget
        """The one bound method that all subscribers share: one each would be 64 bytes a connection."""
        self._intakes: set[Intake] = set()
        self._no_intakes = asyncio.Event()
        self._no_streams = asyncio.Event()

    def start(self, fail: Callable[[JournalFailed], None]) -> None:
        """Begin to take deliveries from the journal and to beat. `fail` is called when the process must end."""

        def refuse_and_fail(failed: JournalFailed) -> None:
            self.is_draining = True
            fail(failed)

        self.journal.start(self._deliver, refuse_and_fail)
        self._beat()
        self.lag.start()

    def begin_intake(self) -> Intake:
        """An emit begins to arrive. Raises Draining."""
        if self.is_draining:
            raise Draining
        intake = Intake(self)
        self._intakes.add(intake)
        return intake

    def end_intake(self, intake: Intake) -> None:
        """See `Intake.release`."""
        self._intakes.discard(intake)
        if not self._intakes:
            self._no_intakes.set()

    def emit_order_batch_update(
        self,
        user_id: int,
        strategy_id: int | None,
        batch_results: Iterable[BatchResult] | Aggregation,
        *,
        call: EmitCall,
        idempotency_key: str | None = None,
    ) -> None:
        """Count a batch and put it into `call`; its answer stands in `call.answers` after the commit.

        An `Aggregation` has been counted already: large batches are, in portions, since this does not give way.
        """
        if isinstance(batch_results, Aggregation):
            aggregation = batch_results
        else:
            aggregation = Aggregation()
            # Without a strategy nothing is counted, whatever the results are.
            if strategy_id:
                aggregation.add(batch_results)
        summaries = aggregation.summaries
        if not summaries and aggregation.invalid:
            call.answers.append(InvalidResults(tuple(aggregation.invalid)))
            return
        self.emit_order_batch_event(
            OrderBatchEvent(summaries, strategy_id, user_id, self.now_ms()),
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
            call.answers.append(StrategyIdMissing())
            return
        if idempotency_key is not None and not is_usable(idempotency_key):
            message = f"An idempotency key is 1 to {MAX_IDEMPOTENCY_KEY} printable ASCII characters"
            call.answers.append(InvalidIdempotencyKey(message, "$.idempotency_key"))
            return
        if not event.summaries:
            call.answers.append(Skipped("no_successful_orders", ignored, idempotency_key or UNSET))
            return
        call.pending.append(_Pending(len(call.answers), invalid, idempotency_key))
        call.answers.append(UNRESOLVED)
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

    def commit(self, call: EmitCall) -> None:
        """Journal the call in one transaction and publish it; see `EmitCall` for how it is answered.

        Its `error` is OutcomeUnknown when the journal could not confirm the commit, DiskFull or JournalFull when it has
        no room; nothing is published then.
        """
        if call.entries:
            self.journal.submit(call)
        else:
            call.resolved()

    async def delete_user(self, user_id: int) -> DeletedUser:
        """Delete everything of a user and end its streams for good. Raises what an emit raises.

        Cancelling it stops the waiting, not the deletion.
        """
        intake = self.begin_intake()
        try:
            deletion = _UserDeletion(user_id)
            self.journal.submit(deletion)
            await deletion.done
        finally:
            intake.release()
        position = self._position(deletion.n) if deletion.n else None
        return DeletedUser(user_id, position, deletion.rows, deletion.closed)

    async def revoke(self, revocation: Revocation) -> Revoked:
        """What was granted before counts no more, and the streams opened with it end. Raises what an emit raises.

        Cancelling it stops the waiting, not the revocation.
        """
        intake = self.begin_intake()
        try:
            # A grant may say that it was made by a clock that is ahead.
            until_ms = self.now_ms() + int(self.limits.grant_leeway_seconds * 1000)
            revoke = _Revoke(revocation, until_ms, self.limits.grant_seconds)
            self.journal.submit(revoke)
            await revoke.done
            closed = 0
            for subscriber in [each for each in self.registry.subscribers if self._is_revoked(each, revocation)]:
                closed += not subscriber.has_ended
                self._say_goodbye(subscriber, revocation.reason)
                await self.slices.breathe()
        finally:
            intake.release()
        _log.info(
            "Revoked",
            extra={
                "user_id": revocation.user_id,
                "strategy_id": revocation.strategy_id,
                "reason": revocation.reason,
                "closed": closed,
            },
        )
        return Revoked(iso_timestamp(revoke.record.revoked_ms), closed)

    def _is_revoked(self, subscriber: Subscriber, revocation: Revocation) -> bool:
        if revocation.user_id is not None:
            if subscriber.user_id != revocation.user_id:
                return False
            if subscriber.follows_all:
                # Also of a strategy that nobody has counted in yet.
                return True
        return revocation.strategy_id is None or revocation.strategy_id in subscriber.keys

    async def totals(self, wanted: Wanted) -> UserTotals:
        """What was counted for a user up to now, of the strategies that are wanted. Raises Busy, Unauthorized."""
        # In the step of the load: the position and the totals are of one moment.
        return await self._asked(wanted, lambda user: self._totals_of(user, wanted.strategies))

    async def check_granted_now(self, wanted: Wanted) -> None:
        """Raises Unauthorized when what this reader has been granted has been revoked, and Busy."""
        await self._asked(wanted, lambda _user: None)

    async def _asked(self, wanted: Wanted, answer: Callable[[User], _T]) -> _T:
        """What is to be said of the user that is wanted, when its reader may hear it."""
        loaded: asyncio.Future[_T] = asyncio.get_running_loop().create_future()

        def tell(user: User | Busy) -> None:
            if loaded.cancelled():
                return
            try:
                if isinstance(user, Busy):
                    raise user
                self.check_granted(wanted.principal, wanted.strategies, user.keys)
                loaded.set_result(answer(user))
            except TallywireError as refusal:
                loaded.set_exception(refusal)

        self._with_user(wanted.user_id, tell)
        return await loaded

    def _totals_of(self, user: User, strategies: tuple[int, ...] | None) -> UserTotals:
        heads = {
            strategy_id: key.head
            for strategy_id, key in user.keys.items()
            if strategies is None or strategy_id in strategies
        }
        return UserTotals(user.user_id, self._position(user.n), _totals(heads, only_counted=True))

    def _deliver(self, finished: Sequence[Work]) -> None:
        self._publisher.publish(self._steps_of(finished))

    def _steps_of(self, finished: Sequence[Work]) -> Iterator[None]:
        """Each advance takes one step: one batch of a call, its answer with the last one."""
        for work in finished:
            if isinstance(work, EmitCall):
                yield from self._publish(work)
                continue
            try:
                if isinstance(work, _UserLoad):
                    self._finish_load(work)
                elif isinstance(work, _UserDeletion):
                    self._finish_deletion(work)
                elif isinstance(work, _Revoke):
                    self._finish_revocation(work)
            except Exception:
                # What was delivered behind it must not wait for ever.
                _log.exception("Publishing failed")
            yield

    def _publish(self, call: EmitCall) -> Iterator[None]:
        if call.failure is not None:
            if isinstance(call.failure, OutcomeUnknown):
                _log.error("Commit failed", extra={"batches": len(call.entries)})
            self._resolve(call, call.failure)
            yield
            return
        last = len(call.outcomes) - 1
        fault: InternalError | None = None
        for index, outcome in enumerate(call.outcomes):
            pending = call.pending[index]
            try:
                call.answers[pending.index] = self._answer(call.entries[index], pending, outcome)
            except Exception:
                # It is in the journal and will be repeated as it is; those behind it are published all the same.
                _log.exception("Publishing failed")
                fault = InternalError()
            if index == last:
                self._resolve(call, fault)
            yield

    @staticmethod
    def _resolve(call: EmitCall, error: TallywireError | None) -> None:
        call.error = error
        try:
            call.resolved()
        except Exception:
            _log.exception("Answering failed")

    def _answer(self, entry: Entry, pending: _Pending, outcome: Outcome) -> Answer:
        """Publish the head, write to its connections, and say so."""
        if not isinstance(outcome, Recorded):
            return outcome
        user = self.registry.user(entry.user_id)
        connections = 0
        if user is not None:
            connections = user.count_listeners(entry.strategy_id)
            if outcome.row is not None:
                key = user.publish(outcome.row)
                if connections:
                    # Before the fan-out: a connection that breaks in it has been owed this, too.
                    owed = count(outcome.summaries) * self.registry.count_owed(user, key)
                    user.shard.counters.counts_owed += owed
                self._publisher.announce(user, key)
        return Accepted(
            self._position(outcome.n),
            outcome.summaries,
            connections,
            outcome.ignored,
            outcome.row is None,
            pending.invalid or UNSET,
            UNSET if pending.idempotency_key is None else pending.idempotency_key,
        )

    def is_full(self) -> bool:
        """No further stream may be opened."""
        return len(self.registry) >= self.limits.max_connections

    def open(
        self, wanted: Wanted, connect: Callable[[], Subscriber | None], refuse: Callable[[TallywireError], None]
    ) -> None:
        """Start a stream, now or when the journal has told what it knows of the user.

        Either `refuse` is called, with Busy, Draining or Unauthorized (what it was granted with has been revoked); or
        `connect`, which gives the connection, None when the client has left meanwhile, and may raise Busy. A stream for
        whose position the journal is then too busy is told so and ends. Callbacks, not a coroutine: a task for each is
        8 us of a crowd's connects.
        """
        self._with_user(wanted.user_id, partial(self._open, _Opening(wanted, connect, refuse)))

    def _with_user(self, user_id: int, then: Callable[[User | Busy], None]) -> None:
        """Now, or when the journal has told what it knows of the user."""
        user = self.registry.user(user_id)
        if user is None:
            self.journal.submit(_UserLoad(user_id, then))
        else:
            then(user)

    def _finish_load(self, load: _UserLoad) -> None:
        user = self.registry.user(load.user_id) or User(load.user_id, load.n, load.heads, load.floor)
        load.then(user if load.failure is None else load.failure)

    def _open(self, opening: _Opening, user: User | Busy) -> None:
        if isinstance(user, Busy):
            self._refuse(opening, user)
            return
        self.registry.hold(user)
        try:
            # After the load: a stream that registered behind the last farewell would never be told to go.
            wanted = opening.wanted
            self.check_granted(wanted.principal, wanted.strategies, user.keys)
            limit = self._limit_reached(user, wanted.address)
            if limit is not None:
                self._refuse(opening, Draining() if limit == "draining" else Busy(_WHY_BUSY[limit]), limit)
                return
            subscriber = opening.connect()
            if subscriber is not None:
                self._register(subscriber, user, opening)
        except TallywireError as refusal:
            self._refuse(opening, refusal)
        except Exception:
            _log.exception("Opening failed")
            opening.refuse(InternalError())
        finally:
            self.registry.let_go(user)

    def check_granted(
        self, principal: Principal | None, strategies: Iterable[int] | None, counted: Container[int] = ()
    ) -> None:
        """Raises Unauthorized when what this principal has been granted has been revoked; see `Revocations`."""
        if principal is not None and self._revocations.concern(principal, strategies, counted):
            raise Unauthorized("The token has been revoked; a new one is needed.")

    def _limit_reached(self, user: User, address: str) -> StreamLimit | None:
        """Why this stream may not be opened now."""
        limits = self.limits
        if self.is_draining:
            return "draining"
        if self.is_full():
            return "connections"
        # This opening is one of the holds.
        if 0 < limits.max_streams_per_user < user.holds:
            return "streams_per_user"
        if 0 < limits.max_streams_per_address <= self.registry.count_of_address(address):
            return "streams_per_address"
        return None

    def _refuse(self, opening: _Opening, refusal: TallywireError, limit: StreamLimit | None = None) -> None:
        if isinstance(refusal, Unavailable):
            self.refused[limit or refusal.code] += 1
        opening.refuse(refusal)

    def _register(self, subscriber: Subscriber, user: User, opening: _Opening) -> None:
        """Judge the position, register, read the totals there, then write the first event."""
        subscriber.epoch = self.journal.epoch
        subscriber.address = opening.wanted.address
        subscriber.on_closed = self._on_closed
        wanted = opening.wanted
        judged = self._judge(user, wanted.last_event_id)
        if wanted.principal is not None and wanted.principal.expires_at is not None:
            subscriber.expires_at = wanted.principal.expires_at
        # Register before reading: a batch published in between would be in neither half.
        self.registry.add(subscriber, user, wanted.strategies)
        try:
            if not isinstance(judged, Position):
                self._start_at_head(subscriber, user, judged)
                return
            # In this very step: what a key publishes from now on must not be taken for what it stood at.
            marks = subscriber.heads()
            if any(head.n > judged.n for head in marks.values()):
                self._spawn(self._resume(subscriber, user, judged.n, marks))
                self.registry.look_at(subscriber)
            else:
                self._begin(subscriber, judged.n, marks, None, resumed=True)
        except Exception:
            _log.exception("Opening failed")
            subscriber.close("fault")

    def _finish_deletion(self, deletion: _UserDeletion) -> None:
        user = self.registry.user(deletion.user_id)
        if deletion.failure is None and user is not None:
            for subscriber in list(self.registry.of_user(deletion.user_id)):
                deletion.closed += not subscriber.has_ended
                self._say_goodbye(subscriber, "account_deactivated")
            if deletion.n:
                user.begin_anew(deletion.n)
        if deletion.failure is None:
            facts = {"user_id": deletion.user_id, "rows": deletion.rows, "closed": deletion.closed}
            _log.info("User deleted", extra=facts)
        if deletion.done.cancelled():
            return
        if deletion.failure is not None:
            deletion.done.set_exception(deletion.failure)
        else:
            deletion.done.set_result(None)

    def _finish_revocation(self, revoke: _Revoke) -> None:
        if revoke.failure is None:
            # In this very step: whoever opens a stream from now on meets it.
            self._revocations.add(revoke.record)
        if revoke.done.cancelled():
            return
        if revoke.failure is not None:
            revoke.done.set_exception(revoke.failure)
        else:
            revoke.done.set_result(None)

    def _spawn(self, resuming: Coroutine[None, None, None]) -> None:
        task = self._create_task(resuming)
        self._resuming.add(task)
        task.add_done_callback(self._resuming.discard)

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
        if position.n > user.n:
            return "future"
        return "trimmed" if position.n < user.floor else position

    async def _resume(self, subscriber: Subscriber, user: User, n: int, marks: dict[int, Row]) -> None:
        """Begin at a position that some of these heads have left behind."""
        moved = [strategy_id for strategy_id, head in marks.items() if head.n > n]
        try:
            rows = await self.journal.rows_at(user.user_id, n, moved)
            if not subscriber.has_ended:
                self._begin_at(subscriber, user, n, marks, rows)
        except Busy:
            self._finish(subscriber, "busy")
        except BaseException:
            subscriber.close("fault")
            raise

    def _begin_at(
        self, subscriber: Subscriber, user: User, n: int, marks: dict[int, Row], rows: Mapping[int, Row | None]
    ) -> None:
        """Begin with these rows in place of the marks that have moved; None: no longer known."""
        known = {strategy_id: row for strategy_id, row in rows.items() if row is not None}
        if len(known) < len(rows):
            self._start_at_head(subscriber, user, "trimmed")
        else:
            self._begin(subscriber, n, marks | known, None, resumed=True)

    def _start_at_head(self, subscriber: Subscriber, user: User, reason: ResetReason | None) -> None:
        self._begin(subscriber, user.n, subscriber.heads(), reason, resumed=False)

    def _begin(
        self, subscriber: Subscriber, n: int, marks: dict[int, Row], reason: ResetReason | None, *, resumed: bool
    ) -> None:
        position = self._position(n)
        strategies = subscriber.strategies()
        seconds = self.limits.heartbeat_seconds
        only_counted = subscriber.follows_all
        first: StreamOpen | StreamReset
        if reason is not None:
            first = StreamReset(reason, position, strategies, seconds, _totals(marks, only_counted))
        else:
            stated = _totals(marks, only_counted) if subscriber.options.with_totals else UNSET
            first = StreamOpen(position, strategies, resumed, seconds, stated)
        retry_ms = self._jittered_retry_ms()
        opening = encode_framed_control(first, subscriber.options, event_id=position, retry_ms=retry_ms)
        self._begin_life(subscriber)
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
        self.counters.streams_opened["reset" if reason else "resumed" if resumed else "new"] += 1
        if reason is not None:
            self.counters.resets[reason] += 1
        subscriber.begin(opening, n, marks)
        self.registry.look_at(subscriber)

    def _begin_life(self, subscriber: Subscriber) -> None:
        now = subscriber.opened_at = self.clock()
        if self.limits.max_age_seconds:
            # Between four and six fifths of it: those that came together do not go together.
            subscriber.ends_at = now + self.limits.max_age_seconds * (0.8 + 0.4 * random.random())
        self._wheel.add(subscriber)
        if subscriber.expires_at < math.inf:
            self._expiries.add(subscriber, now, self._seconds_left(subscriber) - self.limits.expiring_seconds)
            if not self._is_looking:
                self._is_looking = True
                self._call_later(EXPIRY_LOOK_SECONDS, self._look_at_tokens)

    def _seconds_left(self, subscriber: Subscriber) -> float:
        """Of its token."""
        return subscriber.expires_at - self.now_ms() / 1000

    def _look_at_tokens(self) -> None:
        now, unix_seconds = self.clock(), self.now_ms() / 1000
        ending = sum(subscriber.expires_at <= unix_seconds for subscriber in self._expiries.due(now))
        self._look_at_portion(now, self._spread_ms(ending))

    def _look_at_portion(self, due_by: float, spread_ms: int) -> None:
        """Of those that were due then: tokens that were issued together end together."""
        for subscriber in self._expiries.take_due(due_by, LOOKS_A_STEP):
            try:
                self._look_at_token(subscriber, spread_ms)
            except Exception:
                _log.exception("Warning failed")
        if next(self._expiries.due(due_by), None) is not None:
            self._call_later(0, partial(self._look_at_portion, due_by, spread_ms))
            return
        self._is_looking = bool(self._expiries)
        if self._is_looking:
            self._call_later(EXPIRY_LOOK_SECONDS, self._look_at_tokens)

    def _look_at_token(self, subscriber: Subscriber, spread_ms: int) -> None:
        left = self._seconds_left(subscriber)
        if left <= 0:
            self._finish(subscriber, "token_expired", spread_ms)
            return
        warns = left <= self.limits.expiring_seconds
        self._expiries.add(subscriber, self.clock(), left if warns else left - self.limits.expiring_seconds)
        if warns:
            warning = StreamExpiring(iso_timestamp(int(subscriber.expires_at * 1000)), math.ceil(left))
            subscriber.send(encode_framed_control(warning, subscriber.options))

    def _forget(self, subscriber: Subscriber, reason: CloseReason) -> None:
        self.closed[reason] += 1
        self._wheel.discard(subscriber)
        self._expiries.discard(subscriber)
        self.registry.remove(subscriber)
        _log.info(
            "Stream closed",
            extra={
                "user_id": subscriber.user_id,
                "strategies": subscriber.strategies(),
                "position": subscriber.position,
                "reason": reason,
            },
        )
        if not len(self.registry):
            self._no_streams.set()

    def _beat(self) -> None:
        self._call_later(self.limits.heartbeat_seconds / SLOTS, self._beat)
        # The wheel waits for who is still due: a server that cannot keep up beats later, not more and more.
        if not self._due:
            self._due.extend(self._wheel.advance())
            self._beat_for_some()

    def _beat_for_some(self) -> None:
        now_ms, now = self.now_ms(), self.clock()
        if len(self._due) > BEATS_AT_ONCE:
            self._call_soon(self._beat_for_some)
        for _ in range(min(BEATS_AT_ONCE, len(self._due))):
            subscriber = self._due.popleft()
            if subscriber.ends_at <= now:
                self._say_goodbye(subscriber, "rotation")
                continue
            try:
                subscriber.heartbeat(now_ms)
            except Exception:
                _log.exception("Heartbeat failed")

    def _jittered_retry_ms(self) -> int:
        # Half to one and a half: clients that lost the server together do not come back together.
        return int(self.limits.retry_ms * (0.5 + random.random()))

    async def drain(self, seconds: float) -> None:
        """Refuse new work, finish what is in flight, end every stream with a word, and wait until all have gone.

        What is in flight gets half of the time; whoever has not gone at its end is cut. Does not touch the journal.
        """
        self.is_draining = True
        try:
            async with asyncio.timeout(seconds):
                await self._wait_for_intakes(seconds / 2)
                await self._say_farewell()
                while len(self.registry):
                    self._no_streams.clear()
                    await self._no_streams.wait()
        except TimeoutError:
            _log.warning("Streams cut", extra={"connections": len(self.registry)})
            for subscriber in list(self.registry.subscribers):
                subscriber.close("draining")

    async def _wait_for_intakes(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                while self._intakes:
                    self._no_intakes.clear()
                    await self._no_intakes.wait()
        except TimeoutError:
            _log.warning("Emits still in flight", extra={"emits": len(self._intakes)})

    async def _say_farewell(self) -> None:
        leaving = list(self.registry.subscribers)
        random.shuffle(leaving)
        spread_ms = self._spread_ms(len(leaving))
        for subscriber in leaving:
            self._say_goodbye(subscriber, "draining", spread_ms)
            await self.slices.breathe()

    def _spread_ms(self, leaving: int) -> int:
        """Over which so many come back: a time that grows with their number."""
        return 1000 * leaving // self.limits.reconnects_per_second

    def _say_goodbye(self, subscriber: Subscriber, reason: ClosingReason, spread_ms: int = 0) -> None:
        """One of many: a fault of one stream keeps none of the others."""
        try:
            self._finish(subscriber, reason, spread_ms)
        except Exception:
            _log.exception("Farewell failed")

    def _finish(self, subscriber: Subscriber, reason: ClosingReason, spread_ms: int = 0) -> None:
        options = subscriber.options
        subscriber.finish(options.framed_last(self.closing_block(reason, options, spread_ms)), reason)
        self.registry.look_at(subscriber)

    def closing_block(self, reason: ClosingReason, options: StreamOptions, spread_ms: int = 0) -> bytes:
        """The last event of a stream, unframed, with a `retry:` of its own, up to `spread_ms` later than usual."""
        retry_ms = self._jittered_retry_ms() + int(random.random() * spread_ms)
        closing = StreamClosing(reason, reconnect=reason not in FINAL_REASONS)
        return encode_control(closing, options.shape, retry_ms=retry_ms)

    def _position(self, n: int) -> str:
        return write_position(self.journal.epoch, n)


def is_usable(idempotency_key: str) -> bool:
    """A batch may carry it: 1 to 128 printable ASCII characters."""
    return 1 <= len(idempotency_key) <= MAX_IDEMPOTENCY_KEY and all(
        " " <= character <= "~" for character in idempotency_key
    )


def _totals(marks: dict[int, Row], only_counted: bool) -> tuple[StrategyTotals, ...]:
    """Totals by strategy; of a stream of everything only those that have any."""
    return tuple(
        StrategyTotals(strategy_id, row.totals.summaries)
        for strategy_id, row in sorted(marks.items())
        if row.number or not only_counted
    )
