"""GET /stream: from a request to an open connection.

`read_stream_request` says what is asked for, `open_stream` opens it on the request's socket; what an HTTP front puts
around them only hands the socket over.
"""

import asyncio
import socket
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import get_args
from urllib.parse import parse_qs

from msgspec import Struct
from tornado.web import RequestHandler

from core.addresses import client_address
from core.errors import Forbidden, InvalidQuery, TallywireError, Unavailable
from core.hub import Wanted
from core.models import Shape
from core.principal import Principal
from core.subscriber import StreamOptions, stream_options
from handlers.base import SERVER_HEADER, BaseHandler, Headers, Services, http_date, identifier
from handlers.connection import Connection, take_socket
from handlers.credentials import Credentials

MAX_STRATEGIES = 64
"""Strategies that one stream may name."""

MAX_QUERY_FIELDS = 128
"""Parameters of a query: twice as many as a stream can make use of."""

_SHAPES = get_args(Shape)

STREAM_HEADERS = (
    ("Content-Type", "text/event-stream; charset=utf-8"),
    ("Cache-Control", "no-store, no-transform"),
    ("X-Accel-Buffering", "no"),
    ("X-Content-Type-Options", "nosniff"),
)


class StreamRequest(Struct, frozen=True):
    """What a stream asks for, and how it wants it."""

    wanted: Wanted
    options: StreamOptions


Parameters = Mapping[str, Sequence[str]]


def read_stream_request(
    given: Parameters,
    last_event_id: str | None,
    default_shape: Shape,
    principal: Principal | None,
    *,
    chunked: bool,
    address: str = "",
) -> StreamRequest:
    """The request that the parameters of a query and a Last-Event-ID header make.

    Raises InvalidQuery, naming the parameter, and Forbidden when it is not the principal's to read.
    """
    user_id, strategies = readable(given, principal)
    return StreamRequest(
        Wanted(user_id, strategies, last_event_id or only(given, "last_event_id", "") or None, principal, address),
        stream_options(
            _choice(given, "shape", default_shape, _SHAPES),
            _choice(given, "totals", "0", ("0", "1")) == "1",
            _choice(given, "heartbeat", "comment", ("comment", "event")) == "event",
            chunked,
        ),
    )


def readable(given: Parameters, principal: Principal | None) -> tuple[int, tuple[int, ...] | None]:
    """The user and the strategies (None: every one) that the parameters name, as far as the principal may read them.

    Without a principal: whatever they name. Raises InvalidQuery, Forbidden.
    """
    asked = _strategies(given.get("strategy_id", []))
    if principal is None:
        return identifier("user_id", only(given, "user_id", None)), asked
    named = only(given, "user_id", "")
    if named and identifier("user_id", named) != principal.user_id:
        raise Forbidden(f"You are not user {named}; leave user_id out, the token says who you are.")
    strategies = principal.readable(asked)
    if strategies is not None and not strategies:
        raise Forbidden("The token names no strategy that you may read.")
    return principal.user_id, None if strategies is None else tuple(sorted(strategies))


def parameters(query: str) -> dict[str, list[str]]:
    """Values by name. What has nothing to decode is not decoded: that spares nearly every stream 8 us."""
    if query.count("&") >= MAX_QUERY_FIELDS:
        raise InvalidQuery("query", f"more than {MAX_QUERY_FIELDS} parameters")
    if "%" in query or "+" in query:
        return parse_qs(query, keep_blank_values=True)
    given: dict[str, list[str]] = {}
    for parameter in query.split("&"):
        if parameter:
            name, _, value = parameter.partition("=")
            given.setdefault(name, []).append(value)
    return given


def only(given: Parameters, name: str, default: str | None) -> str:
    """The one value of a parameter. Raises InvalidQuery when it stands twice, or is missing without a default."""
    values = given.get(name)
    if not values:
        if default is None:
            raise InvalidQuery(name, "is required")
        return default
    if len(values) > 1:
        raise InvalidQuery(name, "may stand only once")
    return values[0]


def _choice(given: Parameters, name: str, default: str, choices: Sequence[str]) -> str:
    value = only(given, name, default)
    if value not in choices:
        raise InvalidQuery(name, f"must be one of {', '.join(choices)}")
    return value


def _strategies(values: Sequence[str]) -> tuple[int, ...] | None:
    if not values:
        raise InvalidQuery("strategy_id", "is required: one or several ids, or * for every strategy")
    if "*" in values:
        if len(values) > 1:
            raise InvalidQuery("strategy_id", "* stands for every strategy and must stand alone")
        return None
    if len(values) > MAX_STRATEGIES:
        raise InvalidQuery("strategy_id", f"at most {MAX_STRATEGIES} may be named; * stands for every one")
    return tuple(sorted({identifier("strategy_id", value) for value in values}))


def open_stream(
    services: Services,
    request: StreamRequest,
    head: bytes,
    take_socket: Callable[[], socket.SocketType | None],
    refuse: Callable[[TallywireError], None],
) -> None:
    """Open the stream on the socket that `take_socket` gives, after `head`; None: the client has left meanwhile.

    See `Hub.open`.
    """

    def connect() -> Connection | None:
        taken = take_socket()
        if taken is None:
            return None
        try:
            connection = Connection(request.wanted.user_id, request.options, taken, services.readiness)
        except BaseException:
            # It may still be watched, and its number will be another's.
            services.readiness.forget(taken.fileno())
            taken.close()
            raise
        connection.prologue = head
        return connection

    services.hub.open(request.wanted, connect, refuse)


def address_of(services: Services, credentials: Credentials) -> str:
    """Whose a stream is, where that is asked for: see `Subscriber.address`."""
    if not (services.proxies or services.hub.limits.max_streams_per_address):
        return ""
    return client_address(credentials.address(), credentials.header("x-forwarded-for") or "", services.proxies)


def stream_head(options: StreamOptions, request_id: str, cors_headers: Headers) -> bytes:
    """Status line and headers of a stream: the front no longer writes on its connection, so we do."""
    return f"{_usual_head(options.chunked, cors_headers, http_date())}X-Request-Id: {request_id}\r\n\r\n".encode(
        "latin-1"
    )


@lru_cache(16)
def _usual_head(chunked: bool, cors_headers: Headers, date: str) -> str:
    headers = (
        *STREAM_HEADERS,
        *SERVER_HEADER,
        ("Date", date),
        *cors_headers,
        ("Transfer-Encoding", "chunked") if chunked else ("Connection", "close"),
    )
    return "HTTP/1.1 200 OK\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers)


def accepts_event_stream(accept: str) -> bool:
    """Whether a client with this Accept header reads a stream, so that a refusal for load can be told within one.

    A native EventSource gives up for good on any status but 200.
    """
    ranges = {part.partition(";")[0].strip().lower() for part in accept.split(",")}
    return bool(ranges & {"", "*/*", "text/*", "text/event-stream"})


class StreamHandler(BaseHandler):
    """Reads the request and lets the stream be opened on its socket."""

    def ticket(self) -> str:
        return self.optional_argument("ticket") or ""

    async def get(self) -> None:
        chunked = self.request.version == "HTTP/1.1"
        try:
            principal = await self.reader()
        except Unavailable as refusal:
            self._refuse_for_load(stream_options(self.services.settings.shape, chunked=chunked), refusal)
            return
        request = read_stream_request(
            parameters(self.request.query),
            self.request.headers.get("Last-Event-ID"),
            self.services.settings.shape,
            principal,
            chunked=chunked,
            address=address_of(self.services, self.credentials()),
        )
        head = stream_head(request.options, self.request_id, self.cors_headers())
        try:
            await self._open(request, head)
        except Unavailable as refusal:
            self._refuse_for_load(request.options, refusal)

    async def _open(self, request: StreamRequest, head: bytes) -> None:
        """Raises the TallywireError with which the stream is refused."""
        opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def take() -> socket.SocketType | None:
            taken = self._take_socket()
            if not opened.done():
                opened.set_result(None)
            return taken

        def refuse(refusal: TallywireError) -> None:
            if not opened.done():
                opened.set_exception(refusal)

        open_stream(self.services, request, head, take, refuse)
        await opened

    def options(self) -> None:
        """A CORS pre-flight: for clients that set headers themselves, as native EventSource never does."""
        self.preflight("GET", "Authorization, Last-Event-ID, Cache-Control, X-Request-Id")

    def _take_socket(self) -> socket.SocketType | None:
        taken = take_socket(self)
        # finish() would break this cycle. With it each handler, its request and its stream would stay, some 10 KiB,
        # until the collector runs.
        del self.ui
        return taken

    def _refuse_for_load(self, options: StreamOptions, refusal: Unavailable) -> None:
        if not accepts_event_stream(self.request.headers.get("Accept", "")):
            raise refusal
        self.log_refusal(refusal)
        for name, value in STREAM_HEADERS:
            self.set_header(name, value)
        self.finish(self.services.hub.closing_block("busy", options))


class InternalStreamHandler(StreamHandler):
    """The same for operators, of any user."""

    role = "read"

    # No page from elsewhere may ask for it.
    options = RequestHandler._unimplemented_method  # how Tornado says that there is none
