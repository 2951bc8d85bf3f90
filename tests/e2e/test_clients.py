"""Client programs that nobody here wrote count exactly over comment heartbeats and real cuts."""

import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Protocol

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from core.sse import EventParser
from tests.e2e.programs import PROGRAMS, installed, node_command
from tests.e2e.proxy import CuttingProxy
from tests.e2e.tally import KNOWN_EVENTS, Counts, Tally, counted, summed
from tests.process import ServerProcess, running_server, wait_until

HERE = Path(__file__).parent
ORDER_TYPES = ("LIMIT", "MARKET", "STOP_LIMIT", "STOP_MARKET")

CUTS = (
    rb"event: order_batch_up",
    rb'"order_batch_update","data":\{"summaries":\[\{"or',
    rb"\nid: [a-z0-9]{13}-",
    # A client that takes the id before the blank line would now lose the block.
    rb"\nid: [^\n]+\n",
)
"""Where in a frame the connection is cut."""

CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

Seen = tuple[str, str, str]
"""An event as a client handed it over: its type, its data, its id."""


class Reader(Protocol):
    """A client at work."""

    def events(self) -> list[Seen]:
        """Everything that it handed over so far."""

    def resume(self) -> None:
        """Called after a cut, once the server can be reached again."""


class Orders:
    """Sends random batches for one stream key and counts them by itself."""

    def __init__(self, server: ServerProcess, user_id: int, strategy_id: int = 3) -> None:
        self.server = server
        self.user_id = user_id
        self.strategy_id = strategy_id
        self.counts: Counts = Counter()
        self.position = ""
        self._random = random.Random(user_id)

    def emit(self, batches: int = 1) -> None:
        for _ in range(batches):
            results = [self._result() for _ in range(self._random.randint(1, 10))]
            results.append({"order_type": "LIMIT", "event_type": "order_created", "success": True})
            answer = self.server.emit(self.user_id, self.strategy_id, *results)
            self.counts += counted(self.strategy_id, results)
            self.position = answer["position"]

    def _result(self) -> dict[str, object]:
        return {
            "order_type": self._random.choice(ORDER_TYPES),
            "event_type": self._random.choice(("order_created", "order_cancelled", "order_amended")),
            "success": self._random.random() < 0.8,
        }


class Program:
    """A client program as its own process. `restarts`: it ends at a cut and is started again with the last id."""

    def __init__(self, command: Callable[[str], list[str]], output: Path, *, restarts: bool) -> None:
        self._command = command
        self._output = output
        self._restarts = restarts
        self._runs = 0
        self._earlier: list[Seen] = []
        self._process = self._start("")

    def events(self) -> list[Seen]:
        return self._earlier + self._read(self._file.read_bytes())

    def resume(self) -> None:
        if not self._restarts:
            assert self._process.poll() is None, self._problem()
            return
        wait_until(lambda: self._process.poll() is not None, "the end of the program after the cut")
        assert self._has_ended_well(self._process.returncode), self._problem()
        self._earlier = self.events()
        self._process = self._start(next(event_id for _, _, event_id in reversed(self._earlier) if event_id))

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def _has_ended_well(self, code: int) -> bool:
        return code == 0

    def _read(self, output: bytes) -> list[Seen]:
        whole_lines = output[: output.rfind(b"\n") + 1]
        return [_seen(json.loads(line)) for line in whole_lines.splitlines()]

    def _start(self, last_event_id: str) -> subprocess.Popen[bytes]:
        self._runs += 1
        self._file = self._output / f"events-{self._runs}"
        self._errors = self._output / f"errors-{self._runs}"
        with self._file.open("wb") as stdout, self._errors.open("wb") as stderr:
            return subprocess.Popen(self._command(last_event_id), cwd=HERE, stdout=stdout, stderr=stderr)

    def _problem(self) -> str:
        return f"the program ended with {self._process.returncode}: {self._errors.read_text()}"


class Curl(Program):
    """`curl -N` prints the stream as it is."""

    PARTIAL_FILE, RECEIVE_ERROR = 18, 56

    def _has_ended_well(self, code: int) -> bool:
        return code in (self.PARTIAL_FILE, self.RECEIVE_ERROR)

    def _read(self, output: bytes) -> list[Seen]:
        return [(event.event, event.data, event.last_event_id) for event in EventParser().feed(output)]


class ChromiumPage:
    """Chromium's native EventSource in a page from another loopback port."""

    def __init__(self, page: Page) -> None:
        self._page = page

    def events(self) -> list[Seen]:
        return [_seen(event) for event in self._page.evaluate("window.events")]

    def resume(self) -> None:
        """It does so by itself."""


Client = Callable[[str, Path], AbstractContextManager[Reader]]
"""A client on a URL of the stream, with a directory for its output."""


@contextmanager
def _program(start: Callable[[str, str], list[str]], url: str, output: Path, *, restarts: bool) -> Iterator[Reader]:
    program = Program(partial(start, url), output, restarts=restarts)
    try:
        yield program
    finally:
        program.stop()


@contextmanager
def curl(url: str, output: Path) -> Iterator[Reader]:
    path = installed("curl")

    def command(last_event_id: str) -> list[str]:
        resume = ["-H", f"Last-Event-ID: {last_event_id}"] if last_event_id else []
        return [path, "-N", "--silent", "--show-error", *resume, url]

    program = Curl(command, output, restarts=True)
    try:
        yield program
    finally:
        program.stop()


def httpx_sse(url: str, output: Path) -> AbstractContextManager[Reader]:
    return _program(partial(_python, "read_httpx_sse.py"), url, output, restarts=True)


def sseclient_py(url: str, output: Path) -> AbstractContextManager[Reader]:
    return _program(partial(_python, "read_sseclient.py"), url, output, restarts=True)


def requests_sse(url: str, output: Path) -> AbstractContextManager[Reader]:
    return _program(partial(_python, "read_requests_sse.py"), url, output, restarts=False)


def npm_eventsource_parser(url: str, output: Path) -> AbstractContextManager[Reader]:
    return _program(partial(_node, "read_eventsource_parser.mjs"), url, output, restarts=True)


def npm_eventsource(url: str, output: Path) -> AbstractContextManager[Reader]:
    def command(url: str, _last_event_id: str) -> list[str]:
        return [*_node("read_eventsource.mjs", url, ""), *sorted(KNOWN_EVENTS)]

    return _program(command, url, output, restarts=False)


@contextmanager
def chromium(url: str, output: Path) -> Iterator[Reader]:
    script = """
        window.events = [];
        const source = new EventSource(URL_OF_STREAM);
        for (const name of ["message", ...KNOWN_EVENTS])
            source.addEventListener(name, (e) => window.events.push([e.type, e.data, e.lastEventId]));
    """
    script = script.replace("URL_OF_STREAM", json.dumps(url)).replace("KNOWN_EVENTS", json.dumps(sorted(KNOWN_EVENTS)))
    with browser() as started, page_on_another_port(started, script) as page:
        yield ChromiumPage(page)


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running_server("--heartbeat-seconds=0.2", "--retry-ms=100") as server:
        yield server


PROGRAMS_UNDER_TEST: dict[str, Client] = {
    "chromium": chromium,
    "curl": curl,
    "httpx-sse": httpx_sse,
    "requests-sse": requests_sse,
    "sseclient-py": sseclient_py,
    "npm-eventsource": npm_eventsource,
    "npm-eventsource-parser": npm_eventsource_parser,
}


@pytest.mark.parametrize("name", PROGRAMS_UNDER_TEST)
def test_a_client_of_others_counts_exactly_over_heartbeats_and_cuts(
    name: str, server: ServerProcess, tmp_path: Path
) -> None:
    user_id = 100 + list(PROGRAMS_UNDER_TEST).index(name)
    orders = Orders(server, user_id)
    with (
        CuttingProxy(server.public_port) as proxy,
        PROGRAMS_UNDER_TEST[name](f"{proxy.base}/stream?user_id={user_id}&strategy_id=3", tmp_path) as reader,
    ):
        wait_until(reader.events, "stream_open")
        _pass_heartbeats(proxy)
        orders.emit(5)
        _wait_until_caught_up(reader, orders)
        for pattern in CUTS:
            _cut_within_a_frame(pattern, proxy, reader, orders)
        _cut_between_frames(proxy, reader, orders)
        _pass_heartbeats(proxy)
        orders.emit()
        _wait_until_caught_up(reader, orders)
        _check(reader.events(), orders, cuts=len(CUTS) + 1)
        _check_requests(proxy.requests, reader.events())


def test_a_handler_written_for_the_flask_server_works_unchanged(server: ServerProcess) -> None:
    # Word for word what a frontend had: the type in addEventListener, the inner object alone on the data line.
    script = """
        window.seen = [];
        window.opened = false;
        const source = new EventSource('http://127.0.0.1:PORT/stream?user_id=7&strategy_id=3&shape=flat');
        source.onopen = () => { window.opened = true; };
        source.addEventListener('order_batch_update', e => window.seen.push(...JSON.parse(e.data).summaries));
    """
    orders = Orders(server, user_id=7)
    with (
        CuttingProxy(server.public_port) as proxy,
        browser() as chromium,
        page_on_another_port(chromium, script.replace("PORT", proxy.base.rpartition(":")[2])) as page,
    ):
        wait_until(lambda: page.evaluate("window.opened"), "the stream is open")
        # onopen comes with the headers; the stream is registered with its first event.
        server.wait_for_connections(1, "/internal/connections?user_id=7")
        orders.emit(5)
        wait_until(lambda: _flat_counts(page) == orders.counts, "every count, once")
        proxy.cut()
        orders.emit(5)
        proxy.restore()
        wait_until(lambda: _flat_counts(page) == orders.counts, "every count, once")
        orders.emit()
        wait_until(lambda: _flat_counts(page) == orders.counts, "every count, once")


# ---- the steps


def _pass_heartbeats(proxy: CuttingProxy) -> None:
    before = proxy.heartbeats
    wait_until(lambda: proxy.heartbeats >= before + 3, "three heartbeats")


def _wait_until_caught_up(reader: Reader, orders: Orders) -> None:
    wait_until(lambda: reader.events()[-1][2] == orders.position, f"the reader at {orders.position}")


def _cut_within_a_frame(pattern: bytes, proxy: CuttingProxy, reader: Reader, orders: Orders) -> None:
    proxy.cut_behind(pattern)
    orders.emit()
    assert proxy.is_cut.wait(20), f"no cut behind {pattern!r}"
    orders.emit(3)
    proxy.restore()
    reader.resume()
    _wait_until_caught_up(reader, orders)


def _cut_between_frames(proxy: CuttingProxy, reader: Reader, orders: Orders) -> None:
    proxy.cut(resets=True)
    orders.emit(3)
    proxy.restore()
    reader.resume()
    _wait_until_caught_up(reader, orders)


def _check(events: list[Seen], orders: Orders, *, cuts: int) -> None:
    # An hour may end meanwhile.
    assert {event for event, _, _ in events} - {"order_hourly_summary"} == {"stream_open", "order_batch_update"}
    tally = Tally()
    for event in events:
        tally.add(*event)
    assert tally.counts == orders.counts
    assert tally.opened == 1 + cuts
    assert tally.largest_merge == 4, "what was missed in a gap comes as one frame"


def _check_requests(requests: list[str], events: list[Seen]) -> None:
    """Each reconnect named the id of the last event that had been handed over before."""
    expected = [events[index - 1][2] for index, event in enumerate(events) if index and event[0] == "stream_open"]
    named = [
        line.partition(":")[2].strip()
        for request in requests
        for line in request.splitlines()
        if line.lower().startswith("last-event-id:")
    ]
    assert named == expected


def _flat_counts(page: Page) -> Counts:
    counts: Counts = Counter()
    for summary in page.evaluate("window.seen"):
        counts += summed(3, [summary])
    return counts


# ---- programs, browser, page


def _seen(event: list[str | None]) -> Seen:
    kind, data, event_id = event
    return kind or "", data or "", event_id or ""


def _python(program: str, url: str, last_event_id: str) -> list[str]:
    return [sys.executable, str(PROGRAMS / program), url, *([last_event_id] if last_event_id else [])]


def _node(program: str, url: str, last_event_id: str) -> list[str]:
    return node_command(program, url, *([last_event_id] if last_event_id else []))


@contextmanager
def browser() -> Iterator[Browser]:
    path = installed("chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        try:
            yield started
        finally:
            started.close()


class _PageHandler(BaseHTTPRequestHandler):
    script = ""

    def do_GET(self) -> None:
        body = f"<!doctype html><title>A page</title><script>{self.script}</script>".encode()
        self.send_response(200 if self.path == "/" else 404)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Silence."""


@contextmanager
def page_on_another_port(started: Browser, script: str) -> Iterator[Page]:
    """A page with this script, served as a development server does: from a port of its own."""
    handler = type("Handler", (_PageHandler,), {"script": script})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        thread = Thread(target=web.serve_forever)
        thread.start()
        try:
            page = started.new_page()
            page.goto(f"http://127.0.0.1:{web.server_port}/")
            yield page
            page.close()
        finally:
            web.shutdown()
            thread.join()
