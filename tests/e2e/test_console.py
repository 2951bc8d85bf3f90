"""The console in a real browser, at a real server."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from playwright.sync_api import Browser, Locator, Route

from core.access import key_of
from tests.e2e.console import CANCELLED, CREATED, NARROW, PAGES, WIDE, Visit, violations, visit
from tests.e2e.test_clients import browser
from tests.process import ROOT, ServerProcess, running_server, wait_until

CONSOLE = ROOT / "handlers" / "static" / "console"
OVERVIEW = (CONSOLE / "pages" / "overview.js").read_text()

USER, STRATEGY = 7, 3
OF_A_USER = {
    "stream": "user_id=7&strategy_id=*",
    "hours": "user_id=7",
    "connections": "user_id=7",
    "lookup": "user_id=7",
}
"""What the address of a page says to show this user."""

SECRET, WRONG = "the-right-secret", "a-wrong-secret"
UNANSWERED = ("ERR_CONNECTION_REFUSED", "ERR_EMPTY_RESPONSE", "ERR_CONNECTION_RESET", "ERR_INCOMPLETE_CHUNKED_ENCODING")
MOST_TABS = 80
"""Presses of Tab, after which a page that has not been gone through holds the reader."""

every_page = pytest.mark.parametrize("name", PAGES)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def empty_server() -> Iterator[ServerProcess]:
    """One that nobody has emitted anything to."""
    with running_server("--durability=none", "--console-emit=on") as started:
        yield started


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """One that has counted something, for several users, and has somebody connected."""
    with running_server("--durability=none", "--console-emit=on", "--heartbeat-seconds=1") as started:
        for strategy_id in (STRATEGY, 4):
            started.emit(USER, strategy_id, CREATED, CREATED, CANCELLED)
        started.emit(8, 1, CREATED)
        with urlopen(f"{started.public}/stream?user_id={USER}&strategy_id={STRATEGY}", timeout=10):
            yield started


@pytest.fixture
def own_server() -> Iterator[ServerProcess]:
    """One for a test that counts."""
    with running_server("--durability=none", "--heartbeat-seconds=1") as started:
        yield started


# ---- every page


@every_page
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_a_page_opens_where_nothing_was_counted_yet(
    chromium: Browser, empty_server: ServerProcess, name: str, colours: str
) -> None:
    with visit(chromium, empty_server, colours=colours) as reader:
        reader.open(name)

        assert reader.page.locator("h1").inner_text()
        assert reader.page.locator("main .notice.bad").count() == 0


@every_page
@pytest.mark.parametrize("width", [NARROW, WIDE])
def test_a_page_with_data_needs_no_sideways_scrolling(
    chromium: Browser, server: ServerProcess, name: str, width: int
) -> None:
    with visit(chromium, server, width=width) as reader:
        reader.open(name, OF_A_USER.get(name, ""))
        reader.page.wait_for_load_state("load")
        if name == "connections":
            reader.page.locator("tbody tr").first.wait_for()

        assert reader.overflow() == 0
        assert reader.page.locator("main .notice.bad").count() == 0


@every_page
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_axe_finds_nothing_serious_on_a_page(chromium: Browser, server: ServerProcess, name: str, colours: str) -> None:
    with visit(chromium, server, colours=colours, bypass_csp=True) as reader:
        reader.open(name, OF_A_USER.get(name, ""))
        reader.page.wait_for_load_state("load")

        assert violations(reader) == []


def test_axe_would_find_what_is_wrong(chromium: Browser, server: ServerProcess) -> None:
    with visit(chromium, server, bypass_csp=True) as reader:
        reader.open("overview")
        reader.page.evaluate("document.querySelector('main').append(document.createElement('input'))")

        assert [each.partition(":")[0] for each in violations(reader)] == ["label"]


def test_whatever_the_policy_forbids_is_noticed_here(chromium: Browser, server: ServerProcess) -> None:
    with visit(chromium, server) as reader:
        reader.open("overview")
        reader.page.evaluate(
            "document.body.append(Object.assign(document.createElement('script'), { textContent: 'window.ran = 1' }))"
        )

        assert reader.page.evaluate("window.ran === undefined")
        wait_until(lambda: _turn(reader) and reader.complaints, "a complaint")
        assert "Content Security Policy" in reader.complaints[0]
        reader.complaints.clear()


def _turn(reader: Visit) -> bool:
    """Let the events of the browser in."""
    reader.page.evaluate("1")
    return True


@every_page
def test_a_page_is_gone_through_by_keyboard_alone(chromium: Browser, server: ServerProcess, name: str) -> None:
    with visit(chromium, server) as reader:
        reader.open(name, OF_A_USER.get(name, ""))
        reader.page.wait_for_load_state("networkidle") if name not in ("overview", "stream", "connections") else None
        reachable: int = reader.page.evaluate(MARK_REACHABLE)
        seen: set[str] = set()
        for _ in range(MOST_TABS + reachable):
            reader.page.keyboard.press("Tab")
            place, is_visible = reader.page.evaluate(WHERE_THE_FOCUS_IS)
            if place is None:
                break
            assert is_visible, place
            seen.add(place)

        assert reader.page.evaluate(NOT_REACHED, sorted(seen)) == []


MARK_REACHABLE = """() => {
  const wanted = 'a[href], button, input, select, textarea, summary, [tabindex="0"]'
  const visible = [...document.querySelectorAll(wanted)].filter(each => each.checkVisibility() && !each.disabled)
  visible.forEach((each, index) => { each.dataset.stop = index })
  return visible.length
}"""

WHERE_THE_FOCUS_IS = """() => {
  const element = document.activeElement
  if (element === document.body || element === null) return [null, true]
  const { outlineStyle, outlineWidth, top } = getComputedStyle(element)
  const shows = (outlineStyle !== 'none' && parseFloat(outlineWidth) > 0) || element.matches('.skip-link')
  return [element.dataset.stop ?? element.outerHTML.slice(0, 120), shows]
}"""

NOT_REACHED = """seen => [...document.querySelectorAll('[data-stop]')]
  .filter(each => each.isConnected && !seen.includes(each.dataset.stop))
  // Of a group of choices the arrow keys reach the others.
  .filter(each => !(each.type === 'radio' && !each.checked))
  .map(each => each.outerHTML.slice(0, 120))"""


def test_navigation_works_with_the_keyboard_and_moves_the_focus_to_the_heading(
    chromium: Browser, server: ServerProcess
) -> None:
    with visit(chromium, server) as reader:
        reader.open("overview")
        reader.page.locator("nav a", has_text="Connections").focus()
        reader.page.keyboard.press("Enter")
        reader.page.locator("h1", has_text="Connections").wait_for()

        assert reader.page.evaluate("document.activeElement.tagName") == "H1"
        assert reader.page.locator("nav a[aria-current=page]").inner_text() == "Connections"
        assert reader.page.title() == "Connections · Tallywire"


def test_the_skip_link_leads_past_the_navigation(chromium: Browser, server: ServerProcess) -> None:
    with visit(chromium, server) as reader:
        reader.open("connections")
        reader.page.keyboard.press("Tab")
        assert reader.page.evaluate("document.activeElement.className") == "skip-link"
        reader.page.keyboard.press("Enter")
        reader.page.keyboard.press("Tab")

        assert reader.page.evaluate("document.querySelector('main').contains(document.activeElement)")
        assert reader.page.locator("h1").inner_text() == "Connections"


def test_an_address_that_is_no_page_says_so(chromium: Browser, server: ServerProcess) -> None:
    with visit(chromium, server) as reader:
        reader.open("nothing")

        assert "There is no such page" in reader.text("main")


def test_a_theme_that_is_chosen_holds_after_a_reload(chromium: Browser, server: ServerProcess) -> None:
    with visit(chromium, server, colours="light") as reader:
        reader.open("overview")
        before = reader.page.evaluate(BACKGROUND)
        button = reader.page.locator("#theme-button")
        button.click()
        assert (button.inner_text(), reader.page.evaluate(BACKGROUND)) == ("Theme: light", before)
        button.click()
        dark = reader.page.evaluate(BACKGROUND)
        reader.page.reload()

        assert dark != before
        assert reader.page.evaluate(BACKGROUND) == dark
        assert button.inner_text() == "Theme: dark"


BACKGROUND = "getComputedStyle(document.body).backgroundColor"


# ---- overview


def test_every_metric_that_the_overview_shows_is_one(server: ServerProcess, chromium: Browser) -> None:
    named = re.findall(r"(?:M|value|grew)\('([a-z_]+)'", OVERVIEW)
    listed = re.findall(r"\['\w+', '([a-z_]+)', '(?:start|reason|outcome|code)'\]", OVERVIEW)
    shown = {name if name.startswith("process_") else f"tallywire_{name}" for name in (*named, *listed)}
    with visit(chromium, server) as reader:
        reader.open("overview")
        answer: str = reader.page.evaluate("fetch('/metrics').then(answer => answer.text())")
    there = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"^([a-z_]+)", answer, re.M)}

    assert len(shown) > 20
    assert shown - there == set()


def test_the_overview_shows_what_was_emitted(chromium: Browser, own_server: ServerProcess) -> None:
    with visit(chromium, own_server) as reader:
        reader.open("overview")
        reader.page.get_by_text("Nothing was emitted since the start").wait_for()
        assert f"curl {own_server.internal}/internal/emit" in reader.text(".empty code")
        own_server.emit(USER, STRATEGY, CREATED)

        reader.page.locator(".stat-note", has_text="1 accepted").wait_for()
        reader.wait_for_figure("Unaccounted counts", "0")
        assert reader.page.get_by_text("Nothing was emitted since the start").count() == 0
        assert reader.page.locator("canvas").count() == 6
        assert reader.page.locator(".badge", has_text="Live").count() == 1


def test_what_the_example_says_to_paste_can_be_sent(chromium: Browser, own_server: ServerProcess) -> None:
    with visit(chromium, own_server) as reader:
        reader.open("overview")
        command = reader.text(".empty code")
    body = re.search(r" -d '(.*)'$", command)
    assert body is not None

    assert own_server.post("/internal/emit", json.loads(body[1]))["status"] == "accepted"


def test_a_server_that_is_gone_is_said_to_be_stale_and_comes_back(chromium: Browser) -> None:
    with running_server("--durability=none") as first, visit(chromium, first, expected=UNANSWERED) as reader:
        reader.open("overview")
        reader.wait_for_state("Live")
        first.stop()
        reader.wait_for_state("Stale since")
        reader.page.locator("main .notice", has_text="The server does not answer").wait_for()
        with running_server("--durability=none", internal_port=first.internal_port):
            reader.wait_for_state("Live")

            assert reader.page.locator("main .notice.bad").count() == 0


def test_a_tab_that_is_hidden_asks_for_nothing(chromium: Browser, server: ServerProcess) -> None:
    with visit(chromium, server) as reader:
        reader.page.clock.install()
        reader.open("overview")
        reader.wait_for_state("Live")
        reader.page.evaluate(HIDE, True)
        before = _asked(reader, "/metrics")
        reader.page.clock.run_for(60_000)
        while_hidden = _asked(reader, "/metrics")
        with reader.page.expect_request("**/metrics"):
            reader.page.evaluate(HIDE, False)

    assert while_hidden == before


HIDE = """is => {
  Object.defineProperty(document, 'hidden', { configurable: true, get: () => is })
  document.dispatchEvent(new Event('visibilitychange'))
}"""


def test_a_server_that_is_slow_is_asked_once_at_a_time(chromium: Browser, server: ServerProcess) -> None:
    held: list[Route] = []
    with visit(chromium, server) as reader:
        reader.page.clock.install()
        reader.page.route("**/metrics", lambda route: held.append(route))
        reader.open("overview")
        wait_until(lambda: _turn(reader) and held, "a request")
        reader.page.clock.run_for(8_000)
        reader.page.evaluate(HIDE, False)
        _turn(reader)

        assert len(held) == 1
        held[0].continue_()
        reader.wait_for_state("Live")


def _asked(reader: Visit, path: str) -> int:
    _turn(reader)
    return sum(each.url.endswith(path) for each in reader.requests)


# ---- stream inspector


def rows(reader: Visit) -> Locator:
    """The events that are listed, the newest first."""
    return reader.page.locator(".events li:not(.mark)")


def plain(row: Locator) -> str:
    """Its text, with blanks that may be broken."""
    return row.inner_text().replace("\xa0", " ")


def test_events_are_shown_decoded_and_raw_with_sums_that_equal_what_is_stated(
    chromium: Browser, own_server: ServerProcess
) -> None:
    with visit(chromium, own_server) as reader:
        reader.open("stream", "user_id=7&strategy_id=3")
        reader.wait_for_state("Open")
        position = own_server.emit(USER, STRATEGY, CREATED, CREATED, CANCELLED)["position"]
        newest = rows(reader).filter(has_text="order_batch_update").first
        newest.wait_for()

        assert "LIMIT +2, STOP_LIMIT −1" in plain(newest)
        newest.locator("summary").focus()
        reader.page.keyboard.press("Enter")
        assert f"id: {position}" in newest.locator("pre").inner_text()
        assert reader.text(".position code") == position
        assert reader.page.locator(".badge", has_text="equal").count() == 1
        assert [reader.figure(name) for name in ("Updates", "Batches", "Merged", "Gaps", "Mismatches")] == [
            "1", "1", "0", "0", "0",
        ]  # fmt: skip


def test_who_disconnects_and_resumes_gets_what_was_missed_as_one_event(
    chromium: Browser, own_server: ServerProcess
) -> None:
    with visit(chromium, own_server) as reader:
        reader.open("stream", "user_id=7&strategy_id=3")
        reader.wait_for_state("Open")
        own_server.emit(USER, STRATEGY, CREATED)
        rows(reader).filter(has_text="order_batch_update").first.wait_for()
        reader.page.get_by_role("button", name="Disconnect").click()
        own_server.wait_for_connections(0)
        for _ in range(3):
            own_server.emit(USER, STRATEGY, CREATED, CANCELLED)
        reader.page.get_by_role("button", name="Resume").click()
        merged = rows(reader).filter(has_text="3 batches in one")
        merged.wait_for()

        assert "LIMIT +3, STOP_LIMIT −3" in plain(merged)
        reader.wait_for_figure("Merged", "1")
        assert reader.figure("Batches") == "4"
        assert reader.page.locator(".badge", has_text="equal").count() == 1


def test_several_strategies_that_were_missed_arrive_as_one_catch_up(
    chromium: Browser, own_server: ServerProcess
) -> None:
    with visit(chromium, own_server) as reader:
        reader.open("stream", "user_id=7&strategy_id=*")
        reader.wait_for_state("Open")
        reader.page.get_by_role("button", name="Disconnect").click()
        own_server.wait_for_connections(0)
        for strategy_id in (STRATEGY, 4):
            own_server.emit(USER, strategy_id, CREATED)
        reader.page.get_by_role("button", name="Resume").click()
        caught_up = rows(reader).filter(has_text="order_batch_catch_up")
        caught_up.wait_for()

        assert "3: LIMIT +1 · 4: LIMIT +1" in plain(caught_up)
        assert reader.page.locator(".badge", has_text="equal").count() == 1


def test_a_position_of_another_life_is_shown_as_a_reset(chromium: Browser) -> None:
    with running_server("--durability=none") as first, visit(chromium, first, expected=UNANSWERED) as reader:
        first.emit(USER, STRATEGY, CREATED)
        reader.open("stream", "user_id=7&strategy_id=3")
        reader.wait_for_state("Open")
        first.stop()
        with running_server("--durability=none", internal_port=first.internal_port):
            reader.wait_for_figure("Resets", "1")

            assert "reason epoch" in rows(reader).filter(has_text="stream_reset").inner_text()


def test_a_list_that_is_paused_waits_and_one_that_is_long_stays_bounded(
    chromium: Browser, own_server: ServerProcess
) -> None:
    with visit(chromium, own_server) as reader:
        reader.open("stream", "user_id=7&strategy_id=3")
        reader.wait_for_state("Open")
        rows(reader).filter(has_text="stream_open").wait_for()
        reader.page.get_by_role("button", name="Pause").click()
        for _ in range(12):
            own_server.post(
                "/internal/emit",
                [{"user_id": USER, "strategy_id": STRATEGY, "batch_results": [CREATED]} for _ in range(60)],
            )
        reader.wait_for_figure("Batches", "720")
        assert rows(reader).count() == 1
        reader.page.get_by_role("button", name="Go on").click()
        reader.page.get_by_text("the newest 500 of").wait_for()

        wait_until(lambda: rows(reader).count() == 500, "500 rows")
        reader.page.get_by_role("button", name="Clear").click()
        assert rows(reader).count() == 0
        assert reader.page.locator(".badge", has_text="equal").count() == 1


def test_who_leaves_the_page_closes_the_stream(chromium: Browser, own_server: ServerProcess) -> None:
    with visit(chromium, own_server) as reader:
        reader.open("stream", "user_id=7&strategy_id=3")
        own_server.wait_for_connections(1)
        reader.page.locator("nav a", has_text="Hours").click()

        own_server.wait_for_connections(0)


def test_strategies_that_are_none_are_asked_for_again(chromium: Browser, server: ServerProcess) -> None:
    with visit(chromium, server) as reader:
        reader.open("stream")
        reader.page.get_by_label("User", exact=True).fill("7")
        reader.page.get_by_label("Strategies", exact=True).fill("three")
        reader.page.get_by_role("button", name="Connect", exact=True).click()

        assert "Which strategies?" in reader.text("main .notice")


def test_a_user_that_is_none_is_asked_for_again(chromium: Browser, server: ServerProcess) -> None:
    with visit(chromium, server) as reader:
        reader.open("stream")
        reader.page.get_by_label("User", exact=True).fill("me")
        reader.page.get_by_role("button", name="Connect", exact=True).click()

        assert "userId must be an id" in reader.text("main .notice")
        assert reader.page.get_by_role("button", name="Disconnect").is_disabled()


def test_who_resumes_goes_on_with_the_same_user_whatever_was_typed_since(
    chromium: Browser, server: ServerProcess
) -> None:
    with visit(chromium, server) as reader:
        reader.open("stream", "user_id=7&strategy_id=3")
        reader.wait_for_state("Open")
        reader.page.get_by_role("button", name="Disconnect").click()
        reader.page.get_by_label("User", exact=True).fill("8")
        reader.page.get_by_label("Strategies", exact=True).fill("1")
        reader.page.get_by_role("button", name="Resume").click()
        rows(reader).filter(has_text="resumed without loss").wait_for()

        assert reader.page.get_by_label("User", exact=True).input_value() == "7"
        assert reader.page.get_by_label("Strategies", exact=True).input_value() == "3"
        assert reader.figure("Mismatches") == "0"


# ---- hours


DRAWN = """
const cut = window.cut = []
const fillText = CanvasRenderingContext2D.prototype.fillText
CanvasRenderingContext2D.prototype.fillText = function (text, x, y, ...given) {
  const width = this.measureText(text).width
  const left = { left: 0, start: 0, center: width / 2, right: width, end: width }[this.textAlign]
  const at = this.getTransform().e + x - left
  if (at < 0 || at + width > this.canvas.width) cut.push(text)
  window.drawn = (window.drawn ?? 0) + 1
  return fillText.call(this, text, x, y, ...given)
}
"""
"""Notes what is written beyond the edge of a canvas."""


@pytest.mark.parametrize("hours", [24, 168, 744])
@pytest.mark.parametrize("width", [NARROW, WIDE])
def test_no_label_of_a_chart_is_cut_off(chromium: Browser, server: ServerProcess, hours: int, width: int) -> None:
    with visit(chromium, server, width=width) as reader:
        reader.page.add_init_script(DRAWN)
        reader.open("hours", f"user_id={USER}&hours={hours}")
        reader.page.wait_for_function("window.drawn > 3")

        assert reader.page.evaluate("cut") == []


@pytest.mark.parametrize("time_zone", ["Asia/Kolkata", "Asia/Kathmandu"])
def test_hours_are_asked_for_where_they_begin_at_another_minute(
    chromium: Browser, server: ServerProcess, time_zone: str
) -> None:
    with visit(chromium, server, time_zone=time_zone) as reader:
        reader.open("hours")
        reader.page.get_by_label("User", exact=True).fill(str(USER))
        reader.page.get_by_role("button", name="Show").click()
        reader.page.locator("table.data tbody tr").first.wait_for()

        assert reader.figure("Hours with counts") == "1"


def test_hours_are_shown_as_bars_and_as_a_table(chromium: Browser, server: ServerProcess) -> None:
    with visit(chromium, server) as reader:
        reader.open("hours", "user_id=7")
        reader.page.locator("canvas").wait_for()
        cells = reader.page.locator("tbody tr").first.locator("td").all_inner_texts()

        assert cells == ["4", "2", "4", "0", "0", "2"], "all, LIMIT, STOP_LIMIT: created and cancelled"
        assert reader.page.locator("thead th").all_inner_texts()[:4] == ["Hour", "All", "LIMIT", "STOP_LIMIT"]
        assert (reader.figure("Created"), reader.figure("Cancelled"), reader.figure("Strategies")) == ("4", "2", "2")
        assert reader.page.evaluate(PAINTED), "something is drawn"


PAINTED = """() => {
  const canvas = document.querySelector('canvas')
  const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height)
  const seen = new Set()
  for (let at = 0; at < data.length; at += 4) seen.add(data.slice(at, at + 3).join())
  const probe = document.createElement('span')
  probe.style.color = 'var(--series-1)'
  document.body.append(probe)
  const wanted = getComputedStyle(probe).color.match(/\\d+/g).join()
  probe.remove()
  return seen.has(wanted)
}"""


def test_hours_of_one_strategy_are_asked_for(chromium: Browser, server: ServerProcess) -> None:
    with visit(chromium, server) as reader:
        reader.open("hours", "user_id=7")
        reader.page.get_by_label("Strategy", exact=True).fill("4")
        reader.page.get_by_role("button", name="Show").click()
        reader.wait_for_figure("Created", "2")

        assert "strategy_id=4" in reader.page.url


def test_hours_without_counts_say_what_to_do(chromium: Browser, server: ServerProcess) -> None:
    with visit(chromium, server) as reader:
        reader.open("hours", "user_id=99")

        reader.page.get_by_text("Nothing was counted for user 99").wait_for()
        assert '"user_id":99' in reader.text(".empty code")


def test_a_span_that_is_too_long_is_refused_in_words(chromium: Browser, server: ServerProcess) -> None:
    with visit(chromium, server, expected=("422",)) as reader:
        reader.open("hours", "user_id=7&from=2020-01-01T00:00&to=2020-06-01T00:00")

        reader.page.locator("main .notice", has_text="must be at most 31 days after from").wait_for()


# ---- connections


def test_connections_are_listed_and_filtered_and_what_ended_is_counted(
    chromium: Browser, own_server: ServerProcess
) -> None:
    with visit(chromium, own_server) as other, visit(chromium, own_server) as reader:
        other.open("stream", "user_id=8&strategy_id=4")
        own_server.wait_for_connections(1)
        reader.open("connections")
        reader.wait_for_figure("Open", "1")
        assert reader.page.locator("tbody tr td").first.inner_text() == "8"
        reader.page.get_by_label("User", exact=True).fill("7")
        reader.page.keyboard.press("Enter")
        reader.page.get_by_text("User 7 is not connected").wait_for()
        assert "user_id=7" in reader.page.url
        other.page.get_by_role("button", name="Disconnect").click()

        reader.page.locator(".bars li", has_text="client_closed").wait_for()


# ---- the key


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that asks its callers for a key."""
    keys = Path(tmp_path_factory.mktemp("keys")) / "keys"
    keys.write_text(f"{key_of('operator', ['read', 'emit'], SECRET).line}\n")
    with running_server("--durability=none", "--internal-auth=keys", f"--internal-keys={keys}") as started:
        yield started


def test_the_key_is_asked_for_and_a_wrong_one_is_told(chromium: Browser, keyed: ServerProcess) -> None:
    with visit(chromium, keyed, expected=("401",)) as reader:
        reader.open("overview")
        dialog = reader.page.get_by_role("dialog")
        dialog.wait_for()
        assert reader.page.evaluate("document.activeElement.id") == "key-input"
        _type_key(reader, WRONG)
        reader.page.locator("#key-problem", has_text="does not count").wait_for()
        _type_key(reader, SECRET)
        reader.wait_for_state("Live")

        assert not dialog.is_visible()
        assert reader.page.locator("#key-input").input_value() == ""


def test_what_no_header_can_carry_is_no_key(chromium: Browser, keyed: ServerProcess) -> None:
    with visit(chromium, keyed) as reader:
        reader.open("overview")
        _type_key(reader, f"{SECRET}\u200b")  # as pages to copy from have it
        reader.page.locator("#key-problem", has_text="That is no key").wait_for()
        _type_key(reader, SECRET)
        reader.wait_for_state("Live")


def test_a_line_to_paste_has_a_place_for_the_key(chromium: Browser, keyed: ServerProcess) -> None:
    with visit(chromium, keyed) as reader:
        reader.open("connections")
        _type_key(reader, SECRET)

        assert "Authorization: Bearer $KEY" in reader.page.locator(".code").inner_text()


def test_the_key_opens_every_page_and_is_kept_nowhere(chromium: Browser, keyed: ServerProcess) -> None:
    with visit(chromium, keyed) as reader:
        reader.open("overview")
        _type_key(reader, SECRET)
        reader.wait_for_state("Live")
        for name in ("connections", "hours", "stream"):
            reader.page.locator(f"nav a[data-page={name}]").click()
            reader.page.locator(f"nav a[data-page={name}][aria-current]").wait_for()
            reader.wait_for_page()
        reader.page.get_by_label("User", exact=True).fill("7")
        reader.page.get_by_role("button", name="Connect", exact=True).click()
        reader.wait_for_state("Open")

        assert reader.page.locator("main .notice.bad").count() == 0
        kept: Any = reader.page.evaluate(WHATEVER_IS_KEPT)
        assert SECRET not in json.dumps(kept)
        assert SECRET not in reader.page.content()
        assert all(SECRET not in each.url for each in reader.requests)
        assert SECRET not in keyed.log.read_text()
        assert SECRET not in json.dumps(reader.page.context.storage_state())
        reader.page.reload()
        reader.page.get_by_role("dialog").wait_for()


WHATEVER_IS_KEPT = """async () => [
  { ...localStorage }, { ...sessionStorage }, document.cookie, location.href, JSON.stringify(history.state),
  Object.keys(window).filter(name => typeof window[name] === 'string').map(name => window[name]),
  (await indexedDB.databases()).map(each => each.name), await caches.keys(),
]"""


def test_who_gives_no_key_is_not_asked_again_and_again(chromium: Browser, keyed: ServerProcess) -> None:
    with visit(chromium, keyed) as reader:
        reader.page.clock.install()
        reader.open("overview")
        reader.page.get_by_role("dialog").wait_for()
        reader.page.keyboard.press("Escape")
        reader.page.locator("main .notice", has_text="A key is needed").wait_for()
        reader.page.clock.run_for(20_000)
        assert not reader.page.get_by_role("dialog").is_visible()
        reader.page.locator("main .notice").get_by_role("button", name="Enter a key").click()
        _type_key(reader, SECRET)

        reader.wait_for_state("Live")


def test_a_wrong_key_is_forgotten_by_whoever_gives_up(chromium: Browser, keyed: ServerProcess) -> None:
    with visit(chromium, keyed, expected=("401",)) as reader:
        reader.open("overview")
        _type_key(reader, WRONG)
        reader.page.locator("#key-problem", has_text="does not count").wait_for()
        reader.page.keyboard.press("Escape")
        reader.wait_for_state("Key needed")

        assert reader.page.locator("#key-button").inner_text() == "Enter a key"


def test_a_key_that_is_forgotten_is_not_sent_any_more(chromium: Browser, keyed: ServerProcess) -> None:
    with visit(chromium, keyed) as reader:
        reader.open("overview")
        _type_key(reader, SECRET)
        reader.wait_for_state("Live")
        reader.page.get_by_role("button", name="Forget the key").click()
        reader.page.locator("main .notice", has_text="A key is needed").wait_for()
        # Whoever forgets it on purpose is not asked for it at once.
        assert not reader.page.get_by_role("dialog").is_visible()

        assert reader.page.get_by_role("button", name="Enter a key").count() == 2


def test_where_nobody_is_asked_there_is_no_talk_of_keys(chromium: Browser, server: ServerProcess) -> None:
    with visit(chromium, server) as reader:
        reader.open("overview")
        reader.wait_for_state("Live")

        assert not reader.page.locator("#key-button").is_visible()
        assert not reader.page.get_by_role("dialog").is_visible()


def _type_key(reader: Visit, secret: str) -> None:
    reader.page.locator("#key-dialog[open]").wait_for()
    reader.page.locator("#key-input").fill(secret)
    reader.page.keyboard.press("Enter")


# ---- reading metrics


SCRAPE = r"""# HELP a_total Something.
# TYPE a_total counter
a_total{outcome="one",text="a \"quoted\", {brace} \\ back\nslash"} 3
a_total{outcome="two",text=""} 4.5e1
b_bytes 1.0
empty_seconds_bucket{le="0.1"} 8
empty_seconds_bucket{le="1"} 10
empty_seconds_bucket{le="+Inf"} 10
empty_seconds_sum 2
empty_seconds_count 10
"""

READ = """async ([before, after]) => {
  const { Scrape, perSecond, meanBetween, quantileBetween } = await import('./metrics.js')
  const [one, two] = [new Scrape(before), new Scrape(after)]
  return {
    sum: two.value('a_total'), one: two.value('a_total', { outcome: 'one' }), none: two.value('c') ?? null,
    by: two.by('a_total', 'outcome'), text: two.labels('a_total').text,
    rate: perSecond(one, two, 2, 'a_total'), first: perSecond(null, two, 2, 'a_total'),
    mean: meanBetween(one, two, 'empty_seconds'), p50: quantileBetween(one, two, 'empty_seconds', 0.5),
    p90: quantileBetween(one, two, 'empty_seconds', 0.9), still: meanBetween(two, two, 'empty_seconds'),
    restarted: perSecond(two, new Scrape(before + '\\nprocess_start_time_seconds 5'), 2, 'a_total'),
  }
}"""


def test_metrics_are_read_as_they_are_written(chromium: Browser, server: ServerProcess) -> None:
    with visit(chromium, server) as reader:
        reader.open("overview")
        read: Any = reader.page.evaluate(READ, ['a_total{outcome="one"} 1', SCRAPE])

    assert read == {
        "sum": 48, "one": 3, "none": None, "by": {"one": 3, "two": 45},
        "text": 'a "quoted", {brace} \\ back\nslash',
        "rate": 23.5, "first": None, "mean": 0.2, "p50": 0.0625, "p90": 0.55, "still": None, "restarted": None,
    }  # fmt: skip
