"""The same job the plain Tornado way: one open `RequestHandler` a stream, `write` and `flush` for each frame.

It is the best reasonable form of that style, and no straw man: msgspec on both ends, a frame encoded once for
all its handlers, TCP_NODELAY on, no log line on the way. It keeps no journal, knows no limit, merges nothing,
sends no heartbeats. Frames have the bytes that Tallywire's have; `/stream`, `/internal/emit` and
`/healthz/ready` answer alike.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import socket
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec
from tornado.httpserver import HTTPServer
from tornado.iostream import StreamClosedError
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

EPOCH = "plainplainpln"  # 13 characters, as a real epoch has
HEARTBEAT_SECONDS = 15

Key = tuple[int, int]


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


class Hub:
    """The handlers of each key, and the last n of each user."""

    def __init__(self) -> None:
        self.handlers: dict[Key, set[StreamHandler]] = defaultdict(set)
        self.last_n: dict[int, int] = defaultdict(int)

    def emit(self, batch: Batch) -> Answer:
        """Counts the batch and writes one event to each handler of its key."""
        summaries = summarize(batch.batch_results)
        n = self.last_n[batch.user_id] + 1
        self.last_n[batch.user_id] = n
        position = f"{EPOCH}-{n}"
        handlers = self.handlers.get((batch.user_id, batch.strategy_id), ())
        if handlers:
            frame = self._frame(batch.strategy_id, summaries, position, f"{EPOCH}-{n - 1}")
            for handler in tuple(handlers):
                handler.send(frame)
        return Answer("accepted", position, summaries, len(handlers))

    @staticmethod
    def _frame(strategy_id: int, summaries: list[Summary], position: str, after: str) -> bytes:
        timestamp = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        data = _encode(Event("order_batch_update", Counts(summaries, timestamp), Place(strategy_id, after)))
        return b"event: order_batch_update\ndata: %b\nid: %b\n\n" % (data, position.encode())


class StreamHandler(RequestHandler):
    """One open SSE response."""

    def initialize(self, hub: Hub) -> None:
        """Takes the hub; registers nothing yet."""
        self.hub = hub
        self.left = asyncio.Event()

    async def get(self) -> None:
        """Sends `stream_open`, registers, and stays until the client leaves."""
        key = (int(self.get_query_argument("user_id")), int(self.get_query_argument("strategy_id")))
        self.set_header("Content-Type", "text/event-stream; charset=utf-8")
        self.set_header("Cache-Control", "no-store, no-transform")
        self.set_header("X-Accel-Buffering", "no")
        self.hub.handlers[key].add(self)
        try:
            self.send(self._opening(key))
            await self.left.wait()
        finally:
            self._forget(key)

    def send(self, frame: bytes) -> None:
        """Writes one frame; a client that has left is found by `on_connection_close`."""
        self.write(frame)
        # A future of an overlapping flush may stay unresolved for ever: do not await it.
        self.flush().add_done_callback(_ignore_closed)

    def on_connection_close(self) -> None:
        """Lets `get` end."""
        self.left.set()

    def _opening(self, key: Key) -> bytes:
        position = f"{EPOCH}-{self.hub.last_n[key[0]]}"
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

    def _forget(self, key: Key) -> None:
        handlers = self.hub.handlers[key]
        handlers.discard(self)
        if not handlers:
            del self.hub.handlers[key]


def _ignore_closed(flushed: asyncio.Future[None]) -> None:
    if not flushed.cancelled():
        error = flushed.exception()
        if error is not None and not isinstance(error, StreamClosedError):
            raise error


class EmitHandler(RequestHandler):
    """`POST /internal/emit`: one batch, or a JSON array of them."""

    def initialize(self, hub: Hub) -> None:
        """Takes the hub."""
        self.hub = hub

    def post(self) -> None:
        """Emits each batch and answers in the same order."""
        call = _decoder.decode(self.request.body)
        self.set_header("Content-Type", "application/json")
        if isinstance(call, Batch):
            self.finish(_encode(self.hub.emit(call)))
        else:
            self.finish(_encode([self.hub.emit(batch) for batch in call]))


class ReadyHandler(RequestHandler):
    """`GET /healthz/ready`."""

    def get(self) -> None:
        """Answers 200 with nothing."""


def _listen(address: str, application: Application) -> HTTPServer:
    host, port = address.rsplit(":", 1)
    sockets = bind_sockets(int(port), host, family=socket.AF_INET, backlog=1024)
    for listening in sockets:
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # inherited by what is accepted
    server = HTTPServer(application)
    server.add_sockets(sockets)
    return server


def _quiet(_: RequestHandler) -> None:
    """Logs no request."""


async def serve(public_listen: str, internal_listen: str) -> None:
    """Serves both listeners until SIGTERM."""
    hub = Hub()
    ended = asyncio.Event()
    end: Callable[[], None] = ended.set
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end)
    public = Application([("/stream", StreamHandler, {"hub": hub})], log_function=_quiet)
    internal = Application(
        [("/internal/emit", EmitHandler, {"hub": hub}), ("/healthz/ready", ReadyHandler)], log_function=_quiet
    )
    listening = [_listen(public_listen, public), _listen(internal_listen, internal)]
    await ended.wait()
    for server in listening:
        server.stop()


def main() -> None:
    """Reads the two addresses from the command line and serves."""
    parser = argparse.ArgumentParser(description="The plain Tornado way, as a peer for the benchmarks.")
    parser.add_argument("--public-listen", required=True, metavar="HOST:PORT")
    parser.add_argument("--internal-listen", required=True, metavar="HOST:PORT")
    listens = parser.parse_args()
    asyncio.run(serve(listens.public_listen, listens.internal_listen))


if __name__ == "__main__":
    main()
