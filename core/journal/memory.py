"""The journal in memory: nothing survives the process, so each start is a new epoch. Same rules as on disk."""

import logging
import math
import sys
import time
from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from heapq import nsmallest
from itertools import islice

from core.errors import OutcomeUnknown, Unavailable
from core.journal.base import (
    HOUR_MS,
    BatchRecord,
    Commit,
    Deletion,
    Deliver,
    Entry,
    Figures,
    HourCounts,
    IdempotencyKey,
    Journal,
    JournalFailed,
    JournalLimits,
    KeyRecord,
    RevocationRecord,
    Work,
    sort_out,
)
from core.journal.transaction import Remembered, Transaction, before_all_rows
from core.models import Summary
from core.totals import NOTHING, Row, Totals, new_epoch

MOST_ROWS = 100_000
"""Rows kept at most, whatever the settings say: about 50 MiB of memory."""

SLICE_SECONDS = 0.002
"""How long a transaction holds the loop before others get their turn: a call of 10,000 batches takes ten slices."""

STEP_ENTRIES = 64
"""Entries between two looks at the clock: about 0.2 ms."""

TRIM_STEP_ROWS = 1000
"""Rows that a commit trims beyond those it adds: about a millisecond, so that a long backlog never holds the loop."""


_log = logging.getLogger("tallywire.journal")


class CommitFailed(Exception):
    """The transaction could not be made durable. Raised by `MemoryJournal.persist` in tests of that case."""


class _KeyLog:
    """The rows of one stream key and what each counted, oldest first; never empty once there was one. Those before
    `first` are forgotten. `hour` is the hour of the newest rows, `before_hour` the totals before the first of these."""

    __slots__ = ("before_hour", "counted", "first", "hour", "rows")

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.counted: list[tuple[Summary, ...]] = []
        self.first = 0
        self.hour = 0
        self.before_hour = NOTHING

    def forget_before(self, due: Row) -> None:
        """Forget what stands before a row that is due: see `core.journal.sqlite.schema.TRIM`."""
        while self.rows[self.first].n < due.n:
            self.first += 1
        # Moving the rest up for each row would take 20 us of a key with 100,000.
        if self.first * 2 > len(self.rows):
            del self.rows[: self.first]
            del self.counted[: self.first]
            self.first = 0

    def record(self) -> KeyRecord:
        """The newest row and the oldest that is kept."""
        return KeyRecord(self.rows[-1], self.rows[self.first])

    def at(self, n: int) -> Row | None:
        """The newest row at or below n; None when it is forgotten."""
        index = bisect_right(self.rows, n, lo=self.first, key=lambda row: row.n)
        if index > self.first:
            return self.rows[index - 1]
        oldest = self.rows[self.first]
        return before_all_rows(oldest.user_id, oldest.strategy_id, oldest.number)


class _UserLog:
    """`floor`: the place behind which the user began anew after a deletion."""

    __slots__ = ("floor", "keys", "n")

    def __init__(self, n: int = 0) -> None:
        self.n = self.floor = n
        self.keys: dict[int, _KeyLog] = {}


class MemoryJournal(Journal):
    """Keeps what `limits` say (bytes and `hours_age_ms` aside), and always the newest row of each key.

    `call_soon` runs a function in a later step of the loop: what was submitted until then is one transaction. `clock`
    is monotonic seconds, `monotonic_ms` the clock that ages are measured on.
    """

    def __init__(
        self,
        call_soon: Callable[[Callable[[], None]], object],
        limits: JournalLimits,
        *,
        clock: Callable[[], float] = time.perf_counter,
        monotonic_ms: Callable[[], int] = lambda: time.monotonic_ns() // 1_000_000,
    ) -> None:
        self.epoch = new_epoch()
        self.revocations: Sequence[RevocationRecord] = ()
        self.figures = Figures()
        self._call_soon = call_soon
        self._clock = clock
        self._monotonic_ms = monotonic_ms
        self._limits = limits
        self._deliver: Deliver = lambda _work: None
        self._waiting: list[Work] = []
        self._open: Generator[None, None, list[Work]] | None = None
        """The transaction that is being worked on; nothing of it is committed before it is complete."""
        self._users: dict[int, _UserLog] = {}
        self._kept: deque[tuple[Row, int]] = deque()
        """Every row that trimming has not looked at, in order of commit, with its age on the journal's clock."""
        self._remembered: dict[IdempotencyKey, Remembered] = {}
        self._hours: defaultdict[int, dict[tuple[int, int], Totals]] = defaultdict(dict)
        """What has been rolled up: all but the newest hour of each key."""

    @property
    def refusal(self) -> Unavailable | None:
        return None

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def start(self, deliver: Deliver, fail: Callable[[JournalFailed], None]) -> None:  # noqa: ARG002  # it never fails
        self._deliver = deliver

    def submit(self, work: Work) -> None:
        if not self._waiting and self._open is None:
            self._call_soon(self._work)
        self._waiting.append(work)

    async def rows_at(self, user_id: int, n: int, strategies: Collection[int]) -> dict[int, Row | None]:
        return {strategy_id: self._row_at(user_id, n, strategy_id) for strategy_id in strategies}

    async def key_record(self, user_id: int, strategy_id: int) -> KeyRecord | None:
        log = self._log(user_id, strategy_id)
        return log.record() if log else None

    async def key_records(self, user_id: int, after_strategy: int, limit: int) -> list[KeyRecord]:
        user = self._users.get(user_id)
        if user is None:
            return []
        next_ones = nsmallest(limit, (strategy_id for strategy_id in user.keys if strategy_id > after_strategy))
        return [user.keys[strategy_id].record() for strategy_id in next_ones]

    async def hours(
        self,
        users: Collection[int],
        strategies: Collection[int] | None,
        first_hour: int,
        end_hour: int,
        limit: int | None = None,
    ) -> list[HourCounts]:
        for user in (self._users[user_id] for user_id in users if user_id in self._users):
            for log in user.keys.values():
                self._roll_up(log)
        left = sys.maxsize if limit is None else limit
        found: list[HourCounts] = []
        of_users, of_strategies = frozenset(users), None if strategies is None else frozenset(strategies)
        for hour in sorted(hour for hour in self._hours if first_hour <= hour < end_hour):
            counts = self._hours[hour]
            for key in sorted(
                key for key in counts if key[0] in of_users and (of_strategies is None or key[1] in of_strategies)
            ):
                if not left:
                    return found
                summaries = sorted(counts[key].summaries, key=lambda summary: summary.order_type)[:left]
                left -= len(summaries)
                found.append(HourCounts(hour, *key, tuple(summaries)))
        return found

    async def batches(
        self, user_id: int, strategy_id: int, after_n: int, from_ms: int, to_ms: int, limit: int
    ) -> list[BatchRecord]:
        log = self._log(user_id, strategy_id)
        if log is None:
            return []
        start = bisect_right(log.rows, after_n, lo=log.first, key=lambda row: row.n)
        found = (
            BatchRecord(user_id, strategy_id, log.rows[at].n, log.rows[at].accepted_ms, log.counted[at])
            for at in range(start, len(log.rows))
            if from_ms <= log.rows[at].accepted_ms < to_ms
        )
        return list(islice(found, limit))

    async def batches_of_key(self, key: str) -> list[BatchRecord]:
        return [
            record.as_batch(idempotency)
            for idempotency, record in self._remembered.items()
            if idempotency.key == key and self.remembered(idempotency)
        ]

    async def close(self) -> None:
        self._work_until(math.inf)

    def persist(self, accepted: Sequence[tuple[Row, Entry]]) -> None:
        """Make a transaction durable. Here there is nothing to do; tests let it fail.

        Raises CommitFailed.
        """

    def committed(self, user_id: int, strategy_id: int) -> tuple[int, Row]:
        """The user's last n, 0 before the first batch, and the key's newest row."""
        user = self._users.get(user_id)
        if user is None:
            return 0, Row.before_the_first(user_id, strategy_id)
        log = user.keys.get(strategy_id)
        return user.n, log.rows[-1] if log is not None else Row.before_the_first(user_id, strategy_id)

    def remembered(self, key: IdempotencyKey) -> Remembered | None:
        """What was counted under an idempotency key within the window."""
        record = self._remembered.get(key)
        if record is None or record.aged_ms < self._monotonic_ms() - self._limits.idempotency_window_ms:
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

    def _transact(self, work: list[Work]) -> Generator[None, None, list[Work]]:
        """All that waited as one transaction, in steps of `STEP_ENTRIES`; answers what to deliver."""
        commits, rare, loads = sort_out(work)
        try:
            yield from self._commit(commits)
        except Exception as error:
            if not isinstance(error, CommitFailed):
                _log.exception("Transaction failed")
            for commit in commits:
                commit.outcomes, commit.failure = (), OutcomeUnknown()
        for each in rare:
            # A revocation lives as long as the process: there is nothing to do.
            if isinstance(each, Deletion):
                self._delete(each)
        for load in loads:
            user = self._users.get(load.user_id)
            if user is not None:
                load.n, load.floor = user.n, user.floor
                load.heads = [log.rows[-1] for log in user.keys.values()]
        return [*commits, *rare, *loads]

    def _commit(self, commits: list[Commit]) -> Iterator[None]:
        transaction = Transaction(self, self._monotonic_ms())
        for commit in commits:
            outcomes = transaction.record(commit.entries[:STEP_ENTRIES])
            for first in range(STEP_ENTRIES, len(commit.entries), STEP_ENTRIES):
                yield
                outcomes += transaction.record(commit.entries[first : first + STEP_ENTRIES])
            commit.outcomes = outcomes
        accepted = transaction.accepted
        if accepted:
            self.persist(accepted)
            self._append(accepted[:STEP_ENTRIES], transaction.aged_ms)
            for first in range(STEP_ENTRIES, len(accepted), STEP_ENTRIES):
                yield
                self._append(accepted[first : first + STEP_ENTRIES], transaction.aged_ms)
            for key, record in transaction.remembered.items():
                # Purging goes by age from the front, so a key that is used again after its window moves to the end.
                self._remembered.pop(key, None)
                self._remembered[key] = record
            self._trim(transaction.aged_ms, TRIM_STEP_ROWS + len(accepted))
            self.figures.commit_batches.add(len(accepted))

    def _append(self, accepted: list[tuple[Row, Entry]], aged_ms: int) -> None:
        for row, entry in accepted:
            user = self._users.get(row.user_id)
            if user is None:
                user = self._users[row.user_id] = _UserLog()
            log = user.keys.get(row.strategy_id)
            if log is None:
                log = user.keys[row.strategy_id] = _KeyLog()
            user.n = row.n
            if log.hour != row.accepted_ms // HOUR_MS:
                self._roll_up(log)
                log.hour = row.accepted_ms // HOUR_MS
            log.rows.append(row)
            log.counted.append(entry.summaries)
            self._kept.append((row, aged_ms))

    def _roll_up(self, log: _KeyLog) -> None:
        """Take over what a key's newest rows, all of one hour, have counted."""
        if log.rows and log.rows[-1].totals is not log.before_hour:
            head = log.rows[-1]
            hour = self._hours[log.hour]
            key = head.user_id, head.strategy_id
            hour[key] = hour.get(key, NOTHING).plus(head.totals.minus(log.before_hour))
            log.before_hour = head.totals

    def _delete(self, deletion: Deletion) -> None:
        user = self._users.get(deletion.user_id)
        if user is None:
            return
        deletion.n = user.n + 1
        deletion.rows = sum(len(log.rows) - log.first for log in user.keys.values())
        self._users[deletion.user_id] = _UserLog(deletion.n)
        for key in [key for key, record in self._remembered.items() if record.user_id == deletion.user_id]:
            del self._remembered[key]
        for counts in self._hours.values():
            for stream_key in [stream_key for stream_key in counts if stream_key[0] == deletion.user_id]:
                del counts[stream_key]

    def _trim(self, now_ms: int, step_rows: int) -> None:
        oldest_ms = now_ms - self._limits.max_age_ms
        kept, max_rows = self._kept, self._limits.max_rows
        end = max(len(kept) - step_rows, 0)
        while len(kept) > end and (len(kept) > max_rows or kept[0][1] < oldest_ms):
            row, _aged_ms = kept.popleft()
            user = self._users[row.user_id]
            if row.n > user.floor:
                user.keys[row.strategy_id].forget_before(row)
        if self._remembered:
            self._purge(now_ms - self._limits.idempotency_window_ms, step_rows)

    def _purge(self, oldest_ms: int, step_records: int) -> None:
        for _ in range(step_records):
            key = next(iter(self._remembered), None)
            if key is None or self._remembered[key].aged_ms >= oldest_ms:
                return
            del self._remembered[key]

    def _log(self, user_id: int, strategy_id: int) -> _KeyLog | None:
        user = self._users.get(user_id)
        return user.keys.get(strategy_id) if user else None

    def _row_at(self, user_id: int, n: int, strategy_id: int) -> Row | None:
        user = self._users.get(user_id)
        if user is not None and n < user.floor:
            return None
        log = user.keys.get(strategy_id) if user else None
        return log.at(n) if log else Row.before_the_first(user_id, strategy_id)
