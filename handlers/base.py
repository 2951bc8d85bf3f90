"""What every route shares: the services, the request id, problem+json for whatever goes wrong, CORS."""

import logging
import random
import re
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from types import TracebackType
from typing import TypeVar

from msgspec import Struct
from msgspec.json import Encoder
from tornado.web import HTTPError, RequestHandler, stream_request_body

from core.access import LOCAL, Role
from core.addresses import Networks
from core.errors import (
    BodyTooLarge,
    InternalError,
    InvalidQuery,
    MalformedBody,
    MethodNotAllowed,
    RouteNotFound,
    TallywireError,
    Unauthorized,
    shown,
)
from core.hub import Hub
from core.models import MAX_ID, problem_of
from core.principal import Principal
from core.settings import Settings
from handlers.credentials import Authority, Credentials
from handlers.guard import Guard, Verdict
from handlers.readiness import Readiness

MAX_UNWANTED_BYTES = 64 * 2**10
"""How much of an unwanted body is read and thrown away. A sender whose connection is cut in the middle of its body
often never sees the answer that says why; beyond this it is cut all the same."""

PREFLIGHT_SECONDS = 600

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_MAX_LENGTH_DIGITS = 18
_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_LOOPBACK_ORIGIN = re.compile(r"http://(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?")

_T = TypeVar("_T")

_encode = Encoder().encode
_log = logging.getLogger("tallywire.http")

Headers = tuple[tuple[str, str], ...]

SERVER_HEADER: Headers = (("Server", "tallywire"),)

DEFAULT_HEADERS: Headers = (
    *SERVER_HEADER,
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
)

ExceptionInfo = tuple[type[BaseException], BaseException, TracebackType | None]


class Services(Struct, frozen=True):
    """What the handlers of one listener work with."""

    hub: Hub
    settings: Settings
    readiness: Readiness
    authority: Authority
    """Says who reads streams."""
    origins: frozenset[str] = frozenset()
    """Pages from there may read, with their cookies."""
    allows_loopback_origins: bool = False
    """Any page from http://localhost and http://127.0.0.1 may read: for development servers on other ports."""
    public_url: str | None = None
    """Of the internal listener: where pages from here may call the public one; None: nowhere."""
    guard: Guard | None = None
    """Who may ask; None: everybody."""
    proxies: Networks = ()
    """Whose X-Forwarded-For is believed."""

    def judge(self, role: Role | None, host: str | None, origin: str | None, authorization: str | None) -> Verdict:
        """Who asks, or why they may not: see `Guard.judge`."""
        return LOCAL if self.guard is None else self.guard.judge(role, host, origin, authorization)

    @property
    def allows_origins(self) -> bool:
        """Pages from elsewhere may read at all."""
        return self.allows_loopback_origins or bool(self.origins)

    def cors_headers(self, origin: str) -> Headers:
        """The CORS headers of an answer to a page of `origin`, none where no other origin may read it."""
        if not self.allows_origins:
            return ()
        with_cookies = origin in self.origins
        if not with_cookies and not (self.allows_loopback_origins and _LOOPBACK_ORIGIN.fullmatch(origin)):
            return (("Vary", "Origin"),)
        return (
            ("Access-Control-Allow-Origin", origin),
            *((("Access-Control-Allow-Credentials", "true"),) if with_cookies else ()),
            ("Access-Control-Expose-Headers", "Retry-After, X-Request-Id"),
            ("Vary", "Origin"),
        )


@stream_request_body
class BaseHandler(RequestHandler):
    """One request. Bodies are thrown away unless a subclass keeps them in `data_received`."""

    services: Services
    request_id: str
    max_unread_bytes = MAX_UNWANTED_BYTES
    role: Role | None = "admin"
    """What a key of the internal listener must allow for this route; None: no key is asked for. Whoever forgets to say
    it has made a route for administrators."""

    def initialize(self, services: Services) -> None:
        self.services = services
        self.request_id = request_id(self.request.headers.get("X-Request-Id", ""))
        self.set_header("X-Request-Id", self.request_id)

    def set_default_headers(self) -> None:
        for name, value in DEFAULT_HEADERS:
            self.set_header(name, value)

    def prepare(self) -> None:
        """Decide who may ask, and how much body is read at all. Raises the refusal, and BodyTooLarge."""
        verdict = self.verdict()
        if isinstance(verdict, TallywireError):
            self.limit_body(MAX_UNWANTED_BYTES, verdict)
            self.turn_away(verdict)
        else:
            self.limit_body(self.max_unread_bytes, BodyTooLarge(self.max_unread_bytes))
            self.admit(verdict)
        self.set_cors_headers()

    def verdict(self) -> Verdict:
        """Who asks, or why they may not."""
        headers = self.request.headers
        return self.services.judge(self.role, headers.get("Host"), headers.get("Origin"), headers.get("Authorization"))

    def admit(self, caller: str) -> None:
        """This caller may ask; most routes do not care who it is."""

    def turn_away(self, refusal: TallywireError) -> None:
        """Whoever asks may not: answer so behind the body, since Tornado ends the connection of an answer ahead of it.

        Raises the refusal at once where the client waits before its body, or does not say how much of it will come.
        """
        headers = self.request.headers
        if "Expect" in headers or "Transfer-Encoding" in headers:
            raise refusal

        def refuse(*_path: str) -> None:
            raise refusal

        setattr(self, str(self.request.method).lower(), refuse)

    def limit_body(self, limit_bytes: int, otherwise: TallywireError) -> None:
        """Read no more of the body than this. Raises `otherwise` when more is announced."""
        self.request.connection.set_max_body_size(limit_bytes)  # type: ignore[union-attr]  # HTTP1Connection
        if self.declared_bytes() > limit_bytes:
            raise otherwise

    def declared_bytes(self) -> int:
        """The Content-Length, 0 without one. Tornado refuses what is no number when it comes to read the body."""
        length = self.request.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            return 0
        return int(length) if len(length) <= _MAX_LENGTH_DIGITS else sys.maxsize

    def set_cors_headers(self) -> None:
        """Let pages of allowed origins read the answer."""
        for name, value in self.cors_headers():
            self.set_header(name, value)

    def cors_headers(self) -> Headers:
        """The CORS headers of an answer to this request."""
        return self.services.cors_headers(self.request.headers.get("Origin", ""))

    def preflight(self, methods: str, headers: str) -> None:
        """Answer OPTIONS, and with it a CORS pre-flight: what a page from elsewhere may send here."""
        self.set_status(204)
        self.set_header("Allow", ", ".join(self.allowed_methods()))
        if self.services.allows_origins:
            self.set_header("Access-Control-Allow-Methods", methods)
            self.set_header("Access-Control-Allow-Headers", headers)
            self.set_header("Access-Control-Max-Age", str(PREFLIGHT_SECONDS))

    def ticket(self) -> str:
        """The ticket of this request, empty where none counts."""
        return ""

    def credentials(self) -> Credentials:
        """What this request has to show."""
        return Credentials(self._header, lambda: self.request.remote_ip or "", self.ticket())

    def _header(self, name: str) -> str | None:
        if name.lower() == "cookie":
            return "; ".join(self.request.headers.get_list(name)) or None
        return self.request.headers.get(name)

    async def reader(self) -> Principal | None:
        """Whose request this is; see `Authority.principal_of`."""
        return await self.asked(self.services.authority.principal_of)

    async def asked(self, ask: Callable[[Credentials, float], _T]) -> _T:
        """What an authority answers, after a look for the key when it does not know it. Raises what `ask` raises."""
        credentials = self.credentials()
        try:
            return ask(credentials, self.services.hub.now_ms() / 1000)
        except Unauthorized as refusal:
            if refusal.knows_key or not await self.services.authority.look_again():
                raise
            return ask(credentials, self.services.hub.now_ms() / 1000)

    def data_received(self, chunk: bytes) -> None:
        """Throw it away."""

    def optional_argument(self, name: str) -> str | None:
        """A query parameter, None without it. Raises InvalidQuery when it stands more than once."""
        values = self.get_query_arguments(name)
        if len(values) > 1:
            raise InvalidQuery(name, "may stand only once")
        return values[0] if values else None

    def optional_identifier(self, name: str) -> int | None:
        """The id that a query parameter names, None without it. Raises InvalidQuery."""
        value = self.optional_argument(name)
        return None if value is None else identifier(name, value)

    def required_identifier(self, name: str) -> int:
        """The id that a query parameter names. Raises InvalidQuery, also without it."""
        value = self.optional_identifier(name)
        if value is None:
            raise InvalidQuery(name, "is required")
        return value

    def moment(self, name: str) -> int | None:
        """The time that a query parameter names, Unix ms, None without it. Raises InvalidQuery."""
        value = self.optional_argument(name)
        if value is None:
            return None
        try:
            moment = datetime.fromisoformat(value.replace(" ", "+"))
            return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH) // timedelta(milliseconds=1)
        except (ValueError, OverflowError) as error:
            raise InvalidQuery(name, "must be a time as ISO 8601 writes it, for example 2026-01-31T14:00Z") from error

    def write_json(self, answer: object, content_type: str = "application/json") -> None:
        """Finish with `answer` as JSON."""
        self.set_header("Content-Type", content_type)
        self.finish(_encode(answer))

    def write_error(self, status_code: int, **kwargs: object) -> None:
        """Every refusal and every fault as RFC 9457 problem+json."""
        error = self._error_of(status_code, kwargs.get("exc_info"))
        self.log_refusal(error)
        self.set_status(error.status, HTTPStatus(error.status).phrase)
        self.set_cors_headers()
        self.set_header("X-Request-Id", self.request_id)
        for name, value in problem_headers(error):
            self.set_header(name, value)
        self.finish(problem_body(error, self.request_id))

    def log_exception(
        self,
        typ: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """A refusal is the caller's business; a fault is ours, with its traceback."""
        if isinstance(value, TallywireError | HTTPError):
            return
        _log.error(
            "Uncaught exception",
            exc_info=(typ, value, tb) if typ and value else None,
            extra={
                "request_id": self.request_id,
                "method": shown(str(self.request.method)),
                "path": shown(self.request.path),
            },
        )

    def log_refusal(self, error: TallywireError) -> None:
        """See `log_refusal`."""
        self.services.hub.counters.answers_refused[error.code] += 1
        log_refusal(error, self.request_id, str(self.request.method), self.request.path)

    def allowed_methods(self) -> tuple[str, ...]:
        """The methods that this route takes."""
        return tuple(
            method
            for method in _METHODS
            if getattr(type(self), method.lower()) is not RequestHandler._unimplemented_method
        )

    def _error_of(self, status_code: int, exc_info: object) -> TallywireError:
        error = exc_info[1] if isinstance(exc_info, tuple) else None
        if isinstance(error, TallywireError):
            return error
        if status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            return MethodNotAllowed(str(self.request.method), self.request.path, self.allowed_methods())
        if status_code == HTTPStatus.BAD_REQUEST:
            return MalformedBody("The request cannot be read.")
        return InternalError()


class NotFoundHandler(BaseHandler):
    """Whatever no route matches, with any method."""

    role = None

    def _answer(self) -> None:
        raise RouteNotFound(self.request.path)

    get = head = post = put = patch = delete = options = _answer


def log_request(handler: RequestHandler) -> None:
    """The access log: at DEBUG, since emits and streams have lines of their own that say more."""
    if _log.isEnabledFor(logging.DEBUG):
        _log.debug(
            "Request",
            extra={
                "method": shown(str(handler.request.method)),
                "path": shown(handler.request.path),
                "status": handler.get_status(),
                "seconds": round(handler.request.request_time(), 6),
            },
        )


def http_date() -> str:
    """Now, as the Date header says it."""
    return _http_date(int(time.time()))


@lru_cache(1)
def _http_date(unix_seconds: int) -> str:
    return formatdate(unix_seconds, usegmt=True)


def answer_bytes(
    status: int, headers: Headers, request_id: str, body: bytes, defaults: Headers = DEFAULT_HEADERS
) -> bytes:
    """A whole answer as it goes on the wire, with the headers that every answer has and these."""
    own = "".join([f"{name}: {value}\r\n" for name, value in headers])
    usual = _usual_headers(status, int(time.time()), defaults)
    head = f"{usual}{own}X-Request-Id: {request_id}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode("latin-1") + body


@lru_cache(16)
def _usual_headers(status: int, unix_seconds: int, defaults: Headers) -> str:
    headers = (("Date", _http_date(unix_seconds)), *defaults)
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n" + "".join(f"{n}: {v}\r\n" for n, v in headers)


def request_id(given: str) -> str:
    """The caller's own id of the request, or a new one where that is none. Ids are to be told apart, not secret."""
    return given if given and _REQUEST_ID.fullmatch(given) else f"{random.getrandbits(64):016x}"


def problem_headers(error: TallywireError) -> Headers:
    """What goes with the problem+json of a refusal or a fault."""
    headers = [("Content-Type", "application/problem+json")]
    if isinstance(error, MethodNotAllowed):
        headers.append(("Allow", ", ".join(error.allowed)))
    if isinstance(error, Unauthorized):
        headers.append(("WWW-Authenticate", 'Bearer realm="tallywire"'))
    if error.retry_after_seconds is not None:
        headers.append(("Retry-After", str(error.retry_after_seconds)))
    return tuple(headers)


def problem_body(error: TallywireError, request_id: str) -> bytes:
    """A refusal or a fault as RFC 9457 tells it."""
    return _encode(problem_of(error, request_id))


def log_refusal(error: TallywireError, request_id: str, method: str, path: str) -> None:
    """The line that the request id of a refusal leads to."""
    _log.info(
        "Request refused",
        extra={
            "request_id": request_id,
            "method": shown(method),
            "path": shown(path),
            "status": error.status,
            "code": error.code,
            "detail": shown(error.detail),
        },
    )


def identifier(name: str, value: str) -> int:
    """The id that a query parameter or a path names. Raises InvalidQuery."""
    if not (value.isascii() and value.isdigit() and len(value) <= 16 and 1 <= int(value) <= MAX_ID):
        raise InvalidQuery(name, f"must be an integer from 1 to {MAX_ID}, not {value[:40]!r}")
    return int(value)


def message_and_path(error: Exception) -> tuple[str, str]:
    """What a decoder complains about, and where."""
    if isinstance(error, RecursionError):
        return "nested too deeply", "$"
    message, _, path = str(error).partition(" - at `")
    return message, path.removesuffix("`") or "$"
