"""Look-up, test batch and API of the console, in a real browser at a real server."""

import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec import msgpack
from playwright.sync_api import Browser, Locator, Route, expect

from core.access import key_of
from core.reports import BATCHES_LISTED, KEYS_LISTED
from handlers.descriptions import EVENTS
from handlers.openapi import document
from tests.e2e.console import CANCELLED, CREATED, NARROW, WIDE, Visit, violations, visit
from tests.e2e.programs import installed
from tests.e2e.test_clients import browser
from tests.process import ServerProcess, running_server, wait_until

MARKUP = "<img src=x onerror=document.title='hit'>"
MARKUP_AS_A_NAME = "<img/src=x/onerror=document.title='hit'>"
"""A caller's name has no blanks."""

SECRET = "the-secret-of-the-console"
REFUSED = ("Failed to load resource",)
"""What Chromium says of every answer that is no 2xx."""

OPERATIONS: dict[str, tuple[str, str, Any]] = {
    operation["operationId"]: (method.upper(), path, operation)
    for path, item in json.loads(document())["paths"].items()
    for method, operation in item.items()
    if isinstance(operation, dict) and "operationId" in operation
}
INTERNAL = [name for name, (_, _, operation) in OPERATIONS.items() if "internal" in operation["x-listener"]]
PUBLIC = [name for name in OPERATIONS if name not in INTERNAL]
FILLED_IN = {
    "batches": {"user_id": "7", "strategy_id": "3"},
    **{operation: {"user_id": "7"} for operation in ("stream", "totals", "ownHours")},
    # Of nobody that another test asks about.
    "deleteUser": {"user (needed)": "9000"},
    "revoke": {"Body": '{"user_id": 9000}'},
    "emit": {"Body": '{"user_id": 9001, "strategy_id": 3, "batch_results": []}'},
}
"""Parameters without which an operation makes no sense and that the document cannot call required, and bodies."""

WITHOUT_TOKENS = {"startSession": 403, "ticket": 403, "endSession": 204}
"""How a server that asks no reader for a token answers what is about tokens."""

QUIET_MS = 500
"""Ten times as long as a flow of 20 a second pauses between two batches."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """One that has counted something of user 7; other users belong to a test each."""
    with running_server("--durability=none", "--console-emit=on", "--heartbeat-seconds=1") as started:
        started.emit(7, 3, CREATED, CREATED, CANCELLED)
        started.emit(7, 4, CREATED)
        yield started
        assert "Traceback" not in started.log.read_text()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One that asks for a key, whose caller has a name that would be an element."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(key_of(MARKUP_AS_A_NAME, ["emit", "read", "admin"], SECRET).line + "\n")
    with running_server(
        "--durability=none", "--console-emit=on", "--internal-auth=keys", f"--internal-keys={keys}"
    ) as started:
        yield started


@contextmanager
def connected(server: ServerProcess, query: str) -> Iterator[None]:
    """A stream that stays open."""
    with urllib.request.urlopen(f"{server.public}/stream?{query}", timeout=20) as response:
        response.readline()
        yield


def rows(within: Locator) -> Locator:
    return within.locator("tbody tr")


def card(reader: Visit, heading: str) -> Locator:
    return reader.page.locator("main .card", has=reader.page.get_by_role("heading", name=heading, exact=True))


def press(reader: Visit, name: str) -> None:
    reader.page.locator("main").get_by_role("button", name=name, exact=True).click()


# ---- look-up


def test_a_user_is_looked_up_by_its_id_alone(chromium: Browser, server: ServerProcess) -> None:
    with visit(chromium, server) as reader, connected(server, "user_id=7&strategy_id=3"):
        reader.open("lookup")
        reader.page.get_by_label("User", exact=True).fill("7")
        reader.page.keyboard.press("Enter")

        keys = card(reader, "Strategies of user 7")
        expect(rows(keys)).to_have_count(2)
        assert rows(keys).nth(0).locator("td").all_inner_texts()[:6] == ["3", "2", "1", "LIMIT, STOP_LIMIT", "1", "1"]
        assert rows(keys).nth(1).locator("td").all_inner_texts()[:6] == ["4", "1", "0", "LIMIT", "1", "0"]
        connections = rows(card(reader, "Connections"))
        expect(connections).to_have_count(1)
        assert connections.locator("td").all_inner_texts()[:3] == ["3", "ready", "0"]


def test_a_strategy_leads_to_its_totals_and_its_batches(chromium: Browser, server: ServerProcess) -> None:
    with visit(chromium, server) as reader:
        reader.open("lookup", "user_id=7")
        rows(card(reader, "Strategies of user 7")).nth(0).get_by_role("link").click()

        expect(rows(card(reader, "Batches"))).to_have_count(1)
        batch = rows(card(reader, "Batches")).locator("td").all_inner_texts()
        assert batch[1:] == [server.get("/internal/keys/7/3")["head"], "LIMIT +2 −0, STOP_LIMIT +0 −1"]
        assert [reader.figure(label) for label in ("Created", "Cancelled", "Batches")] == ["2", "1", "1"]


def test_all_strategies_and_all_batches_are_reached_page_by_page(chromium: Browser, server: ServerProcess) -> None:
    strategies, batches = KEYS_LISTED + 5, BATCHES_LISTED + 5
    calls = [*range(1, strategies + 1), *[1] * (batches - 1)]
    server.post(
        "/internal/emit",
        [{"user_id": 20, "strategy_id": strategy, "batch_results": [CREATED]} for strategy in calls],
    )
    with visit(chromium, server) as reader:
        reader.open("lookup", "user_id=20")
        keys = card(reader, "Strategies of user 20")
        expect(rows(keys)).to_have_count(KEYS_LISTED)
        press(reader, "Show more strategies")
        expect(rows(keys)).to_have_count(strategies)
        expect(keys.get_by_role("button")).to_have_count(0)

        reader.open("lookup", "user_id=20&strategy_id=1")
        listed = card(reader, "Batches")
        expect(rows(listed).first).to_be_attached()
        while listed.get_by_role("button", name="Show more").is_visible():
            seen = rows(listed).count()
            listed.get_by_role("button", name="Show more").click()
            expect(rows(listed).nth(seen)).to_be_attached()
        positions = rows(listed).locator("td:nth-child(2)").all_inner_texts()
        assert len(positions) == len(set(positions)) == batches


def test_batches_are_asked_for_by_time(chromium: Browser, server: ServerProcess) -> None:
    with visit(chromium, server) as reader:
        reader.open("lookup", "user_id=7&strategy_id=3")
        batches = card(reader, "Batches")
        expect(rows(batches)).to_have_count(1)
        reader.page.get_by_label("Which").select_option("a span of time")
        reader.page.get_by_label("To", exact=True).fill("2020-01-31T14:00:00")
        press(reader, "Ask")

        expect(batches.get_by_text("None is kept of that time")).to_be_visible()
        reader.page.get_by_label("To", exact=True).fill("")
        reader.page.get_by_label("From", exact=True).fill("2020-01-31T14:00:00")
        press(reader, "Ask")
        expect(rows(batches)).to_have_count(1)


def test_batches_that_are_asked_for_twice_are_listed_once(chromium: Browser, server: ServerProcess) -> None:
    with visit(chromium, server) as reader:
        held: list[Route] = []
        reader.page.route("**/internal/batches?*", lambda route: held.append(route))
        reader.open("lookup", "user_id=7&strategy_id=3")
        reader.page.get_by_label("Which").select_option("all")
        wait_until(lambda: reader.page.evaluate("true") and len(held) == 2, "both questions")
        for route in held:
            route.continue_()
        expect(reader.page.get_by_role("region", name="Batches", exact=True)).to_have_count(1)
        reader.page.wait_for_load_state("networkidle")

        assert reader.page.get_by_role("region", name="Batches", exact=True).count() == 1


def test_a_user_nobody_knows_is_explained(chromium: Browser, server: ServerProcess) -> None:
    with visit(chromium, server) as reader:
        reader.open("lookup", "user_id=9999")

        expect(reader.page.get_by_text("Nothing was ever accepted for user 9999")).to_be_visible()


def test_a_bad_user_is_refused_in_words(chromium: Browser, server: ServerProcess) -> None:
    with visit(chromium, server, expected=REFUSED) as reader:
        reader.open("lookup", f"user_id={MARKUP}")

        expect(reader.page.locator("main .notice.bad")).to_contain_text("must be an integer")
        expect(reader.page.locator("main .notice.bad")).to_contain_text("<img")


def test_an_idempotency_key_leads_to_its_batch_and_markup_in_it_is_text(
    chromium: Browser, server: ServerProcess
) -> None:
    batch = {"user_id": 21, "strategy_id": 3, "batch_results": [CREATED], "idempotency_key": MARKUP}
    position = server.post("/internal/emit", batch)["position"]
    with visit(chromium, server) as reader:
        reader.open("lookup")
        reader.page.get_by_label("Idempotency key").fill(MARKUP)
        reader.page.keyboard.press("Enter")

        found = card(reader, "Accepted, and counted once")
        for text in (MARKUP, "local", "21", position):
            expect(found.get_by_text(text, exact=True)).to_be_visible()
        assert reader.page.locator("main img").count() == 0
        assert reader.page.title() != "hit"


def test_a_key_that_nothing_was_accepted_under_is_explained(chromium: Browser, server: ServerProcess) -> None:
    with visit(chromium, server) as reader:
        reader.open("lookup", f"idempotency_key={MARKUP}-of-nobody")

        expect(reader.page.get_by_text("Nothing was accepted under this key")).to_be_visible()
        expect(reader.page.get_by_text("So the batch can be emitted again")).to_be_visible()
        assert reader.page.locator("main img").count() == 0


def test_with_keys_every_page_asks_once_and_shows_the_key_nowhere(chromium: Browser, guarded: ServerProcess) -> None:
    with visit(chromium, guarded) as reader:
        reader.page.goto(f"{guarded.internal}/console/#/emit?user_id=7&strategy_id=3")
        reader.page.get_by_label("Idempotency key").fill(MARKUP)
        press(reader, "Send the batch")
        reader.page.get_by_label("Key", exact=True).fill(SECRET)
        reader.page.keyboard.press("Enter")
        expect(reader.page.get_by_text("accepted", exact=True)).to_be_visible()
        reader.page.get_by_role("link", name=MARKUP).click()

        expect(reader.page.get_by_text(MARKUP_AS_A_NAME, exact=True)).to_be_visible()
        reader.page.evaluate("location.hash = '#/api?operation=connections'")
        press(reader, "Send")
        expect(reader.page.locator(".operation[open] .badge", has_text="200")).to_be_visible()
        assert '-H "Authorization: Bearer $KEY"' in reader.text(".operation[open] form pre")
        assert SECRET not in reader.page.content()
        assert SECRET not in reader.page.url
        assert reader.page.title() != "hit"


# ---- test batch


def test_a_batch_is_sent_and_its_answer_told(chromium: Browser, server: ServerProcess) -> None:
    with visit(chromium, server) as reader, connected(server, "user_id=30&strategy_id=3"):
        reader.open("emit", "user_id=30&strategy_id=3")
        press(reader, "Send the batch")

        answer = card(reader, "The answer")
        expect(answer.get_by_text("accepted", exact=True)).to_be_visible()
        assert rows(answer).locator("td").all_inner_texts() == ["LIMIT", "1", "0", "STOP_LIMIT", "0", "1"]
        expect(answer.locator("dd").nth(0)).to_have_text(server.get("/internal/keys/30/3")["head"])
        expect(answer.locator("dd").nth(1)).to_have_text("1")
        answer.get_by_role("link", name="Watch this stream").click()
        assert reader.page.url.endswith("#/stream?user_id=30&strategy_id=3")


def test_the_same_again_under_a_key_is_a_duplicate(chromium: Browser, server: ServerProcess) -> None:
    with visit(chromium, server) as reader:
        reader.open("emit", "user_id=31&strategy_id=3")
        press(reader, "Ten at random")
        press(reader, "Make one")
        press(reader, "Send the batch")
        press(reader, "Send the same again")

        expect(card(reader, "The answer").get_by_text("duplicate", exact=True)).to_be_visible()
        assert server.get("/internal/keys/31/3")["batches"] == 1


def test_the_rows_are_what_is_sent(chromium: Browser, server: ServerProcess) -> None:
    with visit(chromium, server) as reader:
        reader.open("emit", "user_id=32&strategy_id=3")
        press(reader, "Remove result 1")
        reader.page.get_by_label("Order type of result 1").fill("ICEBERG")
        reader.page.get_by_label("Event type of result 1").select_option("order_created")
        press(reader, "Add a result")
        reader.page.get_by_label("success").nth(1).uncheck()
        press(reader, "Send the batch")

        expect(rows(card(reader, "The answer"))).to_have_count(1)
        assert server.get("/internal/keys/32/3")["totals"] == [{"order_type": "ICEBERG", "created": 1, "cancelled": 0}]


def test_what_counts_nothing_is_said_to_be_skipped(chromium: Browser, server: ServerProcess) -> None:
    with visit(chromium, server) as reader:
        reader.open("emit", "user_id=33&strategy_id=3")
        press(reader, "Remove all")
        press(reader, "Send the batch")

        expect(card(reader, "The answer").get_by_text("Nothing in it counts")).to_be_visible()


def test_a_refusal_of_a_batch_is_told_with_its_code(chromium: Browser, server: ServerProcess) -> None:
    with visit(chromium, server, expected=REFUSED) as reader:
        reader.open("emit", "user_id=34&strategy_id=")
        press(reader, "Send the batch")
        expect(card(reader, "The answer").locator(".notice.bad")).to_contain_text("strategy_id_missing")

        reader.page.get_by_label("Strategy", exact=True).fill("3")
        reader.page.get_by_label("Order type of result 1").fill(MARKUP)
        press(reader, "Send the batch")
        expect(card(reader, "The answer").locator(".notice.warn")).to_contain_text("$.batch_results[0].order_type")
        assert reader.page.locator("main img").count() == 0


def test_the_line_for_a_shell_sends_the_same_batch(chromium: Browser, server: ServerProcess) -> None:
    with visit(chromium, server) as reader:
        reader.open("emit", "user_id=35&strategy_id=3")
        reader.page.get_by_label("Idempotency key").fill("it's $HOME")
        reader.page.get_by_text("The same in a shell").click()
        line = reader.text("main form details pre")
        press(reader, "Send the batch")
        expect(card(reader, "The answer").get_by_text("accepted", exact=True)).to_be_visible()

    assert json.loads(in_a_shell(f"{line} --silent --show-error"))["duplicate"] is True


def test_a_steady_flow_arrives_whole(chromium: Browser, server: ServerProcess) -> None:
    with visit(chromium, server) as reader:
        reader.open("emit", "user_id=36&strategy_id=3")
        reader.page.get_by_label("Batches a second").fill("10")
        reader.page.get_by_label("Seconds").fill("1")
        press(reader, "Start")

        expect(reader.page.get_by_text("Every order that was counted has arrived, once")).to_be_visible(timeout=20_000)
        counts = server.get("/internal/keys/36/3")
        orders = sum(each["created"] + each["cancelled"] for each in counts["totals"])
        assert reader.figure("Batches accepted") == str(counts["batches"]) == "10"
        assert reader.figure("Orders arrived") == reader.figure("Orders counted") == str(orders)
        expect(reader.page.locator("canvas")).to_have_count(1)


@pytest.mark.parametrize("ends", ["leaving", "Stop"])
def test_a_steady_flow_ends_when_its_reader_leaves_or_says_so(
    chromium: Browser, server: ServerProcess, ends: str
) -> None:
    with visit(chromium, server) as reader:
        reader.open("emit", "user_id=37&strategy_id=3")
        reader.page.get_by_label("Batches a second").fill("99")
        reader.page.get_by_label("Seconds").fill("99")
        press(reader, "Start")
        assert [reader.page.get_by_label(label).input_value() for label in ("Batches a second", "Seconds")] == [
            "20",
            "60",
        ]
        reader.wait_for_figure("Batches accepted", "3")
        if ends == "leaving":
            reader.page.evaluate("location.hash = '#/lookup'")
        else:
            press(reader, ends)
        server.wait_for_connections(0, "/internal/connections?user_id=37")
        sent = len([each for each in reader.requests if each.url.endswith("/internal/emit")])
        reader.page.evaluate(f"new Promise(resolve => setTimeout(resolve, {QUIET_MS}))")

        assert len([each for each in reader.requests if each.url.endswith("/internal/emit")]) == sent
        assert server.get("/internal/keys/37/3")["batches"] < 20 * 60


def test_where_test_batches_are_off_the_page_says_how_to_allow_them(chromium: Browser) -> None:
    with running_server("--durability=none") as closed, visit(chromium, closed) as reader:
        reader.open("emit")

        expect(reader.page.get_by_text("--console-emit=on")).to_be_visible()
        assert reader.page.locator("nav").get_by_text("Test batch").count() == 0


# ---- API


def opened(reader: Visit, operation: str) -> Locator:
    """The operation, opened by its address."""
    reader.open("api", f"operation={operation}")
    found = reader.page.locator(f".operation[data-operation={operation}]")
    found.locator("h3", has_text="Answers").wait_for()
    return found


def fill_in(shown: Locator, operation: str) -> None:
    """What it needs beside what the page has filled in already."""
    for name, value in FILLED_IN.get(operation, {}).items():
        shown.get_by_label(name, exact=True).fill(value)


def status_of(shown: Locator) -> str:
    """The line for a shell, made to print the status that it is answered."""
    line = shown.locator("form pre").first.inner_text()
    return f"{line} -s -o /dev/null -w '%{{http_code}}' --max-time 1"


def send(shown: Locator) -> int:
    """Send what the form has, with the confirmation where one is asked for; answers the status."""
    button = shown.locator("form button.primary")
    button.click()
    confirmation = shown.locator("form.notice")
    if confirmation.count():
        (word,) = confirmation.locator("label").all_inner_texts()
        confirmation.get_by_role("textbox").fill(word.removeprefix("Type ").removesuffix(" to go on"))
        confirmation.locator("button.danger").click()
    status = shown.locator("[aria-live] .badge").first
    status.wait_for()
    return int(status.inner_text().split()[0])


def in_a_shell(line: str) -> str:
    """What a line for a shell prints, without a key."""
    installed("curl")
    printed = subprocess.run(["sh", "-c", line], capture_output=True, check=False, timeout=30, text=True)
    return printed.stdout


def test_every_operation_of_the_internal_listener_is_tried_from_the_page(
    chromium: Browser, server: ServerProcess
) -> None:
    with visit(chromium, server) as reader:
        for operation in INTERNAL:
            shown = opened(reader, operation)
            fill_in(shown, operation)
            assert send(shown) == 200, operation
            assert in_a_shell(status_of(shown)) == "200", operation


def test_every_operation_of_the_public_listener_is_tried_where_a_page_may(
    chromium: Browser, server: ServerProcess
) -> None:
    with visit(chromium, server, expected=REFUSED) as reader:
        for operation in PUBLIC:
            shown = opened(reader, operation)
            fill_in(shown, operation)
            wanted = WITHOUT_TOKENS.get(operation, 200)
            if operation.endswith("PreFlight"):
                wanted = 204
                expect(shown.get_by_text("let no page send one")).to_be_visible()
            else:
                assert send(shown) == wanted, operation
            assert in_a_shell(status_of(shown)) == str(wanted), operation
        tried = [each for each in reader.requests if each.url.startswith(server.public)]
        assert len(tried) >= len([each for each in PUBLIC if not each.endswith("PreFlight")])
        # Only the public listener of the same server, and only because it was asked for.
        reader.requests[:] = [each for each in reader.requests if each not in tried]


def test_a_key_goes_to_no_other_listener(chromium: Browser, guarded: ServerProcess) -> None:
    with visit(chromium, guarded) as reader:
        shown = opened(reader, "connections")
        shown.locator("form button.primary").click()
        reader.page.get_by_label("Key", exact=True).fill(SECRET)
        reader.page.keyboard.press("Enter")
        shown.locator("[aria-live] .badge").first.wait_for()
        shown = opened(reader, "totals")
        fill_in(shown, "totals")
        assert send(shown) == 200
        (tried,) = (each for each in reader.requests if each.url.startswith(guarded.public))

        assert "authorization" not in tried.headers
        assert "$KEY" not in shown.locator("form pre").first.inner_text()
        reader.requests.remove(tried)


def test_where_a_page_may_not_call_the_public_listener_it_says_so(chromium: Browser, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(os.urandom(48).hex())
    with (
        running_server("--durability=none", "--auth=jwt", f"--jwt-keys=HS256={secret}") as strict,
        visit(chromium, strict) as reader,
    ):
        shown = opened(reader, "stream")

        expect(shown.get_by_text("may not read")).to_be_visible()
        assert shown.locator("form button.primary").count() == 0
        assert "curl -N" in shown.locator("form pre").inner_text()


def test_a_body_is_sent_in_every_encoding(chromium: Browser, server: ServerProcess) -> None:
    with visit(chromium, server) as reader:
        shown = opened(reader, "emit")
        for media_type in ("application/json", "application/x-ndjson", "application/msgpack"):
            shown.get_by_label("Body as").select_option(media_type)
            assert send(shown) == 200
            expect(shown.locator("[aria-live] pre").last).to_contain_text('"accepted"')


def test_whatever_json_has_is_packed_as_messagepack_reads_it(chromium: Browser, server: ServerProcess) -> None:
    values: Any = [
        *[None, True, False, 0, 1, 127, 128, -1, -33, 2**31, 2**53 - 1, -(2**53) + 1, 0.5, -1e300, 2.0**63],
        *["", "x" * 31, "x" * 32, "x" * 255, "x" * 256, "naïve ∑ 🦊", [], [1] * 15, [1] * 16],
        *[{}, {"a": {"b": [None]}}, {str(n): n for n in range(20)}],
    ]
    # Values of this size are made in the page: to hand them over would take half a minute.
    large = (
        "'x'.repeat(70_000), Array(70_000).fill(1), Object.fromEntries(Array(70_000).fill(1).map((one, n) => [n, one]))"
    )
    with visit(chromium, server) as reader:
        reader.open("api")
        packed = reader.page.evaluate(
            "async values => (await import('/console/msgpack.js')).pack([...values, LARGE]).toHex()".replace(
                "LARGE", large
            ),
            values,
        )

    *small, text, items, fields = msgpack.decode(bytes.fromhex(packed))
    assert small == values
    assert (text, items, fields) == ("x" * 70_000, [1] * 70_000, {str(n): 1 for n in range(70_000)})


def test_what_is_missing_is_named_before_anything_is_sent(chromium: Browser, server: ServerProcess) -> None:
    with visit(chromium, server) as reader:
        shown = opened(reader, "key")
        shown.get_by_label("strategy (needed)").fill("")
        shown.locator("form button.primary").click()

        expect(shown.get_by_role("alert")).to_have_text("strategy is needed.")
        expect(shown.get_by_label("strategy (needed)")).to_be_focused()
        assert not [each for each in reader.requests if "/internal/keys/" in each.url]


def test_a_refusal_is_an_answer_like_any_other(chromium: Browser, server: ServerProcess) -> None:
    with visit(chromium, server, expected=REFUSED) as reader:
        shown = opened(reader, "batches")
        shown.get_by_label("idempotency_key").fill(MARKUP)
        shown.get_by_label("after").fill(MARKUP)

        assert send(shown) == 422
        expect(shown.locator("[aria-live] pre").last).to_contain_text('"code": "invalid_query"')
        assert reader.page.locator("main img").count() == 0


def test_nothing_is_deleted_before_the_id_is_typed(chromium: Browser, server: ServerProcess) -> None:
    server.emit(40, 3, CREATED)
    with visit(chromium, server) as reader:
        shown = opened(reader, "deleteUser")
        shown.get_by_label("user (needed)").fill("40")
        shown.locator("form button.primary").click()
        go = shown.locator("button.danger")
        shown.get_by_label("Type 40 to go on").fill("4")
        expect(go).to_be_disabled()
        reader.page.keyboard.press("Enter")
        assert server.get("/internal/keys/40/3")["batches"] == 1

        shown.get_by_label("Type 40 to go on").fill("40")
        go.click()
        expect(shown.locator("[aria-live] pre").last).to_contain_text('"rows": 1')
    assert server.get("/internal/keys/40")["keys"] == []


def test_a_confirmation_is_for_the_ids_that_it_was_asked_about(chromium: Browser, server: ServerProcess) -> None:
    with visit(chromium, server) as reader:
        shown = opened(reader, "revoke")
        shown.get_by_label("Body", exact=True).fill('{"user_id": 41, "strategy_id": 3}')
        shown.locator("form button.primary").click()
        expect(shown.get_by_label("Type 41 3 to go on")).to_be_focused()

        shown.get_by_label("Body", exact=True).fill('{"user_id": 7}')
        expect(shown.locator("form.notice")).to_have_count(0)


@pytest.mark.parametrize("ends", ["leaving", "Stop"])
def test_a_stream_is_shown_as_it_arrives_until_it_is_stopped(
    chromium: Browser, server: ServerProcess, ends: str
) -> None:
    with visit(chromium, server) as reader:
        shown = opened(reader, "anyStream")
        shown.get_by_label("user_id").fill("42")
        shown.get_by_label("strategy_id").fill("3, 4")
        assert send(shown) == 200
        log = shown.get_by_label("The stream as it arrives")
        expect(log).to_contain_text("event: stream_open")
        position = server.emit(42, 4, CREATED)["position"]
        expect(log).to_contain_text(f"id: {position}")
        if ends == "leaving":
            reader.page.evaluate("location.hash = '#/lookup'")
        else:
            press(reader, ends)
            expect(shown.get_by_text("Stopped.")).to_be_visible()

        server.wait_for_connections(0, "/internal/connections?user_id=42")


def test_a_long_stream_does_not_fill_the_page(chromium: Browser, server: ServerProcess) -> None:
    with visit(chromium, server) as reader:
        shown = opened(reader, "anyStream")
        shown.get_by_label("user_id").fill("43")
        assert send(shown) == 200
        expect(shown.get_by_label("The stream as it arrives")).to_contain_text("stream_open")
        for _ in range(300):
            position = server.emit(43, 3, CREATED)["position"]
        log = shown.get_by_label("The stream as it arrives")
        expect(log).to_contain_text(f"id: {position}")

        text = log.inner_text()
        assert len(text) <= 20_000
        assert text.startswith("event: ")


def test_a_search_leaves_what_has_all_its_words(chromium: Browser, server: ServerProcess) -> None:
    with visit(chromium, server) as reader:
        reader.open("api")
        reader.page.get_by_label("Search").fill("ADMIN user")

        expect(reader.page.locator(".operation:visible")).to_have_count(2)
        expect(reader.page.get_by_text(f"2 of {len(OPERATIONS)} operations")).to_be_visible()
        reader.page.get_by_label("Search").fill("no such words")
        expect(reader.page.get_by_text("No operation has these words")).to_be_visible()


def test_every_operation_says_what_it_takes_and_answers(chromium: Browser, server: ServerProcess) -> None:
    with visit(chromium, server) as reader:
        for operation, (method, path, described) in OPERATIONS.items():
            shown = opened(reader, operation)
            for text in filter(None, (method, path, described["summary"], described.get("description"))):
                expect(shown.get_by_text(text, exact=True).first).to_be_visible()
            labels = " ".join(shown.locator("form label").all_inner_texts())
            assert [each["name"] for each in described.get("parameters", []) if each["name"] not in labels] == []
            answers = shown.locator(".answers > details > summary").all_inner_texts()
            assert [text.split()[0] for text in answers] == sorted(described["responses"])


@pytest.mark.parametrize(
    ("operation", "within"), [("emit", ["BatchResult", "Accepted", "Summary"]), ("stream", [*EVENTS, "StreamInfo"])]
)
def test_schemas_and_events_are_read_to_the_bottom(
    chromium: Browser, server: ServerProcess, operation: str, within: list[str]
) -> None:
    with visit(chromium, server) as reader:
        shown = opened(reader, operation)
        open_all(reader)

        for name in within:
            expect(shown.locator("summary code", has_text=name).first).to_be_visible()
        expect(shown.get_by_text("2^53 - 1").first).to_be_visible()


def open_all(reader: Visit) -> None:
    """Open everything of the operation, and what is in there."""
    closed = reader.page.locator(".operation[open] details:not([open])")
    while closed.count():
        reader.page.evaluate("document.querySelectorAll('.operation[open] details').forEach(each => each.open = true)")
        # They are filled in a task behind the one that opens them.
        reader.page.evaluate("new Promise(done => setTimeout(done))")


# ---- for everybody


@pytest.mark.parametrize(("colours", "width"), [("light", NARROW), ("dark", WIDE)])
def test_filled_pages_are_accessible_and_need_no_sideways_scrolling(
    chromium: Browser, server: ServerProcess, colours: str, width: int
) -> None:
    key = "a-rather-long-key-" + "x" * 100
    batch = {"user_id": 44, "strategy_id": 3, "batch_results": [CREATED], "idempotency_key": key}
    server.post("/internal/emit", batch)
    with (
        visit(chromium, server, colours=colours, width=width, bypass_csp=True, expected=REFUSED) as reader,
        connected(server, "user_id=7&strategy_id=3&strategy_id=4"),
    ):
        for page in ("user_id=7", "user_id=7&strategy_id=3", "user_id=9999", f"idempotency_key={key}", "user_id=x"):
            reader.open("lookup", page)
            reader.page.locator("main .page .page > *").first.wait_for()
            assert (violations(reader), reader.overflow()) == ([], 0), page

        reader.open("emit")
        press(reader, "Ten at random")
        press(reader, "Make one")
        press(reader, "Send the batch")
        press(reader, "Send the same again")
        expect(reader.page.get_by_text("duplicate", exact=True)).to_be_visible()
        reader.page.get_by_text("The same in a shell").click()
        assert (violations(reader), reader.overflow()) == ([], 0)

        for operation in ("emit", "deleteUser", "anyStream", "batches", "streamPreFlight"):
            shown = opened(reader, operation)
            if shown.locator("form button.primary").count():
                shown.locator("form button.primary").click()
                shown.locator("form.notice, [aria-live] .badge").first.wait_for()
            reader.page.evaluate(
                "document.querySelectorAll('.operation[open] details').forEach(each => each.open = true)"
            )
            reader.page.evaluate("new Promise(requestAnimationFrame)")
            assert (violations(reader), reader.overflow()) == ([], 0), operation


def test_an_operation_is_tried_by_keyboard_alone(chromium: Browser, server: ServerProcess) -> None:
    with visit(chromium, server) as reader:
        reader.open("api")
        reader.page.get_by_label("Search").focus()
        reader.page.keyboard.type("/internal/keys/{user}/{strategy}")
        expect(reader.page.locator(".operation:visible")).to_have_count(1)
        reader.page.keyboard.press("Tab")
        reader.page.keyboard.press("Enter")
        reader.page.get_by_label("strategy (needed)").wait_for()
        for wanted in ("8", "1"):
            reader.page.keyboard.press("Tab")
            reader.page.keyboard.press("ControlOrMeta+a")
            reader.page.keyboard.type(wanted)
        reader.page.keyboard.press("Enter")

        answer = reader.page.locator("[aria-live] pre").last
        expect(answer).to_contain_text('"user_id": 8')
        expect(answer).to_contain_text('"strategy_id": 1')


def test_a_server_that_is_gone_is_said_to_be_so(chromium: Browser) -> None:
    with (
        running_server("--durability=none", "--console-emit=on") as leaving,
        visit(chromium, leaving, expected=("ERR_", *REFUSED)) as reader,
    ):
        reader.open("emit")
        shown = opened(reader, "connections")
        leaving.stop()
        shown.locator("form button.primary").click()
        expect(shown.locator(".notice.bad")).to_be_visible()
        wait_until(lambda: leaving.process.poll() is not None, "its end")
