"""When each stream is due for a heartbeat: a wheel of slots, one turn a period. Pure.

One timer for all streams instead of one each: 10,000 timers would cost more than the heartbeats they send.
"""

from collections.abc import Callable

from core.subscriber import Subscriber

SLOTS = 150
"""Slots of one turn: at 15 s a tenth of a second each, so that 10,000 streams beat in groups of about 67."""


class HeartbeatWheel:
    """Streams in slots. `random` answers a number in [0, 1)."""

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._slots: list[dict[Subscriber, None]] = [{} for _ in range(SLOTS)]
        self._now = 0

    def add(self, subscriber: Subscriber) -> None:
        """Beat for this stream once a turn, from somewhere within the next one on.

        Anywhere: a crowd that came at once would otherwise be due at once, for ever.
        """
        subscriber.heartbeat_slot = int(self._random() * SLOTS)
        self._slots[subscriber.heartbeat_slot][subscriber] = None

    def discard(self, subscriber: Subscriber) -> None:
        """Stop beating; harmless when it never began."""
        self._slots[subscriber.heartbeat_slot].pop(subscriber, None)

    def advance(self) -> list[Subscriber]:
        """Turn by one slot; answers who is due."""
        self._now = (self._now + 1) % SLOTS
        return list(self._slots[self._now])
