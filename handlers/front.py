"""The lean front: HTTP/1.1 and 1.0 on sockets that we own, parsed by llhttp (`httptools`), on Tornado's loop.

It owns what lies between a socket and a request: accepting, parsing, the order of pipelined answers, limits of size and
time, and the end. Who answers is not its business: `Dispatch` says (`handlers.dispatch`).

What it gains: an emit and a connect cost a quarter of what they do through Tornado's server (docs/performance.md).
What it gives up: a bare LF does not end a line, and messages are held to RFC 9112 to the letter.
"""

import asyncio
import errno
import logging
import math
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Protocol

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from msgspec import Struct

from core.counters import Counters
from core.errors import HeadTooLarge, MalformedRequest, TallywireError
from core.pace import Pace
from handlers.base import answer_bytes, log_refusal, problem_body, problem_headers, request_id
from handlers.readiness import READ, WRITE, Readiness

READ_BYTES = 64 * 1024

ACCEPTED_AT_ONCE = 256
"""Connections accepted in one turn of the loop: about a millisecond. With half of it a crowd of 10,000 overflows the
kernel's queue, and whoever is dropped there comes again a second later, or three."""

WELCOME_SECONDS = 0.002
"""How long newcomers may hold the loop before others get their turn."""

ACCEPT_PAUSE_SECONDS = 0.1
"""Without a descriptor left, accepting again at once would only spin."""

SWEEP_SECONDS = 0.5
"""How often deadlines are looked at. One timer for all: none a connection, let alone a request."""

ENDED_AT_ONCE = 100
"""Connections whose time is over, ended in one turn of the loop: a millisecond."""

PARSED_AT_ONCE = 4096
"""Bytes of a read that become requests before these are answered: 200 of the shortest. The rest waits as it is."""

ADVANCE_SECONDS = 0.0005
"""How long the pipelined requests of one client may hold the loop before others get their turn."""

GO_ON_SECONDS = 0.002
"""How long those of all clients together may, in one turn."""

WRITE_SECONDS = 30
"""For a client to read some of its answer."""

LINGER_SECONDS = 2
LINGER_BYTES = 2**20
"""What a client goes on sending after an answer that ends the connection is thrown away, so much and so long: an early
close would reset the connection, and the answer would be lost with it."""

MAX_IDLE_BYTES = 16 * 1024
"""Read within a chunked body without any of the body in it."""

_OUT_OF_DESCRIPTORS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

_log = logging.getLogger("tallywire.http")


class FrontLimits(Struct, frozen=True):
    """Bytes of a request's head; seconds for a head once it has begun, between two requests, and for a body."""

    header_bytes: int
    header_seconds: float
    idle_seconds: float
    body_seconds: float


class Request:
    """One request as far as it has arrived. Names of headers are in lower case, values of one name joined by commas."""

    __slots__ = ("head_bytes", "headers", "is_complete", "keeps_alive", "method", "pieces", "target", "version")

    def __init__(self) -> None:
        self.method = b""
        self.target = b""
        self.version = ""
        """`1.1` or `1.0`."""
        self.headers: dict[bytes, bytes] = {}
        self.head_bytes = 0
        """Of its target and headers."""
        self.pieces: list[bytes] = []
        """Of its body, not yet passed on."""
        self.is_complete = False
        self.keeps_alive = False
        """As llhttp sees it; see `closes`."""

    @property
    def path(self) -> bytes:
        """The target without its query."""
        return self.target.partition(b"?")[0]

    def header(self, name: bytes) -> str | None:
        """The value of a header, None without it."""
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")

    def framing(self) -> bytes:
        """The headers that say where its body ends."""
        names = (b"content-length", b"transfer-encoding")
        return b"".join(b"%b: %b\r\n" % (name, self.headers[name]) for name in names if name in self.headers)

    def closes(self) -> bool:
        """The connection ends behind the answer."""
        if self.version == "1.1":
            return not self.keeps_alive
        # RFC 9112, sections 6.1 and 9.3: what such an old client or proxy takes for the end of a body nobody knows.
        if b"close" in self.headers.get(b"connection", b"").lower():
            return True
        is_plain = b"content-length" in self.headers or self.method in (b"GET", b"HEAD")
        return not (self.keeps_alive and is_plain and b"transfer-encoding" not in self.headers)


class Responder(Protocol):
    """Answers one request: its body goes in, the answer is written to the connection."""

    def data_received(self, chunk: bytes) -> None:
        """Some of the body."""

    def finish(self) -> None:
        """The request is complete."""

    def on_connection_close(self) -> None:
        """The connection has ended before the answer was complete."""


class Front:
    """A server, used like Tornado's HTTPServer. `dispatch` says who answers a request whose head has arrived,
    `accepts` how many connections may come, `room` how many there may be of those that are no stream."""

    def __init__(
        self,
        dispatch: "Dispatch",
        limits: FrontLimits,
        loop: asyncio.AbstractEventLoop,
        readiness: Readiness,
        accepts: Pace | None = None,
        room: Callable[[], int] = lambda: sys.maxsize,
        counters: Counters | None = None,
    ) -> None:
        self.dispatch = dispatch
        self.limits = limits
        self.loop = loop
        self.readiness = readiness
        self.accepts = accepts or Pace(0)
        self.room = room
        self.counters = counters or Counters()
        self.connections: set[FrontConnection] = set()
        self._listeners: list[socket.socket] = []
        self._newcomers: deque[socket.SocketType] = deque()
        self._waiting: dict[FrontConnection, None] = {}
        """Who has pipelined more than one turn may answer."""
        self._is_going_on = False
        self._is_welcoming = False
        self._sweep = self.loop.call_later(SWEEP_SECONDS, self._look_at_deadlines)

    def add_sockets(self, sockets: Iterable[socket.socket]) -> None:
        """Accept on these listening sockets."""
        for listener in sockets:
            listener.setblocking(False)
            self._listeners.append(listener)
            self.loop.add_reader(listener, self._accept, listener)

    def stop(self) -> None:
        """Accept no more."""
        for listener in self._listeners:
            self.loop.remove_reader(listener)
            listener.close()
        self._listeners.clear()

    async def close_all_connections(self) -> None:
        """End every connection that is still the front's."""
        self._sweep.cancel()
        self._waiting.clear()
        while self._newcomers:
            self._newcomers.popleft().close()
        for connection in list(self.connections):
            connection.end()

    def _accept(self, listener: socket.socket) -> None:
        """Accepting comes before answering: where it falls behind, the kernel drops what does not fit its queue, and
        those clients try again after one second, or three."""
        most = int(min(ACCEPTED_AT_ONCE, self.accepts.left(self.loop.time())))
        if not most:
            # Somebody is there, or we would not have been called: in the kernel's queue they cost nothing.
            self._pause_accepting(listener, self.accepts.delay_seconds())
            return
        room = self.room() - len(self.connections) - len(self._newcomers)
        if room <= 0:
            self._warn_and_pause(listener, "descriptors are kept for the others")
            return
        before = len(self._newcomers)
        accept = acceptor(listener)
        for _ in range(min(most, room)):
            try:
                accepted = accept()
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in _OUT_OF_DESCRIPTORS:
                    self._warn_and_pause(listener, str(error.strerror))
                    break
                # The client has given up meanwhile.
                continue
            self._newcomers.append(accepted)
        self.accepts.spend(len(self._newcomers) - before)
        if not self._is_welcoming:
            self._welcome()

    def _welcome(self) -> None:
        """Look at those who have been accepted, as many as may hold the loop in one turn."""
        until = self.loop.time() + WELCOME_SECONDS
        try:
            while self._newcomers and self.loop.time() <= until:
                FrontConnection(self, self._newcomers.popleft()).begin()
        finally:
            # Whatever happened to one of them, the others are still to be looked at.
            self._is_welcoming = bool(self._newcomers)
            if self._is_welcoming:
                self.loop.call_soon(self._welcome)

    def go_on_later(self, connection: "FrontConnection") -> None:
        """Let a connection advance when it is its turn."""
        self._waiting[connection] = None
        if not self._is_going_on:
            self._is_going_on = True
            self.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        until = self.loop.time() + GO_ON_SECONDS
        # Whoever comes back into the queue meanwhile waits for the next turn.
        for connection in list(self._waiting):
            del self._waiting[connection]
            connection.advance()
            if self.loop.time() > until:
                break
        self._is_going_on = bool(self._waiting)
        if self._is_going_on:
            self.loop.call_soon(self._go_on)

    def _warn_and_pause(self, listener: socket.socket, reason: str) -> None:
        _log.warning("Not accepting", extra={"reason": reason, "seconds": ACCEPT_PAUSE_SECONDS})
        self._pause_accepting(listener, ACCEPT_PAUSE_SECONDS)

    def _pause_accepting(self, listener: socket.socket, seconds: float) -> None:
        self.loop.remove_reader(listener)
        self.loop.call_later(seconds, self._accept_again, listener)

    def _accept_again(self, listener: socket.socket) -> None:
        if listener in self._listeners:
            self.loop.add_reader(listener, self._accept, listener)

    def _look_at_deadlines(self) -> None:
        self._sweep = self.loop.call_later(SWEEP_SECONDS, self._look_at_deadlines)
        now = self.loop.time()
        late = [connection for connection in self.connections if connection.deadline < now]
        for connection in late[:ENDED_AT_ONCE]:
            connection.end()
        if len(late) > ENDED_AT_ONCE:
            self._sweep.cancel()
            self._sweep = self.loop.call_later(0, self._look_at_deadlines)


def acceptor(listener: socket.socket) -> Callable[[], socket.SocketType]:
    """What does as `listener.accept` does, without the address and the conveniences of `socket.socket`, which nobody
    here needs: 4.3 us instead of 6.5."""
    family, kind = int(listener.family), int(listener.type)

    def accept() -> socket.SocketType:
        descriptor, _address = listener._accept()  # type: ignore[attr-defined]  # what `accept` calls
        return socket.SocketType(family, kind, 0, descriptor)

    return accept


class _Continuation:
    """What llhttp calls behind a declined upgrade: the head that it is fed first is not news."""

    def __init__(self, connection: "FrontConnection") -> None:
        self._is_past_head = False
        self._connection = connection
        self.on_body = connection.on_body
        self.on_message_complete = connection.on_message_complete

    def on_message_begin(self) -> None:
        """See `FrontConnection`."""
        if self._is_past_head:
            self._connection.on_message_begin()

    def on_url(self, url: bytes) -> None:
        """See `FrontConnection`."""
        if self._is_past_head:
            self._connection.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """See `FrontConnection`."""
        if self._is_past_head:
            self._connection.on_header(name, value)

    def on_headers_complete(self) -> None:
        """See `FrontConnection`."""
        if self._is_past_head:
            self._connection.on_headers_complete()
        self._is_past_head = True


class FrontConnection:
    """One connection of a client.

    Parsing acts on nothing: what a read brought becomes requests in a queue, and each is answered before the next is
    looked at. While requests wait, or an answer has not left, nothing more is read: so the memory of a connection is
    bounded by one read and one answer.
    """

    __slots__ = (
        "_ends",
        "_front",
        "_head_bytes",
        "_idle_bytes",
        "_is_advancing",
        "_is_asked",
        "_is_paused",
        "_lingered_bytes",
        "_lingers",
        "_malformed",
        "_on_sent",
        "_parsed",
        "_parser",
        "_queue",
        "_responder",
        "_socket",
        "_unparsed",
        "_unsent",
        "deadline",
    )

    def __init__(self, front: Front, accepted: socket.SocketType) -> None:
        accepted.setblocking(False)
        self._front = front
        self._socket: socket.SocketType | None = accepted
        self._parser: HttpRequestParser | None = HttpRequestParser(self)
        self._parsed: Request | None = None
        """The request whose head is arriving."""
        self._unparsed = b""
        """The rest of a read, until what came before it has been answered."""
        self._head_bytes = 0
        """Of that head, those of the read that it began in aside."""
        self._idle_bytes = 0
        """Read since the last head, or the last piece of its body."""
        self._queue: deque[Request] = deque()
        """Requests whose head has arrived. The first is being answered once there is a responder."""
        self._malformed: TallywireError | None = None
        """What is wrong with what came behind the queue."""
        self._responder: Responder | None = None
        self._is_asked = False
        """The responder has been told that its request is complete."""
        self._is_advancing = False
        self._is_paused = True
        self._unsent = bytearray()
        self._on_sent: list[Callable[[], None]] = []
        self._ends = False
        """No further request is answered; the connection ends when everything has been sent."""
        self._lingers = False
        """Then what still comes is thrown away for a while."""
        self._lingered_bytes = 0
        self.deadline = front.loop.time() + front.limits.idle_seconds
        """For the client's next move, on the loop's clock."""
        front.connections.add(self)

    def begin(self) -> None:
        """Look at once: in a storm of reconnects the request is there already, and a stream is registered but once."""
        self._read()
        if not (self._unsent or self._is_pipelining()):
            self._resume_reading()

    # What llhttp calls.

    def on_message_begin(self) -> None:
        """A request begins."""
        self._parsed = Request()

    def on_url(self, url: bytes) -> None:
        """Some of its target."""
        request = self._parsed
        if request is not None:
            request.target += url
            self._grow_head(request, len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, whole. Trailers of a chunked body come here too and are not looked at."""
        request = self._parsed
        if request is None:
            return
        self._grow_head(request, len(name) + len(value) + len(b": \r\n"))
        name = name.lower()
        # White space behind it is not part of it: RFC 9112, section 5.1.
        value = value.rstrip(b" \t")
        earlier = request.headers.get(name)
        if earlier is not None:
            # RFC 9110, section 5.3; and RFC 9113, section 8.2.3, for what proxies have taken apart.
            value = earlier + (b"; " if name == b"cookie" else b",") + value
        request.headers[name] = value

    def on_headers_complete(self) -> None:
        """Its head is complete."""
        request, parser = self._parsed, self._parser
        if request is None or parser is None:
            raise AssertionError("a head ends that has not begun")
        request.method = parser.get_method()
        request.version = parser.get_http_version()
        request.keeps_alive = parser.should_keep_alive()
        self._parsed = None
        self._idle_bytes = 0
        self._queue.append(request)

    def on_body(self, chunk: bytes) -> None:
        """Some of the body of the last request."""
        self._queue[-1].pieces.append(chunk)
        self._idle_bytes = 0

    def on_message_complete(self) -> None:
        """The last request is complete."""
        self._queue[-1].is_complete = True

    def _grow_head(self, request: Request, size_bytes: int) -> None:
        request.head_bytes += size_bytes
        limit_bytes = self._front.limits.header_bytes
        if request.head_bytes > limit_bytes:
            self._malformed = HeadTooLarge(limit_bytes)
            # Out of the parser: what is left of such a head is not worth reading.
            raise ValueError("too large")

    # Reading.

    def on_readable(self) -> None:
        """See `handlers.readiness.Owner`."""
        if not self._is_paused:
            self._read()

    def _read(self) -> None:
        if self._socket is None:
            return
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self.end()
            return
        if self._ends:
            self._throw_away(data)
        elif data:
            self._unparsed = data
            self._parse_some()
            self.advance()
        else:
            self._on_end_of_input()

    def _parse_some(self) -> None:
        """A piece of what has been read becomes requests."""
        data = self._unparsed
        if len(data) <= PARSED_AT_ONCE:
            self._unparsed = b""
        else:
            data, self._unparsed = data[:PARSED_AT_ONCE], data[PARSED_AT_ONCE:]
        self._parse(data)
        if self._malformed is not None:
            self._unparsed = b""

    def _parse(self, data: bytes) -> None:
        head_before, self._idle_bytes = self._parsed, self._idle_bytes + len(data)
        rest = data
        try:
            while rest and self._parser is not None:
                try:
                    self._parser.feed_data(rest)
                    rest = b""
                except HttpParserUpgrade as offer:
                    rest = rest[offer.args[0] :] if self._decline_upgrade() else b""
        except HttpParserError as error:
            # Nothing is read behind a request that ends the connection, so nothing can be wrong with it.
            if self._malformed is None and not (
                self._queue and self._queue[-1].is_complete and self._queue[-1].closes()
            ):
                self._malformed = MalformedRequest(str(error))
            return
        if self._parsed is not None:
            self._bound_head(head_before, len(data))
        elif self._idle_bytes > MAX_IDLE_BYTES and self._queue and not self._queue[-1].is_complete:
            self._malformed = MalformedRequest("Chunk extensions are too long")

    def _bound_head(self, head_before: Request | None, read_bytes: int) -> None:
        """A head is arriving, `head_before` was when this read came."""
        if self._parsed is not head_before:
            self._head_bytes = 0
            # While an answer is due it is not the client's move.
            if not self._queue and not self._unsent:
                self.deadline = self._front.loop.time() + self._front.limits.header_seconds
            return
        self._head_bytes += read_bytes
        if self._head_bytes > self._front.limits.header_bytes:
            self._malformed = HeadTooLarge(self._front.limits.header_bytes)

    def _decline_upgrade(self) -> bool:
        """llhttp takes the head for the end of a message whose connection changes to another protocol. We speak no
        other, so the request goes on as if nothing had been offered (RFC 9110, section 7.8). False: nothing of what
        comes behind can be read."""
        request = self._queue[-1]
        if request.method == b"CONNECT":
            request.keeps_alive = False
            return False
        request.is_complete = False
        self._parser = HttpRequestParser(_Continuation(self))
        self._parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % request.framing())
        return True

    def _on_end_of_input(self) -> None:
        """The client has closed, or sends nothing more and still reads: what it has asked for is answered."""
        if self._queue and self._queue[-1].is_complete:
            self._queue[-1].keeps_alive = False
            self._pause_reading()
        else:
            self.end()

    def _pause_reading(self) -> None:
        if not self._is_paused and self._socket is not None:
            self._is_paused = True
            self._watch(self._socket)

    def _resume_reading(self) -> None:
        if self._is_paused and self._socket is not None:
            self._is_paused = False
            self._watch(self._socket)

    def _watch(self, connected: socket.SocketType) -> None:
        events = (0 if self._is_paused else READ) | (WRITE if self._unsent else 0)
        self._front.readiness.watch(connected.fileno(), self, events)

    # Answering.

    def advance(self) -> None:
        """Answer what can be answered now; who pipelines hundreds waits for others in between."""
        if self._is_advancing or self._socket is None:
            return
        self._is_advancing = True
        is_one = len(self._queue) <= 1 and not self._unparsed
        until = math.inf if is_one else self._front.loop.time() + ADVANCE_SECONDS
        try:
            while (self._queue or self._unparsed) and not self._unsent and not self._ends:
                if not self._answer_next():
                    break
                if self._front.loop.time() > until:
                    self._pause_reading()
                    self._front.go_on_later(self)
                    return
        except Exception:
            # Nobody knows what has been answered: an end is something that the client can see.
            _log.exception("Uncaught exception")
            self.end()
        finally:
            self._is_advancing = False
        self._await_next_move()

    def _answer_next(self) -> bool:
        """The first request, or what has been read behind it where it is not complete; False: that is not to be had."""
        if self._queue:
            request = self._queue[0]
            if (self._responder is None and not self._begin(request)) or self._pass_on(request):
                return True
            if request.is_complete:
                return False
        if not self._unparsed:
            return False
        self._parse_some()
        return True

    def _begin(self, request: Request) -> bool:
        """Find who answers a request; False when it is refused."""
        if request.version not in ("1.1", "1.0"):
            self.refuse(MalformedRequest("The version is neither HTTP/1.1 nor HTTP/1.0"), request)
            return False
        if request.headers.get(b"transfer-encoding", b"chunked").lower() != b"chunked":
            # llhttp takes any list that ends with it. What a proxy makes of such a list nobody knows.
            self.refuse(MalformedRequest("Transfer-Encoding can only be chunked"), request)
            return False
        self._is_asked = False
        if not request.is_complete:
            self.deadline = self._front.loop.time() + self._front.limits.body_seconds
        self._responder = self._front.dispatch(self, request)
        return True

    def _pass_on(self, request: Request) -> bool:
        """Give what has arrived of a request to its responder; whether it has been answered."""
        if request.pieces and self._responder is not None:
            # Together: a body in chunks of a byte costs a call for each otherwise.
            chunk, request.pieces = b"".join(request.pieces), []
            self._responder.data_received(chunk)
        # Which may have refused it.
        if request.is_complete and not self._is_asked and self._responder is not None:
            self._is_asked = True
            self.deadline = math.inf
            self._responder.finish()
        return self._responder is None

    def _await_next_move(self) -> None:
        """Nothing can be done now. Who pipelines is not read further until there is room."""
        if self._socket is None or (self._ends and not self._unsent):
            return
        if self._unsent or self._is_pipelining():
            self._pause_reading()
        elif self._malformed is not None and not self._ends and not (self._queue and self._queue[0].is_complete):
            self.refuse(self._malformed)
        elif not self._queue or not self._queue[0].is_complete:
            self._resume_reading()

    def _is_pipelining(self) -> bool:
        """The client has sent something behind a request that has not been answered."""
        if len(self._queue) > 1 or self._unparsed:
            return True
        return bool(self._queue) and self._queue[0].is_complete and self._parsed is not None

    def write(self, data: bytes) -> None:
        """Some of the answer to the first request."""
        if self._socket is None:
            return
        if self._unsent:
            self._unsent += data
            return
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.end()
            return
        if sent < len(data):
            self._unsent += memoryview(data)[sent:]
            self._is_paused = True
            self._watch(self._socket)
            self.deadline = self._front.loop.time() + WRITE_SECONDS

    def finish_answer(self) -> None:
        """The answer to the first request is complete: on to the next one, or to the end."""
        if self._socket is None:
            return
        request = self._queue.popleft()
        self._responder = None
        if not request.is_complete:
            # The rest of its body could only be taken for a request.
            self._ends = self._lingers = True
        elif request.closes():
            self._ends = True
        if not self._unsent:
            self._on_all_sent()

    def refuse(self, error: TallywireError, request: Request | None = None) -> None:
        """What came is no request that can be answered: say so, and end without looking at what follows."""
        responder, self._responder = self._responder, None
        if responder is not None:
            responder.on_connection_close()
        request = request or Request()
        known_as = request_id(request.header(b"x-request-id") or "")
        self.count_refusal(error)
        log_refusal(error, known_as, request.method.decode("latin-1"), request.path.decode("latin-1"))
        headers = (*problem_headers(error), ("Connection", "close"))
        self._ends = self._lingers = True
        self.write(answer_bytes(error.status, headers, known_as, problem_body(error, known_as)))
        if not self._unsent:
            self._on_all_sent()

    def count_refusal(self, error: TallywireError) -> None:
        """It has been answered with this problem."""
        self._front.counters.answers_refused[error.code] += 1

    def when_sent(self, callback: Callable[[], None]) -> None:
        """Call back once everything written has left, or the connection has ended."""
        if self._unsent:
            self._on_sent.append(callback)
        else:
            callback()

    def on_writable(self) -> None:
        """See `handlers.readiness.Owner`."""
        if self._socket is None or not self._unsent:
            return
        try:
            sent = self._socket.send(self._unsent)
        except BlockingIOError:
            return
        except OSError:
            self.end()
            return
        del self._unsent[:sent]
        if self._unsent:
            self.deadline = self._front.loop.time() + WRITE_SECONDS
            return
        self._watch(self._socket)
        self._on_all_sent()
        self.advance()

    def _on_all_sent(self) -> None:
        if self._on_sent:
            self._call_back()
        if self._ends:
            self._leave()
            return
        limits, now = self._front.limits, self._front.loop.time()
        if self._queue:
            self.deadline = math.inf if self._queue[0].is_complete else now + limits.body_seconds
        else:
            self.deadline = now + (limits.idle_seconds if self._parsed is None else limits.header_seconds)
        self.advance()

    # The end.

    def take_socket(self) -> socket.SocketType | None:
        """The socket, to be owned from now on, and watched or forgotten: see `handlers.connection.take_socket`."""
        taken = self._socket
        if taken is None:
            return None
        if self._is_pipelining() or self._malformed is not None or self._unsent:
            self.end()
            return None
        self._responder = None
        self._forget()
        return taken

    def end(self) -> None:
        """Close at once; harmless the second time."""
        if self._socket is None:
            return
        self._front.readiness.forget(self._socket.fileno())
        self._socket.close()
        self._forget()

    def peer_address(self) -> str:
        """IP address of the client, empty without one."""
        try:
            name = self._socket.getpeername() if self._socket is not None else ""
        except OSError:
            name = ""
        return str(name[0]) if isinstance(name, tuple) else ""

    def _leave(self) -> None:
        """Everything has been sent, and nothing more is answered."""
        if self._socket is None:
            return
        if not self._lingers:
            self.end()
            return
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        self.deadline = self._front.loop.time() + LINGER_SECONDS
        self._resume_reading()

    def _throw_away(self, data: bytes) -> None:
        self._lingered_bytes += len(data)
        if not data or self._lingered_bytes > LINGER_BYTES:
            self.end()

    def _forget(self) -> None:
        """Nothing of this connection is the front's any more; without the parser no cycle keeps it in memory."""
        self._front.connections.discard(self)
        self._socket = None
        self._parser = None
        self._unsent.clear()
        self._unparsed = b""
        self._queue.clear()
        responder, self._responder = self._responder, None
        if responder is not None:
            responder.on_connection_close()
        self._call_back()

    def _call_back(self) -> None:
        callbacks, self._on_sent = self._on_sent, []
        for callback in callbacks:
            callback()


Dispatch = Callable[[FrontConnection, Request], Responder]
