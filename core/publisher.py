"""When connections are brought up to date: steps of bounded time, round robin over stream keys, windows of coalescing.

Owns the order: what the journal delivered is published in the order of delivery, one batch after the other. Connections
that a step does not reach lag, by definition, and are served in later steps, so that one key with 10,000 connections
does not hold up another.
"""

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator

from core.registry import User
from core.subscriber import State, StreamKey, Subscriber

STEP_SECONDS = 0.001
"""How long one step may publish and write before others on the loop get their turn."""

WRITES_BETWEEN_LOOKS = 64
"""Connections written to between two looks at the clock: about half a millisecond."""

_DONE = object()

_log = logging.getLogger("tallywire.stream")


class Slices:
    """Lets long work on the loop breathe. All long work shares one: so they hold the loop for one slice together."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._until = clock() + STEP_SECONDS

    async def breathe(self) -> None:
        """Give way to everything else that is due, if the slice is used up."""
        if self._clock() > self._until:
            await asyncio.sleep(0)
            self._until = self._clock() + STEP_SECONDS


class _Pass:
    """One pass over the connections of a stream key. `again`: the head moved on behind it."""

    __slots__ = ("_user", "again", "key", "next", "targets")

    def __init__(self, user: User, key: StreamKey, targets: list[Subscriber]) -> None:
        self._user = user
        self.key = key
        self.targets = targets
        self.next = 0
        self.again = False

    def begin_again(self) -> None:
        """Start with whoever listens now: a stream that opened during the last pass is owed this one."""
        self.targets = self._user.listeners(self.key)
        self.next = 0
        self.again = False


class Publisher:
    """`call_soon` and `call_later` schedule on the loop, `clock` is monotonic seconds. `coalesce_ms` 0: no windows."""

    def __init__(
        self,
        *,
        coalesce_ms: int,
        call_soon: Callable[[Callable[[], None]], object],
        call_later: Callable[[float, Callable[[], None]], object],
        clock: Callable[[], float],
    ) -> None:
        self._coalesce_seconds = coalesce_ms / 1000
        self._call_soon = call_soon
        self._call_later = call_later
        self._clock = clock
        self._deadline = 0.0
        self._inbox: deque[Iterator[None]] = deque()
        self._passes: OrderedDict[StreamKey, _Pass] = OrderedDict()
        self._is_scheduled = False

    def publish(self, steps: Iterator[None]) -> None:
        """Take these steps, one an advance, after those that wait already; as many now as the time of a step allows.

        A step that raises ends its iterator, so it must not.
        """
        self._inbox.append(steps)
        self._step()

    def announce(self, user: User, key: StreamKey) -> None:
        """Bring everyone who listens up to date: from now on, or at the end of the user's open window."""
        if user.undelivered is not None:
            user.undelivered[key] = None
            return
        if self._coalesce_seconds:
            self._open_window(user)
        self._begin_pass(user, key)

    def _open_window(self, user: User) -> None:
        user.undelivered = {}
        self._call_later(self._coalesce_seconds, lambda: self._close_window(user))

    def _close_window(self, user: User) -> None:
        undelivered, user.undelivered = user.undelivered, None
        if not undelivered:
            return
        self._open_window(user)
        self._deadline = self._clock() + STEP_SECONDS
        for key in undelivered:
            self._begin_pass(user, key)
        self._schedule()

    def _begin_pass(self, user: User, key: StreamKey) -> None:
        running = self._passes.get(key)
        if running is not None:
            # Go on where it stands: starting over would starve the end of a long list.
            running.again = True
            return
        listeners = user.listeners(key)
        if len(listeners) <= WRITES_BETWEEN_LOOKS:
            _bring_up_to_date(key, listeners)
            return
        begun = _Pass(user, key, listeners)
        if not self._serve(begun):
            self._passes[key] = begun

    def _step(self) -> None:
        self._deadline = self._clock() + STEP_SECONDS
        try:
            while self._inbox and self._clock() <= self._deadline:
                if next(self._inbox[0], _DONE) is _DONE:
                    self._inbox.popleft()
            # Time of their own: a busy journal must not starve those who lag.
            self._deadline = self._clock() + STEP_SECONDS
            while self._passes and self._clock() <= self._deadline:
                key, begun = self._passes.popitem(last=False)
                if not self._serve(begun):
                    self._passes[key] = begun
        finally:
            self._schedule()

    def _schedule(self) -> None:
        if (self._inbox or self._passes) and not self._is_scheduled:
            self._is_scheduled = True
            self._call_soon(self._scheduled_step)

    def _scheduled_step(self) -> None:
        self._is_scheduled = False
        self._step()

    def _serve(self, begun: _Pass) -> bool:
        """Go on with a pass until the step's time is spent; answers whether it is complete."""
        while begun.next < len(begun.targets):
            portion = begun.targets[begun.next : begun.next + WRITES_BETWEEN_LOOKS]
            begun.next += WRITES_BETWEEN_LOOKS
            _bring_up_to_date(begun.key, portion)
            if begun.next < len(begun.targets) and self._clock() > self._deadline:
                return False
        if begun.again:
            begun.begin_again()
            return False
        return True


def _bring_up_to_date(key: StreamKey, portion: list[Subscriber]) -> None:
    """All of them, whatever happens to one: that one's stream has ended and can be resumed."""
    while portion:
        try:
            key.bring_up_to_date(portion)
        except Exception:
            _log.exception("Fan-out failed")
            rest = [each for each in portion if each.state is State.READY and each.behind()]
            if len(rest) == len(portion):
                # It failed before it could be told from the others: its frame cannot even be made.
                rest.pop(0).close("fault")
            portion = rest
        else:
            return
