"""The same job with sse-starlette on uvicorn (uvloop, httptools): a queue and a generator for each stream.

A frame is encoded once and yielded as bytes, which the library passes on as they are. Access log off, the library's
ping at its default of 15 s. It keeps nothing: a client that comes back has lost what it missed.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass

import uvicorn
from sse_starlette.sse import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bench.peers.counting import HEARTBEAT_SECONDS, Hub, Key
from bench.peers.listening import BACKLOG, listening, parse_listens

END_SECONDS = 2
KEEP_ALIVE_SECONDS = 3600  # by default an emitter that pauses for 5 s loses its connection

Queue = asyncio.Queue[bytes]


@dataclass(frozen=True, slots=True)
class Routes:
    """The routes of both listeners, around one hub."""

    hub: Hub[Queue]

    async def stream(self, request: Request) -> Response:
        """`GET /stream`."""
        key = (int(request.query_params["user_id"]), int(request.query_params["strategy_id"]))
        return EventSourceResponse(self._frames(key), ping=HEARTBEAT_SECONDS, sep="\n")

    async def _frames(self, key: Key) -> AsyncIterator[bytes]:
        queue = Queue()
        with self.hub.registered(key, queue):
            yield self.hub.opening(key)
            while True:
                yield await queue.get()

    async def emit(self, request: Request) -> Response:
        """`POST /internal/emit`: one batch, or a JSON array of them."""
        return Response(self.hub.call(await request.body()), media_type="application/json")

    async def ready(self, _: Request) -> Response:
        """`GET /healthz/ready`."""
        return Response()


def _server(routes: list[Route]) -> uvicorn.Server:
    return uvicorn.Server(
        uvicorn.Config(
            Starlette(routes=routes),
            loop="uvloop",
            http="httptools",
            ws="none",
            lifespan="off",
            access_log=False,
            log_level="warning",
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=END_SECONDS,
        )
    )


async def serve(public_listen: str, internal_listen: str) -> None:
    """Serves both listeners until SIGTERM."""
    routes = Routes(Hub(Queue.put_nowait))
    public = _server([Route("/stream", routes.stream)])
    internal = _server(
        [Route("/internal/emit", routes.emit, methods=["POST"]), Route("/healthz/ready", routes.ready)],
    )
    serving = [
        asyncio.create_task(public.serve(sockets=[listening(public_listen)])),
        asyncio.create_task(internal.serve(sockets=[listening(internal_listen)])),
    ]
    await asyncio.wait(serving, return_when=asyncio.FIRST_COMPLETED)
    # Each has a handler for SIGTERM and only the last one's is called.
    public.should_exit = internal.should_exit = True
    await asyncio.gather(*serving)


def main() -> None:
    """Reads the two addresses from the command line and serves."""
    listens = parse_listens("sse-starlette on uvicorn, as a peer for the benchmarks.")
    # uvicorn raises the signal again once it has ended: without this the exit is that of a killed process.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with asyncio.Runner(loop_factory=uvicorn.Config("", loop="uvloop").get_loop_factory()) as runner:
        runner.run(serve(listens.public_listen, listens.internal_listen))


if __name__ == "__main__":
    main()
