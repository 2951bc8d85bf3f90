"""How a server is spoken to: the bytes of a stream's request and of an emit, and what it can do at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from bench.load import StreamKey
from bench.server import Address
from bench.workloads import BATCH_RESULTS

BATCH_SUMMARIES = b'[{"order_type":"LIMIT","created":7,"cancelled":3}]'
"""What BATCH_RESULTS counts."""


class Bundle(Enum):
    """How many batches travel in one request."""

    NDJSON = "NDJSON"
    ARRAY = "array"
    SINGLE = "single"


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch: its results, as a server that counts gets them, and its counts, for a server that does not."""

    key: StreamKey
    results: bytes = BATCH_RESULTS
    summaries: bytes = BATCH_SUMMARIES


@dataclass(frozen=True, slots=True)
class Dialect:
    """What one server understands."""

    bundles: tuple[Bundle, ...] = (Bundle.SINGLE,)
    """Best first."""

    opening_ids: int = 1
    """Ids in the first event of a stream; 0: it has a first byte and no id."""

    keeps_batches: bool = False
    """A client that comes back gets what it missed."""

    merges_missed: bool = False
    """It gets it as one event."""

    is_given_frames: bool = False
    """It counts nothing and gets the finished data line."""

    count_name: str = '"connections":'
    """What stands before the number of connections in an answer."""

    def bundle(self, wanted: Bundle) -> Bundle:
        """The form wanted, or the next best that this server takes."""
        order = list(Bundle)
        return next(bundle for bundle in order[order.index(wanted) :] if bundle in self.bundles)

    def resumed_ids(self, missed: int) -> int:
        """Ids that a stream has read once it has all of `missed` batches."""
        return self.opening_ids + (1 if self.merges_missed else missed)

    def stream(self, key: StreamKey, public: Address) -> bytes:
        """The request for a stream, without its last empty line."""
        return (
            f"GET /stream?user_id={key.user_id}&strategy_id={key.strategy_id} HTTP/1.1\r\nHost: {public}\r\n"
            "Accept: text/event-stream\r\n"
        ).encode()

    def emit(self, batch: Batch, internal: Address) -> bytes:
        """The request that emits one batch."""
        if self.is_given_frames:
            query = f"?user_id={batch.key.user_id}&strategy_id={batch.key.strategy_id}"
            return _post(query, "Accept: text/json\r\nX-EventSource-Event: order_batch_update", _line(batch), internal)
        return _post("", "Content-Type: application/json", _body(batch), internal)

    def call(self, batches: Sequence[Batch], bundle: Bundle, internal: Address) -> bytes:
        """The request that emits many batches."""
        bodies = [_body(batch) for batch in batches]
        if bundle is Bundle.NDJSON:
            return _post("", "Content-Type: application/x-ndjson", b"\n".join(bodies), internal)
        return _post("", "Content-Type: application/json", b"[" + b",".join(bodies) + b"]", internal)


TALLYWIRE = Dialect(bundles=tuple(Bundle), keeps_batches=True, merges_missed=True)
FLOOR = Dialect(bundles=tuple(Bundle))
COUNTING_PEER = Dialect(bundles=(Bundle.ARRAY, Bundle.SINGLE))
NCHAN = Dialect(opening_ids=0, keeps_batches=True, is_given_frames=True, count_name='"subscribers":')


def _post(query: str, fields: str, body: bytes, internal: Address) -> bytes:
    head = f"POST /internal/emit{query} HTTP/1.1\r\nHost: {internal}\r\n{fields}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _body(batch: Batch) -> bytes:
    return b'{"user_id":%d,"strategy_id":%d,"batch_results":%b}' % (
        batch.key.user_id,
        batch.key.strategy_id,
        batch.results,
    )


def _line(batch: Batch) -> bytes:
    """The data line that Tallywire would make of it, as long as its own."""
    return (
        b'{"type":"order_batch_update","data":{"summaries":%b,"timestamp":"2025-10-30T12:34:56.789Z"},'
        b'"stream":{"strategy_id":%d,"after":"1k7q2m9x4v0ce-41","batches":1}}'
        % (batch.summaries, batch.key.strategy_id)
    )
