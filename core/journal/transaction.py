"""What one transaction accepts: n, totals and repeated answers, from committed state. The same for every driver. Pure.

Nothing here changes committed state. A driver makes `accepted` durable and applies it, or forgets the transaction.
"""

from collections.abc import Iterable
from typing import Protocol

from msgspec import Struct

from core.errors import IdempotencyConflict, TooManyOrderTypes
from core.journal.base import BatchRecord, Entry, IdempotencyKey, Outcome, Recorded
from core.models import Summary
from core.totals import Position, Row


class Remembered(Struct, frozen=True, gc=False):
    """An idempotency record: what was counted under a key, for whom, and when.

    `accepted_ms` is Unix time, `aged_ms` the journal's own clock.
    """

    user_id: int
    strategy_id: int
    answer: Recorded
    accepted_ms: int
    aged_ms: int

    def as_batch(self, key: IdempotencyKey) -> BatchRecord:
        """The batch as it is looked up."""
        return BatchRecord(
            self.user_id,
            self.strategy_id,
            self.answer.n,
            self.accepted_ms,
            self.answer.summaries,
            self.answer.ignored,
            key,
        )

    def is_same_batch(self, entry: Entry) -> bool:
        """Same user, strategy and counts, however the batch was encoded or ordered."""
        return (
            self.user_id == entry.user_id
            and self.strategy_id == entry.strategy_id
            and _unordered(self.answer.summaries) == _unordered(entry.summaries)
        )


class Committed(Protocol):
    """The state that a transaction starts from."""

    @property
    def epoch(self) -> str:
        """Of the journal."""

    def committed(self, user_id: int, strategy_id: int) -> tuple[int, Row]:
        """The user's last n, 0 before the first batch, and the key's newest row."""

    def remembered(self, key: IdempotencyKey) -> Remembered | None:
        """What was counted under an idempotency key within the window."""


class Transaction:
    """Entries in, outcomes out. `accepted` holds the new rows with what they were made of, in order.

    `aged_ms`: the journal's own clock at the transaction.
    """

    __slots__ = ("_committed", "_heads", "_ns", "accepted", "aged_ms", "remembered")

    def __init__(self, committed: Committed, aged_ms: int) -> None:
        self.aged_ms = aged_ms
        self.accepted: list[tuple[Row, Entry]] = []
        self.remembered: dict[IdempotencyKey, Remembered] = {}
        self._committed = committed
        self._ns: dict[int, int] = {}
        self._heads: dict[tuple[int, int], Row] = {}

    def record(self, entries: Iterable[Entry]) -> list[Outcome]:
        """For each, in order: assign n and totals, or repeat the earlier answer, or refuse."""
        return [
            (self._repeated(entry, entry.idempotency) if entry.idempotency is not None else None) or self._add(entry)
            for entry in entries
        ]

    def _add(self, entry: Entry) -> Outcome:
        user_id = entry.user_id
        stream_key = (user_id, entry.strategy_id)
        last_n, head = self._ns.get(user_id), self._heads.get(stream_key)
        if last_n is None or head is None:
            committed_n, committed_head = self._committed.committed(user_id, entry.strategy_id)
            last_n, head = last_n or committed_n, head or committed_head
        n = last_n + 1
        try:
            row = head.next(n, entry.accepted_ms, entry.summaries)
        except TooManyOrderTypes as refusal:
            return refusal
        self._ns[user_id] = n
        self._heads[stream_key] = row
        self.accepted.append((row, entry))
        if entry.idempotency is not None:
            answer = Recorded(n, entry.summaries, entry.ignored, None)
            self.remembered[entry.idempotency] = Remembered(
                user_id, entry.strategy_id, answer, entry.accepted_ms, self.aged_ms
            )
        return Recorded(n, entry.summaries, entry.ignored, row)

    def _repeated(self, entry: Entry, key: IdempotencyKey) -> Outcome | None:
        earlier = self.remembered.get(key) or self._committed.remembered(key)
        if earlier is None:
            return None
        if not earlier.is_same_batch(entry):
            return IdempotencyConflict(str(Position(self._committed.epoch, earlier.answer.n)))
        return earlier.answer


def before_all_rows(user_id: int, strategy_id: int, oldest_number: int | None) -> Row | None:
    """What a key had counted at a position below its oldest row (None: it has none): nothing, or nobody can tell.

    A key whose first row is still there had counted nothing by then.
    """
    return Row.before_the_first(user_id, strategy_id) if oldest_number in (None, 1) else None


def _unordered(summaries: tuple[Summary, ...]) -> list[tuple[str, int, int]]:
    return sorted((summary.order_type, summary.created, summary.cancelled) for summary in summaries)
