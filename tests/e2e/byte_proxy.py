"""A proxy on loopback for thousands of streams, which cuts the first response of each user behind an exact byte.

Bytes are counted from the first one of the response head, chunk framing included. Whatever a user opens after its cut
passes untouched.
"""

import asyncio
import re
import socket
from collections.abc import Callable, Collection, Coroutine, Mapping
from threading import Thread
from types import TracebackType

from tests.e2e.wire import cut

BACKLOG = 4096
"""Connections that may wait to be accepted: all streams of a sweep are opened at once."""

STOP_SECONDS = 20

_USER = re.compile(rb"[?&]user_id=([0-9]+)[& ]")


class Passage:
    """One user's way through the proxy. `cut_at`: bytes of the first response that pass; None: it is never cut.

    `first_response` is what of it has passed so far, `requests` the heads of all requests.
    """

    def __init__(self, cut_at: int | None) -> None:
        self.cut_at = cut_at
        self.first_response = b""
        self.requests: list[bytes] = []
        self.cuts: list[int] = []
        """The bytes that had passed when the first response was cut."""

    def __str__(self) -> str:
        return "one that is not cut" if self.cut_at is None else f"the one cut behind byte {self.cut_at}"


class ByteProxy:
    """Passes streams of the known users. `resets` says who is cut by a reset; the others see an orderly end.

    The proxy lives on a loop in a thread of its own. What it keeps may be looked at while it runs.
    """

    def __init__(self, target_port: int, cut_at: Mapping[int, int | None], resets: Collection[int]) -> None:
        self.passages = {user_id: Passage(place) for user_id, place in cut_at.items()}
        self.errors: list[BaseException] = []
        """What should not have happened: a request without a known user, no descriptor left."""
        self._target_port = target_port
        self._resets = resets
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
        self._listener.setblocking(False)
        self.base = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._loop = asyncio.new_event_loop()
        self._way = asyncio.Event()
        self._way.set()
        self._is_over = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = Thread(target=self._run)

    def __enter__(self) -> "ByteProxy":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call(self._is_over.set)
        self._thread.join(STOP_SECONDS)
        self._listener.close()

    def hold(self) -> None:
        """Let nobody new through until `release`: those who are cut come back later."""
        self._call(self._way.clear)

    def release(self) -> None:
        """Let through whoever waits, and whoever comes."""
        self._call(self._way.set)

    def _call(self, act: Callable[[], None]) -> None:
        self._loop.call_soon_threadsafe(act)

    def _run(self) -> None:
        # Its end cancels what still runs.
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._work())

    async def _work(self) -> None:
        self._start(self._accept())
        await self._is_over.wait()

    async def _accept(self) -> None:
        while True:
            client, _ = await self._loop.sock_accept(self._listener)
            self._start(self._serve(client))

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        # A side that went away is no mistake.
        if error is not None and not isinstance(error, ConnectionError):
            self.errors.append(error)

    async def _serve(self, client: socket.socket) -> None:
        with client, socket.socket() as server:
            client.setblocking(False)
            server.setblocking(False)
            head = await self._request_head(client)
            user_id = _user_of(head)
            passage = self.passages[user_id]
            passage.requests.append(head)
            is_first = len(passage.requests) == 1
            await self._way.wait()
            await self._loop.sock_connect(server, ("127.0.0.1", self._target_port))
            await self._loop.sock_sendall(server, head)
            if not is_first:
                await self._pass(server, client)
            elif await self._pass_first(server, client, passage) and user_id in self._resets:
                cut(client)

    async def _request_head(self, client: socket.socket) -> bytes:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            data = await self._loop.sock_recv(client, 65536)
            if not data:
                raise ConnectionAbortedError
            head += data
        return head

    async def _pass(self, server: socket.socket, client: socket.socket) -> None:
        while data := await self._loop.sock_recv(server, 65536):
            await self._loop.sock_sendall(client, data)

    async def _pass_first(self, server: socket.socket, client: socket.socket, passage: Passage) -> bool:
        """Pass the first response as far as it may go; answers whether that was a cut."""
        while data := await self._loop.sock_recv(server, 65536):
            if passage.cut_at is not None:
                data = data[: passage.cut_at - len(passage.first_response)]
            # Noted first: whoever hears from the client what it got finds it here.
            passage.first_response += data
            await self._loop.sock_sendall(client, data)
            if len(passage.first_response) == passage.cut_at:
                passage.cuts.append(passage.cut_at)
                return True
        return False


def _user_of(head: bytes) -> int:
    found = _USER.search(head.partition(b"\r\n")[0])
    assert found, f"a request without a user: {head!r}"
    return int(found[1])
