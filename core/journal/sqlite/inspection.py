"""A journal file looked at from beside: its batches for an export, and whether what stands in it can be.

Reads only, in one transaction that sees one state; the server may run meanwhile. Its log is not worked off for as long,
and grows.
"""

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct

from core.journal.base import HOUR_MS, BatchRecord, JournalError
from core.journal.files import refuse_half_restored
from core.journal.sqlite.packing import DELETION, PackedSummaries
from core.journal.sqlite.schema import APPLICATION_ID, MIGRATIONS
from core.models import Summary
from core.totals import MAX_ORDER_TYPES, NOTHING, Totals

MOST_FOUND = 100
"""Findings that are listed: a file that is damaged has as many as it has rows."""

HOURS_KEPT_MS = 400 * 24 * HOUR_MS

_decode = msgspec.json.Decoder(PackedSummaries).decode

_COLUMNS = "seq, user_id, strategy_id, n, number, accepted_ms, summaries, totals"
_OLD_ROWS = f"SELECT {_COLUMNS} FROM rows ORDER BY seq"
_RECENT_ROWS = f"SELECT {_COLUMNS} FROM recent ORDER BY seq"

_ASKED = """
(:user_id IS NULL OR user_id = :user_id) AND (:strategy_id IS NULL OR strategy_id = :strategy_id)
AND strategy_id > 0 AND accepted_ms >= :from_ms AND accepted_ms < :to_ms
"""

_OUTNUMBERED = f"""
SELECT counted.hour, counted.user_id, counted.strategy_id, counted.order_type FROM (
    SELECT accepted_ms / {HOUR_MS} AS hour, user_id, strategy_id, json_extract(value, '$[0]') AS order_type,
        sum(json_extract(value, '$[1]')) AS created, sum(json_extract(value, '$[2]')) AS cancelled
    FROM rows CROSS JOIN json_each(summaries) GROUP BY 1, 2, 3, 4
) AS counted
LEFT JOIN hours ON hours.hour = counted.hour AND hours.user_id = counted.user_id
    AND hours.strategy_id = counted.strategy_id AND hours.order_type = counted.order_type
WHERE counted.created > coalesce(hours.created, 0) OR counted.cancelled > coalesce(hours.cancelled, 0)
LIMIT {MOST_FOUND}
"""
"""Hours in which more rows are kept than they count."""

_HOUR_SUMS = """
SELECT user_id, strategy_id, order_type, sum(created), sum(cancelled) FROM hours GROUP BY 1, 2, 3
"""

Advance = Callable[[int], None]


class Contents(Struct, frozen=True):
    """What a journal holds. `batches`: that are kept, trimmed ones not among them."""

    epoch: str
    schema: int
    durability: str
    was_left_in_order: bool
    users: int
    stream_keys: int
    batches: int
    idempotency_keys: int
    hours: int


class Verdict(Struct, frozen=True):
    """What was found, at most 100, each a sentence; nothing when all is as it must be. `contents`: None when it cannot
    be read at all."""

    found: tuple[str, ...]
    contents: Contents | None


class Wanted(Struct, frozen=True):
    """Which batches: of all users and strategies, or of one; accepted in [from_ms, to_ms)."""

    user_id: int | None = None
    strategy_id: int | None = None
    from_ms: int = 0
    to_ms: int = 2**62


class ExportedBatch(Struct, frozen=True):
    """A batch, and under which epoch its position is."""

    epoch: str
    record: BatchRecord


@contextmanager
def reading(path: Path, *, immutable: bool = False, takes_older: bool = False) -> Iterator[sqlite3.Connection]:
    """A connection that sees one state of a journal and changes nothing. `immutable`: nobody else has the file, and
    nothing is made beside it. `takes_older`: an older schema will do. Raises JournalError when it is none of ours, or
    newer."""
    refuse_half_restored(path.resolve())
    if not path.is_file():
        raise JournalError(f"there is no journal {path}. Name another file.")
    uri = f"{path.resolve().as_uri()}?mode=ro{'&immutable=1' if immutable else ''}"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None)
    try:
        try:
            connection.execute("PRAGMA query_only = ON")
            connection.execute("PRAGMA temp_store = MEMORY")
            connection.execute("BEGIN")
            (application_id,) = connection.execute("PRAGMA application_id").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
        except sqlite3.Error as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_NOTADB:
                raise JournalError(
                    f"{path} is no journal of Tallywire, or one whose beginning is damaged: then restore a backup."
                ) from error
            raise JournalError(f"the journal {path} cannot be read: {error}. Restore a backup.") from error
        if application_id != APPLICATION_ID:
            raise JournalError(f"{path} is no journal of Tallywire.")
        if version > len(MIGRATIONS):
            raise JournalError(
                f"the journal {path} was written by a newer version of Tallywire (schema {version}, this one knows "
                f"{len(MIGRATIONS)}). Use that version."
            )
        if version < len(MIGRATIONS) and not takes_older:
            raise JournalError(
                f"the journal {path} was written by an older version of Tallywire (schema {version}, now "
                f"{len(MIGRATIONS)}). Use that version. Or move it on: a journal when the server starts, a backup when "
                "it is restored."
            )
        yield connection
    finally:
        connection.close()


def export(path: Path, wanted: Wanted, advance: Advance = lambda _done: None) -> Iterator[ExportedBatch]:
    """The kept batches that are wanted, in order of commit. `advance` is told, in thousandths, how far it is."""
    with reading(path) as connection:
        try:
            (epoch,) = connection.execute("SELECT epoch FROM journal").fetchone()
            last = _last_seq(connection)
            values = {name: getattr(wanted, name) for name in wanted.__struct_fields__}
            for table in ("rows", "recent"):
                columns = "seq, user_id, strategy_id, n, accepted_ms, summaries"
                statement = f"SELECT {columns} FROM {table} WHERE {_ASKED} ORDER BY seq"
                for seq, user_id, strategy_id, n, accepted_ms, summaries in connection.execute(statement, values):
                    advance(seq * 1000 // last)
                    record = BatchRecord(user_id, strategy_id, n, accepted_ms, _summaries(summaries))
                    yield ExportedBatch(epoch, record)
        except (sqlite3.Error, msgspec.DecodeError) as error:
            raise JournalError(f"the journal {path} cannot be read: {error}. Check it with journal check.") from error


def check(
    path: Path, advance: Advance = lambda _done: None, *, quick: bool = False, immutable: bool = False
) -> Verdict:
    """Whether the file is whole, and what stands in it can be. `quick`: without a look at every index.

    `advance` is told, in thousandths, how far it is. Raises JournalError when it is no journal that we know.
    """
    with reading(path, immutable=immutable) as connection:
        found: list[str] = []
        try:
            pragma = "quick_check" if quick else "integrity_check"
            said = connection.execute(f"PRAGMA {pragma}({MOST_FOUND})").fetchall()
            found += [f"SQLite: {line}" for (line,) in said if line != "ok"]
            if found:
                return Verdict(tuple(found), None)
            found += _Rows(connection, advance).check()
            contents = _contents(connection)
        except (sqlite3.Error, msgspec.DecodeError, TypeError, ValueError) as error:
            return Verdict((*found, f"it cannot be read: {error}"), None)
    return Verdict(tuple(found[:MOST_FOUND]), contents)


class _Rows:
    """One walk over all rows in order of commit, with the newest of each user and key in memory."""

    def __init__(self, connection: sqlite3.Connection, advance: Advance) -> None:
        self._connection = connection
        self._advance = advance
        self._found: list[str] = []
        self._last_n: dict[int, tuple[int, bool]] = {}
        """Of each user the newest n, and whether everything behind it must be there."""
        self._heads: dict[tuple[int, int], tuple[int, Totals]] = {}
        self._rolled: dict[tuple[int, int], Totals] = {}
        """The totals up to which `hours` must have counted."""
        self._trimmed_to, self._rolled_to = connection.execute(
            "SELECT trimmed_to, rolled_up_to FROM journal"
        ).fetchone()

    def check(self) -> list[str]:
        """What is wrong, each a sentence."""
        last = _last_seq(self._connection)
        for statement, is_rolled in ((_OLD_ROWS, True), (_RECENT_ROWS, False)):
            for row in self._connection.execute(statement):
                self._look(*row, is_rolled=is_rolled)
                if len(self._found) >= MOST_FOUND:
                    return self._found
                self._advance(row[0] * 1000 // last)
            if is_rolled:
                self._rolled = {key: totals for key, (_number, totals) in self._heads.items()}
        self._check_hours()
        self._check_records()
        return self._found

    def _look(
        self,
        seq: int,
        user_id: int,
        strategy_id: int,
        n: int,
        number: int,
        _accepted_ms: int,
        summaries: str,
        totals: str,
        *,
        is_rolled: bool,
    ) -> None:
        where = f"row {seq} (user {user_id}, strategy {strategy_id}, n {n})"
        if is_rolled != (seq <= self._rolled_to):
            self._found.append(f"{where} stands in the wrong table, or the mark of what is rolled up is wrong")
        self._check_place(where, user_id, n, is_complete=seq > self._trimmed_to, is_deletion=strategy_id == DELETION)
        self._last_n[user_id] = n, seq >= self._trimmed_to
        if strategy_id == DELETION:
            for key in [key for key in self._heads if key[0] == user_id]:
                del self._heads[key]
            return
        self._check_totals(where, (user_id, strategy_id), number, _summaries(summaries), Totals.of(_summaries(totals)))

    def _check_place(self, where: str, user_id: int, n: int, *, is_complete: bool, is_deletion: bool) -> None:
        # A user's first row is n 1, unless there was something before it that has gone.
        before, is_known = self._last_n.get(user_id, (0, self._trimmed_to == 0 and not is_deletion))
        if n <= before:
            self._found.append(f"{where} comes behind n {before} of its user")
        elif is_complete and is_known and n != before + 1:
            self._found.append(f"{where} follows n {before} of its user: {n - before - 1} are missing")

    def _check_totals(
        self, where: str, key: tuple[int, int], number: int, batch: tuple[Summary, ...], totals: Totals
    ) -> None:
        before, known = self._heads.get(key, (0, NOTHING))
        self._heads[key] = number, totals
        if len(totals.summaries) > MAX_ORDER_TYPES:
            self._found.append(f"{where} has more than {MAX_ORDER_TYPES} order types")
        elif not batch or any(
            min(each.created, each.cancelled) < 0 or each.created + each.cancelled == 0 for each in batch
        ):
            self._found.append(f"{where} counts nothing, or less than nothing")
        elif number == before + 1:
            if known.plus(batch) != totals:
                self._found.append(f"{where}: its totals are not those before it and its own counts")
        elif number <= before:
            self._found.append(f"{where} is batch {number} of its key, behind batch {before}")
        elif not _has_grown(totals, known):
            self._found.append(f"{where}: its totals are less than those before it")

    def _check_hours(self) -> None:
        for hour, user_id, strategy_id, order_type in self._connection.execute(_OUTNUMBERED):
            self._found.append(
                f"hour {hour} counts less {order_type} of user {user_id}, strategy {strategy_id}, than its rows do"
            )
        sums: dict[tuple[int, int], dict[str, tuple[int, int]]] = {}
        for user_id, strategy_id, order_type, created, cancelled in self._connection.execute(_HOUR_SUMS):
            sums.setdefault((user_id, strategy_id), {})[order_type] = created, cancelled
        (age_ms,) = self._connection.execute("SELECT coalesce(max(aged_ms), 0) FROM hour_ages").fetchone()
        may_have_forgotten = age_ms > HOURS_KEPT_MS
        for key, totals in self._rolled.items():
            counted = sums.pop(key, {})
            expected = {each.order_type: (each.created, each.cancelled) for each in totals.summaries}
            if counted != expected and not (may_have_forgotten and _are_less(counted, expected)):
                self._found.append(f"the hours of user {key[0]}, strategy {key[1]}, do not add up to its totals")
        for user_id, strategy_id in sums:
            self._found.append(f"there are hours of user {user_id}, strategy {strategy_id}, and no row")

    def _check_records(self) -> None:
        statement = "SELECT key, user_id, n FROM idempotency"
        for key, user_id, n in self._connection.execute(statement):
            if n > self._last_n.get(user_id, (0, False))[0]:
                self._found.append(f"idempotency key {key} is of n {n} of user {user_id}, which has none such")
            if len(self._found) >= MOST_FOUND:
                return


def _has_grown(now: Totals, then: Totals) -> bool:
    kept = now.summaries[: len(then.summaries)]
    return [each.order_type for each in kept] == [each.order_type for each in then.summaries] and all(
        new.created >= old.created and new.cancelled >= old.cancelled
        for new, old in zip(kept, then.summaries, strict=True)
    )


def _are_less(counted: dict[str, tuple[int, int]], expected: dict[str, tuple[int, int]]) -> bool:
    return not Counter({(kind, at): pair[at] for kind, pair in counted.items() for at in (0, 1)}) - Counter(
        {(kind, at): pair[at] for kind, pair in expected.items() for at in (0, 1)}
    )


def _contents(connection: sqlite3.Connection) -> Contents:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    epoch, durability, is_clean = connection.execute("SELECT epoch, durability, is_clean FROM journal").fetchone()
    of_table = "SELECT user_id, strategy_id FROM {} WHERE strategy_id > 0"
    rows, recent = of_table.format("rows"), of_table.format("recent")
    users, keys = connection.execute(
        f"SELECT count(DISTINCT user_id), count(*) FROM ({rows} UNION {recent})"
    ).fetchone()
    return Contents(
        epoch,
        version,
        durability,
        bool(is_clean),
        users,
        keys,
        _one(connection, f"SELECT count(*) FROM ({rows} UNION ALL {recent})"),
        _one(connection, "SELECT count(*) FROM idempotency"),
        _one(connection, "SELECT count(DISTINCT hour) FROM hours"),
    )


def _one(connection: sqlite3.Connection, statement: str) -> int:
    (number,) = connection.execute(statement).fetchone()
    return int(number)


def _last_seq(connection: sqlite3.Connection) -> int:
    last = _one(
        connection, "SELECT max(coalesce((SELECT max(seq) FROM rows), 0), coalesce((SELECT max(seq) FROM recent), 0))"
    )
    return max(1, last)


def _summaries(packed: str) -> tuple[Summary, ...]:
    return tuple(Summary(*counts) for counts in _decode(packed))
