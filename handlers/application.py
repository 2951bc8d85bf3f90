"""A request of the lean front on its way through the Tornado application, as Tornado's own server would take it there.

Owns the application's side of a connection: `httputil.HTTPConnection` for the handlers, and the order in which a
message is told to them.
"""

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable

from msgspec import Struct
from tornado.httputil import (
    HTTPHeaders,
    HTTPInputError,
    HTTPMessageDelegate,
    HTTPServerConnectionDelegate,
    RequestStartLine,
    ResponseStartLine,
    parse_request_start_line,
)
from tornado.iostream import StreamClosedError

from core.errors import MalformedRequest, shown
from handlers.connection import OwnedSocket
from handlers.front import FrontConnection, Request

MAX_BODY_BYTES = 100 * 2**20
"""Unless the handler says less, as every one of ours does."""

_log = logging.getLogger("tallywire.http")


class ApplicationCall:
    """Answers a request by passing it to the application."""

    def __init__(
        self, connection: FrontConnection, request: Request, application: HTTPServerConnectionDelegate
    ) -> None:
        self._connection = connection
        self._request = request
        self._application = application
        self._answer = AnswerConnection(connection, request)
        self._pieces: deque[bytes] = deque()
        self._moved = asyncio.Event()
        """More of the body has come, or no more will."""
        self._is_complete = False
        self._is_told = False
        """The handler has been told that the request is complete."""
        self._has_left = False
        self._task = asyncio.get_running_loop().create_task(self._run())

    def data_received(self, chunk: bytes) -> None:
        """Some of the body."""
        self._pieces.append(chunk)
        self._moved.set()

    def finish(self) -> None:
        """The request is complete."""
        self._is_complete = True
        self._moved.set()

    def on_connection_close(self) -> None:
        """The client has left, or what it sent cannot be read."""
        self._has_left = True
        self._moved.set()
        self._answer.leave(tell_handler=self._is_told)

    async def _run(self) -> None:
        delegate = self._application.start_request(self._connection, self._answer)
        # A delegate gets exactly one of finish() and on_connection_close().
        is_open = True
        try:
            headers = self._headers()
            begun = delegate.headers_received(self._start_line(), headers)
            if begun is not None:
                await begun
            if headers.get("Expect", "").lower() == "100-continue" and not (self._answer.is_finished or self._has_left):
                self._connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            await self._pass_on_body(delegate)
            if not self._answer.is_finished:
                is_open = False
                self._is_told = True
                delegate.finish()
            await self._answer.finished.wait()
        except HTTPInputError as error:
            self._connection.refuse(MalformedRequest(str(error)), self._request)
        except StreamClosedError:
            pass
        except Exception:
            _log.exception("Uncaught exception", extra={"path": shown(self._request.path.decode("latin-1"))})
            self._connection.end()
        finally:
            if is_open:
                delegate.on_connection_close()

    async def _pass_on_body(self, delegate: HTTPMessageDelegate) -> None:
        """Raises HTTPInputError for a body that is too large, StreamClosedError when the client leaves within it."""
        received_bytes = 0
        while True:
            if self._has_left:
                raise StreamClosedError
            while self._pieces:
                piece = self._pieces.popleft()
                received_bytes += len(piece)
                if received_bytes > self._answer.max_body_bytes:
                    raise HTTPInputError(f"the body is larger than {self._answer.max_body_bytes} bytes")
                if not self._answer.is_finished:
                    taken = delegate.data_received(piece)
                    if taken is not None:
                        await taken
            if self._is_complete or self._answer.is_finished:
                return
            self._moved.clear()
            await self._moved.wait()

    def _start_line(self) -> RequestStartLine:
        request = self._request
        line = request.method + b" " + request.target + b" HTTP/" + request.version.encode()
        return parse_request_start_line(line.decode("latin-1"))

    def _headers(self) -> HTTPHeaders:
        headers = HTTPHeaders()
        for name, value in self._request.headers.items():
            headers.add(name.decode("latin-1"), value.decode("latin-1"))
        return headers


class Context(Struct, frozen=True):
    """What Tornado's request takes from its connection."""

    remote_ip: str
    protocol: str = "http"


class AnswerConnection(OwnedSocket):
    """What handlers write their answer to."""

    def __init__(self, connection: FrontConnection, request: Request) -> None:
        self.context = Context(connection.peer_address())
        self.max_body_bytes = MAX_BODY_BYTES
        self.is_finished = False
        self.finished = asyncio.Event()
        """The answer is complete, or nobody waits for it."""
        self._connection = connection
        self._request = request
        self._is_chunking = False
        self._has_left = False
        self._close_callback: Callable[[], None] | None = None

    def leave(self, *, tell_handler: bool) -> None:
        """The client has left."""
        self._has_left = True
        self.finished.set()
        callback, self._close_callback = self._close_callback, None
        if callback is not None and tell_handler:
            callback()

    def set_close_callback(self, callback: Callable[[], None] | None) -> None:
        """To be called when the client leaves before its answer is complete."""
        self._close_callback = callback

    def set_max_body_size(self, max_body_size: int) -> None:
        """Bytes of this request's body."""
        self.max_body_bytes = max_body_size

    def write_headers(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders, chunk: bytes | None = None
    ) -> "asyncio.Future[None]":
        """See `HTTPConnection`. Raises ValueError for a line break within a header."""
        request = self._request
        status = int(start_line[1])
        self._is_chunking = (
            request.version == "1.1"
            and request.method != b"HEAD"
            and status not in (204, 304)
            and "Content-Length" not in headers
        )
        if request.closes() or not request.is_complete:
            headers["Connection"] = "close"
        elif request.version == "1.0":
            headers["Connection"] = "Keep-Alive"
        if self._is_chunking:
            headers["Transfer-Encoding"] = "chunked"
        lines = [f"HTTP/1.1 {status} {start_line[2]}", *(f"{name}: {value}" for name, value in headers.get_all())]
        if any("\r" in line or "\n" in line for line in lines):
            raise ValueError("a line break within a header")
        head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
        return self._write(head + self._framed(chunk or b""))

    def write(self, chunk: bytes) -> "asyncio.Future[None]":
        """See `HTTPConnection`."""
        return self._write(self._framed(chunk))

    def finish(self) -> None:
        """The answer is complete."""
        self.is_finished = True
        if self._is_chunking:
            self._connection.write(b"0\r\n\r\n")
        self.finished.set()
        if not self._has_left:
            self._connection.finish_answer()

    def take_socket(self) -> socket.SocketType | None:
        """See `handlers.connection.take_socket`."""
        self.is_finished = True
        self.finished.set()
        return self._connection.take_socket()

    def detach(self) -> None:
        """The socket has been taken."""

    def _framed(self, chunk: bytes) -> bytes:
        # An empty chunk would end the body.
        return b"%x\r\n%b\r\n" % (len(chunk), chunk) if self._is_chunking and chunk else chunk

    def _write(self, data: bytes) -> "asyncio.Future[None]":
        sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def resolve() -> None:
            if sent.done():
                return
            if self._has_left:
                sent.set_exception(StreamClosedError())
                # Most handlers do not wait for it.
                sent.exception()
            else:
                sent.set_result(None)

        if self._has_left:
            resolve()
        else:
            self._connection.write(data)
            self._connection.when_sent(resolve)
        return sent
