"""GET /metrics over real sockets: what a scrape shows, and that whatever is built on it finds its names there."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from prometheus_client import Metric
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from tornado.httpclient import AsyncHTTPClient

from core.hub import Hub
from core.metrics import standing_now
from core.settings import Settings
from core.subscriber import State
from tests.http.conftest import Emitter, Opener, StreamReader, counted, with_settings
from tests.http.test_stream import until
from tests.process import ROOT

ALERTS = (ROOT / "deploy" / "prometheus" / "alerts.yml").read_text()
DASHBOARD = (ROOT / "deploy" / "grafana" / "tallywire.json").read_text()
REFERENCE = (ROOT / "docs" / "reference.md").read_text()
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()

ADDED_BY_PROMETHEUS = {"up": {"job", "instance"}}
LABELS_OF_A_TARGET = {"job", "instance"}


class Scrape:
    """The samples of one scrape."""

    def __init__(self, text: str) -> None:
        self.families: list[Metric] = list(text_string_to_metric_families(text))
        self._samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float:
        return self._samples["tallywire_" + name, frozenset(labels.items())]

    def named(self) -> dict[str, dict[str, set[str]]]:
        """The values of each label of each name."""
        found: dict[str, dict[str, set[str]]] = {}
        for name, labels in self._samples:
            values = found.setdefault(name, {})
            for label, value in labels:
                values.setdefault(label, set()).add(value)
        return found

    def counts(self) -> tuple[float, float, float, float]:
        """Owed, delivered, abandoned, pending; none is unaccounted for."""
        assert self("counts_unaccounted") == 0
        return (
            self("counts_owed_total"),
            self("counts_delivered_total"),
            self("counts_abandoned_total"),
            self("counts_pending"),
        )


async def scrape(emit: Emitter) -> Scrape:
    response = await emit.get("/metrics")
    assert response.code == 200
    return Scrape(response.body.decode())


async def left(hub: Hub, streams: int) -> None:
    """Until so many are left."""
    await until(lambda: len(hub.registry) == streams, f"{streams} streams")


# ---- counts


@pytest.mark.gen_test
async def test_a_count_is_owed_to_each_stream_and_delivered_when_its_frame_has_left(
    emit: Emitter, stream: Opener
) -> None:
    queries = ("user_id=7&strategy_id=3", "user_id=7&strategy_id=3&strategy_id=4", "user_id=7&strategy_id=*")
    async with stream(queries[0]) as one, stream(queries[1]) as two, stream(queries[2]) as all_of_them:
        for reader in (one, two, all_of_them):
            await reader.event()
        await emit(7, 3, counted(), counted("MARKET", "order_cancelled"))
        await emit(7, 4)
        await emit(7, 99)
        await emit(8, 3)
        after = await scrape(emit)

    assert after.counts() == (3 * 2 + 2 + 1, 9, 0, 0)
    assert after("frames_total", event="order_batch_update") == 6
    assert after("connections_lagging") == 0


@pytest.mark.gen_test
async def test_a_resume_is_owed_what_was_missed(emit: Emitter, stream: Opener, hub: Hub) -> None:
    async with stream("user_id=7&strategy_id=3&strategy_id=4") as reader:
        position = (await reader.event()).last_event_id
    await left(hub, 0)
    for strategy_id in (3, 3, 4):
        await emit(7, strategy_id, counted(), counted())
    assert (await scrape(emit)).counts() == (0, 0, 0, 0)
    async with stream(f"user_id=7&strategy_id=3&strategy_id=4&last_event_id={position}") as reader:
        assert [(await reader.event()).event for _ in range(2)] == ["stream_open", "order_batch_catch_up"]
        after = await scrape(emit)

    assert after.counts() == (6, 6, 0, 0)
    assert after("frames_total", event="order_batch_catch_up") == 1
    assert after("batches_merged_total") == 3
    assert (after("streams_opened_total", start="new"), after("streams_opened_total", start="resumed")) == (1, 1)


async def blocked(emit: Emitter, reader: StreamReader, hub: Hub) -> int:
    """Emit until the kernel takes no more for this reader; answers how many batches of one count."""
    await reader.event()
    reader.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket's
    sent = 0
    (subscriber,) = hub.registry.subscribers
    while subscriber.state is not State.BLOCKED:
        await emit(7, 3)
        sent += 1
    return sent


@pytest.mark.gen_test(timeout=30)
async def test_what_a_slow_client_has_not_read_is_pending_until_it_reads(
    emit: Emitter, stream: Opener, hub: Hub
) -> None:
    async with stream("user_id=7&strategy_id=3", receive_bytes=4096) as reader:
        sent = await blocked(emit, reader, hub)
        behind = 5
        for _ in range(behind):
            await emit(7, 3)
        meanwhile = await scrape(emit)
        reader.writer.transport.resume_reading()
        await until(lambda: standing_now(hub).delivered == sent + behind, "everything has left")
        afterwards = await scrape(emit)

    # The frame that has left in part is pending, too: its client has nothing of it.
    assert meanwhile.counts() == (sent + behind, sent - 1, 0, 1 + behind)
    assert (meanwhile("connections_lagging"), meanwhile("connections_blocked")) == (1, 1)
    assert afterwards.counts() == (sent + behind, sent + behind, 0, 0)
    assert (afterwards("connections_lagging"), afterwards("oldest_unsent_seconds")) == (0, 0)
    assert afterwards("batches_merged_total") == behind


@pytest.mark.gen_test(timeout=30)
async def test_what_was_pending_when_a_stream_ended_is_abandoned(emit: Emitter, stream: Opener, hub: Hub) -> None:
    async with stream("user_id=7&strategy_id=3", receive_bytes=4096) as reader:
        sent = await blocked(emit, reader, hub)
        for _ in range(5):
            await emit(7, 3)
        reader.writer.transport.abort()
        await left(hub, 0)
    after = await scrape(emit)

    assert after.counts() == (sent + 5, sent - 1, 6, 0)
    assert sum(value for (name, _), value in after._samples.items() if name == "tallywire_streams_closed_total") == 1


@pytest.mark.gen_test(timeout=30)
async def test_a_farewell_takes_what_is_owed_along(emit: Emitter, stream: Opener, hub: Hub) -> None:
    async with stream("user_id=7&strategy_id=3", receive_bytes=4096) as reader:
        sent = await blocked(emit, reader, hub)
        await emit(7, 3)
        await emit._client.fetch(emit._base_url + "/internal/users/7", method="DELETE")
        leaving = await scrape(emit)
        await emit(7, 3)
        reader.writer.transport.resume_reading()
        await reader.end()
        await left(hub, 0)
    after = await scrape(emit)

    assert leaving.counts() == (sent + 1, sent - 1, 0, 2)
    assert after.counts() == (sent + 1, sent + 1, 0, 0)
    assert after("streams_closed_total", reason="account_deactivated") == 1


# ---- the others


@pytest.mark.gen_test
async def test_batches_and_calls_are_counted_by_what_became_of_them(emit: Emitter) -> None:
    await emit(7, 3, idempotency_key="a")
    await emit(7, 3, idempotency_key="a")
    await emit(7, 3, {"success": False})
    lines = [{"user_id": 7, "strategy_id": 3, "batch_results": [counted()]}, {"user_id": "x"}, {"user_id": 7}]
    await emit.send(b"\n".join(json.dumps(line).encode() for line in lines), "application/x-ndjson")
    assert (await emit.send(b"{")).code == 400
    assert (await emit.send(b"[{")).code == 400
    assert (await emit.send(b"<batch/>", "text/xml")).code == 415
    after = await scrape(emit)

    outcomes = {outcome: after("emits_total", outcome=outcome) for outcome in ("accepted", "duplicate", "skipped")}
    assert outcomes == {"accepted": 2, "duplicate": 1, "skipped": 1}
    # Two lines, and the batch that is no JSON. How many batches stood in the last call nobody knows.
    assert after("emits_total", outcome="rejected") == 3
    assert after("emit_calls_total") == 7
    assert after("answers_refused_total", code="malformed_body") == 2
    assert after("answers_refused_total", code="unsupported_media_type") == 1
    assert (after("journal_commit_batches_count"), after("journal_commit_batches_sum")) == (2, 2)


@pytest.mark.gen_test
async def test_resets_and_endings_are_counted_by_their_reason(emit: Emitter, stream: Opener, hub: Hub) -> None:
    before = await scrape(emit)
    async with stream("user_id=7&strategy_id=3&last_event_id=x") as reader:
        assert (await reader.event()).event == "stream_reset"
    await left(hub, 0)
    async with stream("user_id=x&strategy_id=3") as refused:
        assert refused.status == 422
    after = await scrape(emit)

    for name, labels in (
        ("stream_resets_total", {"reason": "malformed"}),
        ("streams_opened_total", {"start": "reset"}),
        ("streams_closed_total", {"reason": "client_closed"}),
        ("answers_refused_total", {"code": "invalid_query"}),
    ):
        assert (before(name, **labels), after(name, **labels)) == (0, 1), name


class TestFewStreams:
    @pytest.fixture
    def settings(self) -> Settings:
        return with_settings(max_connections=1)

    @pytest.mark.gen_test
    async def test_a_refused_stream_is_counted(self, emit: Emitter, stream: Opener) -> None:
        async with stream("user_id=7&strategy_id=3") as one, stream("user_id=8&strategy_id=3") as other:
            await one.event()
            assert (await other.event()).event == "stream_closing"
            after = await scrape(emit)

        assert after("streams_refused_total", reason="connections") == 1
        assert after("answers_refused_total", code="busy") == 1
        assert after("connections") == after("max_connections") == 1


@pytest.mark.gen_test
async def test_who_asks_for_openmetrics_gets_it(http_client: AsyncHTTPClient, base_url: str) -> None:
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
    response = await http_client.fetch(base_url + "/metrics", headers={"Accept": accept})
    plain = await http_client.fetch(base_url + "/metrics")

    assert response.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert plain.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert response.body.endswith(b"# EOF\n")
    families = openmetrics.text_string_to_metric_families(response.body.decode())  # type: ignore[no-untyped-call]
    named = {family.name for family in families}
    assert "tallywire_emits" in named
    assert named == {family.name.removesuffix("_info") for family in Scrape(plain.body.decode()).families}


@pytest.mark.gen_test
async def test_no_user_and_no_strategy_is_in_a_scrape(emit: Emitter, stream: Opener) -> None:
    user_id, strategy_id = 7_777_777_777, 3_333_333_333
    async with stream(f"user_id={user_id}&strategy_id={strategy_id}") as reader:
        await reader.event()
        await emit(user_id, strategy_id, counted("A_TYPE_OF_ITS_OWN"))
        text = (await emit.get("/metrics")).body.decode()

    assert [word for word in (str(user_id), str(strategy_id), "A_TYPE_OF_ITS_OWN") if word in text] == []


# ---- what is built on it


@pytest.mark.gen_test
async def test_the_reference_has_every_metric_with_its_type_and_its_labels_and_no_other(emit: Emitter) -> None:
    taken = await scrape(emit)
    documented = {
        (name, frozenset(re.findall(r"\w+", labels)), type_)
        for names, type_ in re.findall(r"^\| (`(?:tallywire|process)_.*?) \| (\w+) \|", REFERENCE, re.MULTILINE)
        for name, labels in re.findall(r"`(\w+)({[\w,]+})?`", names)
    }
    found = {
        (
            family.name + ("_total" if family.type == "counter" else ""),
            frozenset(label for sample in family.samples for label in sample.labels) - {"le"},
            family.type,
        )
        for family in taken.families
    }

    assert documented == found


def expressions() -> Iterator[tuple[str, str]]:
    """Where each query stands, and the query."""
    for group in yaml.safe_load(ALERTS)["groups"]:
        for alert in group["rules"]:
            yield alert["alert"], alert["expr"]
    dashboard = json.loads(DASHBOARD)
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for annotation in dashboard["annotations"]["list"]:
        yield annotation["name"], annotation["expr"]


SELECTOR = re.compile(r"\b((?:tallywire|process)_\w+|up\b)(?:{([^}]*)})?")
CONDITION = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
GROUPING = re.compile(r"\b(?:by|on|group_left|without) \(([\w, ]*)\)")


def mistakes(expression: str, named: dict[str, dict[str, set[str]]]) -> Iterator[str]:
    """What a query names that no scrape has."""
    labels_here = set(LABELS_OF_A_TARGET)
    for name, conditions in SELECTOR.findall(expression):
        if name not in named and name not in ADDED_BY_PROMETHEUS:
            yield name
            continue
        values = named.get(name, {})
        labels_here |= values.keys()
        for label, operator, wanted in CONDITION.findall(conditions):
            if label in LABELS_OF_A_TARGET:
                continue
            known = values.get(label, set())
            for value in wanted.split("|") if "~" in operator else [wanted]:
                if value not in known and label not in ("durability", "version", "http"):
                    yield f"{name}{{{label}={value!r}}}"
            if label not in values:
                yield f"{name}{{{label}}}"
    for labels in GROUPING.findall(expression):
        yield from (label for label in re.findall(r"\w+", labels) if label not in labels_here)


@pytest.mark.gen_test
async def test_whatever_the_alerts_and_the_dashboard_name_is_in_a_scrape(emit: Emitter) -> None:
    named = (await scrape(emit)).named()
    queries = list(expressions())

    assert len(queries) > 50
    wrong = {where: found for where, query in queries if (found := list(mistakes(query, named)))}
    assert wrong == {}
    used = {name for _, query in queries for name, _ in SELECTOR.findall(query)}
    shown = {name for name in named if not name.endswith(("_bucket", "_count", "_sum"))} - used
    assert shown == {"process_virtual_memory_bytes"}, "everything else is looked at by somebody"


@pytest.mark.gen_test
async def test_a_name_a_label_and_a_value_that_do_not_exist_would_have_been_seen(emit: Emitter) -> None:
    named = (await scrape(emit)).named()
    wrong = {
        "rate(tallywire_emit_total[5m])": ["tallywire_emit_total"],
        'tallywire_emits_total{outcome="accept"}': ["tallywire_emits_total{outcome='accept'}"],
        'tallywire_emits_total{outcome=~"accepted|x"}': ["tallywire_emits_total{outcome='x'}"],
        "sum by (user_id) (tallywire_connections)": ["user_id"],
    }

    assert {query: list(mistakes(query, named)) for query in wrong} == wrong


def test_every_alert_says_what_it_is_about_and_the_operations_say_what_to_do() -> None:
    rules: list[Any] = [rule for group in yaml.safe_load(ALERTS)["groups"] for rule in group["rules"]]
    documented = [
        name
        for names in re.findall(r"^\| (`Tallywire.*?) \|", OPERATIONS, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", names)
    ]

    assert [rule["alert"] for rule in rules if not rule["annotations"]["summary"]] == []
    assert {rule["labels"]["severity"] for rule in rules} == {"critical", "warning"}
    assert sorted(documented) == sorted(rule["alert"] for rule in rules)


def test_no_two_panels_of_the_dashboard_lie_upon_each_other() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in json.loads(DASHBOARD)["panels"]:
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies upon {taken[x, y]}"
                assert x < 24
                taken[x, y] = panel["title"]
