"""The browser client in Chromium: five tabs, one connection, and sums that are exact whatever happens to them."""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext

from tests.e2e.fault_proxy import FaultProxy
from tests.e2e.tabs import USER, Emitting, Site, Tab, frozen, site, wait_until_exact
from tests.e2e.test_clients import browser
from tests.process import ROOT, ServerProcess, free_port, running_server, wait_until
from tests.tokens import SECRET

TABS = 5
OF_USER = f"/internal/connections?user_id={USER}"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as started:
        yield started


@pytest.fixture
def context(chromium: Browser) -> Iterator[BrowserContext]:
    """A browser of its own: what tabs of other tests share is not shared with it."""
    context = chromium.new_context()
    yield context
    context.close()


@pytest.fixture
def pages(context: BrowserContext) -> Iterator[Site]:
    with site(context) as started:
        yield started


def restartable(scratch: Path, *arguments: str) -> Callable[[], AbstractContextManager[ServerProcess]]:
    """Starts a server, each time on the same ports and the same journal."""
    return partial(
        running_server,
        *arguments,
        f"--journal={scratch / 'tallywire.db'}",
        "--retry-ms=200",
        public_port=free_port(),
        internal_port=free_port(),
    )


def five_tabs(pages: Site, base: str, **options: object) -> list[Tab]:
    """Tabs that share a stream of the server at `base`."""
    return [pages.open(f"{base}/tallywire.js", url=f"{base}/stream", share="user 7", **options) for _ in range(TABS)]


def leader(tabs: list[Tab]) -> Tab:
    """The one tab that has the connection, as soon as it is one."""
    wait_until(lambda: sum(tab.leads for tab in tabs) == 1, "one tab leads")
    return next(tab for tab in tabs if tab.leads)


def check_quiet(*tabs: Tab) -> None:
    """Nothing was found to be wrong, and no sums were replaced, on the way to sums that are right."""
    for tab in tabs:
        report = tab.report()
        assert (report["mismatch"], report["gap"]) == ([], [])
        assert report["causes"] in (["open"], ["shared"])


# ---- one connection


def test_five_tabs_have_one_connection_and_the_same_sums(pages: Site) -> None:
    with running_server("--durability=none") as server, Emitting(server) as emitting:
        emitting.more()
        tabs = five_tabs(pages, server.public)
        leader(tabs)
        emitting.more()
        assert server.get(OF_USER)["connections"] == 1
        late = pages.open(f"{server.public}/tallywire.js", url=f"{server.public}/stream", share="user 7")
        emitting.more()
        emitting.stop()
        wait_until_exact(server, *tabs, late)
        assert server.get(OF_USER)["connections"] == 1
        assert server.get(OF_USER)["closed"] == {}
        check_quiet(*tabs, late)


def test_tabs_under_different_names_share_nothing(pages: Site) -> None:
    with running_server("--durability=none") as server:
        for name in ("user 7", "user 8", None):
            pages.open(f"{server.public}/tallywire.js", url=f"{server.public}/stream", share=name)

        server.wait_for_connections(3)


@pytest.mark.parametrize("durability", ["power", "process"])
def test_five_tabs_survive_a_killed_server(durability: str, pages: Site, tmp_path: Path) -> None:
    again = restartable(tmp_path, f"--durability={durability}")
    with again() as killed, Emitting(killed) as emitting:
        tabs = five_tabs(pages, killed.public)
        leader(tabs)
        emitting.more()
        killed.process.kill()
        killed.process.wait()
        with again() as server:
            emitting.server = server
            emitting.more()
            server.wait_for_connections(1)
            emitting.more()
            emitting.stop()
            wait_until_exact(server, *tabs)
            assert server.get(OF_USER)["connections"] == 1
            check_quiet(*tabs)


@pytest.mark.parametrize("auth", ["bearer", "session", "ticket"])
def test_five_tabs_outlive_their_tokens(auth: str, context: BrowserContext, tmp_path: Path) -> None:
    secret, port = tmp_path / "secret", free_port()
    secret.write_bytes(SECRET)
    arguments = (
        "--auth=jwt",
        f"--jwt-keys=HS256={secret}",
        f"--cors-origins=http://127.0.0.1:{port}",
        "--expiring-seconds=2",
        "--durability=none",
        "--retry-ms=200",
    )
    with (
        site(context, token_seconds=4, port=port) as pages,
        running_server(*arguments) as server,
        Emitting(server) as emitting,
    ):
        tabs = five_tabs(pages, server.public, token=True, auth=auth)

        def renewals() -> int:
            return sum(tab.report()["tokens"].count("expiring") for tab in tabs)

        wait_until(lambda: renewals() >= 3, "three renewals")
        emitting.more()
        emitting.stop()
        wait_until_exact(server, *tabs)
        check_quiet(*tabs)
        assert server.get(OF_USER)["connections"] == 1
        assert "token_expired" not in server.get(OF_USER)["closed"]
        assert all(tab.report()["error"] == [] for tab in tabs)


def test_the_next_tab_goes_on_when_the_leader_is_closed(pages: Site) -> None:
    with running_server("--durability=none") as server, Emitting(server) as emitting:
        tabs = five_tabs(pages, server.public)
        while len(tabs) > 1:
            gone = leader(tabs)
            emitting.more()
            tabs.remove(gone)
            gone.page.close()
            leader(tabs)
            emitting.more()
        emitting.stop()
        wait_until_exact(server, *tabs)
        check_quiet(*tabs)
        assert server.get(OF_USER)["connections"] == 1


def test_a_leader_that_is_to_be_frozen_hands_over(pages: Site) -> None:
    with running_server("--durability=none") as server, Emitting(server) as emitting:
        tabs = five_tabs(pages, server.public)
        asleep = leader(tabs)
        emitting.more()
        # Chromium without a window freezes no page, so that the test says it in its place.
        asleep.page.evaluate("document.dispatchEvent(new Event('freeze', {bubbles: true}))")
        others = [tab for tab in tabs if tab is not asleep]
        leader(others)
        emitting.more()
        server.wait_for_connections(1)
        asleep.page.evaluate("document.dispatchEvent(new Event('resume', {bubbles: true}))")
        emitting.more()
        emitting.stop()
        wait_until_exact(server, *tabs)
        check_quiet(*tabs)
        leader(tabs)
        server.wait_for_connections(1)


def test_a_leader_that_is_frozen_without_a_word_loses_the_connection_and_counts_nothing_twice(
    pages: Site, chromium: Browser
) -> None:
    with running_server("--durability=none", "--retry-ms=200") as server, Emitting(server) as emitting:
        tabs = five_tabs(pages, server.public)
        stuck = leader(tabs)
        emitting.more()
        others = [tab for tab in tabs if tab is not stuck]
        with frozen(chromium, stuck):
            leader(others)
            emitting.more()
        wait_until(lambda: not stuck.leads, "the old leader has stepped down")
        emitting.more()
        emitting.stop()
        wait_until_exact(server, *tabs)
        leader(tabs)
        server.wait_for_connections(1)
        check_quiet(*tabs)


def test_five_tabs_that_slept_while_the_server_was_killed_wake_with_every_count(
    pages: Site, chromium: Browser, tmp_path: Path
) -> None:
    again = restartable(tmp_path)
    with ExitStack() as stack:
        killed = stack.enter_context(again())
        emitting = stack.enter_context(Emitting(killed))
        tabs = five_tabs(pages, killed.public)
        leader(tabs)
        emitting.more()
        with frozen(chromium, *tabs):
            emitting.more()
            killed.process.kill()
            killed.process.wait()
            server = emitting.server = stack.enter_context(again())
            emitting.more()
        server.wait_for_connections(1)
        emitting.more()
        emitting.stop()
        wait_until_exact(server, *tabs)
        leader(tabs)
        server.wait_for_connections(1)
        check_quiet(*tabs)


def test_the_page_of_the_readme_shows_what_is_counted(context: BrowserContext) -> None:
    (shown,) = re.findall(r"^```html\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    with (
        running_server("--durability=none") as server,
        site(context, page=shown.replace("http://127.0.0.1:8080", server.public)) as pages,
    ):
        page, tables = context.new_page(), []
        page.on("console", lambda message: tables.append(message.text) if message.type == "table" else None)
        page.goto(pages.base)
        # Each question lets the page's own messages through.
        wait_until(lambda: page.evaluate("true") and len(tables) == 2, "the strategies, empty")
        emitted(server)
        wait_until(lambda: page.evaluate("true") and len(tables) == 4, "the strategies, counted")


# ---- what nobody says


def test_a_frame_that_is_withheld_is_noticed_within_a_heartbeat_and_repaired(pages: Site) -> None:
    with (
        running_server("--durability=none", "--heartbeat-seconds=1", "--retry-ms=60000") as server,
        FaultProxy(server.public_port) as proxy,
    ):
        tab = pages.open(f"{server.public}/tallywire.js", url=f"{proxy.base}/stream")
        emitted(server)
        wait_until_exact(server, tab)
        proxy.withhold_one()
        emitted(server)
        wait_until(lambda: proxy.withheld, "a frame was withheld")
        # Nothing follows it but the next heartbeat; the retry time would be half a minute at least.
        wait_until(lambda: tab.report()["gap"], "the gap is noticed", timeout=2)
        wait_until_exact(server, tab)
        (gap,) = tab.report()["gap"]
        assert gap["noticed_by"] == "heartbeat"
        assert len(stream_requests(proxy)) == 2
        check_totals_never_differed(tab)


def test_a_frame_behind_one_that_was_withheld_is_not_added(pages: Site) -> None:
    with (
        running_server("--durability=none", "--heartbeat-seconds=3600", "--retry-ms=60000") as server,
        FaultProxy(server.public_port) as proxy,
    ):
        # Without totals there is nothing else to find it by.
        tab = pages.open(f"{server.public}/tallywire.js", url=f"{proxy.base}/stream", totals=False)
        wait_until(lambda: tab.report()["position"], "stream_open")
        proxy.withhold_one()
        emitted(server)
        wait_until(lambda: proxy.withheld, "a frame was withheld")
        emitted(server)
        wait_until_exact(server, tab)
        assert [gap["noticed_by"] for gap in tab.report()["gap"]] == ["after"]
        assert len(stream_requests(proxy)) == 2


def test_a_machine_that_slept_notices_that_its_connection_is_gone(pages: Site) -> None:
    with (
        running_server("--durability=none", "--heartbeat-seconds=600") as server,
        FaultProxy(server.public_port) as proxy,
    ):
        tab = pages.open(f"{server.public}/tallywire.js", url=f"{proxy.base}/stream")
        emitted(server)
        wait_until_exact(server, tab)
        proxy.fall_silent()
        emitted(server)
        # Timers and the monotonic clock stood still; only the wall clock is an hour further.
        tab.page.evaluate("{ const now = Date.now.bind(Date), slept = 3_600_000; Date.now = () => now() + slept }")
        wait_until_exact(server, tab)
        assert [error["kind"] for error in tab.report()["error"]] == ["silent"]


def test_a_connection_that_falls_silent_is_given_up(pages: Site) -> None:
    with (
        running_server("--durability=none", "--heartbeat-seconds=1") as server,
        FaultProxy(server.public_port) as proxy,
    ):
        tab = pages.open(f"{server.public}/tallywire.js", url=f"{proxy.base}/stream")
        emitted(server)
        wait_until_exact(server, tab)
        proxy.fall_silent()
        emitted(server)
        wait_until_exact(server, tab)
        assert [error["kind"] for error in tab.report()["error"]] == ["silent"]


# ---- the steps


def emitted(server: ServerProcess) -> None:
    server.emit(USER, 3, {"success": True, "order_type": "LIMIT", "event_type": "order_created"})


def stream_requests(proxy: FaultProxy) -> list[str]:
    return [request for request in proxy.requests if request.startswith("GET /stream?")]


def check_totals_never_differed(tab: Tab) -> None:
    assert tab.report()["mismatch"] == []
