"""What the Python peers have alike: batches in, counts, one frame and one answer out.

Each library's module adds only what is its own: how a stream is opened and how a frame reaches it. A frame is encoded
once for all streams of its key.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Generic, TypeVar

import msgspec

EPOCH = "plainplainpln"  # 13 characters, as a real epoch has
HEARTBEAT_SECONDS = 15

Key = tuple[int, int]
Stream = TypeVar("Stream")


class Result(msgspec.Struct, frozen=True):
    """One order action of a batch; only a successful one counts."""

    success: bool | None = None
    order_type: str = ""
    event_type: str | None = None


class Batch(msgspec.Struct, frozen=True):
    """What one emit carries."""

    user_id: int
    strategy_id: int
    batch_results: list[Result]


class Summary(msgspec.Struct):
    """Counts for one order type."""

    order_type: str
    created: int = 0
    cancelled: int = 0


class Counts(msgspec.Struct, frozen=True):
    """The inner object of an event."""

    summaries: list[Summary]
    timestamp: str


class Place(msgspec.Struct, frozen=True):
    """Where an event stands in its stream."""

    strategy_id: int
    after: str
    batches: int = 1


class Event(msgspec.Struct, frozen=True):
    """The data line of one `order_batch_update`."""

    type: str
    data: Counts
    stream: Place


class Answer(msgspec.Struct, frozen=True):
    """What the caller of an emit is told about one batch."""

    status: str
    position: str
    summaries: list[Summary]
    connections: int
    ignored: int = 0
    duplicate: bool = False


_decoder = msgspec.json.Decoder(Batch | list[Batch])
_encode = msgspec.json.Encoder().encode


def summarize(results: list[Result]) -> list[Summary]:
    """Counts by order type, in the order of first sight; O(n) over the results."""
    by_type: dict[str, Summary] = {}
    for result in results:
        if not result.success or result.event_type not in ("order_created", "order_cancelled"):
            continue
        summary = by_type.get(result.order_type)
        if summary is None:
            summary = by_type[result.order_type] = Summary(result.order_type)
        if result.event_type == "order_created":
            summary.created += 1
        else:
            summary.cancelled += 1
    return list(by_type.values())


class Hub(Generic[Stream]):
    """The streams of each key, and the last n of each user; `send` takes a frame to one stream."""

    def __init__(self, send: Callable[[Stream, bytes], None]) -> None:
        self._send = send
        self._streams: dict[Key, set[Stream]] = defaultdict(set)
        self._last_n: dict[int, int] = defaultdict(int)

    @contextmanager
    def registered(self, key: Key, stream: Stream) -> Iterator[None]:
        """The stream gets the frames of its key meanwhile."""
        streams = self._streams[key]
        streams.add(stream)
        try:
            yield
        finally:
            streams.discard(stream)
            if not streams:
                self._streams.pop(key, None)

    def opening(self, key: Key) -> bytes:
        """The first event of a stream."""
        position = f"{EPOCH}-{self._last_n[key[0]]}"
        data = {
            "type": "stream_open",
            "data": {
                "position": position,
                "strategies": [key[1]],
                "resumed": False,
                "heartbeat_seconds": HEARTBEAT_SECONDS,
            },
        }
        return b"event: stream_open\nretry: 3000\ndata: %b\nid: %b\n\n" % (_encode(data), position.encode())

    def call(self, body: bytes) -> bytes:
        """Emits a batch, or each batch of an array; the encoded answers in the same order."""
        call = _decoder.decode(body)
        if isinstance(call, Batch):
            return _encode(self.emit(call))
        return _encode([self.emit(batch) for batch in call])

    def emit(self, batch: Batch) -> Answer:
        """Counts the batch and sends one event to each stream of its key."""
        summaries = summarize(batch.batch_results)
        n = self._last_n[batch.user_id] + 1
        self._last_n[batch.user_id] = n
        position = f"{EPOCH}-{n}"
        streams: Collection[Stream] = self._streams.get((batch.user_id, batch.strategy_id), ())
        if streams:
            frame = _frame(batch.strategy_id, summaries, position, f"{EPOCH}-{n - 1}")
            for stream in tuple(streams):
                self._send(stream, frame)
        return Answer("accepted", position, summaries, len(streams))


def _frame(strategy_id: int, summaries: list[Summary], position: str, after: str) -> bytes:
    timestamp = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    data = _encode(Event("order_batch_update", Counts(summaries, timestamp), Place(strategy_id, after)))
    return b"event: order_batch_update\ndata: %b\nid: %b\n\n" % (data, position.encode())
