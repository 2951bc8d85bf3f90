"""How long to wait before the next attempt, pure."""

from collections.abc import Callable


class Backoff:
    """Full jitter: each wait is drawn between nothing and a bound that doubles, so that clients that failed together
    do not come back together. `uniform` draws."""

    def __init__(self, first_seconds: float, max_seconds: float, uniform: Callable[[float, float], float]) -> None:
        self._first_seconds = first_seconds
        self._max_seconds = max_seconds
        self._uniform = uniform
        self.attempts = 0

    def next_seconds(self, at_least: float = 0.0) -> float:
        """The wait after one more failure. `at_least`: what the server asked for, on top of which it is drawn."""
        # Beyond 2^16 every bound is the largest one, and a float would overflow some time.
        bound = min(self._max_seconds, self._first_seconds * 2 ** min(self.attempts, 16))
        self.attempts += 1
        return at_least + self._uniform(0.0, bound)

    def reset(self) -> None:
        """It went well."""
        self.attempts = 0
