"""A stream as its reader sees it, over any number of connections, pure: bytes in, typed events out.

                     bytes                        end of a connection
    connecting ──────────────> open ───────────────────────────────────> waiting ──> connecting, at the position
                                 │ closing for good
                                 v
                               over

Sums and position move together, with each event that is handed over. Every frame is held against three things: where it
starts, the heartbeat's position, and the totals that it states. One that does not fit is not handed over; the follower
asks for another connection instead.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence

from tallywire_client._replies import read_summaries
from tallywire_client._sse import Block, BlockParser
from tallywire_client.events import CatchUp, Closing, Event, Expiring, HourlySummary, Opened, Reset, Totals, Update
from tallywire_client.results import Summary

DEFAULT_RETRY_MS = 2000
MAX_WAIT_SECONDS = 60.0
DEFAULT_HEARTBEAT_SECONDS = 15
SILENT_HEARTBEATS = 3

Fields = Mapping[str, object]


class _MisfitError(Exception):
    """A frame that does not go on where the stream stands, or cannot be read."""


class Follower:
    """The state of one reader. `position` and `totals` are those of the last event that was handed over."""

    def __init__(self, last_event_id: str, uniform: Callable[[float, float], float]) -> None:
        self.position = last_event_id
        self.totals: dict[int, tuple[Summary, ...]] = {}
        self.heartbeat_seconds = DEFAULT_HEARTBEAT_SECONDS
        self.is_over = False
        self.misfits = 0
        """Frames that did not fit, each of which cost a connection."""
        self._uniform = uniform
        self._retry_ms = DEFAULT_RETRY_MS
        self._failures = 0
        self._parser = BlockParser()
        self._has_opened = False

    @property
    def silence_seconds(self) -> float:
        """After so long without a byte the connection is dead."""
        return self.heartbeat_seconds * SILENT_HEARTBEATS

    def connected(self) -> None:
        """A response begins."""
        self._parser = BlockParser()
        self._has_opened = False

    def feed(self, data: bytes) -> Iterator[Event | None]:
        """Events, each once position and totals include it. None: this connection is of no more use."""
        for block in self._parser.feed(data):
            if block.retry_ms is not None:
                self._retry_ms = block.retry_ms
            try:
                event = self._take(block)
            except (_MisfitError, ValueError, KeyError, TypeError):
                self.misfits += 1
                yield None
                return
            if event is None:
                continue
            yield event
            if isinstance(event, Closing):
                self.is_over = not event.reconnect
                yield None
                return

    def wait_seconds(self) -> float:
        """How long to wait before the next connection: what the server said, longer with each one that failed."""
        # The server has drawn it around a mean; what comes on top is drawn here.
        base = self._retry_ms / 1000
        longer = self._uniform(0.0, base * (2 ** min(self._failures, 16) - 1)) if self._failures else 0.0
        return min(MAX_WAIT_SECONDS, base + longer)

    def ended(self, after_seconds: float = 0.0) -> None:
        """The connection is no more, or there was none. `after_seconds`: what the server asked for."""
        if not self._has_opened:
            self._failures += 1
        self._has_opened = False
        if after_seconds:
            self._retry_ms = int(after_seconds * 1000)

    def _take(self, block: Block) -> Event | None:
        if not block.data:
            return None
        match block.event:
            case "stream_open" | "stream_reset":
                return self._open(block)
            case "order_batch_update" | "order_batch_catch_up" if not self._has_opened:
                raise _MisfitError("a frame before the stream has opened")
            case "order_batch_update":
                return self._update(block)
            case "order_batch_catch_up":
                return self._catch_up(block)
            case "stream_heartbeat":
                if self._has_opened and _text(_data(block), "position") != self.position:
                    raise _MisfitError("a heartbeat elsewhere")
            case "stream_expiring":
                data = _data(block)
                return Expiring(_text(data, "expires_at"), _number(data, "seconds_left"))
            case "stream_closing":
                data = _data(block)
                return Closing(_text(data, "reason"), data.get("reconnect") is not False)
            case "order_hourly_summary":
                data = _data(block)
                return HourlySummary(
                    _number(data, "strategy_id"), _text(data, "hour"), read_summaries(data.get("summaries"))
                )
        return None

    def _open(self, block: Block) -> Event:
        data = _data(block)
        position = block.event_id
        if not position or position != _text(data, "position"):
            raise _MisfitError("an opening without a position")
        strategies = _strategies(data.get("strategies"))
        totals = _totals(data.get("totals"))
        if block.event == "stream_open":
            resumed = data.get("resumed") is True
            if resumed and position != self.position:
                raise _MisfitError("resumed elsewhere")
            event: Event = Opened(position, strategies, resumed, totals)
        else:
            event = Reset(position, strategies, _text(data, "reason"), totals)
        self.heartbeat_seconds = max(1, _number(data, "heartbeat_seconds"))
        self.position = position
        self.totals = dict(totals)
        self._has_opened = True
        self._failures = 0
        return event

    def _update(self, block: Block) -> Update:
        update = self._checked(_object(json.loads(block.data)), block.event_id)
        self.totals[update.strategy_id] = update.totals
        self.position = update.position
        return update

    def _catch_up(self, block: Block) -> CatchUp:
        listed = _list(_object(json.loads(block.data)).get("updates"))
        updates = tuple(self._checked(_object(each), block.event_id) for each in listed)
        if not block.event_id:
            raise _MisfitError("a frame without a position")
        self.totals |= {update.strategy_id: update.totals for update in updates}
        self.position = block.event_id
        return CatchUp(block.event_id, updates)

    def _checked(self, fields: Fields, position: str | None) -> Update:
        """The update of a data line. Raises _MisfitError unless it goes on here and adds up."""
        data, stream = _object(fields.get("data")), _object(fields.get("stream"))
        if not position or _text(stream, "after") != self.position:
            raise _MisfitError("it starts elsewhere")
        strategy_id = _number(stream, "strategy_id")
        summaries, totals = read_summaries(data.get("summaries")), read_summaries(stream.get("totals"))
        if _sums(self.totals.get(strategy_id, ()), summaries) != _sums(totals):
            # The sums here are wrong: only a stream that starts anew, with its totals, mends them.
            self.position = ""
            raise _MisfitError("it does not add up")
        return Update(position, strategy_id, summaries, totals, _number(stream, "batches"), _text(data, "timestamp"))


def _sums(*lists: Sequence[Summary]) -> dict[str, tuple[int, int]]:
    sums: dict[str, tuple[int, int]] = {}
    for summary in (each for summaries in lists for each in summaries):
        created, cancelled = sums.get(summary.order_type, (0, 0))
        sums[summary.order_type] = (created + summary.created, cancelled + summary.cancelled)
    return sums


def _data(block: Block) -> Fields:
    return _object(_object(json.loads(block.data)).get("data"))


def _totals(value: object) -> Totals:
    return {_number(each, "strategy_id"): read_summaries(each.get("summaries")) for each in map(_object, _list(value))}


def _strategies(value: object) -> tuple[int, ...] | str:
    if isinstance(value, str):
        return value
    return tuple(each for each in _list(value) if isinstance(each, int))


def _object(value: object) -> Fields:
    if not isinstance(value, dict):
        raise _MisfitError("not an object")
    return value


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise _MisfitError("not a list")
    return value


def _text(fields: Fields, name: str) -> str:
    value = fields.get(name)
    return value if isinstance(value, str) else ""


def _number(fields: Fields, name: str) -> int:
    value = fields.get(name)
    return value if isinstance(value, int) else 0
