"""The journal on disk as the hub knows it: work goes to the writer's thread, questions to the readers'."""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import TypeVar

from core.errors import Unavailable
from core.journal.base import (
    BatchRecord,
    Deliver,
    HourCounts,
    Journal,
    JournalError,
    JournalFailed,
    JournalLimits,
    KeyRecord,
    Work,
)
from core.journal.sqlite import schema
from core.journal.sqlite.opening import Durability, open_file
from core.journal.sqlite.packing import (
    pack,
    unpack_batches,
    unpack_batches_of_key,
    unpack_hours,
    unpack_key_record,
    unpack_key_records,
)
from core.journal.sqlite.reader import Reader
from core.journal.sqlite.writer import Writer
from core.journal.worker import Worker
from core.models import MAX_ID
from core.totals import Row

_log = logging.getLogger("tallywire.journal")


T = TypeVar("T")


class SqliteJournal(Journal):
    """Opens the file at `path`, or begins one. Raises JournalError, naming the file and the fix.

    `monotonic_ms` is the clock that ages are measured on. Must be closed.
    """

    def __init__(
        self,
        path: Path,
        durability: Durability,
        limits: JournalLimits,
        loop: asyncio.AbstractEventLoop,
        *,
        monotonic_ms: Callable[[], int] = lambda: time.monotonic_ns() // 1_000_000,
    ) -> None:
        file = open_file(path, durability)
        self.epoch = file.epoch
        self._loop = loop
        try:
            self._writer = Writer(file, limits, monotonic_ms)
            # Resumes do not wait behind an operator who looks through a long history.
            self._resumes = Reader("journal-resumes", file.path, loop)
            self._lookups = Reader("journal-lookups", file.path, loop)
        except sqlite3.Error as error:
            file.close()
            raise JournalError(
                f"the journal {path} cannot be used: {error}. Restore a backup, or choose another file with --journal."
            ) from error
        self.revocations = self._writer.revocations
        self.figures = self._writer.figures
        self._deliver: Deliver = lambda _work: None
        self._fail: Callable[[JournalFailed], None] | None = None
        self._ended: asyncio.Future[None] = loop.create_future()
        self._worker: Worker[Work] | None = None
        self._is_closing = False

    @property
    def refusal(self) -> Unavailable | None:
        return self._writer.refusal

    @property
    def waiting(self) -> int:
        return 0 if self._worker is None else self._worker.waiting

    def start(self, deliver: Deliver, fail: Callable[[JournalFailed], None]) -> None:
        self._deliver = deliver
        self._fail = fail
        self._worker = Worker(
            "journal-writer", self._work, call_soon=self._loop.call_soon, rest=self._rest, finish=self._finish
        )

    def submit(self, work: Work) -> None:
        if self._worker is None:
            raise AssertionError("the journal has not been started")
        self._worker.put(work)

    async def rows_at(self, user_id: int, n: int, strategies: Collection[int]) -> dict[int, Row | None]:
        asked = [(user_id, strategy_id, n) for strategy_id in strategies]
        rows = await self._resumes.rows_at(asked) if asked else []
        return dict(zip(strategies, rows, strict=True))

    async def key_record(self, user_id: int, strategy_id: int) -> KeyRecord | None:
        values = {"user_id": user_id, "strategy_id": strategy_id}
        return await self._lookups.ask(schema.KEY_RECORD, values, unpack_key_record)

    async def key_records(self, user_id: int, after_strategy: int, limit: int) -> list[KeyRecord]:
        values = {"user_id": user_id, "after_strategy": after_strategy, "limit": limit}
        return await self._lookups.ask(schema.KEY_RECORDS, values, unpack_key_records)

    async def hours(
        self,
        users: Collection[int],
        strategies: Collection[int] | None,
        first_hour: int,
        end_hour: int,
        limit: int | None = None,
    ) -> list[HourCounts]:
        values = {
            "users": pack(sorted(users)),
            "strategies": None if strategies is None else pack(strategies),
            "least": min(strategies or (), default=0),
            "most": max(strategies or (), default=MAX_ID),
            "first_hour": first_hour,
            "end_hour": end_hour,
            "limit": -1 if limit is None else limit,
        }
        return await self._lookups.ask(schema.HOURS, values, unpack_hours)

    async def batches(
        self, user_id: int, strategy_id: int, after_n: int, from_ms: int, to_ms: int, limit: int
    ) -> list[BatchRecord]:
        values = {
            "user_id": user_id,
            "strategy_id": strategy_id,
            "after_n": after_n,
            "from_ms": from_ms,
            "to_ms": to_ms,
            "limit": limit,
        }
        unpack = partial(unpack_batches, user_id=user_id, strategy_id=strategy_id)
        return await self._lookups.ask(schema.BATCHES, values, unpack)

    async def batches_of_key(self, key: str) -> list[BatchRecord]:
        values = {"key": key, "oldest_ms": self._writer.oldest_key_ms()}
        return await self._lookups.ask(schema.REMEMBERED_BY_ALL, values, unpack_batches_of_key)

    async def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            if self._worker is None:
                self._finish()
            else:
                self._worker.close()
        # Shielded: a close that took too long is not done again.
        await asyncio.shield(self._ended)

    # In the writer's thread.

    def _work(self, group: list[Work]) -> None:
        try:
            finished = self._writer.work(group)
        except Exception as error:
            # Nobody knows how far it came. Its callers must hear of it, and nothing may be built on it.
            _log.exception("Transaction failed")
            self._writer.fail(f"a transaction failed ({error!r})")
            finished = self._writer.work(group)
        self._report_failure()
        self._loop.call_soon_threadsafe(self._deliver, finished)
        is_quiet = len(group) == 1 and self._worker is not None and self._worker.is_idle()
        self._keep_house(partial(self._writer.maintain, is_quiet=is_quiet))

    def _rest(self) -> bool:
        return self._keep_house(self._writer.rest) or False

    def _keep_house(self, round_of_it: Callable[[], T]) -> T | None:
        try:
            return round_of_it()
        except Exception as error:
            _log.exception("Housekeeping failed")
            self._writer.fail(f"housekeeping failed ({error!r})")
            return None
        finally:
            self._report_failure()

    def _report_failure(self) -> None:
        """Before the delivery of what failed: who hears that its outcome is unknown must find a server that leaves."""
        fail, failed = self._fail, self._writer.failed
        if fail is not None and failed is not None:
            self._fail = None
            self._loop.call_soon_threadsafe(fail, failed)

    def _finish(self) -> None:
        try:
            # The readers first: the last connection to close works off the log.
            self._resumes.close()
            self._lookups.close()
            self._writer.close()
        finally:
            self._loop.call_soon_threadsafe(self._ended.set_result, None)
