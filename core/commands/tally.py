"""The sums of one reader, pure: docs/protocol.md, "Summing". Fed with the events of a stream, whole and in order.

It refuses what cannot be: a frame that does not begin where the one before ended, and totals that are not the sums.
"""

from typing import Generic, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType

from core.models import OrderBatchCatchUp, OrderBatchUpdate, StrategyTotals, Summary
from core.sse import ServerSentEvent
from core.totals import NOTHING, Totals

T = TypeVar("T")


class Opening(Struct, frozen=True):
    """The first event of a stream, `stream_open` or `stream_reset`, of which only the latter has a reason."""

    position: str
    heartbeat_seconds: float
    resumed: bool = False
    reason: str = ""
    totals: tuple[StrategyTotals, ...] | UnsetType = UNSET


class Closing(Struct, frozen=True):
    """`stream_closing`; reasons may be added."""

    reason: str
    reconnect: bool


class Expiring(Struct, frozen=True):
    """`stream_expiring`."""

    seconds_left: int


class Hour(Struct, frozen=True):
    """`order_hourly_summary`: a notice, whose counts have arrived before."""

    strategy_id: int
    hour: str
    summaries: tuple[Summary, ...]


class Heartbeat(Struct, frozen=True):
    """`stream_heartbeat`: where this stream stands, and when the server says so."""

    position: str
    timestamp: str


class _Control(Struct, Generic[T], frozen=True):
    data: T


class Change(Struct, frozen=True):
    """What an update brought to one strategy, and the strategy's totals after it."""

    strategy_id: int
    timestamp: str
    batches: int
    summaries: tuple[Summary, ...]
    totals: Totals


Changes = tuple[Change, ...]


Said = Opening | Changes | Closing | Expiring | Heartbeat | Hour | None


class Contradiction(Exception):
    """The stream cannot be believed further. `loses_sums`: nor can what was summed; else the position still holds."""

    def __init__(self, message: str, *, loses_sums: bool) -> None:
        super().__init__(message)
        self.loses_sums = loses_sums


_opening = msgspec.json.Decoder(_Control[Opening]).decode
_closing = msgspec.json.Decoder(_Control[Closing]).decode
_expiring = msgspec.json.Decoder(_Control[Expiring]).decode
_hour = msgspec.json.Decoder(_Control[Hour]).decode
_heartbeat = msgspec.json.Decoder(_Control[Heartbeat]).decode
_update = msgspec.json.Decoder(OrderBatchUpdate).decode
_catch_up = msgspec.json.Decoder(OrderBatchCatchUp).decode


class Tally:
    """Sums by strategy since the journal began, and the position that they stand at; of a stream with `totals=1` and
    `heartbeat=event`. Both move in one step."""

    def __init__(self, position: str = "") -> None:
        self.position = position
        self.sums: dict[int, Totals] = {}
        self.batches = 0
        self._knows_sums = False

    def take(self, event: ServerSentEvent) -> Said:
        """What an event says, when it says something; events that are not known say nothing.

        Raises Contradiction, and msgspec.DecodeError for data that are not those of the event.
        """
        match event.event:
            case "stream_open" | "stream_reset":
                return self._open(_opening(event.data).data)
            case "order_batch_update":
                return self._add((_update(event.data),), event.last_event_id)
            case "order_batch_catch_up":
                return self._add(_catch_up(event.data).updates, event.last_event_id)
            case "stream_heartbeat":
                heartbeat = _heartbeat(event.data).data
                self._check_place(heartbeat.position, "a heartbeat stands")
                return heartbeat
            case "stream_closing":
                return _closing(event.data).data
            case "stream_expiring":
                return _expiring(event.data).data
            case "order_hourly_summary":
                return _hour(event.data).data
        return None

    def forget(self) -> None:
        """Begin anew, at the head."""
        self.position, self.sums, self._knows_sums = "", {}, False

    def _open(self, opening: Opening) -> Opening:
        stated = {} if opening.totals is UNSET else {each.strategy_id: each.summaries for each in opening.totals}
        if opening.resumed and self._knows_sums:
            for strategy_id, summaries in stated.items():
                self._check_sums(strategy_id, self.sums.get(strategy_id, NOTHING), summaries)
        else:
            self.sums = {strategy_id: Totals.of(summaries) for strategy_id, summaries in stated.items()}
        self.position, self._knows_sums = opening.position, True
        return opening

    def _add(self, updates: tuple[OrderBatchUpdate, ...], event_id: str) -> Changes:
        sums = dict(self.sums)
        changes = []
        for update in updates:
            stream = update.stream
            self._check_place(stream.after, "a frame begins")
            totals = sums.get(stream.strategy_id, NOTHING).plus(update.data.summaries)
            if stream.totals is not UNSET:
                self._check_sums(stream.strategy_id, totals, stream.totals)
            sums[stream.strategy_id] = totals
            changes.append(
                Change(stream.strategy_id, update.data.timestamp, stream.batches, update.data.summaries, totals)
            )
        self.sums, self.position = sums, event_id
        self.batches += sum(change.batches for change in changes)
        return tuple(changes)

    def _check_place(self, position: str, what: str) -> None:
        if position != self.position:
            raise Contradiction(f"{what} at {position}, and this stream stood at {self.position}", loses_sums=False)

    def _check_sums(self, strategy_id: int, totals: Totals, stated: tuple[Summary, ...]) -> None:
        if totals.summaries != stated:
            raise Contradiction(f"the totals of strategy {strategy_id} are not the sums", loses_sums=True)
