"""The same job with aiohttp-sse: a queue and a response for each stream.

A frame is encoded once and given to the response's `write`; the library's own `send` would build it anew for every
stream. On uvloop, as a busy server of this kind would be; access log off, the library's ping at its default of 15 s.
It keeps nothing: a client that comes back has lost what it missed.
"""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass

import uvloop
from aiohttp import web
from aiohttp_sse import EventSourceResponse

from bench.peers.counting import Hub
from bench.peers.listening import BACKLOG, listening, parse_listens

MAX_BODY_BYTES = 8 * 2**20
END_SECONDS = 2.0
KEEP_ALIVE_SECONDS = 3600

Queue = asyncio.Queue[bytes]


@dataclass(frozen=True, slots=True)
class Routes:
    """The routes of both listeners, around one hub."""

    hub: Hub[Queue]

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """`GET /stream`."""
        key = (int(request.query["user_id"]), int(request.query["strategy_id"]))
        response = EventSourceResponse(sep="\n")
        await response.prepare(request)
        queue = Queue()
        with self.hub.registered(key, queue):
            async with response:
                await response.write(self.hub.opening(key))
                while response.is_connected():
                    await response.write(await queue.get())
        return response

    async def emit(self, request: web.Request) -> web.Response:
        """`POST /internal/emit`: one batch, or a JSON array of them."""
        return web.Response(body=self.hub.call(await request.read()), content_type="application/json")

    async def ready(self, _: web.Request) -> web.Response:
        """`GET /healthz/ready`."""
        return web.Response()


async def _started(routes: list[web.RouteDef], address: str) -> web.AppRunner:
    application = web.Application(client_max_size=MAX_BODY_BYTES)
    application.add_routes(routes)
    # A stream whose client has left is cancelled; otherwise it would wait for its queue for ever.
    runner = web.AppRunner(
        application,
        access_log=None,
        handler_cancellation=True,
        shutdown_timeout=END_SECONDS,
        keepalive_timeout=KEEP_ALIVE_SECONDS,
    )
    await runner.setup()
    await web.SockSite(runner, listening(address), backlog=BACKLOG).start()
    return runner


async def serve(public_listen: str, internal_listen: str) -> None:
    """Serves both listeners until SIGTERM."""
    routes = Routes(Hub(Queue.put_nowait))
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    runners = [
        await _started([web.get("/stream", routes.stream)], public_listen),
        await _started(
            [web.post("/internal/emit", routes.emit), web.get("/healthz/ready", routes.ready)], internal_listen
        ),
    ]
    await ended.wait()
    for runner in runners:
        await runner.cleanup()


def main() -> None:
    """Reads the two addresses from the command line and serves."""
    listens = parse_listens("aiohttp-sse, as a peer for the benchmarks.")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(listens.public_listen, listens.internal_listen))


if __name__ == "__main__":
    main()
