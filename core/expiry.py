"""When streams whose token ends must be looked at next. Pure.

By the second, and never further ahead than LOOK_SECONDS: a token ends by the wall clock, which somebody may set.
"""

import sys
from collections.abc import Iterator
from itertools import islice
from math import ceil

from core.subscriber import Subscriber

LOOK_SECONDS = 60


class Expiries:
    """Streams by the second of their next look, on a clock that nobody sets."""

    def __init__(self) -> None:
        self._slots: dict[int, dict[Subscriber, None]] = {}

    def add(self, subscriber: Subscriber, now: float, seconds: float) -> None:
        """Look at it in so many seconds, or earlier; not before they are over when that is within LOOK_SECONDS."""
        subscriber.look_at = ceil(now + min(seconds, LOOK_SECONDS))
        self._slots.setdefault(subscriber.look_at, {})[subscriber] = None

    def discard(self, subscriber: Subscriber) -> None:
        """Look no more; harmless when nobody would."""
        slot = self._slots.get(subscriber.look_at)
        if slot is not None:
            slot.pop(subscriber, None)
            if not slot:
                del self._slots[subscriber.look_at]

    def __len__(self) -> int:
        return sum(map(len, self._slots.values()))

    def due(self, now: float) -> Iterator[Subscriber]:
        """Whoever is to be looked at by now, in order."""
        for second in sorted(second for second in self._slots if second <= now):
            yield from self._slots[second]

    def take_due(self, now: float, limit: int = sys.maxsize) -> list[Subscriber]:
        """The first of them; they are forgotten."""
        taken = list(islice(self.due(now), limit))
        for subscriber in taken:
            self.discard(subscriber)
        return taken
