"""What an emit gives back at once: a place where its result will be."""

import asyncio
import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable

from tallywire_client.results import Result, Unknown

DEFAULT_WAIT_SECONDS = 5.0
"""How long somebody waits who does not say how long: an order service shall not stand still with the server."""

_log = logging.getLogger("tallywire_client")

_Loop = asyncio.AbstractEventLoop
_Future = asyncio.Future[None]


class Handle:
    """The result of one emit, now or later. It may be thrown away: the batch is sent all the same.

    Any number of threads and tasks may wait for it. `idempotency_key`: under which the server knows the batch.
    """

    __slots__ = ("__weakref__", "_callbacks", "_lock", "_loop_waiters", "_result", "idempotency_key")

    def __init__(self, idempotency_key: str, result: Result | None = None) -> None:
        self.idempotency_key = idempotency_key
        self._result = result
        # A signal handler may close the emitter: it runs in a thread that may be in here.
        self._lock = threading.RLock()
        self._callbacks: list[Callable[[], object]] = []
        self._loop_waiters: list[tuple[_Loop, _Future]] = []

    def __repr__(self) -> str:
        return f"Handle({self.idempotency_key!r}, {self._result!r})"

    def done(self) -> bool:
        """Whether the result is there, for good."""
        return self._result is not None

    def result(self, timeout: float | None = DEFAULT_WAIT_SECONDS) -> Result:
        """Wait for the result, at most `timeout` seconds; None: as long as it takes.

        Never raises: after that time it answers `Unknown` that is not final, and the batch goes on its way.
        """
        if self._result is None and timeout != 0:
            waiter = threading.Lock()
            waiter.acquire()
            self.add_done_callback(waiter.release)
            if not waiter.acquire(timeout=-1 if timeout is None else min(max(0.0, timeout), threading.TIMEOUT_MAX)):
                self._forget(waiter.release)
        return self._so_far()

    async def wait(self, timeout: float | None = DEFAULT_WAIT_SECONDS) -> Result:
        """As `result`, for a task."""
        if self._result is None:
            loop = asyncio.get_running_loop()
            future = loop.create_future()
            if self._add_loop_waiter(loop, future):
                try:
                    async with asyncio.timeout(timeout):
                        await future
                except TimeoutError:
                    pass
                finally:
                    self._forget_loop_waiter(loop, future)
        return self._so_far()

    def __await__(self) -> Generator[object, None, Result]:
        return self.wait().__await__()

    def add_done_callback(self, callback: Callable[[], object]) -> None:
        """Call this once the result is there, in the emitter's thread or at once. It must be quick and not raise."""
        with self._lock:
            if self._result is None:
                self._callbacks.append(callback)
                return
        callback()

    def _add_loop_waiter(self, loop: _Loop, future: _Future) -> bool:
        with self._lock:
            if self._result is None:
                self._loop_waiters.append((loop, future))
                return True
        return False

    def _forget(self, callback: Callable[[], object]) -> None:
        """Who asks again and again shall not leave something behind each time."""
        with self._lock:
            if callback in self._callbacks:
                self._callbacks.remove(callback)

    def _forget_loop_waiter(self, loop: _Loop, future: _Future) -> None:
        with self._lock:
            if (loop, future) in self._loop_waiters:
                self._loop_waiters.remove((loop, future))

    def _so_far(self) -> Result:
        return self._result or Unknown("there is no answer yet", self.idempotency_key, is_final=False)

    def _settle(self, result: Result) -> bool:
        """The first result counts. Answers whether this is it."""
        with self._lock:
            if self._result is not None:
                return False
            self._result = result
            return True

    def _take_waiting(self) -> tuple[list[Callable[[], object]], list[tuple[_Loop, _Future]]]:
        with self._lock:
            waiting = self._callbacks, self._loop_waiters
            self._callbacks, self._loop_waiters = [], []
            return waiting

    def _renew_lock(self) -> None:
        """In a forked child: a thread that is not here may have held it."""
        self._lock = threading.RLock()


def settle(results: Iterable[tuple[Handle, Result]]) -> list[Result]:
    """Give handles their results and wake who waits, each event loop once. Answers those that were not there before."""
    new = []
    by_loop: defaultdict[_Loop, list[_Future]] = defaultdict(list)
    for handle, result in results:
        if not handle._settle(result):
            continue
        new.append(result)
        callbacks, waiters = handle._take_waiting()
        for callback in callbacks:
            _call(callback)
        for loop, future in waiters:
            by_loop[loop].append(future)
    for loop, futures in by_loop.items():
        try:
            loop.call_soon_threadsafe(_wake, futures)
        except RuntimeError:  # The loop is closed, and who waited is gone with it.
            continue
    return new


def _call(callback: Callable[[], object]) -> None:
    """What it raises, SystemExit included, would end the emitter's thread or leave the rest of a call untold."""
    try:
        callback()
    except BaseException:
        _log.exception("Callback of a handle failed")


def _wake(futures: list[_Future]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
