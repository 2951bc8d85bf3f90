"""Who answers a request of the lean front: one of the two hot routes, or the same Tornado application as ever.

The hot routes (`POST /internal/emit`, `GET /stream`) call the very functions that their RequestHandlers call, straight
from the parsed request. Whatever else comes, and whatever is out of the ordinary about a request to a hot route, is
handed to the application through Tornado's own interface, `httputil.HTTPConnection`: so routes, errors and settings
exist once.
"""

import asyncio
import logging
import re
from collections.abc import Callable, Mapping
from functools import lru_cache, partial

from tornado.httputil import HTTPServerConnectionDelegate

from core.errors import BodyTooLarge, InternalError, TallywireError, Unauthorized, Unavailable, shown
from core.hub import Hub
from core.subscriber import StreamOptions, stream_options
from handlers.application import ApplicationCall
from handlers.base import (
    DEFAULT_HEADERS,
    MAX_UNWANTED_BYTES,
    SERVER_HEADER,
    Headers,
    Services,
    answer_bytes,
    log_refusal,
    problem_body,
    problem_headers,
    request_id,
)
from handlers.credentials import Credentials
from handlers.emit import MAX_UNREAD_BYTES, EmitHandler, EmitResponse, Reception
from handlers.front import Dispatch, FrontConnection, Request, Responder
from handlers.stream import (
    STREAM_HEADERS,
    accepts_event_stream,
    address_of,
    only,
    open_stream,
    parameters,
    read_stream_request,
    stream_head,
)

MOST_LENGTH_DIGITS = 7
"""Of a Content-Length: every body that an emit may have, and none that would have to be thrown away for long."""

_ORDINARY_TARGET = re.compile(rb"/[!-\"$-~]{0,1023}")
_ORDINARY_HOST = re.compile(rb"[A-Za-z0-9.\-_]+(:[0-9]+)?|\[[0-9A-Fa-f:.]+\](:[0-9]+)?")

_log = logging.getLogger("tallywire.http")

HotRoute = Callable[["Exchange"], Responder | None]
"""None: this request is the application's after all."""

HotRoutes = Mapping[tuple[bytes, bytes], HotRoute]
"""By method and path."""


def dispatcher(application: HTTPServerConnectionDelegate, hot: HotRoutes) -> Dispatch:
    """The hot routes answer what is theirs; everything else is the application's."""

    def dispatch(connection: FrontConnection, request: Request) -> Responder:
        route = hot.get((request.method, request.path))
        if route is not None and is_ordinary(request):
            responder = route(Exchange(connection, request))
            if responder is not None:
                return responder
        return ApplicationCall(connection, request, application)

    return dispatch


def public_hot(services: Services) -> HotRoutes:
    """The hot routes of the public listener."""
    return {(b"GET", b"/stream"): lambda exchange: StreamExchange(services, exchange)}


def internal_hot(services: Services) -> HotRoutes:
    """The hot routes of the internal listener."""
    return {(b"POST", b"/internal/emit"): lambda exchange: receive_emit(services, exchange)}


def receive_emit(services: Services, exchange: "Exchange") -> Responder | None:
    """Who takes in an emit. None: its sender may not emit, and sends more than is thrown away for that."""
    request = exchange.request
    verdict = services.judge(
        EmitHandler.role, request.header(b"host"), request.header(b"origin"), request.header(b"authorization")
    )
    if isinstance(verdict, TallywireError):
        return RefusedExchange(exchange, verdict) if has_short_body(request) else None
    return EmitExchange(services.hub, exchange, verdict)


def has_short_body(request: Request) -> bool:
    """Nobody wants it, and it is read all the same, so that the connection can be used on."""
    length = request.headers.get(b"content-length", b"0")
    return length.isdigit() and int(length) <= MAX_UNWANTED_BYTES and b"transfer-encoding" not in request.headers


def is_ordinary(request: Request) -> bool:
    """Nothing about it needs a second look. What does is Tornado's to judge, refuse or answer."""
    headers = request.headers
    return (
        is_ordinary_host(headers.get(b"host", b""))
        and _ORDINARY_TARGET.fullmatch(request.target) is not None
        and b"expect" not in headers
        and (b"transfer-encoding" not in headers or (request.method == b"POST" and request.version == "1.1"))
        and len(headers.get(b"content-length", b"")) <= (MOST_LENGTH_DIGITS if request.method == b"POST" else 0)
    )


@lru_cache(64)
def is_ordinary_host(host: bytes) -> bool:
    """A name or an address, with a port or without."""
    return _ORDINARY_HOST.fullmatch(host) is not None


class Exchange:
    """One request to a hot route, and its answer."""

    __slots__ = ("connection", "request", "request_id")

    def __init__(self, connection: FrontConnection, request: Request) -> None:
        self.connection = connection
        self.request = request
        self.request_id = request_id(request.header(b"x-request-id") or "")

    def header(self, name: str) -> str | None:
        """The value of a header, None without it."""
        return self.request.header(name.encode("latin-1"))

    def respond(self, status: int, headers: Headers, body: bytes, defaults: Headers = DEFAULT_HEADERS) -> None:
        """Answer, with these headers beside those that every answer has."""
        request = self.request
        if request.closes() or not request.is_complete:
            headers = (*headers, ("Connection", "close"))
        elif request.version == "1.0":
            headers = (*headers, ("Connection", "Keep-Alive"))
        self.connection.write(answer_bytes(status, headers, self.request_id, body, defaults))
        self.connection.finish_answer()
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug("Request", extra={**self._facts(), "status": status})

    def refuse(self, error: TallywireError, headers: Headers = ()) -> None:
        """Answer with a problem."""
        facts = self._facts()
        self.connection.count_refusal(error)
        log_refusal(error, self.request_id, facts["method"], facts["path"])
        self.respond(error.status, (*problem_headers(error), *headers), problem_body(error, self.request_id))

    def fail(self, headers: Headers = ()) -> None:
        """Log the exception that is being handled and answer with an internal error."""
        _log.exception("Uncaught exception", extra={"request_id": self.request_id, **self._facts()})
        self.refuse(InternalError(), headers)

    def _facts(self) -> dict[str, str]:
        """For the log."""
        request = self.request
        return {"method": shown(request.method.decode("latin-1")), "path": shown(request.path.decode("latin-1"))}


class EmitExchange:
    """`POST /internal/emit`."""

    __slots__ = ("_exchange", "_received_bytes", "_reception")

    def __init__(self, hub: Hub, exchange: Exchange, caller: str) -> None:
        self._exchange = exchange
        self._received_bytes = 0
        self._reception = Reception(hub, exchange.request.header(b"content-type") or "", caller)

    def data_received(self, chunk: bytes) -> None:
        """Some of the body, which ends the connection when there is no end of it: in chunks it may not say."""
        self._received_bytes += len(chunk)
        if self._received_bytes > MAX_UNREAD_BYTES:
            self._exchange.connection.refuse(BodyTooLarge(MAX_UNREAD_BYTES), self._exchange.request)
            return
        self._reception.receive(chunk)

    def finish(self) -> None:
        """The body is complete: emit."""
        exchange = self._exchange
        try:
            self._reception.emit(exchange.request.header(b"idempotency-key"), exchange.request_id, self._respond)
        except Exception:
            exchange.fail()
            self._reception.release()

    def on_connection_close(self) -> None:
        """Nobody waits for the answer."""
        self._reception.release()

    def _respond(self, answer: EmitResponse | TallywireError) -> None:
        exchange = self._exchange
        if isinstance(answer, EmitResponse):
            exchange.respond(200, (("Content-Type", answer.content_type),), answer.body)
        else:
            exchange.refuse(answer)
        # A shutdown waits until the caller has the answer, not only until there is one.
        exchange.connection.when_sent(self._reception.release)


class RefusedExchange:
    """A request whose sender may not ask: its body is thrown away, and nothing held for it."""

    __slots__ = ("_exchange", "_refusal")

    def __init__(self, exchange: Exchange, refusal: TallywireError) -> None:
        self._exchange = exchange
        self._refusal = refusal

    def data_received(self, chunk: bytes) -> None:
        """Throw it away."""

    def finish(self) -> None:
        """The body has gone: say why."""
        self._exchange.refuse(self._refusal)

    def on_connection_close(self) -> None:
        """Nobody waits for the answer."""


class StreamExchange:
    """`GET /stream`."""

    __slots__ = ("_cors_headers", "_exchange", "_looking", "_services")

    def __init__(self, services: Services, exchange: Exchange) -> None:
        self._services = services
        self._exchange = exchange
        self._looking: asyncio.Task[None] | None = None
        self._cors_headers = services.cors_headers(exchange.request.header(b"origin") or "")

    def data_received(self, chunk: bytes) -> None:
        """Ordinary requests for a stream have no body."""

    def finish(self) -> None:
        """Open the stream, at once unless a key must be looked for."""
        refusal = self._open(may_look=True)
        if refusal is not None:
            self._looking = asyncio.get_running_loop().create_task(self._look_and_open(refusal))

    async def _look_and_open(self, refusal: Unauthorized) -> None:
        if await self._services.authority.look_again():
            self._open(may_look=False)
        else:
            self._exchange.refuse(refusal, self._cors_headers)

    def _open(self, *, may_look: bool) -> Unauthorized | None:
        """Answers, or says what it would refuse with unless another look for the key helps."""
        exchange, services = self._exchange, self._services
        try:
            given = parameters(exchange.request.target.partition(b"?")[2].decode("latin-1"))
            credentials = Credentials(exchange.header, exchange.connection.peer_address, only(given, "ticket", ""))
            request = read_stream_request(
                given,
                exchange.header("last-event-id"),
                services.settings.shape,
                services.authority.principal_of(credentials, services.hub.now_ms() / 1000),
                chunked=exchange.request.version == "1.1",
                address=address_of(services, credentials),
            )
            head = stream_head(request.options, exchange.request_id, self._cors_headers)
            refuse = partial(self._refuse, request.options)
            open_stream(services, request, head, exchange.connection.take_socket, refuse)
        except TallywireError as refusal:
            if may_look and isinstance(refusal, Unauthorized) and not refusal.knows_key:
                return refusal
            self._refuse(stream_options(services.settings.shape, chunked=exchange.request.version == "1.1"), refusal)
        except Exception:
            exchange.fail(self._cors_headers)
        return None

    def on_connection_close(self) -> None:
        """The socket will not be there when it is to be taken."""

    def _refuse(self, options: StreamOptions, refusal: TallywireError) -> None:
        exchange = self._exchange
        if not isinstance(refusal, Unavailable) or not accepts_event_stream(exchange.request.header(b"accept") or ""):
            exchange.refuse(refusal, self._cors_headers)
            return
        exchange.connection.count_refusal(refusal)
        log_refusal(refusal, exchange.request_id, "GET", "/stream")
        block = self._services.hub.closing_block("busy", options)
        exchange.respond(200, self._cors_headers, block, (*STREAM_HEADERS, *SERVER_HEADER))
