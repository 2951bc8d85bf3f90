"""The one who writes: transactions, loads, deletions, and the housekeeping between them. Works in one thread.

Whatever fails, nothing of it has happened: committed state changes only after SQLite has said that it is committed.
What a failure means is decided in `_failure`:

- the disk is full: nothing was committed. The reserve is given up, so that the log can be worked off and rows trimmed,
  and emits are refused until there is room for it again. A repeat of what was accepted needs no room, and is answered;
- a sync failed: nobody knows what is on disk, and the kernel would say of the next sync that it succeeded. The
  connection is not used again and the process ends;
- anything else: the transaction was rolled back, its outcome is unknown to the caller, and work goes on, from what the
  file says and not from memory.
"""

import logging
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import chain

from msgspec import Struct

from core.errors import Busy, DiskFull, JournalFull, OutcomeUnknown, Unavailable
from core.journal.base import (
    Commit,
    Deletion,
    Entry,
    Figures,
    IdempotencyKey,
    JournalFailed,
    JournalLimits,
    Load,
    RevocationRecord,
    Revoke,
    Work,
    sort_out,
)
from core.journal.files import is_there
from core.journal.sqlite import schema
from core.journal.sqlite.heads import Heads
from core.journal.sqlite.opening import NO_ROOM, JournalFile
from core.journal.sqlite.packing import Values, pack, pack_records, pack_rows, unpack_remembered, unpack_rows
from core.journal.transaction import Remembered, Transaction
from core.totals import Row

STEP_ROWS = 1000
"""Rows between two rounds of housekeeping, all of which it rolls up, and rows that a round trims beyond those that came
in: about ten milliseconds, and a log of 2 to 10 MiB. The more at once, the more of them share a page to be written."""

QUIET_STEP_ROWS = 32
"""The same while emits come one by one: there is CPU to spare, and the emit that comes meanwhile waits half a
millisecond instead of ten."""

QUIET_LOG_ROWS = 64
"""Rows between two looks at the log then: half a millisecond to work off."""

ROUND_MS = 1000
"""Time between two rounds when fewer rows come in."""

SOFT_LIMIT = 15 / 16
"""Part of the allowed bytes from which on rows are trimmed, so that the rest need not be refused."""

_SYNC_FAILURES = (sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC)

Statement = tuple[str, Values | Mapping[str, int]]

_log = logging.getLogger("tallywire.journal")


class _Due(Struct, frozen=True):
    """One step of housekeeping, and the marks that it leaves."""

    statements: list[Statement]
    trim_to: int
    roll_to: int


class Writer:
    """`monotonic_ms` is a clock that nobody sets. `refusal` and `failed` may be read from any thread."""

    def __init__(self, file: JournalFile, limits: JournalLimits, monotonic_ms: Callable[[], int]) -> None:
        self.epoch = file.epoch
        self.refusal: Unavailable | None = None
        """Why emits are refused now."""
        self.failed: JournalFailed | None = None
        self.figures = Figures(limits.max_bytes)
        self._file = file
        self._connection = file.connection
        self._limits = limits
        self._last_seq = self._trimmed_to = self._rolled_up_to = 0
        self._heads = Heads()
        self._is_stale = True
        """What is in memory must be read from the file before it is built on."""
        self._refresh()
        (aged_ms,) = self._connection.execute(schema.LAST_AGE).fetchone()
        self._monotonic_ms = monotonic_ms
        # The journal's own clock stands still while nobody has the journal open: what is kept is kept for longer.
        self._clock_offset_ms: int = aged_ms - monotonic_ms()
        self._remembered: Mapping[IdempotencyKey, Remembered] = {}
        """The records of the keys in the transaction that is being worked on."""
        self._maintained_seq = self._worked_off_seq = self._last_seq
        self._maintained_ms = self._aged_ms()
        self._look()
        self.revocations = [RevocationRecord(*row) for row in self._connection.execute(schema.REVOCATIONS)]

    # ---- work

    def work(self, group: Sequence[Work]) -> list[Work]:
        """All that waited: one transaction for its commits, then what is rare, then loads; answers them in that
        order."""
        commits, rare, loads = sort_out(group)
        if commits:
            self._commit(commits)
        for each in rare:
            if isinstance(each, Deletion):
                self._delete(each)
            else:
                self._revoke(each)
        if loads:
            self._load(loads)
        self._heads.shrink()
        return [*commits, *rare, *loads]

    def committed(self, user_id: int, strategy_id: int) -> tuple[int, Row]:
        """The user's last n, 0 before the first batch, and the key's newest row."""
        user = self._heads.user(user_id)
        return user.n, user.heads.get(strategy_id) or Row.before_the_first(user_id, strategy_id)

    def remembered(self, key: IdempotencyKey) -> Remembered | None:
        """What was counted under an idempotency key within the window."""
        record = self._remembered.get(key)
        return None if record is None or record.aged_ms < self.oldest_key_ms() else record

    def oldest_key_ms(self) -> int:
        """The age, on the journal's clock, from which on idempotency records count. May be called in any thread."""
        return self._aged_ms() - self._limits.idempotency_window_ms

    def _commit(self, commits: Sequence[Commit]) -> None:
        failure: Unavailable | None = OutcomeUnknown() if self.failed else None
        try:
            if failure is None:
                failure = self._transact_calls(commits)
        except sqlite3.Error as error:
            failure = self._failure(error)
        if failure is not None:
            for commit in commits:
                commit.outcomes, commit.failure = (), failure

    def _transact_calls(self, commits: Sequence[Commit]) -> Unavailable | None:
        """Commit them together; answers why not, when it is known before anything is written. Raises sqlite3.Error."""
        transaction = self._record(commits)
        if transaction.accepted:
            if self.refusal is not None:
                return self.refusal
            statements = self._statements(transaction)
            begun = time.perf_counter()
            self.accept(statements)
            self.figures.commit_seconds.add(time.perf_counter() - begun)
            self.figures.commit_batches.add(len(transaction.accepted))
            self._apply(transaction)
        return None

    def accept(self, statements: Sequence[Statement]) -> None:
        """Make a transaction durable. Raises sqlite3.Error."""
        if self._connection.in_transaction:
            # It would succeed, within a transaction that nobody commits.
            raise AssertionError("a transaction was left open")
        self._transact(statements)

    def _record(self, commits: Sequence[Commit]) -> Transaction:
        self._refresh()
        entries = list(chain.from_iterable(commit.entries for commit in commits))
        self._fetch_heads({entry.user_id for entry in entries})
        self._fetch_remembered(entries)
        transaction = Transaction(self, self._aged_ms())
        for commit in commits:
            commit.outcomes = transaction.record(commit.entries)
        return transaction

    def _refresh(self) -> None:
        if self._is_stale:
            self._last_seq, self._trimmed_to, self._rolled_up_to = self._connection.execute(schema.MARKS).fetchone()
            self._heads = Heads()
            self._is_stale = False

    def _fetch_heads(self, users: set[int]) -> None:
        unknown = self._heads.unknown(users)
        if unknown:
            self._heads.fetched(unknown, unpack_rows(self._text(schema.HEADS, pack(unknown))))

    def _fetch_remembered(self, entries: Sequence[Entry]) -> None:
        keys = {entry.idempotency for entry in entries if entry.idempotency is not None}
        self._remembered = {}
        if keys:
            asked = pack((idempotency.key, idempotency.caller) for idempotency in keys)
            self._remembered = unpack_remembered(self._text(schema.REMEMBERED, asked))

    def _statements(self, transaction: Transaction) -> list[Statement]:
        aged_ms = transaction.aged_ms
        statements: list[Statement] = []
        for first in range(0, len(transaction.accepted), schema.MOST_AT_ONCE):
            rows = transaction.accepted[first : first + schema.MOST_AT_ONCE]
            places = _places(len(rows))
            seq = self._last_seq + 1 + first
            statements.append((schema.accept(places), pack_rows(rows, seq, aged_ms, places)))
            if transaction.remembered:
                keyed = [(row, entry) for row, entry in rows if entry.idempotency is not None]
                places = _places(len(keyed))
                statements.append((schema.remember(places), pack_records(keyed, aged_ms, places)))
        return statements

    def _apply(self, transaction: Transaction) -> None:
        self._last_seq += len(transaction.accepted)
        self._heads.apply(row for row, _entry in transaction.accepted)

    def _load(self, loads: Sequence[Load]) -> None:
        try:
            if self.failed:
                raise self.failed
            self._refresh()
            self._fetch_heads({load.user_id for load in loads})
        except (sqlite3.Error, JournalFailed) as error:
            _log.error("Users not loaded", extra={"users": len(loads), "reason": str(error)})
            for load in loads:
                load.failure = Busy("The journal cannot be read now.")
            return
        for load in loads:
            user = self._heads.user(load.user_id)
            load.n, load.floor = user.n, user.floor
            load.heads = list(user.heads.values())
        # A crowd of newcomers about whom the file knows nothing.
        for user_id in {load.user_id for load in loads if not load.n}:
            self._heads.forget(user_id)

    def _delete(self, deletion: Deletion) -> None:
        try:
            if self.failed:
                raise self.failed
            self._refresh()
            self._fetch_heads({deletion.user_id})
            last_n = self._heads.user(deletion.user_id).n
            if last_n:
                self._delete_all(deletion, last_n + 1)
        except sqlite3.Error as error:
            deletion.failure = self._failure(error)
        except JournalFailed:
            deletion.failure = OutcomeUnknown()

    def _delete_all(self, deletion: Deletion, n: int) -> None:
        values = {
            "user_id": deletion.user_id,
            "seq": self._last_seq + 1,
            "n": n,
            "accepted_ms": 0,
            "aged_ms": self._aged_ms(),
        }
        (rows,) = self._connection.execute(schema.COUNT_USER, {"user_id": deletion.user_id}).fetchone()
        self._transact([(statement, values) for statement in schema.DELETE_USER])
        self._last_seq += 1
        self._heads.forget(deletion.user_id)
        deletion.n, deletion.rows = n, rows

    def _revoke(self, revoke: Revoke) -> None:
        record = revoke.record
        try:
            if self.failed:
                raise self.failed
            self.accept(
                [
                    (schema.FORGET_REVOCATIONS, {"now_ms": record.revoked_ms}),
                    (schema.REVOKE, {name: getattr(record, name) for name in record.__struct_fields__}),
                ]
            )
        except sqlite3.Error as error:
            revoke.failure = self._failure(error)
        except JournalFailed:
            revoke.failure = OutcomeUnknown()

    # ---- housekeeping

    def maintain(self, *, is_quiet: bool) -> None:
        """After a group: a round of housekeeping, when one is due. `is_quiet`: emits come one by one."""
        enough_rows = QUIET_STEP_ROWS if is_quiet else STEP_ROWS
        if self._last_seq - self._maintained_seq >= enough_rows or self._aged_ms() - self._maintained_ms >= ROUND_MS:
            self._round(enough_rows)

    def rest(self) -> bool:
        """When nothing waits: a round of housekeeping; answers whether there is more to do."""
        return self._round(1)

    def _round(self, enough_rows: int) -> bool:
        """Roll up (when so many rows wait for it), trim, purge, work off the log; answers whether more is due."""
        if self.failed or self._is_gone():
            return False
        try:
            self._refresh()
            if isinstance(self.refusal, DiskFull):
                self._work_off_log()
            due = self._due(enough_rows)
            if due.statements:
                self._transact(due.statements)
                self._trimmed_to, self._rolled_up_to = due.trim_to, due.roll_to
            if self.refusal is not None or self._last_seq - self._worked_off_seq >= (
                QUIET_LOG_ROWS if enough_rows == QUIET_STEP_ROWS else 1
            ):
                self._work_off_log()
                self._look()
                self._worked_off_seq = self._last_seq
            self._maintained_seq, self._maintained_ms = self._last_seq, self._aged_ms()
        except sqlite3.IntegrityError as error:
            # Two rows at one place: no position can be trusted any more.
            self.fail(f"the journal {self._file.path} contradicts itself ({error})")
            return False
        except sqlite3.Error as error:
            self._failure(error)
            return False
        return bool(due.statements)

    def _due(self, enough_rows: int) -> "_Due":
        """One step of all that is due."""
        now_ms = self._aged_ms()
        step = STEP_ROWS + self._last_seq - self._maintained_seq
        statements: list[Statement] = []
        oldest_row_ms, oldest_key_ms, oldest_hour_ms = self._connection.execute(
            schema.OLDEST_AGES, {"trimmed_to": self._trimmed_to}
        ).fetchone()
        trim_to = self._trim_to(oldest_row_ms, now_ms - self._limits.max_age_ms, step)
        roll_to = self._rolled_up_to
        # Nothing is trimmed before it has been rolled up: the hours would miss it.
        if self._last_seq - roll_to >= enough_rows or trim_to > roll_to:
            roll_to = self._last_seq
            statements += [(statement, {"to_seq": roll_to}) for statement in schema.ROLL_UP]
        if trim_to > self._trimmed_to:
            statements += [(statement, {"to_seq": trim_to}) for statement in schema.TRIM]
        oldest_ms = self.oldest_key_ms()
        if oldest_key_ms is not None and oldest_key_ms < oldest_ms:
            statements.append((schema.PURGE, {"oldest_ms": oldest_ms, "step": step}))
        oldest_ms = now_ms - self._limits.hours_age_ms
        if oldest_hour_ms is not None and oldest_hour_ms < oldest_ms:
            statements += [(statement, {"oldest_ms": oldest_ms, "step": step}) for statement in schema.PURGE_HOURS]
        return _Due(statements, max(trim_to, self._trimmed_to), roll_to)

    def _trim_to(self, oldest_row_ms: int | None, oldest_ms: int, step: int) -> int:
        """The seq up to which rows are too many, too old, or take too much room; at most one step ahead."""
        too_many = self._last_seq - self._limits.max_rows
        takes_too_much = self.figures.used_bytes > self._limits.max_bytes * SOFT_LIMIT
        is_too_old = oldest_row_ms is not None and oldest_row_ms < oldest_ms
        if oldest_row_ms is None or not (takes_too_much or is_too_old or too_many > self._trimmed_to):
            return self._trimmed_to
        end, too_old = self._connection.execute(
            schema.NEXT_ROWS, {"trimmed_to": self._trimmed_to, "step": step, "oldest_ms": oldest_ms}
        ).fetchone()
        return int(end if takes_too_much else min(max(too_many, too_old or 0), end))

    def _is_gone(self) -> bool:
        """The file has been removed or replaced: whatever is written now, nobody will find it."""
        if is_there(self._file.path, self._file.identity):
            return False
        self.fail(f"the journal {self._file.path} has been removed or replaced")
        return True

    def _work_off_log(self) -> None:
        # On a full disk the log itself may be what fills it.
        mode = "TRUNCATE" if isinstance(self.refusal, DiskFull) else "PASSIVE"
        self._connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()

    def _look(self) -> None:
        """Is there room?"""
        pages, free_pages, page_bytes = self._connection.execute(schema.SIZES).fetchone()
        self.figures.used_bytes = (pages - free_pages) * page_bytes
        if not self._file.reserve.hold():
            self._refuse(DiskFull())
        elif self.figures.used_bytes >= self._limits.max_bytes and self._trimmed_to >= self._last_seq:
            self._refuse(JournalFull(self._limits.max_bytes))
        else:
            self._refuse(None)

    def _refuse(self, refusal: Unavailable | None) -> None:
        if type(refusal) is not type(self.refusal):
            if refusal is None:
                _log.warning("Emits are taken again")
            else:
                facts = {"code": refusal.code, "journal": str(self._file.path), "used_bytes": self.figures.used_bytes}
                _log.error("Emits are refused", extra=facts)
        self.refusal = refusal

    def close(self) -> None:
        """Leave in order: the log worked off, and a mark that says so."""
        if self.failed:
            # Closing the connection would work off the log, on a disk that cannot be trusted.
            return
        try:
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute("UPDATE journal SET is_clean = 1")
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error as error:
            _log.error("Journal not left in order", extra={"reason": str(error)})
        self._file.close()

    # ---- helpers

    def _aged_ms(self) -> int:
        return self._monotonic_ms() + self._clock_offset_ms

    def _text(self, statement: str, parameter: str) -> str:
        (text,) = self._connection.execute(statement, (parameter,)).fetchone()
        return str(text)

    def _transact(self, statements: Sequence[Statement]) -> None:
        """Commit them together; one alone commits by itself. Raises sqlite3.Error, and nothing of it has happened."""
        if len(statements) == 1:
            self._connection.execute(*statements[0])
            return
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            for statement, values in statements:
                self._connection.execute(statement, values)
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def fail(self, reason: str) -> None:
        """The connection is not used again, and the process is to end."""
        self.failed = JournalFailed(f"{reason}; what is on the disk must be read anew")
        _log.critical("Journal failed", extra={"reason": str(self.failed)})

    def _failure(self, error: sqlite3.Error) -> Unavailable:
        self._is_stale = True
        code = getattr(error, "sqlite_errorcode", None)
        if code in NO_ROOM:
            self._file.reserve.release()
            self._refuse(DiskFull())
            # What can be done about it is done at once.
            self._maintained_ms -= ROUND_MS
            # The index of the log grows behind the log itself: what was written may be there.
            return DiskFull() if code == sqlite3.SQLITE_FULL else OutcomeUnknown()
        if code == sqlite3.SQLITE_BUSY:
            _log.error("Journal busy", extra={"reason": "another program holds its write lock"})
            return Busy("Another program holds the journal's write lock; nothing was accepted.")
        if code in _SYNC_FAILURES:
            self.fail(f"a sync of the journal {self._file.path} failed ({error})")
        else:
            _log.error("Journal error", extra={"reason": str(error), "code": getattr(error, "sqlite_errorname", None)})
        return OutcomeUnknown()


def _places(rows: int) -> int:
    """How many places a statement has for so many rows: few different statements, that stay prepared."""
    return 1 << max(rows - 1, 0).bit_length()
