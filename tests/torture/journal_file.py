"""What stands in a journal file, read with SQLite and without a line of the product's code."""

import json
import shutil
import sqlite3
import tempfile
from pathlib import Path
from typing import NamedTuple

Counts = list[tuple[str, int, int]]
"""[order type, created, cancelled], in the order in which they were first counted."""


class JournalRow(NamedTuple):
    """One accepted batch."""

    seq: int
    user_id: int
    strategy_id: int
    n: int
    number: int
    accepted_ms: int
    summaries: Counts
    totals: Counts


class KeyRecord(NamedTuple):
    """One idempotency record."""

    key: str
    user_id: int
    strategy_id: int
    n: int
    summaries: Counts


class HourRecord(NamedTuple):
    """What was rolled up of one stream key, order type and hour."""

    user_id: int
    strategy_id: int
    order_type: str
    created: int
    cancelled: int


class JournalContents(NamedTuple):
    """All of a journal that the checker looks at. `epoch` is empty when the file was never begun."""

    epoch: str = ""
    trimmed_to: int = 0
    rolled_up_to: int = 0
    rows: tuple[JournalRow, ...] = ()
    keys: tuple[KeyRecord, ...] = ()
    hours: tuple[HourRecord, ...] = ()

    @property
    def last_seq(self) -> int:
        return max((row.seq for row in self.rows), default=0)


def read_journal(path: Path, *, only_rows: bool = False) -> JournalContents:
    """The committed contents of a journal that nobody has open.

    A copy is read, its log included: the file itself must meet the next server exactly as the last one left it.
    """
    with tempfile.TemporaryDirectory(prefix="tallywire-torture-") as directory:
        copy = Path(directory) / path.name
        for suffix in ("", "-wal"):
            original = path.with_name(path.name + suffix)
            if original.exists():
                shutil.copyfile(original, copy.with_name(copy.name + suffix))
        if not copy.exists():
            return JournalContents()
        connection = sqlite3.connect(copy)
        try:
            return _contents(connection, only_rows)
        finally:
            connection.close()


def _contents(connection: sqlite3.Connection, only_rows: bool) -> JournalContents:
    (problem,) = connection.execute("PRAGMA quick_check").fetchone()
    if problem != "ok":
        raise AssertionError(f"the journal is damaged: {problem}")
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'journal'").fetchone():
        return JournalContents()
    known = connection.execute("SELECT epoch, trimmed_to, rolled_up_to FROM journal").fetchone()
    if known is None:
        return JournalContents()
    columns = "seq, user_id, strategy_id, n, number, accepted_ms, summaries, totals"
    rows = connection.execute(f"SELECT {columns} FROM rows UNION ALL SELECT {columns} FROM recent ORDER BY seq")
    epoch, trimmed_to, rolled_up_to = known
    contents = JournalContents(epoch, trimmed_to, rolled_up_to, tuple(_row(row) for row in rows))
    if only_rows:
        return contents
    keys = connection.execute("SELECT key, user_id, strategy_id, n, summaries FROM idempotency")
    hours = connection.execute("SELECT user_id, strategy_id, order_type, created, cancelled FROM hours")
    return contents._replace(
        keys=tuple(
            KeyRecord(key, user_id, strategy_id, n, _counts(text)) for key, user_id, strategy_id, n, text in keys
        ),
        hours=tuple(HourRecord(*columns) for columns in hours),
    )


def _row(columns: tuple[int, int, int, int, int, int, str, str]) -> JournalRow:
    return JournalRow(*columns[:6], _counts(columns[6]), _counts(columns[7]))


def _counts(text: str) -> Counts:
    return [(order_type, created, cancelled) for order_type, created, cancelled in json.loads(text)]


def write_rows(contents: JournalContents, path: Path) -> None:
    """Put down which rows the journal held at this moment."""
    path.write_text(json.dumps([contents.epoch, contents.trimmed_to, contents.rolled_up_to, contents.rows]))


def read_rows(path: Path) -> JournalContents:
    """What `write_rows` has put down."""
    epoch, trimmed_to, rolled_up_to, rows = json.loads(path.read_text())
    return JournalContents(
        epoch,
        trimmed_to,
        rolled_up_to,
        tuple(JournalRow(*row[:6], *([tuple(counts) for counts in column] for column in row[6:])) for row in rows),
    )
