"""Rows and records to the values that go into a statement, and from the JSON that comes back. Pure."""

from collections.abc import Iterable, Sequence

import msgspec

from core.journal.base import BatchRecord, Entry, HourCounts, IdempotencyKey, KeyRecord, Recorded
from core.journal.transaction import Remembered, before_all_rows
from core.models import Summary
from core.totals import Row, Totals

PackedSummaries = list[tuple[str, int, int]]
PackedRow = tuple[int, int, int, int, int, PackedSummaries]
"""user, strategy, n, number, accepted_ms, totals."""

PackedRecord = tuple[str, str, int, int, int, int, int, int, PackedSummaries]
"""key, caller, user, strategy, n, accepted_ms, aged_ms, ignored, summaries."""

DELETION = 0
"""The strategy of a row that marks a deletion."""

_encode = msgspec.json.Encoder().encode
_decode_rows = msgspec.json.Decoder(list[PackedRow]).decode
_decode_judged = msgspec.json.Decoder(list[tuple[int | None, int | None, PackedRow | None]]).decode
_decode_records = msgspec.json.Decoder(list[PackedRecord]).decode
_decode_key_record = msgspec.json.Decoder(tuple[PackedRow | None, PackedRow | None]).decode
_decode_key_records = msgspec.json.Decoder(list[tuple[PackedRow, PackedRow]]).decode
_decode_batches = msgspec.json.Decoder(list[tuple[int, int, PackedSummaries]]).decode
_decode_hours = msgspec.json.Decoder(list[tuple[int, int, int, str, int, int]]).decode


def pack(values: Iterable[object]) -> str:
    """A list as JSON text."""
    return _encode(list(values)).decode()


Values = Sequence[int | str]
"""For the parameters of a statement. None and bytes would take sqlite3 five times as long to bind."""

Accepted = Sequence[tuple[Row, Entry]]
"""New rows with what they were made of, in order."""


def pack_rows(accepted: Accepted, first_seq: int, aged_ms: int, places: int) -> Values:
    """See `schema.accept`."""
    values: list[int | str] = [first_seq, aged_ms]
    for row, entry in accepted:
        values += (
            row.user_id,
            row.strategy_id,
            row.n,
            row.number,
            row.accepted_ms,
            _pack_summaries(entry.summaries),
            _pack_summaries(row.totals.summaries),
        )
    values += (0,) * (7 * (places - len(accepted)))
    return values


def pack_records(accepted: Accepted, aged_ms: int, places: int) -> Values:
    """See `schema.remember`; each entry has a key."""
    values: list[int | str] = [aged_ms]
    for row, entry in accepted:
        if entry.idempotency is not None:
            values += (
                entry.idempotency.key,
                entry.idempotency.caller,
                row.user_id,
                row.strategy_id,
                row.n,
                row.accepted_ms,
                entry.ignored,
                _pack_summaries(entry.summaries),
            )
    values += (0,) * (8 * (places - len(accepted)))
    return values


def _pack_summaries(summaries: Sequence[Summary]) -> str:
    return _encode([(summary.order_type, summary.created, summary.cancelled) for summary in summaries]).decode()


def unpack_rows(text: str) -> list[Row]:
    """Rows, deletions included."""
    return [_row(packed) for packed in _decode_rows(text)]


def unpack_judged(text: str, asked: Iterable[tuple[int, int, int]]) -> list[Row | None]:
    """For each (user, strategy, n) the row there, zero, or None where nobody can tell: see `Journal.rows_at`."""
    return [_judged(*asking, *found) for asking, found in zip(asked, _decode_judged(text), strict=True)]


def unpack_remembered(text: str) -> dict[IdempotencyKey, Remembered]:
    """Idempotency records by their key."""
    return {
        IdempotencyKey(caller, key): Remembered(
            user_id, strategy_id, Recorded(n, _summaries(counted), ignored, None), accepted_ms, aged_ms
        )
        for key, caller, user_id, strategy_id, n, accepted_ms, aged_ms, ignored, counted in _decode_records(text)
    }


def unpack_batches_of_key(text: str) -> list[BatchRecord]:
    """The same as what an operator looks up."""
    return [record.as_batch(idempotency) for idempotency, record in unpack_remembered(text).items()]


def unpack_key_record(text: str) -> KeyRecord | None:
    """The newest and the oldest row of a key."""
    head, oldest = _decode_key_record(text)
    return None if head is None or oldest is None else KeyRecord(_row(head), _row(oldest))


def unpack_key_records(text: str) -> list[KeyRecord]:
    """The same of several keys, each of which has rows."""
    return [KeyRecord(_row(head), _row(oldest)) for head, oldest in _decode_key_records(text)]


def unpack_batches(text: str, user_id: int, strategy_id: int) -> list[BatchRecord]:
    """Batches of one key."""
    return [
        BatchRecord(user_id, strategy_id, n, accepted_ms, _summaries(counted))
        for n, accepted_ms, counted in _decode_batches(text)
    ]


def unpack_hours(text: str) -> list[HourCounts]:
    """Counts by hour and key, in that order."""
    counts: dict[tuple[int, int, int], list[Summary]] = {}
    for *key, order_type, created, cancelled in sorted(_decode_hours(text)):
        hour, user_id, strategy_id = key
        counts.setdefault((hour, user_id, strategy_id), []).append(Summary(order_type, created, cancelled))
    return [HourCounts(*key, tuple(summaries)) for key, summaries in counts.items()]


def _row(packed: PackedRow) -> Row:
    user_id, strategy_id, n, number, accepted_ms, totals = packed
    return Row(user_id, strategy_id, n, number, accepted_ms, Totals.of(_summaries(totals)))


def _summaries(packed: PackedSummaries) -> tuple[Summary, ...]:
    return tuple(Summary(*counts) for counts in packed)


def _judged(
    user_id: int, strategy_id: int, n: int, deleted_n: int | None, oldest_number: int | None, found: PackedRow | None
) -> Row | None:
    if deleted_n is not None and n < deleted_n:
        return None
    if found is not None:
        return _row(found)
    return before_all_rows(user_id, strategy_id, oldest_number)
