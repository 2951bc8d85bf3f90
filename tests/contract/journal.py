"""What the journal contract needs of a driver, the drivers that there are, and a desk to give them work.

A driver joins the contract with one line in `DRIVERS`; the tests know nothing about it. They do not assume in which
step, in which thread or in how many transactions it works: only what `core.journal.base` promises.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from itertools import count
from pathlib import Path
from unittest import mock

from msgspec import Struct

from core.errors import IdempotencyConflict, TooManyOrderTypes
from core.journal import memory
from core.journal.base import (
    Commit,
    Deletion,
    Entry,
    IdempotencyKey,
    Journal,
    JournalLimits,
    Load,
    Outcome,
    Recorded,
    Work,
)
from core.journal.memory import CommitFailed, MemoryJournal
from core.journal.sqlite import heads, writer
from core.journal.sqlite.driver import SqliteJournal
from core.journal.sqlite.opening import Durability
from core.models import Summary
from core.totals import MAX_ORDER_TYPES, Row, Totals

DEADLINE_SECONDS = 10
"""For whatever a test waits for: it never decides whether a test passes on a machine that works."""

PATIENCE_COMMITS = 100
"""Commits within which a driver must have begun to trim what is due."""

NEVER_MS = 10**12


class Limits(Struct, frozen=True):
    """What a journal keeps; by default everything."""

    max_rows: int = 10**6
    max_age_ms: int = NEVER_MS
    idempotency_window_ms: int = NEVER_MS

    def of_a_journal(self) -> JournalLimits:
        """As a driver takes them."""
        return JournalLimits(
            max_rows=self.max_rows, max_age_ms=self.max_age_ms, idempotency_window_ms=self.idempotency_window_ms
        )


class Conditions(Struct, frozen=True):
    """What a test decides: whether the next transaction is to fail, and the clock that ages are measured on."""

    fails: Callable[[], bool]
    now_ms: Callable[[], int]


class Driver(Struct, frozen=True):
    """A way to open a fresh journal on the running loop.

    `open` gets a directory of its own, the limits, and the conditions. A driver whose transactions cannot be made to
    fail says so with `can_fail`.
    """

    name: str
    open: Callable[[Path, Limits, Conditions], Journal]
    can_fail: bool
    surroundings: Callable[[], AbstractContextManager[object]] = nullcontext
    """Entered for as long as the journal lives."""


class _MemoryJournalThatFails(MemoryJournal):
    def __init__(self, limits: Limits, conditions: Conditions, clock: Callable[[], float]) -> None:
        super().__init__(
            asyncio.get_running_loop().call_soon,
            limits.of_a_journal(),
            clock=clock,
            monotonic_ms=conditions.now_ms,
        )
        self._fails = conditions.fails

    def persist(self, accepted: Sequence[tuple[Row, Entry]]) -> None:
        if self._fails():
            raise CommitFailed


def _open_in_memory(_directory: Path, limits: Limits, conditions: Conditions) -> Journal:
    return _MemoryJournalThatFails(limits, conditions, lambda: 0.0)


def _open_in_slices(_directory: Path, limits: Limits, conditions: Conditions) -> Journal:
    looks = count()
    return _MemoryJournalThatFails(limits, conditions, lambda: next(looks) * memory.SLICE_SECONDS)


class _WriterThatFails(writer.Writer):
    """SQLite interrupts the transaction in its midst and rolls it back by itself."""

    conditions: Conditions

    def accept(self, statements: Sequence[writer.Statement]) -> None:
        if self.conditions.fails():
            self._connection.set_progress_handler(lambda: 1, 8)
        try:
            super().accept(statements)
        finally:
            self._connection.set_progress_handler(None, 0)


def _on_disk(durability: Durability) -> Callable[[Path, Limits, Conditions], Journal]:
    def open_on_disk(directory: Path, limits: Limits, conditions: Conditions) -> Journal:
        journal = SqliteJournal(
            directory / "tallywire.db",
            durability,
            limits.of_a_journal(),
            asyncio.get_running_loop(),
            monotonic_ms=conditions.now_ms,
        )
        journal._writer.__class__ = _WriterThatFails
        journal._writer.conditions = conditions  # type: ignore[attr-defined]  # of _WriterThatFails
        return journal

    return open_on_disk


@contextmanager
def _eager_housekeeping() -> Iterator[None]:
    with mock.patch.object(writer, "ROUND_MS", 0):
        yield


@contextmanager
def _small_steps() -> Iterator[None]:
    with (
        mock.patch.object(writer, "ROUND_MS", 0),
        mock.patch.object(writer, "STEP_ROWS", 40),
        mock.patch.object(heads, "MOST_HEADS", 1),
    ):
        yield


DRIVERS = (
    Driver("memory", _open_in_memory, can_fail=True),
    Driver(
        "memory in slices",  # an entry or a row a slice, with the loop turning in between
        _open_in_slices,
        can_fail=True,
        surroundings=lambda: mock.patch.object(memory, "STEP_ENTRIES", 1),
    ),
    Driver("sqlite power", _on_disk("power"), can_fail=True, surroundings=_eager_housekeeping),
    Driver(
        "sqlite process in small steps",  # housekeeping in many steps, and hardly anybody's heads in memory
        _on_disk("process"),
        can_fail=True,
        surroundings=_small_steps,
    ),
)


class Desk:
    """Gives work to a journal and takes delivery of it, in whichever step or thread the driver works.

    `delivered` is everything that came back, in order. Whatever breaks the rules of delivery is noted and fails
    `close`: an exception within `deliver` would end up in the log of the loop.
    """

    def __init__(self, driver: Driver, directory: Path, limits: Limits, now_ms: int = 1_000) -> None:
        self.fails = False
        """Whether transactions fail from now on."""
        self.now_ms = now_ms
        """The clock that ages are measured on."""
        self.journal = driver.open(directory, limits, Conditions(lambda: self.fails, lambda: self.now_ms))
        self.delivered: list[Work] = []
        self.on_delivery: Callable[[Work], None] = lambda _work: None
        self._awaited: dict[Work, asyncio.Future[None]] = {}
        self._thread = threading.get_ident()
        self._is_submitting = False
        self._complaints: list[str] = []
        self.journal.start(self._deliver, lambda failed: self._complaints.append(str(failed)))

    def submit(self, work: Work) -> None:
        """Hand in work without waiting for it."""
        self._awaited[work] = asyncio.get_running_loop().create_future()
        self._is_submitting = True
        self.journal.submit(work)
        self._is_submitting = False

    def submit_call(self, *entries: Entry) -> Commit:
        """Hand in one call without waiting for it."""
        commit = Commit()
        commit.entries.extend(entries)
        self.submit(commit)
        return commit

    async def delivery_of(self, *works: Work) -> None:
        """Until all of these have come back."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            await asyncio.gather(*(self._awaited[work] for work in works))

    async def call(self, *entries: Entry) -> Commit:
        """One call, committed."""
        commit = self.submit_call(*entries)
        await self.delivery_of(commit)
        return commit

    async def record(self, *entries: Entry) -> list[Row]:
        """One call of batches that must all be new; answers their rows."""
        commit = await self.call(*entries)
        return [row_of(outcome) for outcome in commit.outcomes]

    async def load(self, user_id: int) -> Load:
        load = Load(user_id)
        self.submit(load)
        await self.delivery_of(load)
        return load

    async def delete(self, user_id: int) -> Deletion:
        deletion = Deletion(user_id)
        self.submit(deletion)
        await self.delivery_of(deletion)
        return deletion

    async def row_at(self, n: int, user_id: int = 7, strategy_id: int = 3) -> Row | None:
        """What `rows_at` says of one key."""
        rows = await self.journal.rows_at(user_id, n, [strategy_id])
        assert list(rows) == [strategy_id]
        return rows[strategy_id]

    async def commit_until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        """Commit for a bystander until it holds: trimming and purging go along with commits, in steps."""
        for _ in range(PATIENCE_COMMITS):
            if await condition():
                return
            await self.call(entry(user_id=BYSTANDER))
        raise AssertionError(f"not within {PATIENCE_COMMITS} commits")

    async def close(self) -> None:
        await self.journal.close()
        assert not self._complaints

    def _deliver(self, finished: Sequence[Work]) -> None:
        if self._is_submitting:
            self._complaints.append("delivered within submit")
        if threading.get_ident() != self._thread:
            self._complaints.append("delivered in another thread than the loop's")
        for work in finished:
            awaited = self._awaited.get(work)
            if awaited is None or awaited.done():
                self._complaints.append("delivered what was not submitted, or twice")
                continue
            self.delivered.append(work)
            self.on_delivery(work)
            awaited.set_result(None)


@asynccontextmanager
async def opened(
    driver: Driver, directory: Path, limits: Limits | None = None, now_ms: int = 1_000
) -> AsyncIterator[Desk]:
    """A fresh journal and its desk, closed at the end."""
    with driver.surroundings():
        desk = Desk(driver, directory, limits or Limits(), now_ms)
        yield desk
        await desk.close()


# ---- work


BYSTANDER = 99
"""A user whose batches matter to no test."""


def entry(
    *summaries: Summary,
    user_id: int = 7,
    strategy_id: int = 3,
    accepted_ms: int = 1_000,
    ignored: int = 0,
    key: str | None = None,
    caller: str = "orders",
) -> Entry:
    """A batch; one LIMIT created by default."""
    return Entry(
        user_id,
        strategy_id,
        summaries or (Summary("LIMIT", 1, 0),),
        accepted_ms,
        ignored,
        None if key is None else IdempotencyKey(caller, key),
    )


def types(start: int, count: int) -> tuple[Summary, ...]:
    """One order created of each of so many types."""
    return tuple(Summary(f"T{index}", 1, 0) for index in range(start, start + count))


def recorded(outcome: Outcome) -> Recorded:
    """The outcome of a batch that was accepted, now or before."""
    assert isinstance(outcome, Recorded)
    return outcome


def row_of(outcome: Outcome) -> Row:
    """The row of a batch that was accepted now."""
    row = recorded(outcome).row
    assert row is not None
    return row


# ---- the naive model


class Model:
    """The journal as a list of accepted batches: each row is counted anew from all of them."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._accepted: list[Entry] = []
        self._rows: list[Row] = []
        self._keys: dict[IdempotencyKey, tuple[Entry, int]] = {}

    def n(self, user_id: int) -> int:
        return sum(entry.user_id == user_id for entry in self._accepted)

    def take(self, entry: Entry, outcome: Outcome) -> None:
        """Check what a driver said to a batch, and count the batch if it was to be counted."""
        if entry.idempotency in self._keys:
            self._check_repeat(*self._keys[entry.idempotency], entry, outcome)
        elif self._has_too_many_types(entry):
            assert isinstance(outcome, TooManyOrderTypes)
        else:
            self._accepted.append(entry)
            self._rows.append(self._row([one for one in self._accepted if one.user_id == entry.user_id]))
            row = self._rows[-1]
            assert outcome == Recorded(row.n, entry.summaries, entry.ignored, row)
            if entry.idempotency is not None:
                self._keys[entry.idempotency] = (entry, self.n(entry.user_id))

    def heads(self, user_id: int) -> dict[int, Row]:
        return {row.strategy_id: row for row in self._rows if row.user_id == user_id}

    def check_row_at(self, user_id: int, n: int, strategy_id: int, answer: Row | None) -> None:
        """The exact row, or None where trimming was allowed to have removed what decides it."""
        rows = [row for row in self._rows if (row.user_id, row.strategy_id) == (user_id, strategy_id)]
        until = [row for row in rows if row.n <= n]
        right = until[-1] if until else Row.before_the_first(user_id, strategy_id)
        if answer is None:
            assert rows, "of a key without rows it is always known that it had none"
            decides = until[-1] if until else rows[0]
            assert decides is not rows[-1], "the newest row of a key is never trimmed"
            follower = rows[rows.index(decides) + 1]
            assert follower.n in self._trimmable(user_id), "a row stays as long as young positions need it"
        else:
            assert answer == right

    def _trimmable(self, user_id: int) -> Collection[int]:
        old = self._accepted[: -self._limits.max_rows]
        return range(1, sum(entry.user_id == user_id for entry in old) + 1)

    def _check_repeat(self, first: Entry, n: int, entry: Entry, outcome: Outcome) -> None:
        if self._what(first) == self._what(entry):
            assert outcome == Recorded(n, first.summaries, first.ignored, None)
        else:
            assert isinstance(outcome, IdempotencyConflict)
            assert f"-{n};" in outcome.detail

    @staticmethod
    def _what(entry: Entry) -> tuple[int, int, frozenset[Summary]]:
        return entry.user_id, entry.strategy_id, frozenset(entry.summaries)

    def _has_too_many_types(self, entry: Entry) -> bool:
        alike = [one for one in self._accepted if (one.user_id, one.strategy_id) == (entry.user_id, entry.strategy_id)]
        return len({summary.order_type for one in [*alike, entry] for summary in one.summaries}) > MAX_ORDER_TYPES

    @staticmethod
    def _row(of_user: Sequence[Entry]) -> Row:
        newest = of_user[-1]
        of_key = [entry for entry in of_user if entry.strategy_id == newest.strategy_id]
        counts: dict[str, list[int]] = {}
        for summary in (summary for entry in of_key for summary in entry.summaries):
            count = counts.setdefault(summary.order_type, [0, 0])
            count[0] += summary.created
            count[1] += summary.cancelled
        totals = Totals.of(tuple(Summary(order_type, *count) for order_type, count in counts.items()))
        return Row(newest.user_id, newest.strategy_id, len(of_user), len(of_key), newest.accepted_ms, totals)
