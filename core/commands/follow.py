"""A stream that is followed for as long as it takes: it comes back by itself, where it stood."""

import random
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from http.client import HTTPException

from core.commands.calls import Query, Target, Unreachable, open_stream, refusal
from core.commands.endings import CommandFailed, ExitCode
from core.sse import EventParser, ServerSentEvent

OPENING_SECONDS = 20.0
"""Until the first event."""

SILENCE_HEARTBEATS = 3
MAX_WAIT_SECONDS = 60.0
FIRST_RETRY_MS = 2000

EVENT_STREAM = "text/event-stream"


class Feed:
    """The events of one stream after the other. `position` is asked for at each attempt; `lost` is told of each end,
    with the seconds until the next attempt."""

    def __init__(
        self,
        target: Target,
        path: str,
        query: Query,
        position: Callable[[], str],
        lost: Callable[[str, float], None],
        *,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._target = target
        self._path = path
        self._query = query
        self._position = position
        self._lost = lost
        self._wait = wait
        self._retry_ms = FIRST_RETRY_MS
        self._failures = 0
        self._has_opened = False
        self.heartbeat_seconds: float | None = None
        """As the stream states it, once it is open."""

    def events(self) -> Generator[ServerSentEvent, None, None]:
        """Events until the caller stops. Raises CommandFailed when coming back would not help, and Unreachable when
        nobody answers the first time."""
        while True:
            try:
                with closing(self._one_stream()) as stream:
                    for event in stream:
                        self._has_opened = True
                        yield event
                self.pause("the stream has ended")
            except Unreachable as error:
                if not self._has_opened:
                    raise
                self.pause(error.reason)
            except CommandFailed as error:
                if error.code != ExitCode.LATER:
                    raise
                self.pause(error.message)
            except (OSError, HTTPException) as error:
                self.pause("nothing came for too long" if isinstance(error, TimeoutError) else "it was cut")

    def _one_stream(self) -> Generator[ServerSentEvent, None, None]:
        position = self._position()
        headers = {"Accept": EVENT_STREAM, "Cache-Control": "no-store"}
        if position:
            headers["Last-Event-ID"] = position
        self.heartbeat_seconds = None
        with open_stream(self._target, self._path, self._query, headers=headers, seconds=OPENING_SECONDS) as stream:
            if stream.status != 200:
                raise refusal(self._target, stream.rest())
            if not stream.headers.get("content-type", "").startswith(EVENT_STREAM):
                raise CommandFailed(f"what {self._target.url} answers is no event stream.", ExitCode.REFUSED)
            parser = EventParser(position)
            while piece := stream.read(self._patience()):
                for event in parser.feed(piece):
                    self._failures = 0
                    self._retry_ms = parser.retry_ms or self._retry_ms
                    yield event

    def _patience(self) -> float:
        if self.heartbeat_seconds is None:
            return OPENING_SECONDS
        return max(1.0, SILENCE_HEARTBEATS * self.heartbeat_seconds)

    def pause(self, reason: str) -> None:
        """Also before `events` is asked again: what was wrong with one stream may be wrong with the next."""
        seconds = min(MAX_WAIT_SECONDS, self._retry_ms / 1000 * 2**self._failures)
        if self._failures:
            # Those that fail together do not try again together.
            seconds *= random.uniform(0.5, 1)
        self._failures = min(self._failures + 1, 10)
        self._lost(reason, seconds)
        self._wait(seconds)


def stream_query(user_id: int | None, strategies: Sequence[int]) -> Query:
    """What a stream asks for, for all its events to be checked."""
    user = [] if user_id is None else [("user_id", str(user_id))]
    named = [("strategy_id", str(strategy_id)) for strategy_id in strategies] or [("strategy_id", "*")]
    return [*user, *named, ("totals", "1"), ("heartbeat", "event"), ("shape", "envelope")]
