"""The journal in memory: nothing survives the process, so each start is a new epoch. Same rules as on disk."""

import logging
import math
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator

from msgspec import Struct

from core.errors import IdempotencyConflict, OutcomeUnknown, TooManyOrderTypes
from core.journal.base import (
    Commit,
    Deliver,
    Entry,
    IdempotencyKey,
    Journal,
    KeyRecord,
    Load,
    Outcome,
    Recorded,
)
from core.models import Summary
from core.totals import Position, Row, new_epoch

SLICE_SECONDS = 0.002
"""How long a transaction holds the loop before others get their turn: a call of 10,000 batches takes ten slices."""

STEP_ENTRIES = 64
"""Entries between two looks at the clock: about 0.2 ms."""

TRIM_STEP_ROWS = 1000
"""Rows that a commit trims beyond those it adds: about a millisecond, so that a long backlog never holds the loop."""


_log = logging.getLogger("tallywire.journal")


class CommitFailed(Exception):
    """The transaction could not be made durable. Raised by `MemoryJournal.persist` in tests of that case."""


class _Remembered(Struct, frozen=True, gc=False):
    """An idempotency record: what was counted under a key, for whom, and when (Unix ms)."""

    user_id: int
    strategy_id: int
    answer: Recorded
    accepted_ms: int

    def is_same_batch(self, entry: Entry) -> bool:
        """Same user, strategy and counts, however the batch was encoded or ordered."""
        return (
            self.user_id == entry.user_id
            and self.strategy_id == entry.strategy_id
            and _unordered(self.answer.summaries) == _unordered(entry.summaries)
        )


class _KeyLog:
    """The rows of one stream key, oldest first; never empty once there was one. Those before `first` are forgotten."""

    __slots__ = ("first", "newest_is_overdue", "rows")

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.first = 0
        self.newest_is_overdue = False
        """The newest row is due for trimming and stays only because it is the newest."""

    def append(self, row: Row) -> None:
        self.rows.append(row)
        if self.newest_is_overdue:
            self.newest_is_overdue = False
            self.forget_oldest()

    def forget_oldest(self) -> None:
        """Forget a row, unless it is the newest: that one goes when the next comes."""
        if self.first == len(self.rows) - 1:
            self.newest_is_overdue = True
            return
        self.first += 1
        # Moving the rest up for each row would take 20 us of a key with 100,000.
        if self.first * 2 > len(self.rows):
            del self.rows[: self.first]
            self.first = 0

    def at(self, n: int) -> Row | None:
        """The newest row at or below n; None when it is forgotten."""
        index = bisect_right(self.rows, n, lo=self.first, key=lambda row: row.n)
        if index > self.first:
            return self.rows[index - 1]
        oldest = self.rows[self.first]
        # A key whose first row is still there had counted nothing by then; otherwise nobody can tell any more.
        return Row.before_the_first(oldest.user_id, oldest.strategy_id) if oldest.number == 1 else None


class _UserLog:
    __slots__ = ("keys", "n")

    def __init__(self) -> None:
        self.n = 0
        self.keys: dict[int, _KeyLog] = {}


class _Transaction:
    """What one commit is about to change, kept apart from the committed state until it is durable."""

    def __init__(self, journal: "MemoryJournal") -> None:
        self._journal = journal
        self._ns: dict[int, int] = {}
        self._heads: dict[tuple[int, int], Row] = {}
        self.rows: list[Row] = []
        self.remembered: dict[IdempotencyKey, _Remembered] = {}

    def record(self, entry: Entry) -> Outcome:
        """Assign n and totals, or repeat the earlier answer, or refuse."""
        if entry.idempotency is not None:
            earlier = self.remembered.get(entry.idempotency) or self._journal.remembered(
                entry.idempotency, entry.accepted_ms
            )
            if earlier is not None:
                return self._repeat(earlier, entry)
        n = self._ns.get(entry.user_id, self._journal.committed_n(entry.user_id)) + 1
        stream_key = (entry.user_id, entry.strategy_id)
        head = self._heads.get(stream_key) or self._journal.committed_head(*stream_key)
        try:
            row = head.next(n, entry.accepted_ms, entry.summaries)
        except TooManyOrderTypes as refusal:
            return refusal
        self._ns[entry.user_id] = n
        self._heads[stream_key] = row
        self.rows.append(row)
        if entry.idempotency is not None:
            repeated = Recorded(n, entry.summaries, entry.ignored, None)
            self.remembered[entry.idempotency] = _Remembered(
                entry.user_id, entry.strategy_id, repeated, entry.accepted_ms
            )
        return Recorded(n, entry.summaries, entry.ignored, row)

    def _repeat(self, earlier: _Remembered, entry: Entry) -> Outcome:
        if not earlier.is_same_batch(entry):
            return IdempotencyConflict(str(Position(self._journal.epoch, earlier.answer.n)))
        return earlier.answer


class MemoryJournal(Journal):
    """Keeps at most `max_rows` rows, and none older than `max_age_ms`, but always the newest of each key.

    `call_soon` runs a function in a later step of the loop: what was submitted until then is one transaction. `clock`
    is monotonic seconds.
    """

    def __init__(
        self,
        call_soon: Callable[[Callable[[], None]], object],
        *,
        max_rows: int,
        max_age_ms: int,
        idempotency_window_ms: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.epoch = new_epoch()
        self._call_soon = call_soon
        self._clock = clock
        self._max_rows = max_rows
        self._max_age_ms = max_age_ms
        self._idempotency_window_ms = idempotency_window_ms
        self._deliver: Deliver = lambda _work: None
        self._waiting: list[Commit | Load] = []
        self._open: Generator[None, None, list[Commit | Load]] | None = None
        """The transaction that is being worked on; nothing of it is committed before it is complete."""
        self._users: dict[int, _UserLog] = {}
        self._kept: deque[Row] = deque()
        """Every row that trimming has not looked at, in order of commit."""
        self._remembered: dict[IdempotencyKey, _Remembered] = {}

    def start(self, deliver: Deliver) -> None:
        self._deliver = deliver

    def submit(self, work: Commit | Load) -> None:
        if not self._waiting and self._open is None:
            self._call_soon(self._work)
        self._waiting.append(work)

    async def rows_at(self, user_id: int, n: int, strategies: Collection[int]) -> dict[int, Row | None]:
        return {strategy_id: self._row_at(user_id, n, strategy_id) for strategy_id in strategies}

    async def key_record(self, user_id: int, strategy_id: int) -> KeyRecord | None:
        log = self._log(user_id, strategy_id)
        return KeyRecord(log.rows[-1], log.rows[log.first]) if log else None

    async def close(self) -> None:
        self._work_until(math.inf)

    def persist(self, rows: list[Row]) -> None:
        """Make a transaction durable. Here there is nothing to do; tests let it fail.

        Raises CommitFailed.
        """

    def committed_n(self, user_id: int) -> int:
        """The user's last n, 0 before the first batch."""
        user = self._users.get(user_id)
        return user.n if user else 0

    def committed_head(self, user_id: int, strategy_id: int) -> Row:
        """The key's newest row."""
        log = self._log(user_id, strategy_id)
        return log.rows[-1] if log else Row.before_the_first(user_id, strategy_id)

    def remembered(self, key: IdempotencyKey, now_ms: int) -> _Remembered | None:
        """What was counted under an idempotency key within the window."""
        record = self._remembered.get(key)
        if record is None or record.accepted_ms < now_ms - self._idempotency_window_ms:
            return None
        return record

    def _work(self) -> None:
        """Go on with the open transaction, or with the next one, for one slice of the loop."""
        try:
            self._work_until(self._clock() + SLICE_SECONDS)
        finally:
            # Also after a fault of whoever it delivers to: the others' work goes on.
            if self._open is not None or self._waiting:
                self._call_soon(self._work)

    def _work_until(self, moment: float) -> None:
        while (self._open is not None or self._waiting) and self._clock() <= moment:
            if self._open is None:
                waiting, self._waiting = self._waiting, []
                self._open = self._transact(waiting)
            try:
                next(self._open)
            except StopIteration as complete:
                self._open = None
                self._deliver(complete.value)

    def _transact(self, work: list[Commit | Load]) -> Generator[None, None, list[Commit | Load]]:
        """All that waited as one transaction, in steps of `STEP_ENTRIES`; answers what to deliver."""
        commits = [each for each in work if isinstance(each, Commit)]
        try:
            yield from self._commit(commits)
        except Exception as error:
            if not isinstance(error, CommitFailed):
                _log.exception("Transaction failed")
            for commit in commits:
                commit.outcomes, commit.failure = (), OutcomeUnknown()
        # Loads after the commits of the same transaction: delivered last, they show all of them.
        loads = [each for each in work if isinstance(each, Load)]
        for load in loads:
            user = self._users.get(load.user_id)
            if user is not None:
                load.n = user.n
                load.heads = [log.rows[-1] for log in user.keys.values()]
        return [*commits, *loads]

    def _commit(self, commits: list[Commit]) -> Iterator[None]:
        transaction = _Transaction(self)
        for commit in commits:
            outcomes: list[Outcome] = []
            for entry in commit.entries:
                outcomes.append(transaction.record(entry))
                if len(outcomes) % STEP_ENTRIES == 0:
                    yield
            commit.outcomes = outcomes
        self.persist(transaction.rows)
        yield from self._apply(transaction)

    def _apply(self, transaction: _Transaction) -> Iterator[None]:
        for index, row in enumerate(transaction.rows, 1):
            self._append(row)
            if index % STEP_ENTRIES == 0:
                yield
        for key, record in transaction.remembered.items():
            # Purging goes by age from the front, so a key that is used again after its window moves to the end.
            self._remembered.pop(key, None)
            self._remembered[key] = record
        if transaction.rows:
            self._trim(transaction.rows[-1].accepted_ms, TRIM_STEP_ROWS + len(transaction.rows))

    def _append(self, row: Row) -> None:
        user = self._users.setdefault(row.user_id, _UserLog())
        user.n = row.n
        user.keys.setdefault(row.strategy_id, _KeyLog()).append(row)
        self._kept.append(row)

    def _trim(self, now_ms: int, step_rows: int) -> None:
        oldest_ms = now_ms - self._max_age_ms
        for _ in range(step_rows):
            if not self._kept or (len(self._kept) <= self._max_rows and self._kept[0].accepted_ms >= oldest_ms):
                break
            row = self._kept.popleft()
            self._users[row.user_id].keys[row.strategy_id].forget_oldest()
        self._purge(now_ms - self._idempotency_window_ms, step_rows)

    def _purge(self, oldest_ms: int, step_records: int) -> None:
        for _ in range(step_records):
            key = next(iter(self._remembered), None)
            if key is None or self._remembered[key].accepted_ms >= oldest_ms:
                return
            del self._remembered[key]

    def _log(self, user_id: int, strategy_id: int) -> _KeyLog | None:
        user = self._users.get(user_id)
        return user.keys.get(strategy_id) if user else None

    def _row_at(self, user_id: int, n: int, strategy_id: int) -> Row | None:
        log = self._log(user_id, strategy_id)
        return log.at(n) if log else Row.before_the_first(user_id, strategy_id)


def _unordered(summaries: tuple[Summary, ...]) -> list[tuple[str, int, int]]:
    return sorted((summary.order_type, summary.created, summary.cancelled) for summary in summaries)
