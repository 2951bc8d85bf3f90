"""Warnings that stay few, however long something is wrong."""

import logging
import time
from threading import RLock

EVERY_SECONDS = 30.0

_log = logging.getLogger("tallywire_client")


class Complaints:
    """One warning of a kind at once, the next one of that kind half a minute later, saying how many there were."""

    def __init__(self) -> None:
        # A signal handler may emit, too: it runs in a thread that may be in here.
        self._lock = RLock()
        self._said_at: dict[str, float] = {}
        self._unsaid: dict[str, int] = {}

    def complain(self, message: str, detail: str, times: int = 1) -> None:
        """Say it, or count it. `message` is one of a few fixed sentences."""
        now = time.monotonic()
        with self._lock:
            times += self._unsaid.pop(message, 0)
            if now - self._said_at.get(message, -EVERY_SECONDS) < EVERY_SECONDS:
                self._unsaid[message] = times
                return
            self._said_at[message] = now
        _log.warning("%s (%d times): %s", message, times, detail, extra={"times": times, "detail": detail})
