"""What waits to be sent, bounded, in the order in which it was handed over; pure, so that `now` is passed in."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from tallywire_client.handle import Handle


@dataclass(slots=True, eq=False)
class Entry:
    """A batch on its way. `seq`: its number in the outbox, 0 when it is in none. `first_attempt`: since when it may
    have arrived, on the clock of the emitter."""

    line: bytes
    key: str
    handle: Handle | None
    seq: int = 0
    first_attempt: float | None = None


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much is held, and how much goes into one call."""

    queue_batches: int
    queue_bytes: int
    call_batches: int
    call_bytes: int
    linger_seconds: float


class Gatherer:
    """A queue of batches. What has been taken counts as held until it is `released`."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._waiting: deque[Entry] = deque()
        self._waiting_bytes = 0
        self._due_at = 0.0
        self.held_batches = 0
        self.held_bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def has_room_for(self, size_bytes: int) -> bool:
        """Whether a batch of so many bytes may be added."""
        bounds = self._bounds
        return self.held_batches < bounds.queue_batches and self.held_bytes + size_bytes <= bounds.queue_bytes

    def add(self, entry: Entry, now: float) -> None:
        """One more."""
        if not self._waiting:
            self._due_at = now + self._bounds.linger_seconds
        self._waiting.append(entry)
        self._waiting_bytes += len(entry.line) + 1
        self.held_batches += 1
        self.held_bytes += len(entry.line)

    @property
    def is_full_call(self) -> bool:
        """Waiting longer would add nothing to the next call."""
        return len(self._waiting) >= self._bounds.call_batches or self._waiting_bytes >= self._bounds.call_bytes

    def seconds_until_due(self, now: float) -> float | None:
        """How long others may still join the next call; None when there is nothing to send."""
        if not self._waiting:
            return None
        return 0.0 if self.is_full_call else max(0.0, self._due_at - now)

    def take(self) -> list[Entry]:
        """The next call: what came first, as much as goes into one, at least one batch."""
        bounds = self._bounds
        call: list[Entry] = []
        size = 0
        while self._waiting and len(call) < bounds.call_batches:
            size += len(self._waiting[0].line) + 1
            if call and size > bounds.call_bytes:
                break
            entry = self._waiting.popleft()
            self._waiting_bytes -= len(entry.line) + 1
            call.append(entry)
        return call

    def release(self, entries: Iterable[Entry]) -> None:
        """They are done with, whatever came of them."""
        for entry in entries:
            self.held_batches -= 1
            self.held_bytes -= len(entry.line)

    def drain(self) -> list[Entry]:
        """All that waits, which is then no longer held."""
        entries = list(self._waiting)
        self._waiting.clear()
        self._waiting_bytes = 0
        self.release(entries)
        return entries
