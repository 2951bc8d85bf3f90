"""What has happened since the start, as plain integers that only grow. Pure.

Whoever does something adds to them on the way: an addition costs 20 ns, a locked counter of a metrics library thirty
times that. `core.metrics` reads them. They say how often, never whose: no user and no strategy is in here.
"""

from bisect import bisect_left
from collections import Counter


class Counters:
    """What happens once an application."""

    __slots__ = (
        "accepted",
        "answers_refused",
        "duplicates",
        "emit_calls",
        "rejected",
        "resets",
        "skipped",
        "streams_opened",
    )

    def __init__(self) -> None:
        self.emit_calls = 0
        self.accepted = 0
        """Batches of emits, and so are the next three."""
        self.duplicates = 0
        self.skipped = 0
        self.rejected = 0
        self.answers_refused: Counter[str] = Counter()
        """Answers that were a problem, by error code."""
        self.streams_opened: Counter[str] = Counter()
        """By how they start: new, resumed, reset."""
        self.resets: Counter[str] = Counter()
        """By reason."""


class StreamCounters:
    """What streams add to: those of one part of all users, see `core.registry.Shard`.

    *Counts* are created and cancelled orders, once for each connection that is owed them. Whatever is owed is
    delivered, abandoned with a connection that closes, or still pending: `core.metrics` shows that nothing is missing.
    """

    __slots__ = (
        "batches_merged",
        "catch_ups",
        "controls",
        "counts_abandoned",
        "counts_delivered",
        "counts_owed",
        "sent_bytes",
        "updates",
    )

    def __init__(self) -> None:
        self.counts_owed = 0
        self.counts_delivered = 0
        self.counts_abandoned = 0
        self.updates = 0
        """Frames of `order_batch_update` written to streams."""
        self.catch_ups = 0
        """Of `order_batch_catch_up`."""
        self.controls = 0
        """Of any other event, heartbeats included."""
        self.sent_bytes = 0
        """Bytes of those frames."""
        self.batches_merged = 0
        """Batches in frames that carry more than one."""


class Distribution:
    """How often a value was at most each of the `bounds`, which ascend. Written in one thread, read in any."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, *bounds: float) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Values above the bound before and up to this one; the last: above all of them."""
        self.total = 0.0
        """Of all values."""

    def add(self, value: float) -> None:
        """One more value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value
