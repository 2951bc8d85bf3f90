"""Warnings that stay few, however long something is wrong."""

import logging
import time
from threading import RLock

EVERY_SECONDS = 30.0

MAX_KINDS = 100
"""Kinds of one process that are told apart: what answers may not be a Tallywire, and make up codes."""

_log = logging.getLogger("tallywire_client")

_Kind = tuple[str, str]


class Complaints:
    """One warning of a kind at once, the next one of that kind half a minute later, saying how many there were."""

    def __init__(self) -> None:
        # A signal handler may emit, too: it runs in a thread that may be in here.
        self._lock = RLock()
        self._said_at: dict[_Kind, float] = {}
        self._unsaid: dict[_Kind, tuple[int, str]] = {}

    def complain(self, message: str, detail: str, code: str = "") -> None:
        """Say it, or count it. `message` is one of a few fixed sentences; what differs in `code` is told apart."""
        now = time.monotonic()
        with self._lock:
            kind = (message, code if len(self._said_at) < MAX_KINDS or (message, code) in self._said_at else "")
            times = 1 + self._unsaid.pop(kind, (0, ""))[0]
            if now - self._said_at.get(kind, -EVERY_SECONDS) < EVERY_SECONDS:
                self._unsaid[kind] = (times, detail)
                return
            self._said_at[kind] = now
        _say(message, times, detail)

    def say_the_rest(self) -> None:
        """What was counted only: nobody complains any more, so nothing else would say it."""
        with self._lock:
            unsaid, self._unsaid = self._unsaid, {}
        for (message, _code), (times, detail) in unsaid.items():
            _say(message, times, detail)


def _say(message: str, times: int, detail: str) -> None:
    often = "" if times == 1 else f" ({times} times)"
    _log.warning("%s%s: %s", message, often, detail, extra={"times": times, "detail": detail})
