"""One SSE socket that we own, taken over from the HTTP front once the request has been read.

Owning it costs a tenth of the memory of a kept handler, and `send` goes straight to the kernel. Read-ready means that
the client left or sent something it should not: both end the stream.
"""

import errno
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Self

from tornado.httputil import HTTPConnection
from tornado.iostream import IOStream
from tornado.web import RequestHandler

from core.errors import Busy
from core.subscriber import CloseReason, ConnectionLost, StreamOptions, Subscriber, for_each
from handlers.readiness import READ, WRITE, Readiness

SendToEach = Callable[[list[int], bytes], list[tuple[int, int]]]


def _compiled() -> SendToEach | None:
    """See `handlers/_native.c`; None: no compiler was at hand when this was installed."""
    try:
        from handlers import _native
    except ImportError:
        return None
    return _native.send_to_each


send_to_each = _compiled()

FAN_OUT = "python" if send_to_each is None else "c"
"""What writes a frame to many streams."""


class Connection(Subscriber):
    """A subscriber on a TCP socket. It holds the socket object, never a bare descriptor: the numbers are re-used, and
    a frame would reach another user."""

    __slots__ = ("_readiness", "_socket")

    def __init__(
        self, user_id: int, options: StreamOptions, connected: socket.SocketType, readiness: Readiness
    ) -> None:
        super().__init__(user_id, options)
        self._socket = connected
        self._readiness = readiness
        readiness.watch(connected.fileno(), self, READ)

    def transmit(self, data: bytes | memoryview) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise ConnectionLost(_reason(error.errno)) from error

    def hand_over_to_each(self, streams: Sequence[Self], data: bytes, counts: int) -> None:
        if send_to_each is None or len(streams) == 1:
            super().hand_over_to_each(streams, data, counts)
            return
        try:
            rest = send_to_each([stream._socket.fileno() for stream in streams], data)
        except BaseException:
            # Nobody knows what left. Only the clients do: let them resume.
            for_each(streams, lambda stream: stream.settle(data, counts, "fault"))
            raise
        self.counters.counts_delivered += counts * (len(streams) - len(rest))
        if rest:
            for_each(rest, lambda each: streams[each[0]].settle(data, counts, _outcome(each[1])))

    def watch_writable(self, wanted: bool) -> None:
        self._readiness.watch(self._socket.fileno(), self, READ | WRITE if wanted else READ)

    def release(self) -> None:
        self._readiness.forget(self._socket.fileno())
        self._socket.close()

    def peer(self) -> str:
        try:
            name = self._socket.getpeername()
        except OSError:
            return ""
        host, port = name[:2] if isinstance(name, tuple) else (name, "")
        if self.address and self.address != host:
            # It came through a proxy, which is not who an operator looks for.
            return self.address
        return f"{host}:{port}" if port else str(host)

    def on_writable(self) -> None:
        """See `handlers.readiness.Owner`."""
        self.continue_sending()

    def on_readable(self) -> None:
        """Nothing may come from the client any more, so whatever is there ends the stream."""
        try:
            data = self._socket.recv(1)
        except BlockingIOError:
            return
        except OSError as error:
            self.close(_reason(error.errno))
            return
        self.close("client_sent_data" if data else "client_closed")


class OwnedSocket(HTTPConnection):
    """A request's connection of a front that owns its sockets."""

    def take_socket(self) -> socket.SocketType | None:
        """See `take_socket`."""
        raise NotImplementedError


def take_socket(handler: RequestHandler) -> socket.SocketType | None:
    """The socket of a handler's request, to be owned from now on; the handler no longer answers on it.

    None when the client has left, or has sent bytes behind its request, which would vanish in the front's buffer: a
    client that does this is not reading a stream. Raises Busy.
    """
    connection = handler.request.connection
    if isinstance(connection, OwnedSocket):
        taken = connection.take_socket()
        handler.detach()
        return taken
    stream: IOStream | None = connection.stream  # type: ignore[union-attr]  # HTTP1Connection
    if stream is None or stream.closed():
        return None
    # Before letting go of the stream: without a descriptor left, the handler must still be able to answer.
    try:
        own = stream.socket.dup()
    except OSError as error:
        raise Busy("No descriptor is left for a further stream.") from error
    # Tornado leaves Nagle's algorithm on after a request on a connection that is used again.
    with suppress(OSError):
        own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    handler.detach()
    behind = stream.read_bytes(1, partial=True)
    is_quiet = not behind.done()  # type: ignore[attr-defined]  # a Future, declared as Awaitable
    stream.close()
    if is_quiet:
        return own
    own.close()
    return None


def _outcome(taken: int) -> int | CloseReason:
    """As `send_to_each` says it."""
    return taken if taken >= 0 else _reason(-taken)


def _reason(error: int | None) -> CloseReason:
    # The kernel reports TCP_USER_TIMEOUT, and a peer that answers no keepalive, as ETIMEDOUT.
    return "stalled" if error == errno.ETIMEDOUT else "reset"
