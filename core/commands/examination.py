"""What a stream goes through on its way to a reader, looked at from the reader's end: one finding a question.

It opens streams as a browser does and holds one for as long as its heartbeats need. It changes nothing, unless it is
asked to emit; every wait has an end.
"""

import ssl
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Literal, get_args

import msgspec
from msgspec import Struct

from core.access import is_loopback_name
from core.commands.calls import OpenStream, Query, Target, Unreachable, open_stream, refusal, request
from core.commands.endings import CommandFailed, ExitCode
from core.commands.follow import EVENT_STREAM
from core.commands.tally import Closing, Contradiction, Heartbeat, Opening, Said, Tally
from core.models import ConnectionsReport
from core.sse import EventParser

Outcome = Literal["ok", "warning", "fault", "unknown"]

FIRST_EVENT_SECONDS = 5.0
"""For the first event of a stream, that the server writes at once."""

CALL_SECONDS = 10.0
MOST_HELD_SECONDS = 180.0
"""Longer heartbeats are not waited for."""

SLACK_SECONDS = 2.0
LATE_SECONDS = 1.0
"""An event that took so long was held back."""

SKEW_SECONDS = 2.0
LEFT_SECONDS = 5.0
LEFT_LOOKS_PER_SECOND = 5
RESERVED_DESCRIPTORS = 128
"""What a server keeps for everything that is no stream."""

AS_A_BROWSER = {"Accept": EVENT_STREAM, "Cache-Control": "no-cache", "Accept-Encoding": "gzip, deflate, br, zstd"}

UNBUFFERED = (
    "nginx: proxy_buffering off; proxy_http_version 1.1; gzip off; in the location of /stream, and no "
    "proxy_ignore_headers X-Accel-Buffering. Caddy: no encode for /stream. Others: no response buffering for "
    "text/event-stream"
)
PATIENT = (
    "nginx: proxy_read_timeout 90s; in the location of /stream. Caddy: no read_timeout below 90s in transport http"
)


Check = Literal[
    "reach",
    "clock",
    "http",
    "seclusion",
    "descriptors",
    "cors",
    "stream",
    "compression",
    "caching",
    "buffering",
    "event",
    "idle",
    "leaving",
]
FINDINGS = get_args(Check)
"""The questions, in about the order in which they are asked."""


class Finding(Struct, frozen=True):
    """The answer to one question. `fix`: what to change, when something is to be."""

    check: Check
    verdict: Outcome
    said: str
    fix: str = ""


class Plan(Struct, frozen=True):
    """What is looked at. `internal`: the same server's other listener, when it can be asked; `origin`: of the pages
    that read; `emits_to`: a strategy to emit one order for."""

    public: Target
    internal: Target | None
    user_id: int | None
    origin: str | None
    emits_to: int | None
    is_quick: bool

    @property
    def query(self) -> Query:
        """Of a stream."""
        user = [] if self.user_id is None else [("user_id", str(self.user_id))]
        strategy = "*" if self.emits_to is None else str(self.emits_to)
        return [*user, ("strategy_id", strategy), ("heartbeat", "event"), ("totals", "1"), ("shape", "envelope")]


class _Broken(Exception):
    """Nothing more can be looked at."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.said)
        self.finding = finding


def examine(plan: Plan) -> Iterator[Finding]:
    """Findings as they are made; the last one may take two heartbeats. What cannot be looked at behind a fault is left
    out."""
    try:
        yield from _reach(plan)
        yield _version(plan)
        yield _seclusion(plan)
        if plan.internal is None:
            yield Finding("descriptors", "unknown", "only the internal listener knows", "name it with --internal")
        else:
            yield _descriptors(plan.internal)
        if plan.origin is not None:
            yield _cors(plan, plan.origin)
        yield from _stream(plan)
    except _Broken as broken:
        yield broken.finding


def _reach(plan: Plan) -> Iterator[Finding]:
    begun = time.monotonic()
    try:
        answer = request(plan.public, "GET", "/healthz/ready", seconds=CALL_SECONDS)
    except Unreachable as error:
        raise _Broken(Finding("reach", "fault", error.message)) from error
    took_ms = (time.monotonic() - begun) * 1000
    match answer.status:
        case 200:
            yield Finding("reach", "ok", f"the server answers in {took_ms:.0f} ms, and takes streams")
        case 503:
            yield Finding("reach", "fault", "the server takes no streams now: it is stopping, or the proxy finds none")
        case 404:
            yield Finding(
                "reach", "warning", "/healthz/ready is not forwarded", "forward it, if a monitor outside asks"
            )
        case _:
            said = f"/healthz/ready is answered {answer.status}, not as Tallywire does"
            raise _Broken(Finding("reach", "fault", said, "is it the right address, and the right port?"))
    yield _clock(answer.headers.get("date"))


def _clock(date: str | None) -> Finding:
    try:
        there = parsedate_to_datetime(date or "")
    except ValueError:
        return Finding("clock", "unknown", "no answer says what time it is")
    seconds = (datetime.now(UTC) - there).total_seconds()
    # A Date is cut to whole seconds.
    return _skew(seconds - 0.5)


def _skew(seconds: float) -> Finding:
    if abs(seconds) <= SKEW_SECONDS:
        return Finding("clock", "ok", "the clocks agree")
    said = f"the clock there is {abs(seconds):.1f} s {'behind' if seconds > 0 else 'ahead of'} that of this machine"
    return Finding("clock", "warning", said, "keep both by NTP: tokens begin and end by the clock")


def _version(plan: Plan) -> Finding:
    target = plan.public
    if not target.is_tls:
        here = bool(target.path) or is_loopback_name(target.host)
        said = "HTTP/1.1 without TLS: a browser opens six connections per origin, all tabs together"
        if here:
            return Finding("http", "ok", f"{said}; enough on this machine")
        return Finding("http", "warning", said, "put a proxy with TLS and HTTP/2 in front: docs/deployment.md")
    try:
        with target.connect(CALL_SECONDS, ("h2", "http/1.1")) as sock:
            chosen = sock.selected_alpn_protocol() if isinstance(sock, ssl.SSLSocket) else None
            tls = sock.version() if isinstance(sock, ssl.SSLSocket) else None
    except OSError as error:
        return Finding("http", "unknown", f"TLS could not be looked at: {error}")
    if chosen == "h2":
        return Finding("http", "ok", f"HTTP/2 over {tls}")
    said = f"only HTTP/1.1 over {tls}: a browser opens six connections per origin, and the seventh stream waits"
    return Finding("http", "warning", said, "nginx: http2 on; or listen 443 ssl http2; Caddy: protocols h1 h2")


def _seclusion(plan: Plan) -> Finding:
    bare = msgspec.structs.replace(plan.public, secret=None)
    answer = request(bare, "GET", "/internal/connections", seconds=CALL_SECONDS)
    is_internal = (answer.status == 200 and b'"connections":' in answer.body) or (
        answer.status in (401, 403) and b"urn:tallywire:" in answer.body
    )
    if is_internal:
        said = "the internal listener is reached here: whoever comes this way can ask it"
        return Finding(
            "seclusion", "fault", said, "forward the public listener's port, and only the routes of docs/deployment.md"
        )
    return Finding("seclusion", "ok", "nothing internal is reached here")


def _descriptors(internal: Target) -> Finding:
    try:
        report = _report(internal, None)
    except CommandFailed as error:
        return Finding("descriptors", "unknown", error.message)
    limits = report.limits
    if limits.max_connections < limits.wanted:
        needed = limits.wanted + RESERVED_DESCRIPTORS
        room = f"the descriptor limit leaves room for {limits.max_connections:,} streams"
        said = f"{room}, and max_connections is {limits.wanted:,}"
        return Finding(
            "descriptors",
            "fault",
            said,
            f"systemd: LimitNOFILE={needed}; a shell: ulimit -n {needed}; a container: --ulimit nofile={needed}",
        )
    return Finding("descriptors", "ok", f"room for {limits.max_connections:,} streams, {report.connections:,} open")


def _report(internal: Target, user_id: int | None) -> ConnectionsReport:
    query = [] if user_id is None else [("user_id", str(user_id))]
    answer = request(internal, "GET", "/internal/connections", query, seconds=CALL_SECONDS)
    if answer.status != 200:
        raise refusal(internal, answer)
    try:
        return msgspec.json.decode(answer.body, type=ConnectionsReport)
    except msgspec.DecodeError as error:
        raise CommandFailed("what it answers is not this version's report of connections.", ExitCode.REFUSED) from error


def _cors(plan: Plan, origin: str) -> Finding:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "last-event-id",
    }
    answer = request(plan.public, "OPTIONS", "/stream", headers=headers, seconds=CALL_SECONDS)
    allowed = answer.headers.get("access-control-allow-origin")
    if answer.status >= 400 or allowed != origin:
        said = f"pages of {origin} may not read streams here"
        return Finding(
            "cors",
            "fault",
            said,
            f"--cors-origins {origin}, and no proxy that answers OPTIONS itself or drops Access-Control headers",
        )
    credentials = answer.headers.get("access-control-allow-credentials") == "true"
    return Finding(
        "cors", "ok", f"pages of {origin} may read streams, {'with' if credentials else 'without'} credentials"
    )


# ---- a stream


def _stream(plan: Plan) -> Iterator[Finding]:
    headers = dict(AS_A_BROWSER)
    if plan.origin is not None:
        headers["Origin"] = plan.origin
    begun = time.monotonic()
    try:
        with open_stream(plan.public, "/stream", plan.query, headers=headers, seconds=FIRST_EVENT_SECONDS) as stream:
            _check_answer(plan, stream)
            yield from _heads(plan, stream.headers)
            held = _Held(stream)
            opening = _first_event(held)
            yield Finding("buffering", "ok", f"the first event came within {(time.monotonic() - begun) * 1000:.0f} ms")
            if plan.emits_to is not None:
                yield _emitted(plan, plan.emits_to, held)
            yield from _heartbeats(plan, held, opening)
            counted = None if held.is_over else _count_streams(plan)
    except Unreachable as error:
        if isinstance(error.__cause__, TimeoutError):
            raise _Broken(_held_back("no byte of a stream")) from error
        raise _Broken(Finding("stream", "fault", f"a stream could not be opened: {error.reason}")) from error
    yield from _leaving(plan, counted)


def _check_answer(plan: Plan, stream: OpenStream) -> None:
    if stream.status != 200:
        error = refusal(plan.public, stream.rest())
        raise _Broken(Finding("stream", "fault", f"a stream is refused: {error.message}"))
    if not stream.headers.get("content-type", "").startswith(EVENT_STREAM):
        said = f"a stream is answered as {stream.headers.get('content-type', 'nothing')}"
        raise _Broken(
            Finding("stream", "fault", said, "something in front answers by itself: look at the routes of /stream")
        )


def _heads(plan: Plan, headers: Mapping[str, str]) -> Iterator[Finding]:
    encoding = headers.get("content-encoding", "identity")
    if encoding != "identity":
        said = f"streams are compressed ({encoding}): a compressor holds events back"
        raise _Broken(
            Finding("compression", "fault", said, "nginx: gzip off; in the location of /stream. Caddy: no encode there")
        )
    yield Finding("compression", "ok", "streams are not compressed")
    if "content-length" in headers:
        said = "the answer has a length, so it was kept until it had ended"
        raise _Broken(Finding("buffering", "fault", said, UNBUFFERED))
    yield _cache(plan, headers)


def _cache(plan: Plan, headers: Mapping[str, str]) -> Finding:
    fix = "nginx: proxy_cache off; Caddy and others: no cache for /stream"
    if "no-store" not in headers.get("cache-control", ""):
        said = f"Cache-Control says {headers.get('cache-control', 'nothing')!r} instead of no-store"
        return Finding("caching", "fault", said, f"{fix}, and leave the header as it is")
    try:
        with open_stream(
            plan.public, "/stream", plan.query, headers=AS_A_BROWSER, seconds=FIRST_EVENT_SECONDS
        ) as second:
            is_copy = second.headers.get("x-request-id") == headers.get("x-request-id", "")
    except Unreachable:
        return Finding("caching", "unknown", "a second stream could not be opened")
    if is_copy or "age" in headers:
        return Finding("caching", "fault", "a second reader is shown what was kept of the first", fix)
    return Finding("caching", "ok", "each stream is its own")


class _Held:
    """A stream that is being read and believed, and when its bytes came."""

    def __init__(self, stream: OpenStream) -> None:
        self._stream = stream
        self._parser = EventParser()
        self._tally = Tally()
        self.last_byte = time.monotonic()
        self.is_over = False
        """Ended or cut: nothing more comes."""

    def read(self, seconds: float) -> list[Said] | None:
        """What the events say that complete within this time; None when nothing came, or nothing can."""
        try:
            piece = self._stream.read(seconds)
        except TimeoutError:
            return None
        except (OSError, HTTPException):
            piece = b""
        if not piece:
            self.is_over = True
            return None
        self.last_byte = time.monotonic()
        try:
            return [self._tally.take(event) for event in self._parser.feed(piece)]
        except (Contradiction, msgspec.DecodeError) as error:
            said = f"what arrives is not what the server writes: {error}"
            raise _Broken(
                Finding("stream", "fault", said, "something in front changes or drops parts of it")
            ) from error


def _first_event(held: _Held) -> Opening:
    deadline = time.monotonic() + FIRST_EVENT_SECONDS
    while True:
        said_by_events = held.read(deadline - time.monotonic())
        if said_by_events is None and held.is_over:
            raise _Broken(Finding("stream", "fault", "a stream ends before its first event", "look at the proxy's log"))
        if said_by_events is None:
            raise _Broken(_held_back("the head of a stream came, and its first event did not"))
        for each in said_by_events:
            match each:
                case Opening() as opening:
                    return opening
                case Closing() as closing:
                    said = f"the server takes no stream now: {closing.reason}"
                    fix = "if it runs, look at GET /internal/connections, refused; else the proxy said so in its place"
                    raise _Broken(Finding("stream", "fault", said, fix))


def _held_back(what: str) -> Finding:
    said = f"{what} within {FIRST_EVENT_SECONDS:.0f} s, while other answers come at once: something holds it back"
    return Finding("buffering", "fault", said, UNBUFFERED)


def _emitted(plan: Plan, strategy_id: int, held: _Held) -> Finding:
    if plan.internal is None or plan.user_id is None:
        return Finding("event", "unknown", "nothing was emitted: the internal listener and the user are not known")
    result = {"success": True, "order_type": "LIMIT", "event_type": "order_created"}
    batch = {"user_id": plan.user_id, "strategy_id": strategy_id, "batch_results": [result]}
    begun = time.monotonic()
    answer = request(
        plan.internal,
        "POST",
        "/internal/emit",
        body=msgspec.json.encode(batch),
        headers={"Content-Type": "application/json"},
        seconds=CALL_SECONDS,
    )
    if answer.status != 200:
        return Finding("event", "unknown", refusal(plan.internal, answer).message)
    while (left := begun + FIRST_EVENT_SECONDS - time.monotonic()) > 0:
        events = held.read(left)
        if events is None:
            break
        if any(isinstance(each, tuple) for each in events):
            took = time.monotonic() - begun
            if took > LATE_SECONDS:
                return Finding("event", "fault", f"an event took {took:.1f} s: something holds it back", UNBUFFERED)
            return Finding("event", "ok", f"an event was here {took * 1000:.0f} ms after its emit began")
    raise _Broken(_held_back("an event did not come"))


def _heartbeats(plan: Plan, held: _Held, opening: Opening) -> Iterator[Finding]:
    beat = opening.heartbeat_seconds
    if plan.is_quick:
        yield Finding("idle", "unknown", f"heartbeats ({beat:g} s) were not waited for", "leave --quick out")
        return
    if 2 * beat > MOST_HELD_SECONDS:
        yield Finding(
            "idle",
            "warning",
            f"heartbeats come every {beat:g} s: too long to wait for, and longer than most idle time-outs",
            "--heartbeat-seconds 15",
        )
        return
    beats: list[float] = []
    skews: list[float] = []
    deadline = time.monotonic() + 2 * beat + max(SLACK_SECONDS, beat / 4)
    while len(beats) < 2 and (left := deadline - time.monotonic()) > 0:
        events = held.read(left)
        if events is None and held.is_over:
            yield _cut(time.monotonic() - held.last_byte, beat)
            return
        for each in events or ():
            match each:
                case Heartbeat() as heartbeat:
                    beats.append(time.monotonic())
                    skews.append((datetime.now(UTC) - datetime.fromisoformat(heartbeat.timestamp)).total_seconds())
                case Closing() as closing:
                    yield Finding("idle", "unknown", f"the server has closed the stream meanwhile: {closing.reason}")
                    return
    yield _regular(beats, beat)
    if skews and abs(min(skews, key=abs)) > SKEW_SECONDS:
        yield _skew(min(skews, key=abs))


def _cut(silence: float, beat: float) -> Finding:
    said = f"a stream was cut after {silence:.1f} s without a byte; heartbeats come every {beat:g} s"
    fix = f"{PATIENT}. Or --heartbeat-seconds {max(1, int(silence / 2))}"
    return Finding("idle", "fault", said, fix)


def _regular(beats: list[float], beat: float) -> Finding:
    if len(beats) < 2:
        came = "one came" if beats else "none came"
        said = f"heartbeats are stated every {beat:g} s, and {came} in twice the time: something holds them back"
        return Finding("buffering", "fault", said, UNBUFFERED)
    apart = beats[1] - beats[0]
    if apart < beat / 2:
        said = f"two heartbeats, {beat:g} s apart, came within {apart:.1f} s: something holds them back"
        return Finding("buffering", "fault", said, UNBUFFERED)
    return Finding("idle", "ok", f"a stream is left alone for {apart:.1f} s, from one heartbeat to the next")


def _count_streams(plan: Plan) -> int | None:
    if plan.internal is None or plan.user_id is None:
        return None
    try:
        return _report(plan.internal, plan.user_id).connections
    except CommandFailed:
        return None


def _leaving(plan: Plan, counted: int | None) -> Iterator[Finding]:
    """When a reader leaves, is the server told?"""
    if plan.internal is None or plan.user_id is None or counted is None:
        return
    if counted == 0:
        yield Finding("leaving", "warning", "the internal listener did not count the stream: is it of another server?")
        return
    deadline = time.monotonic() + LEFT_SECONDS
    while time.monotonic() < deadline:
        if _report(plan.internal, plan.user_id).connections < counted:
            yield Finding("leaving", "ok", "when a reader leaves, the server knows at once")
            return
        time.sleep(1 / LEFT_LOOKS_PER_SECOND)
    said = f"{LEFT_SECONDS:.0f} s after a reader had left its stream still counted"
    yield Finding("leaving", "warning", said, "nginx: no proxy_ignore_client_abort on; Caddy: no flush_interval -1")
