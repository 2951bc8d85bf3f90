"""Both listeners on the loop of the test, and a small client that reads streams from raw sockets.

pytest-tornado runs the tests on its loop, and its `http_client` speaks to the internal listener.
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from tornado.httpclient import AsyncHTTPClient, HTTPResponse
from tornado.ioloop import IOLoop

import server
from core.hub import Hub
from core.settings import Settings
from core.sse import EventParser, ServerSentEvent
from tests.fronts import FRONTS

DEADLINE_SECONDS = 10
"""For whatever the test waits for: it never decides whether a test passes on a machine that works."""


@pytest.fixture(params=FRONTS)
def http(request: pytest.FixtureRequest) -> str:
    """Which front reads the requests: every test that talks to a listener runs over each."""
    front: str = request.param
    return front


@pytest.fixture
def settings() -> Settings:
    """Overridden by tests that need others."""
    return with_settings()


@pytest.fixture
def hub(io_loop: IOLoop, settings: Settings, tmp_path: Path) -> Hub:
    loop = asyncio.get_event_loop_policy().get_event_loop()
    journal = server.open_journal(replace(settings, journal=str(tmp_path / "tallywire.db")), loop)
    hub = server.build_hub(settings, journal, loop)

    async def start() -> None:
        hub.start(lambda failed: pytest.fail(str(failed)))

    io_loop.run_sync(start)
    return hub


@pytest.fixture
def servers(io_loop: IOLoop, hub: Hub, settings: Settings, http: str) -> Iterator[server.Listeners]:
    """Both listeners as they are served, left as they are left at the end."""
    listeners = server.bind(settings)
    # Here and not in `settings`, which tests override: none of them can forget a front.
    http_servers = server.start_servers(replace(settings, http=http), hub, listeners)
    yield listeners
    for http_server in http_servers:
        http_server.stop()
    io_loop.run_sync(lambda: server.leave(settings, hub, http_servers))


@pytest.fixture
def fronts(io_loop: IOLoop, hub: Hub, settings: Settings) -> Iterator[dict[str, server.Listeners]]:
    """Every front at once, on one hub: the same bytes can be sent to each."""
    listeners = {front: server.bind(settings) for front in FRONTS}
    http_servers = [
        http_server
        for front, bound in listeners.items()
        for http_server in server.start_servers(replace(settings, http=front), hub, bound)
    ]
    yield listeners
    for http_server in http_servers:
        http_server.stop()
    io_loop.run_sync(lambda: server.leave(settings, hub, http_servers))


@pytest.fixture
def http_server(servers: server.Listeners) -> server.Listeners:
    """What pytest-tornado's client speaks to."""
    return servers


@pytest.fixture
def base_url(servers: server.Listeners) -> str:
    return server.base_url(servers.internal)


@pytest.fixture
def public_port(servers: server.Listeners) -> int:
    return port_of(servers.public)


@pytest.fixture
def internal_port(servers: server.Listeners) -> int:
    return port_of(servers.internal)


def port_of(sockets: list[socket.socket]) -> int:
    """The port that these sockets listen on."""
    port: int = sockets[0].getsockname()[1]
    return port


class Emitter:
    """The order service."""

    def __init__(self, client: AsyncHTTPClient, base_url: str) -> None:
        self._client = client
        self._base_url = base_url

    async def send(
        self, body: bytes, content_type: str = "application/json", headers: dict[str, str] | None = None
    ) -> HTTPResponse:
        """POST raw bytes to the emit route."""
        return await self._client.fetch(
            self._base_url + "/internal/emit",
            method="POST",
            body=body,
            headers={"Content-Type": content_type, **(headers or {})},
            raise_error=False,
        )

    async def __call__(self, user_id: int, strategy_id: int, *results: dict[str, object], **more: object) -> Any:
        """Emit one batch (one LIMIT created by default); answers the decoded answer."""
        batch = {"user_id": user_id, "strategy_id": strategy_id, "batch_results": results or [counted()], **more}
        response = await self.send(json.dumps(batch).encode())
        return json.loads(response.body)

    async def get(self, path: str) -> HTTPResponse:
        return await self._client.fetch(self._base_url + path, raise_error=False)


def counted(order_type: str = "LIMIT", event_type: str = "order_created") -> dict[str, object]:
    """A result that counts."""
    return {"success": True, "order_type": order_type, "event_type": event_type}


@pytest.fixture
def emit(http_client: AsyncHTTPClient, base_url: str) -> Emitter:
    return Emitter(http_client, base_url)


class StreamReader:
    """One open stream: its head, then its events."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.status = 0
        self.headers: dict[str, str] = {}
        self.parser = EventParser()
        self.body = b""
        """The body so far, chunk framing removed."""
        self.has_ended = False
        self._events: list[ServerSentEvent] = []

    async def read_head(self) -> None:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.split("\r\n")[:-2]
        self.status = int(first.split()[1])
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}

    async def event(self) -> ServerSentEvent:
        """The next event. Fails when the stream ends first."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not self._events:
                await self._read_more()
                assert self._events or not self.has_ended, f"ended after {self.body!r}"
        return self._events.pop(0)

    async def data(self) -> Any:
        """The decoded data line of the next event."""
        return json.loads((await self.event()).data)

    async def end(self) -> None:
        """Wait for the end of the body."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not self.has_ended:
                await self._read_more()

    async def _read_more(self) -> None:
        piece = await self._piece()
        self.has_ended = not piece
        self.body += piece
        self._events += self.parser.feed(piece)

    async def _piece(self) -> bytes:
        if self.headers.get("transfer-encoding") != "chunked":
            return await self.reader.read(65536)
        size = int(await self.reader.readline() or b"0", 16)
        return (await self.reader.readexactly(size + 2))[:-2]


Opener = Callable[..., Any]


@pytest.fixture
def stream(public_port: int) -> Opener:
    """`async with stream("user_id=7&strategy_id=3") as reader`; head read, first event not yet."""

    @asynccontextmanager
    async def open_stream(
        query: str, *headers: str, version: str = "1.1", receive_bytes: int | None = None
    ) -> AsyncIterator[StreamReader]:
        sock = socket.socket()
        if receive_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", public_port))
        reader, writer = await asyncio.open_connection(sock=sock, limit=2**16)
        lines = [f"GET /stream?{query} HTTP/{version}", "Host: localhost", *headers, "", ""]
        writer.write("\r\n".join(lines).encode())
        opened = StreamReader(reader, writer)
        async with asyncio.timeout(DEADLINE_SECONDS):
            await opened.read_head()
        try:
            yield opened
        finally:
            writer.close()

    return open_stream


def with_settings(**changes: Any) -> Settings:
    """The settings of a test, with changes."""
    base = Settings(public_listen="127.0.0.1:0", internal_listen="127.0.0.1:0", durability="none")
    return replace(base, **changes)
