"""A thread that works off whatever waits, all of it at once, so that what comes in a crowd shares one transaction, one
query and one wake-up of the loop.
"""

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")

REST_SECONDS = 1.0
"""How long nothing must come before there is time for what can wait."""


class Worker(Generic[T]):
    """Calls `work` with everything that waits, in order, and `rest` when nothing came for REST_SECONDS.

    What one turn of the loop hands in goes over together at its end, by `call_soon`: a thread that is woken for the
    first of it takes the interpreter's lock from the loop each time, 60 us of each connect of a crowd.

    `rest` answers whether it has more to do: then it is called again at once, unless something waits. All are called
    in the thread and must not raise; `finish` is the last one.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[list[T]], None],
        *,
        call_soon: Callable[[Callable[[], None]], object],
        rest: Callable[[], bool] | None = None,
        finish: Callable[[], None],
    ) -> None:
        self._work = work
        self._rest = rest
        self._finish = finish
        self._call_soon = call_soon
        self._handed_in: list[T] = []
        """In this turn of the loop."""
        self._waiting: SimpleQueue[T | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, item: T) -> None:
        """Hand in one more. Never blocks. To be called on the loop."""
        if not self._handed_in:
            self._call_soon(self._hand_over)
        self._handed_in.append(item)

    @property
    def waiting(self) -> int:
        """How many have not been begun with. To be called on the loop."""
        return len(self._handed_in) + self._waiting.qsize()

    def is_idle(self) -> bool:
        """Nothing waits."""
        return self._waiting.empty()

    def close(self) -> None:
        """Work off what waits, then end. Does not wait for it."""
        self._hand_over()
        self._waiting.put(None)

    def join(self) -> None:
        """Wait for the end of the thread."""
        self._thread.join()

    def _hand_over(self) -> None:
        handed_in, self._handed_in = self._handed_in, []
        for item in handed_in:
            self._waiting.put(item)

    def _run(self) -> None:
        patience = REST_SECONDS
        goes_on = True
        while goes_on:
            items = self._next(patience)
            group = [item for item in items if item is not None]
            goes_on = len(group) == len(items)
            if group:
                self._work(group)
                patience = REST_SECONDS
            elif goes_on and self._rest is not None:
                patience = 0 if self._rest() else REST_SECONDS
        self._finish()

    def _next(self, patience: float) -> list[T | None]:
        """Everything that waits, or nothing when nothing came within so many seconds."""
        try:
            items = [self._waiting.get(timeout=None if self._rest is None else patience)]
        except Empty:
            return []
        return items + [self._waiting.get_nowait() for _ in range(self._waiting.qsize())]
