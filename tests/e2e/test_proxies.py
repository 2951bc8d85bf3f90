"""Behind nginx and Caddy, as we ship them, with TLS and HTTP/2: at once, to nobody else, and over every restart."""

import json
import os
import socket
import ssl
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from signal import SIGKILL, SIGTERM
from threading import Thread
from typing import Any

import msgspec
import pytest
from playwright.sync_api import Browser, Page
from tornado.routing import PathMatches

from core.models import StreamClosing
from core.settings import Settings
from core.sse import EventParser, ServerSentEvent
from handlers import routes
from handlers.base import Services
from handlers.credentials import Anybody
from tests.e2e.programs import installed
from tests.e2e.shipped import FRONTS, Certificate, Front, bare_nginx, self_signed
from tests.e2e.tally import KNOWN_EVENTS, Tally
from tests.e2e.test_clients import Orders, browser
from tests.process import ServerProcess, free_port, running_server, wait_until
from tests.tokens import SECRET, claims, token

READ_SECONDS = 20
"""How long a request may take, on a machine that is busy with other things; a held event fails by it."""

QUIET = "--heartbeat-seconds=3600"
"""No byte of the server comes behind an event, to push it through a buffer."""

ELSEWHERE = "https://app.example.com"
BUSY_STATUSES = (502, 503, 504)
SHORTEST_RETRY_MS, LONGEST_RETRY_MS = 1000, 3000
"""Half to one and a half of the `retry_ms` that the server has by default."""


class Site(msgspec.Struct, frozen=True):
    """A proxy that runs, and the way to run a server behind it, again and again with one journal."""

    front: Front
    certificate: Certificate
    internal_port: int
    arguments: tuple[str, ...]

    @property
    def base(self) -> str:
        """What URLs begin with."""
        return self.front.base

    @contextmanager
    def server(self, *arguments: str) -> Iterator[ServerProcess]:
        """One server."""
        with running_server(
            *self.arguments, *arguments, public_port=self.front.server_port, internal_port=self.internal_port
        ) as server:
            yield server


def bearer(user_id: int) -> str:
    """A sound token of a user for every strategy."""
    return token(claims(time.time(), sub=str(user_id), strategies="*"))


# ---- fixtures


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return self_signed(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as started:
        yield started


@pytest.fixture(scope="module", params=FRONTS)
def front(
    request: pytest.FixtureRequest, certificate: Certificate, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Front]:
    """What is shipped."""
    with FRONTS[request.param](tmp_path_factory.mktemp("front"), certificate) as started:
        yield started


@pytest.fixture(scope="module", params=[*FRONTS, "bare nginx"])
def any_front(
    request: pytest.FixtureRequest, certificate: Certificate, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Front]:
    """The same, and an nginx that caches, buffers and compresses whatever it is not told to leave alone."""
    with FRONTS.get(request.param, bare_nginx)(tmp_path_factory.mktemp("front"), certificate) as started:
        yield started


@pytest.fixture
def site(front: Front, certificate: Certificate, tmp_path: Path) -> Site:
    return site_of(front, certificate, tmp_path)


@pytest.fixture
def any_site(any_front: Front, certificate: Certificate, tmp_path: Path) -> Site:
    return site_of(any_front, certificate, tmp_path)


def site_of(front: Front, certificate: Certificate, scratch: Path) -> Site:
    """A site with a secret and a journal of its own."""
    secret = scratch / "secret"
    secret.write_bytes(SECRET)
    arguments = ("--auth=jwt", f"--jwt-keys=HS256={secret}", f"--journal={scratch / 'tallywire.db'}")
    return Site(front, certificate, free_port(), arguments)


# ---- at once


def test_an_event_arrives_while_nothing_is_sent_behind_it(any_site: Site) -> None:
    with any_site.server(QUIET) as server, Http2Stream(any_site, "strategy_id=3", bearer(7)) as stream:
        assert stream.next().event == "stream_open"
        for _ in range(5):
            answer = emit_one(server, 7, 3)

            assert stream.next().last_event_id == answer["position"]
        assert stream.head.startswith("HTTP/2 200")


def test_a_stream_is_passed_on_as_it_is(site: Site) -> None:
    with site.server(QUIET), Http2Stream(site, "strategy_id=3", bearer(7)) as stream:
        assert stream.next().event == "stream_open"

        assert header(stream.head, "Content-Type") == ["text/event-stream; charset=utf-8"]
        assert header(stream.head, "Cache-Control") == ["no-store, no-transform"]
        assert header(stream.head, "Content-Encoding") == []


def test_a_client_that_leaves_is_gone_at_the_server_too(site: Site) -> None:
    with site.server(QUIET) as server:
        with Http2Stream(site, "strategy_id=3", bearer(7)) as stream:
            stream.next()
            server.wait_for_connections(1)

        server.wait_for_connections(0)


# ---- to nobody else


def test_two_users_get_their_own_bytes_only(any_site: Site) -> None:
    with any_site.server(QUIET) as server:
        # So that the first event, too, has counts of the user in it: they begin with a reset.
        seven = session(any_site, 7), "Last-Event-ID: malformed"
        eight = f"Authorization: Bearer {bearer(8)}", "Last-Event-ID: malformed"
        emit_to_both(server)
        with (
            Http2Stream(any_site, "strategy_id=3", headers=seven) as of_seven,
            Http2Stream(any_site, "strategy_id=3", headers=eight) as beside,
        ):
            assert of_seven.next().event == beside.next().event == "stream_reset"
            emit_to_both(server)
            assert of_seven.next().event == beside.next().event == "order_batch_update"
            assert [users_in(ask(any_site, path, headers=seven)) for path in LOOKUPS] == [{7}, {7}]
            # What a cache could keep of the first user is complete now: the next stream has the same URL.
            server.post("/internal/revoke", {"user_id": 7})
            of_seven.read_to_the_end()
            with Http2Stream(any_site, "strategy_id=3", headers=eight) as behind:
                assert behind.next().event == "stream_reset"
                emit_to_both(server)
                assert beside.next().event == behind.next().event == "order_batch_update"
                assert users_in(of_seven.body) == {7}
                assert users_in(beside.body) == users_in(behind.body) == {8}
        assert [users_in(ask(any_site, path, headers=eight)) for path in LOOKUPS] == [{8}, {8}]
        nobody = [ask(any_site, path) for path in ("/stream?strategy_id=3", *LOOKUPS)]
        assert all(answer.startswith("HTTP/2 401") for answer in nobody)


LOOKUPS = ("/totals?strategy_id=3", "/statistics/hourly?strategy_id=3")


def emit_to_both(server: ServerProcess) -> None:
    """A batch for each of two users, with an order type that nobody else has."""
    for user_id in (7, 8):
        emit_one(server, user_id, 3, order_type=f"OF_USER_{user_id}")


def users_in(text: str) -> set[int]:
    """The users whose counts are in there."""
    return {user_id for user_id in (7, 8) if f"OF_USER_{user_id}" in text}


# ---- in a browser


def test_seven_streams_are_open_in_one_browser(site: Site, chromium: Browser) -> None:
    queries = [f"strategy_id={strategy_id}" for strategy_id in range(1, 8)]
    with site.server(QUIET) as server, page_at(chromium, f"{site.base}/healthz/live") as page:
        page.evaluate(listening_to(site, queries))
        wait_until(lambda: all(streams(page)), "seven streams are open")
        positions = [emit_one(server, 7, strategy_id)["position"] for strategy_id in range(1, 8)]
        wait_until(lambda: all(len(events) > 1 for events in streams(page)), "an event on each")

        assert [events[1][2] for events in streams(page)] == positions
        assert page.evaluate("performance.getEntriesByType('navigation')[0].nextHopProtocol") == "h2"


def test_a_native_eventsource_survives_restarts_and_counts_exactly(site: Site, chromium: Browser) -> None:
    # From a page of another origin: what the proxy says by itself must be for its eyes, too.
    page_port = free_port()
    server_of = partial(site.server, "--retry-ms=100", f"--cors-origins=https://localhost:{page_port}")
    with ExitStack() as stack:
        stack.enter_context(page_server(page_port, site.certificate))
        server = stack.enter_context(server_of())
        page = stack.enter_context(page_at(chromium, f"https://localhost:{page_port}/"))
        orders = Orders(server, user_id=7)
        page.evaluate(listening_to(site, ["strategy_id=3"]))
        wait_until(lambda: any(streams(page)), "the stream is open")
        for number in (SIGTERM, SIGKILL):
            emit_and_catch_up(orders, page)
            told = times_told_busy(page)
            server.stop(number)
            wait_until(lambda told=told: times_told_busy(page) > told, "the proxy told it to come back")
            orders.server = server = stack.enter_context(server_of())
            orders.emit(3)
        emit_and_catch_up(orders, page)

        (events,), states = streams(page), page.evaluate("window.states")
    tally = Tally()
    for event in events:
        tally.add(*event)
    assert tally.counts == orders.counts
    assert tally.opened == 3
    assert set(states) == {0}, "it was never CLOSED"
    assert reasons(events).count("draining") == 1


def emit_and_catch_up(orders: Orders, page: Page) -> None:
    """Some batches, counted by the page."""
    orders.emit(3)
    wait_until(lambda: streams(page)[0][-1][2] == orders.position, f"the page at {orders.position}")


def times_told_busy(page: Page) -> int:
    """How often the page has been told so, here by the proxy."""
    return reasons(streams(page)[0]).count("busy")


def reasons(events: list[list[str]]) -> list[str]:
    """Why a stream was closed, each time."""
    return [json.loads(data)["data"]["reason"] for event, data, _ in events if event == "stream_closing"]


def streams(page: Page) -> list[list[list[str]]]:
    """What each stream of the page has heard: type, data and id of its events."""
    heard: list[list[list[str]]] = page.evaluate("window.streams")
    return heard


def listening_to(site: Site, queries: list[str]) -> str:
    """A script that starts a session of user 7 and opens native EventSources with it."""
    return (
        """async () => {
            window.streams = QUERIES.map(() => []);
            window.states = [];
            const started = await fetch(`${BASE}/stream/session`,
                {method: 'POST', credentials: 'include', headers: {Authorization: 'Bearer TOKEN'}});
            if (!started.ok) throw new Error(`the session: ${started.status}`);
            QUERIES.forEach((query, index) => {
                const source = new EventSource(`${BASE}/stream?${query}`, {withCredentials: true});
                source.addEventListener('error', () => window.states.push(source.readyState));
                for (const name of KNOWN_EVENTS)
                    source.addEventListener(name, e => window.streams[index].push([e.type, e.data, e.lastEventId]));
            });
        }""".replace("QUERIES", json.dumps(queries))
        .replace("${BASE}", site.base)
        .replace("TOKEN", bearer(7))
        .replace("KNOWN_EVENTS", json.dumps(sorted(KNOWN_EVENTS)))
    )


@contextmanager
def page_at(chromium: Browser, url: str) -> Iterator[Page]:
    """A page in a browser session of its own, which minds no certificate."""
    context = chromium.new_context(ignore_https_errors=True)
    try:
        page = context.new_page()
        page.goto(url)
        yield page
    finally:
        context.close()


# ---- over every restart: what the proxy says while there is no server


@pytest.mark.parametrize("status", [None, *BUSY_STATUSES])
def test_an_outage_is_an_event_on_streams_and_a_status_elsewhere(site: Site, status: int | None) -> None:
    with ExitStack() as stack:
        if status is not None:  # else nobody listens there
            stack.enter_context(stand_in(site.front.server_port, status))

        check_busy(ask(site, "/stream?strategy_id=3", headers=(f"Origin: {ELSEWHERE}",)))
        looked_up = ask(site, "/totals?strategy_id=3")
        assert looked_up.startswith(f"HTTP/2 {status or 502}")
        if status is not None:
            assert header(looked_up, "Content-Type") == ["application/problem+json"]
            assert looked_up.endswith("{}"), "a problem is passed on as it is"


@pytest.mark.parametrize("name", FRONTS)
def test_a_server_that_accepts_and_says_nothing_is_an_outage(
    name: str, certificate: Certificate, tmp_path: Path
) -> None:
    with (
        FRONTS[name](tmp_path, certificate, {"90s": "1s"}) as front,
        socket.create_server(("127.0.0.1", front.server_port)),
    ):
        site = site_of(front, certificate, tmp_path)

        check_busy(ask(site, "/stream?strategy_id=3", headers=(f"Origin: {ELSEWHERE}",)))


def check_busy(answer: str) -> None:
    """A native EventSource reads it, in a page of ELSEWHERE too, and comes back."""
    head, _, body = answer.partition("\r\n\r\n")
    assert head.startswith("HTTP/2 200")
    assert header(head, "Content-Type") == ["text/event-stream; charset=utf-8"]
    assert header(head, "Cache-Control") == ["no-store, no-transform"]
    assert header(head, "Content-Encoding") == []
    assert header(head, "Access-Control-Allow-Origin") == [ELSEWHERE]
    assert header(head, "Access-Control-Allow-Credentials") == ["true"]
    (event,) = EventParser().feed(body.encode())
    told = json.loads(event.data)
    assert event.event == told["type"] == StreamClosing.event
    assert event.last_event_id == "", "the position stays as it is"
    busy = StreamClosing("busy", reconnect=True)
    assert msgspec.convert(told["data"], StreamClosing) == busy, "shape=envelope"
    assert msgspec.convert(told, StreamClosing) == busy, "shape=flat"


def test_browsers_are_told_to_come_back_at_different_times(site: Site) -> None:
    paths = ["/stream?strategy_id=3"] * 40
    retries = {int(line.partition(":")[2]) for line in ask(site, *paths).splitlines() if line.startswith("retry:")}

    assert len(retries) > 5
    assert SHORTEST_RETRY_MS <= min(retries) <= max(retries) <= LONGEST_RETRY_MS


@pytest.mark.parametrize("status", [401, 403, 404, 422])
def test_a_refusal_for_right_stays_one(site: Site, status: int) -> None:
    with stand_in(site.front.server_port, status):
        assert ask(site, "/stream?strategy_id=3").startswith(f"HTTP/2 {status}")


# ---- what passes


def test_the_routes_of_readers_are_forwarded_and_nothing_else(site: Site) -> None:
    services = Services(None, Settings(), None, Anybody())  # type: ignore[arg-type]  # no request is served
    public, internal = (
        [
            rule.matcher.regex.pattern.removesuffix("$").replace("([^/]+)", "7").replace(r"\.", ".")
            for rule in application.wildcard_router.rules
            if isinstance(rule.matcher, PathMatches)
        ]
        for application in (routes.public(services), routes.internal(services))
    )
    kept = sorted({*internal, "/", "/metrics", "/stream/", "/streams", "/totals/../internal/emit"} - {*public})
    with stand_in(site.front.server_port, 200) as passed:
        ask(site, *public, *kept)

    assert [path for path, _ in passed] == public


def test_what_a_client_says_about_itself_does_not_count(site: Site) -> None:
    forged = ["X-Forwarded-For: 203.0.113.9", "X-Tallywire-User: 8", "X-Tallywire-Strategies: *"]
    with stand_in(site.front.server_port, 200) as passed:
        ask(site, "/stream?strategy_id=3", "/totals?strategy_id=3", headers=forged)

    for _, headers in passed:
        assert headers["x-forwarded-for"] == "127.0.0.1"
        assert "x-tallywire-user" not in headers
        assert "x-tallywire-strategies" not in headers
    assert len(passed) == 2


Passed = list[tuple[str, dict[str, str]]]
"""The requests that a proxy let through: the path and the headers."""


@contextmanager
def stand_in(port: int, status: int) -> Iterator[Passed]:
    """Listens where the server does, and answers everything with this status."""
    passed: Passed = []

    class Handler(SilentHandler):
        def do_GET(self) -> None:
            passed.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
            self.answer(status, "application/problem+json", b"{}")

    with serving(port, Handler):
        yield passed


# ---- servers and clients


class SilentHandler(BaseHTTPRequestHandler):
    """Answers whole and logs nothing."""

    def answer(self, status: int, content_type: str, body: bytes) -> None:
        """One answer."""
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Silence."""


@contextmanager
def page_server(port: int, certificate: Certificate) -> Iterator[None]:
    """An application of somebody, on another port: an empty page, with TLS."""

    class Handler(SilentHandler):
        def do_GET(self) -> None:
            self.answer(200, "text/html; charset=utf-8", b"<!doctype html><title>A page</title>")

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.key)
    with serving(port, Handler, context):
        yield


@contextmanager
def serving(port: int, handler: type[SilentHandler], tls: ssl.SSLContext | None = None) -> Iterator[None]:
    """A server in a thread."""
    with ThreadingHTTPServer(("127.0.0.1", port), handler) as web:
        if tls is not None:
            # The handshake is for the thread of the request: a browser may open a connection and say nothing.
            web.socket = tls.wrap_socket(web.socket, server_side=True, do_handshake_on_connect=False)
        thread = Thread(target=web.serve_forever)
        thread.start()
        try:
            yield
        finally:
            web.shutdown()
            thread.join()


def emit_one(server: ServerProcess, user_id: int, strategy_id: int, order_type: str = "LIMIT") -> Any:
    """Emit one order; answers the answer."""
    order = {"order_type": order_type, "event_type": "order_created", "success": True}
    return server.emit(user_id, strategy_id, order)


def curl(*arguments: str, headers: Iterable[str] = ()) -> list[str]:
    """The command: HTTP/2, as much compression as can be had, heads printed before bodies."""
    options = ["--http2", "--insecure", "--compressed", "--silent", "--show-error", "--include", "--path-as-is"]
    given = [part for header in headers for part in ("--header", header)]
    return [installed("curl"), *options, "--max-time", str(READ_SECONDS), "--no-buffer", *given, *arguments]


def ask(site: Site, *paths: str, headers: Iterable[str] = ()) -> str:
    """The answers to GET requests, heads and bodies."""
    command = curl(*(site.base + path for path in paths), headers=headers)
    return subprocess.run(command, check=True, capture_output=True).stdout.decode()


def session(site: Site, user_id: int) -> str:
    """The header with the cookie of a session that was started through the proxy."""
    command = curl(
        "--request", "POST", f"{site.base}/stream/session", headers=[f"Authorization: Bearer {bearer(user_id)}"]
    )
    answer = subprocess.run(command, check=True, capture_output=True).stdout.decode()
    (cookie,) = header(answer, "Set-Cookie")
    return f"Cookie: {cookie.partition(';')[0]}"


def header(head: str, name: str) -> list[str]:
    """The values of a header, in a head or a whole answer."""
    fields = (line.partition(":") for line in head.partition("\r\n\r\n")[0].splitlines()[1:])
    return [value.strip() for field, _, value in fields if field.lower() == name.lower()]


class Http2Stream:
    """A stream through the proxy, read by curl; its time limit is the deadline of every read."""

    def __init__(self, site: Site, query: str, bearer_token: str = "", *, headers: tuple[str, ...] = ()) -> None:
        self.head = ""
        self.body = ""
        if bearer_token:
            headers = (*headers, f"Authorization: Bearer {bearer_token}")
        self._begun = ""
        self._parser = EventParser()
        self._events: list[ServerSentEvent] = []
        command = curl(f"{site.base}/stream?{query}", headers=headers)
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def __enter__(self) -> "Http2Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def next(self) -> ServerSentEvent:
        """The next event; the end of the stream before it fails."""
        while not self._events:
            assert self._read(), f"no event behind {self._begun!r} and {self.body!r}"
        return self._events.pop(0)

    def read_to_the_end(self) -> None:
        """Read until the stream has ended in order."""
        while self._read():
            pass
        assert self._process.wait() == 0, "it was not cut"

    def _read(self) -> bool:
        """Answers whether there was more."""
        assert self._process.stdout is not None
        piece = os.read(self._process.stdout.fileno(), 65536).decode()
        if self.head:
            self._take(piece)
        else:
            self._begun += piece
            head, blank_line, body = self._begun.partition("\r\n\r\n")
            if blank_line:
                self.head = head
                self._take(body)
        return bool(piece)

    def _take(self, data: str) -> None:
        self.body += data
        self._events += self._parser.feed(data.encode())
