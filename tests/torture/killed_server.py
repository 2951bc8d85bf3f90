"""The real server, except that it kills itself at a named point, and that it can be given a mistake to be found out.

Run as `python -m tests.torture.killed_server serve ...` with the settings of the server; what is asked of it stands in
the environment: TORTURE_POINT, TORTURE_HITS (which hit of the point is the last), TORTURE_SEED, TORTURE_MISTAKE.
"""

import os
import random
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import server
from core.hub import Hub
from core.journal import worker
from core.journal.base import Commit, Work
from core.journal.sqlite import opening, schema, writer
from core.journal.sqlite.driver import SqliteJournal
from core.journal.sqlite.heads import Heads
from core.journal.sqlite.writer import Statement, Writer
from core.subscriber import StreamKey
from handlers import emit as emit_route
from handlers.connection import Connection

COMMIT_SECONDS, CHECKPOINT_SECONDS, RECOVERY_SECONDS = 0.004, 0.006, 0.012
"""About twice what each takes here on average: a kill at a random time in it hits every part, or the moment behind."""

AHEAD_SECONDS = 0.02
"""How far a planted mistake lets the loop run ahead of the writer."""


def die() -> NoReturn:
    """As `kill -9` does: no handler, no flush, no farewell."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("nobody comes back from this signal")


class Countdown:
    """Says at the n-th hit that it is time."""

    def __init__(self, hits: int, chance: random.Random) -> None:
        self._left = hits
        self.chance = chance

    def is_over(self) -> bool:
        """Count a hit."""
        self._left -= 1
        return self._left == 0

    def hit(self) -> None:
        """Count a hit, and die if it was the last."""
        if self.is_over():
            die()

    def die_within(self, seconds: float) -> None:
        """Die at a random moment of what is being begun now, in another thread."""
        left_seconds = self.chance.random() * seconds

        def wait_and_die() -> None:
            time.sleep(left_seconds)
            die()

        threading.Thread(target=wait_and_die, daemon=True).start()


def replace(owner: object, name: str, replacement: object) -> None:
    """Put something else into a class or a module."""
    if not hasattr(owner, name):
        raise AttributeError(f"{owner} has no {name} any more: the torture must follow the product")
    setattr(owner, name, replacement)


# ---- points


def in_recovery(countdown: Countdown) -> None:
    """The log that the last kill left behind is being read and worked off, or the new life is being marked."""
    recovered = opening._recovered

    def recover_and_die(path: Path) -> Any:
        if countdown.is_over():
            countdown.die_within(RECOVERY_SECONDS)
        return recovered(path)

    replace(opening, "_recovered", recover_and_die)


def after_insert(countdown: Countdown) -> None:
    """Within the transaction, behind a row that has been inserted."""
    begin = Writer.__init__

    def init(self: Writer, *arguments: Any) -> None:
        begin(self, *arguments)
        self._connection.create_function("count_insert", 0, countdown.hit)
        self._connection.execute(
            "CREATE TEMP TRIGGER count_inserts AFTER INSERT ON main.recent BEGIN SELECT count_insert(); END"
        )

    replace(Writer, "__init__", init)


def in_commit(countdown: Countdown) -> None:
    """Somewhere within the statement that inserts, commits and syncs, or just behind it."""
    accept = Writer.accept

    def accept_and_die(self: Writer, statements: Sequence[Statement]) -> None:
        if countdown.is_over():
            countdown.die_within(COMMIT_SECONDS)
        accept(self, statements)

    replace(Writer, "accept", accept_and_die)


def after_commit(countdown: Countdown) -> None:
    """The transaction is durable, and nobody knows."""
    accept = Writer.accept

    def accept_and_die(self: Writer, statements: Sequence[Statement]) -> None:
        accept(self, statements)
        countdown.hit()

    replace(Writer, "accept", accept_and_die)


def before_publish(countdown: Countdown) -> None:
    """The loop has heard of the commit and has not begun to publish it."""
    deliver = Hub._deliver

    def die_and_deliver(self: Hub, finished: Sequence[Work]) -> None:
        if any(isinstance(work, Commit) for work in finished):
            countdown.hit()
        deliver(self, finished)

    replace(Hub, "_deliver", die_and_deliver)


def in_fan_out(countdown: Countdown) -> None:
    """Some connections of a key have their frame, one has half of it, the others have nothing."""
    bring_up_to_date, transmit = StreamKey.bring_up_to_date, Connection.transmit
    hand_over_to_each = Connection.hand_over_to_each
    sent_in_pass: list[int] = []

    def begin_pass(self: StreamKey, listeners: list[Any]) -> None:
        sent_in_pass[:] = [0]
        try:
            bring_up_to_date(self, listeners)
        finally:
            sent_in_pass.clear()

    def transmit_half(self: Connection, data: bytes | memoryview) -> int:
        if sent_in_pass:
            sent_in_pass[0] += 1
            if sent_in_pass[0] > 1 and countdown.is_over():
                transmit(self, data[: countdown.chance.randrange(len(data) + 1)])
                die()
        return transmit(self, data)

    def hand_over_to_some(self: Connection, streams: Sequence[Any], data: bytes, counts: int) -> None:
        if len(streams) > 1 and countdown.is_over():
            place = countdown.chance.randrange(1, len(streams))
            try:
                hand_over_to_each(self, streams[:place], data, counts)
                transmit(streams[place], data[: countdown.chance.randrange(len(data) + 1)])
            finally:
                die()
        hand_over_to_each(self, streams, data, counts)

    replace(StreamKey, "bring_up_to_date", begin_pass)
    replace(Connection, "hand_over_to_each", hand_over_to_some)
    replace(Connection, "transmit", transmit_half)


def before_answer(countdown: Countdown) -> None:
    """Committed and published; the caller has not been told."""
    answer = emit_route._Call.resolved

    def die_and_answer(self: emit_route._Call) -> None:
        if self.error is None:
            countdown.hit()
        answer(self)

    replace(emit_route._Call, "resolved", die_and_answer)


class WatchedConnection:
    """The writer's connection; `before` and `after` are called around each statement."""

    def __init__(
        self, connection: sqlite3.Connection, before: Callable[[str], None], after: Callable[[str], None]
    ) -> None:
        self._connection = connection
        self._before = before
        self._after = after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        """As the connection does it."""
        self._before(statement)
        cursor = self._connection.execute(statement, *values)
        self._after(statement)
        return cursor


def watch_statements(before: Callable[[str], None], after: Callable[[str], None]) -> None:
    """Look at every statement of the writer that is not an accept."""
    begin = Writer.__init__

    def init(self: Writer, *arguments: Any) -> None:
        begin(self, *arguments)
        replace(self, "_connection", WatchedConnection(self._connection, before, after))

    replace(Writer, "__init__", init)


def in_checkpoint(countdown: Countdown) -> None:
    """The log is being worked off into the file."""

    def before(statement: str) -> None:
        if statement.startswith("PRAGMA wal_checkpoint(PASSIVE)") and countdown.is_over():
            countdown.die_within(CHECKPOINT_SECONDS)

    watch_statements(before, lambda _statement: None)


def in_trim(countdown: Countdown) -> None:
    """The transaction of housekeeping, with rows to delete: before its commit, in it, or behind it."""
    state = {"trims": False, "dies": ""}

    def before(statement: str) -> None:
        if statement == "BEGIN IMMEDIATE":
            state["trims"] = False
        if statement == "COMMIT" and state["dies"] == "in":
            countdown.die_within(COMMIT_SECONDS)
        if statement == "COMMIT" and state["dies"] == "before":
            die()

    def after(statement: str) -> None:
        if statement == schema.TRIM[0] and countdown.is_over():
            state["dies"] = countdown.chance.choice(["at once", "before", "in", "behind"])
            if state["dies"] == "at once":
                die()
        if statement == "COMMIT" and state["dies"] == "behind":
            die()

    watch_statements(before, after)


POINTS: dict[str, Callable[[Countdown], None]] = {
    "in recovery": in_recovery,
    "after insert": after_insert,
    "in commit": in_commit,
    "after commit": after_commit,
    "before publish": before_publish,
    "in fan-out": in_fan_out,
    "before answer": before_answer,
    "in checkpoint": in_checkpoint,
    "in trim": in_trim,
}


# ---- planted mistakes: each must be found out


def publish_before_commit() -> None:
    """The loop hears of a transaction before it is in the journal."""
    accept = Writer.accept
    waiting: list[Sequence[Statement]] = []

    def work(self: SqliteJournal, group: list[Work]) -> None:
        self._loop.call_soon_threadsafe(self._deliver, self._writer.work(group))
        if waiting:
            time.sleep(AHEAD_SECONDS)
        while waiting:
            accept(self._writer, waiting.pop(0))
        self._writer.maintain(is_quiet=False)

    replace(Writer, "accept", lambda _self, statements: waiting.append(statements))
    replace(SqliteJournal, "_work", work)


def commit_later() -> None:
    """A transaction is left open for the next ones: they are answered before they are durable."""
    accepted = [0]

    def accept_and_commit_some(self: Writer, statements: Sequence[Statement]) -> None:
        accepted[0] += 1
        if not self._connection.in_transaction:
            self._connection.execute("BEGIN")
        for statement in statements:
            self._connection.execute(*statement)
        if not accepted[0] % 8:
            self._connection.execute("COMMIT")

    replace(Writer, "accept", accept_and_commit_some)
    replace(Writer, "_round", lambda _self, _enough_rows: False)


def forget_keys() -> None:
    """No idempotency record is written."""
    accept = Writer.accept

    def accept_without_keys(self: Writer, statements: Sequence[Statement]) -> None:
        accept(self, [statement for statement in statements if "idempotency" not in statement[0]])

    replace(Writer, "accept", accept_without_keys)


def reuse_n() -> None:
    """After a start the last n of a user is given out again, and the indexes that might refuse it are gone."""
    fetched, begin = Heads.fetched, Writer.__init__

    def init(self: Writer, *arguments: Any) -> None:
        begin(self, *arguments)
        self._connection.execute("DROP INDEX IF EXISTS rows_by_key")
        self._connection.execute("DROP INDEX IF EXISTS recent_by_key")

    def fetched_one_less(self: Heads, users: list[int], heads: Any) -> None:
        fetched(self, users, heads)
        for user_id in users:
            self.user(user_id).n = max(0, self.user(user_id).n - 1)

    replace(Writer, "__init__", init)
    replace(Heads, "fetched", fetched_one_less)


def resume_elsewhere(step: int) -> None:
    """A stream resumes with the totals of another place than it says."""
    rows_at = SqliteJournal.rows_at

    async def rows_elsewhere(self: SqliteJournal, user_id: int, n: int, strategies: Any) -> Any:
        return await rows_at(self, user_id, n + step, strategies)

    replace(SqliteJournal, "rows_at", rows_elsewhere)


def reset_needlessly() -> None:
    """Continuity is denied although it could be shown."""

    async def nothing_known(_self: SqliteJournal, _user_id: int, _n: int, strategies: Any) -> Any:
        return dict.fromkeys(strategies)

    replace(SqliteJournal, "rows_at", nothing_known)


MISTAKES: dict[str, Callable[[], None]] = {
    "publish before commit": publish_before_commit,
    "commit later": commit_later,
    "forget keys": forget_keys,
    "reuse n": reuse_n,
    "resume skips": lambda: resume_elsewhere(2),
    "resume repeats": lambda: resume_elsewhere(-2),
    "reset needlessly": reset_needlessly,
}


def main() -> None:
    """Serve, with housekeeping so often that a short life sees it."""
    replace(writer, "STEP_ROWS", 10)
    replace(writer, "ROUND_MS", 20)
    replace(worker, "REST_SECONDS", 0.05)
    # The mistake first: the point is then one of the server that makes it.
    if mistake := os.environ.get("TORTURE_MISTAKE"):
        MISTAKES[mistake]()
    if point := os.environ.get("TORTURE_POINT"):
        chance = random.Random(os.environ["TORTURE_SEED"])
        POINTS[point](Countdown(int(os.environ["TORTURE_HITS"]), chance))
    server.main()


if __name__ == "__main__":
    main()
