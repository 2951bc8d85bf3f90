"""The same job the plain Tornado way: one open `RequestHandler` a stream, `write` and `flush` for each frame.

It is the best reasonable form of that style, and no straw man: msgspec on both ends, a frame encoded once for
all its handlers, TCP_NODELAY on, no log line on the way. It keeps no journal, knows no limit, merges nothing,
sends no heartbeats. Frames have the bytes that Tallywire's have; `/stream`, `/internal/emit` and
`/healthz/ready` answer alike.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

from tornado.httpserver import HTTPServer
from tornado.iostream import StreamClosedError
from tornado.web import Application, RequestHandler

from bench.peers.counting import Hub
from bench.peers.listening import listening, parse_listens


class StreamHandler(RequestHandler):
    """One open SSE response."""

    def initialize(self, hub: Hub[StreamHandler]) -> None:
        """Takes the hub; registers nothing yet."""
        self.hub = hub
        self.left = asyncio.Event()

    async def get(self) -> None:
        """Sends `stream_open`, registers, and stays until the client leaves."""
        key = (int(self.get_query_argument("user_id")), int(self.get_query_argument("strategy_id")))
        self.set_header("Content-Type", "text/event-stream; charset=utf-8")
        self.set_header("Cache-Control", "no-store, no-transform")
        self.set_header("X-Accel-Buffering", "no")
        with self.hub.registered(key, self):
            self.send(self.hub.opening(key))
            await self.left.wait()

    def send(self, frame: bytes) -> None:
        """Writes one frame; a client that has left is found by `on_connection_close`."""
        self.write(frame)
        # A future of an overlapping flush may stay unresolved for ever: do not await it.
        self.flush().add_done_callback(_ignore_closed)

    def on_connection_close(self) -> None:
        """Lets `get` end."""
        self.left.set()


def _ignore_closed(flushed: asyncio.Future[None]) -> None:
    if not flushed.cancelled():
        error = flushed.exception()
        if error is not None and not isinstance(error, StreamClosedError):
            raise error


class EmitHandler(RequestHandler):
    """`POST /internal/emit`: one batch, or a JSON array of them."""

    def initialize(self, hub: Hub[StreamHandler]) -> None:
        """Takes the hub."""
        self.hub = hub

    def post(self) -> None:
        """Emits each batch and answers in the same order."""
        self.set_header("Content-Type", "application/json")
        self.finish(self.hub.call(self.request.body))


class ReadyHandler(RequestHandler):
    """`GET /healthz/ready`."""

    def get(self) -> None:
        """Answers 200 with nothing."""


def _listen(address: str, application: Application) -> HTTPServer:
    server = HTTPServer(application)
    server.add_socket(listening(address))
    return server


def _quiet(_: RequestHandler) -> None:
    """Logs no request."""


async def serve(public_listen: str, internal_listen: str) -> None:
    """Serves both listeners until SIGTERM."""
    hub = Hub(StreamHandler.send)
    ended = asyncio.Event()
    end: Callable[[], None] = ended.set
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end)
    public = Application([("/stream", StreamHandler, {"hub": hub})], log_function=_quiet)
    internal = Application(
        [("/internal/emit", EmitHandler, {"hub": hub}), ("/healthz/ready", ReadyHandler)], log_function=_quiet
    )
    servers = [_listen(public_listen, public), _listen(internal_listen, internal)]
    await ended.wait()
    for server in servers:
        server.stop()


def main() -> None:
    """Reads the two addresses from the command line and serves."""
    listens = parse_listens("The plain Tornado way, as a peer for the benchmarks.")
    asyncio.run(serve(listens.public_listen, listens.internal_listen))


if __name__ == "__main__":
    main()
