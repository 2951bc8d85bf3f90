"""At most so many events a second, by a bucket of a tenth of a second. Pure: whoever asks says what time it is."""

import math

BURST_SECONDS = 0.1
"""So much of a second's number may come at once: enough that a usual crowd is not slowed, too little to be a storm."""


class Pace:
    """Says how many may happen now. `per_second` 0: any number. `delayed` counts how often somebody had to wait."""

    __slots__ = ("_at", "_left", "_most", "_per_second", "delayed")

    def __init__(self, per_second: float) -> None:
        self.delayed = 0
        self._per_second = per_second
        self._most = max(1.0, per_second * BURST_SECONDS)
        self._left = self._most
        self._at = -math.inf

    def left(self, now: float) -> float:
        """How many may happen now. `now`: seconds of a clock that nobody sets."""
        if not self._per_second:
            return math.inf
        self._left = min(self._most, self._left + (now - self._at) * self._per_second)
        self._at = now
        return self._left

    def spend(self, count: int) -> None:
        """So many have happened, no more than `left` said."""
        if self._per_second:
            self._left -= count

    def delay_seconds(self) -> float:
        """How long to wait when fewer than one were left: until half a bucket is there, not for each one anew."""
        self.delayed += 1
        return (max(1.0, self._most / 2) - self._left) / self._per_second
