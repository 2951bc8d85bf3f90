"""Tabs of a real Chromium that run the browser client, and what they have added up."""

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any
from urllib.error import URLError

from playwright.sync_api import Browser, BrowserContext, Page

from tests.e2e.tally import Counts, summed
from tests.process import ServerProcess, wait_until
from tests.tokens import claims, token

USER = 7
STRATEGIES = (3, 4)

PAGE = """<!doctype html><title>A page</title><script type="module">
import { TallywireStream } from 'CLIENT'
window.start = options => {
  const token = options.token && (async reason => {
    window.seen.tokens.push(reason)
    return (await fetch('/token')).text()
  })
  const seen = window.seen = { added: {}, tokens: [], gap: [], mismatch: [], error: [], state: [], causes: [] }
  const stream = window.stream = new TallywireStream({ ...options, token })
  for (const type of ['gap', 'mismatch']) stream.on(type, event => seen[type].push(event))
  stream.on('error', ({ kind, status, final }) => seen.error.push({ kind, status, final }))
  stream.on('state', ({ state, role }) => seen.state.push(`${role} ${state}`))
  const add = (strategy, summaries) => {
    for (const { order_type, created, cancelled } of summaries) {
      const own = (seen.added[strategy] ??= {})[order_type] ??= { order_type, created: 0, cancelled: 0 }
      own.created += created
      own.cancelled += cancelled
    }
  }
  // A page that adds up by itself is told as much as one that takes the sums of the client.
  stream.on('order_batch_update', ({ data, stream }) => add(stream.strategy_id, data.summaries))
  stream.on('totals', ({ totals, cause }) => {
    if (cause === 'update') return
    seen.causes.push(cause)
    seen.added = {}
    for (const [strategy, summaries] of totals) add(strategy, summaries)
  })
}
window.report = () => ({
  ...window.seen,
  role: stream.role,
  position: stream.position,
  now: stream.state,
  totals: [...stream.totals],
  added: Object.entries(window.seen.added).map(([strategy, sums]) => [Number(strategy), Object.values(sums)]),
})
window.isLoaded = true
</script>"""


class Tab:
    """One tab and its stream."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def report(self) -> Any:
        return self.page.evaluate("report()")

    @property
    def leads(self) -> bool:
        return bool(self.report()["role"] == "leader")

    def has(self, position: str | None, counts: Counts) -> bool:
        """Its sums, those of the client and those that the page has added up, are these, at this position."""
        report = self.report()
        return report["position"] == position and _counts(report["totals"]) == counts == _counts(report["added"])


@contextmanager
def frozen(browser: Browser, *tabs: Tab) -> Iterator[None]:
    """Their processes are stopped, within whatever they were doing: no timer, no message, no byte reaches them, and
    nothing has told them so. What they hold, they hold."""
    pids = {_renderer(browser, tab) for tab in tabs}
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def _renderer(browser: Browser, tab: Tab) -> int:
    """The process of a tab: the one that works when the tab is given work."""
    before = _cpu_seconds(browser)
    tab.page.evaluate("{ const end = performance.now() + 400; while (performance.now() < end); }")
    after = _cpu_seconds(browser)
    return max(after, key=lambda pid: after[pid] - before.get(pid, 0))


def _cpu_seconds(browser: Browser) -> dict[int, float]:
    devtools = browser.new_browser_cdp_session()
    processes = devtools.send("SystemInfo.getProcessInfo")["processInfo"]
    devtools.detach()
    return {int(each["id"]): float(each["cpuTime"]) for each in processes if each["type"] == "renderer"}


class Site:
    """A web server with the page, on a port of its own as development servers have, and the tabs that show it."""

    def __init__(self, base: str, context: BrowserContext) -> None:
        self.base = base
        self._context = context

    def open(self, client: str, **options: object) -> Tab:
        """A tab with a stream. `client`: where the module is."""
        page = self._context.new_page()
        page.goto(f"{self.base}/?{client}")
        page.wait_for_function("window.isLoaded")
        page.evaluate("options => start(options)", {"userId": USER, "strategyIds": STRATEGIES, **options})
        return Tab(page)


@contextmanager
def site(context: BrowserContext, *, page: str = PAGE, token_seconds: float = 600, port: int = 0) -> Iterator[Site]:
    """`token_seconds`: how long the tokens live that `/token` gives."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, _, client = self.path.partition("?")
            now = time.time()
            body = {
                "/": page.replace("CLIENT", client),
                "/token": token(claims(now, exp=int(now + token_seconds), strategies="*")),
            }.get(path)
            self.send_response(200 if body else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write((body or "").encode())

        def log_message(self, format: str, *args: object) -> None:
            """Silence."""

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as web:
        thread = Thread(target=web.serve_forever)
        thread.start()
        try:
            yield Site(f"http://127.0.0.1:{web.server_port}", context)
        finally:
            web.shutdown()
            thread.join()


class Emitting:
    """Emits batches of both strategies all the time, also while nobody is there to take them; what has been counted is
    for the server to say."""

    PAUSE_SECONDS = 0.02

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        """May be replaced by one that has started anew."""
        self.accepted = 0
        self._over = Event()
        self._thread = Thread(target=self._run)

    def __enter__(self) -> "Emitting":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """No more: what has been counted stays so."""
        self._over.set()
        self._thread.join()

    def more(self, batches: int = 20) -> None:
        """Until so many more have been accepted."""
        wanted = self.accepted + batches
        wait_until(lambda: self.accepted >= wanted, f"{batches} more batches")

    def _run(self) -> None:
        number = 0
        while not self._over.wait(self.PAUSE_SECONDS):
            number += 1
            event_type = ("order_created", "order_cancelled")[number % 3 == 0]
            order_type = ("LIMIT", "MARKET", "STOP_LIMIT")[number % 7 % 3]
            result: dict[str, object] = {"success": True, "order_type": order_type, "event_type": event_type}
            try:
                self.server.emit(USER, STRATEGIES[number % 2], result)
            except (URLError, OSError, json.JSONDecodeError):
                continue
            self.accepted += 1


def wait_until_exact(server: ServerProcess, *tabs: Tab) -> None:
    """Until every tab has the totals and the position that the server states."""
    facts = [server.get(f"/internal/keys/{USER}/{strategy}") for strategy in STRATEGIES]
    counts = Counts()
    for fact in facts:
        counts += summed(fact["strategy_id"], fact["totals"])
    assert counts, "something was counted"
    heads = [fact["head"] for fact in facts if fact["head"]]
    head = max(heads, key=lambda position: int(position.rpartition("-")[2]))
    for number, tab in enumerate(tabs):
        try:
            wait_until(lambda tab=tab: tab.has(head, counts), f"tab {number} has every count once")
        except AssertionError as error:
            raise AssertionError(f"{error}: {head} {dict(counts)}, and it has {tab.report()}") from error


def _counts(sums: Any) -> Counts:
    counts = Counts()
    for strategy_id, summaries in sums:
        counts += summed(strategy_id, summaries)
    return counts
