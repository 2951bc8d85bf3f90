"""How late the loop is: the one number that shows a step that held it for too long, whoever took that step. Pure."""

from collections import deque
from collections.abc import Callable

SAMPLE_SECONDS = 0.1

RECENT_SAMPLES = 100
"""Ten seconds of a loop that is on time."""


class LoopLag:
    """Asks ten times a second to be called, and keeps by how much that came too late.

    A step that held the loop for three seconds is one sample of three seconds. `clock`: monotonic seconds.
    """

    def __init__(self, call_later: Callable[[float, Callable[[], None]], object], clock: Callable[[], float]) -> None:
        self.max_seconds = 0.0
        """The largest since the start."""
        self._call_later = call_later
        self._clock = clock
        self._due = 0.0
        self._recent: deque[float] = deque(maxlen=RECENT_SAMPLES)

    @property
    def recent_max_seconds(self) -> float:
        """The largest of the last RECENT_SAMPLES."""
        return max(self._recent, default=0.0)

    def start(self) -> None:
        """Begin to sample, and go on for as long as the loop runs."""
        self._due = self._clock() + SAMPLE_SECONDS
        self._call_later(SAMPLE_SECONDS, self._sample)

    def _sample(self) -> None:
        # Loops call a little early when their clock is coarse.
        late = max(0.0, self._clock() - self._due)
        self._recent.append(late)
        self.max_seconds = max(self.max_seconds, late)
        self.start()
