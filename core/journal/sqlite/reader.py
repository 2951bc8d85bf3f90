"""Those who read: a thread with a read-only connection each, that answers what waits in as few queries as it can."""

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from core.errors import Busy
from core.journal.sqlite import schema
from core.journal.sqlite.packing import pack, unpack_judged
from core.journal.worker import Worker
from core.totals import Row

T = TypeVar("T")


class Read(Generic[T]):
    """One question: a statement, its values, how to read the text that it answers, and who waits."""

    __slots__ = ("answer", "statement", "unpack", "values")

    def __init__(self, statement: str, values: Mapping[str, object], unpack: Callable[[str], T]) -> None:
        self.statement = statement
        self.values = values
        self.unpack = unpack
        self.answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()


class RowsAt:
    """The same for `schema.ROWS_AT`, whose questions are asked together: a crowd that resumes is one query."""

    __slots__ = ("answer", "asked")

    def __init__(self, asked: Sequence[tuple[int, int, int]]) -> None:
        self.asked = asked
        self.answer: asyncio.Future[list[Row | None]] = asyncio.get_running_loop().create_future()


MOST_WAITING = 32
"""Questions by `ask` that may wait for their answers: what a crowd looks up takes no more memory than these."""

Question = Read[object] | RowsAt
Reply = tuple["asyncio.Future[object]", object]

_log = logging.getLogger("tallywire.journal")


class Reader:
    """Answers are handed over on the loop, those of a group together."""

    def __init__(self, name: str, path: Path, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        uri = f"{path.absolute().as_uri()}?mode=ro"
        self._connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA query_only = ON")
        self._connection.execute("PRAGMA temp_store = MEMORY")
        self._is_closing = False
        self._waiting = 0
        self._worker: Worker[Question] = Worker(
            name, self._work, call_soon=loop.call_soon, finish=self._connection.close
        )

    async def ask(self, statement: str, values: Mapping[str, object], unpack: Callable[[str], T]) -> T:
        """The one value of a statement, unpacked. Raises Busy when it cannot be read, or too many ask."""
        if self._waiting >= MOST_WAITING:
            raise Busy(f"{self._waiting} questions wait for the journal.")
        self._waiting += 1
        read = Read(statement, values, unpack)
        self._worker.put(read)  # type: ignore[arg-type]  # who put it knows what it answers
        return await read.answer

    async def rows_at(self, asked: Sequence[tuple[int, int, int]]) -> list[Row | None]:
        """See `schema.ROWS_AT`. Raises Busy when it cannot be read."""
        question = RowsAt(asked)
        self._worker.put(question)
        return await question.answer

    def close(self) -> None:
        """Answer what waits, with Busy where that would take long, then close the connection; waits for it."""
        self._is_closing = True
        self._connection.interrupt()
        self._worker.close()
        self._worker.join()

    def _work(self, group: list[Question]) -> None:
        replies: list[Reply] = []
        resumes = [question for question in group if isinstance(question, RowsAt)]
        if resumes:
            replies += self._rows_at(resumes)
        reads = [self._read(question) for question in group if isinstance(question, Read)]
        self._loop.call_soon_threadsafe(self._hand_over, replies + reads, len(reads))

    def _hand_over(self, replies: Sequence[Reply], reads: int) -> None:
        self._waiting -= reads
        _hand_over(replies)

    def _rows_at(self, questions: list[RowsAt]) -> list[Reply]:
        asked = [asking for question in questions for asking in question.asked]
        reply = self._answer(
            lambda: unpack_judged(self._text(schema.ROWS_AT, (pack(asked),)), asked),
        )
        if not isinstance(reply, list):
            return [(question.answer, reply) for question in questions]  # type: ignore[misc]  # an exception
        rows = iter(reply)
        return [(question.answer, [next(rows) for _ in question.asked]) for question in questions]  # type: ignore[misc]

    def _read(self, question: Read[object]) -> Reply:
        return question.answer, self._answer(
            lambda: question.unpack(self._text(question.statement, question.values)),
        )

    def _text(self, statement: str, values: Mapping[str, object] | tuple[str]) -> str:
        (text,) = self._connection.execute(statement, values).fetchone()
        return str(text)

    def _answer(self, read: Callable[[], object]) -> object:
        try:
            return Busy("The server is shutting down.") if self._is_closing else read()
        except sqlite3.Error as error:
            _log.warning("Journal not readable", extra={"reason": str(error)})
            return Busy("The journal cannot be read now.")
        except Exception as error:  # whoever waits must hear of it
            return error


def _hand_over(replies: Sequence[Reply]) -> None:
    for waiting, reply in replies:
        if waiting.done():
            continue
        if isinstance(reply, Exception):
            waiting.set_exception(reply)
        else:
            waiting.set_result(reply)
