"""Counts by hour, batches looked up, a user deleted: over HTTP, on the journal in memory and on disk."""

import json
from typing import Any
from unittest import mock

import pytest
from tornado.httpclient import AsyncHTTPClient

from core import statistics
from core.hub import Hub
from core.journal.base import HOUR_MS
from core.settings import Settings
from core.statistics import HourlyNotices
from tests.http.conftest import Emitter, Opener, counted, with_settings

NINE = 500_001 * HOUR_MS
"""A full hour: 2027-01-15T09:00:00Z."""


@pytest.fixture(params=["none", "power"])
def settings(request: pytest.FixtureRequest) -> Settings:
    return with_settings(durability=request.param)


@pytest.fixture(autouse=True)
def clock(hub: Hub) -> list[int]:
    """The wall clock of the server: one number, to be set."""
    now_ms = [NINE]
    hub.now_ms = lambda: now_ms[0]
    return now_ms


async def ask(emit: Emitter, path: str, status: int = 200) -> Any:
    response = await emit.get(path)
    assert response.code == status, response.body
    return json.loads(response.body)


# ---- hours


@pytest.mark.gen_test
async def test_each_hour_states_what_was_counted_in_it(emit: Emitter, clock: list[int]) -> None:
    await emit(7, 3, counted(), counted("MARKET", "order_cancelled"))
    await emit(7, 4)
    await emit(8, 3)
    clock[0] += HOUR_MS
    await emit(7, 3)

    everything = await ask(emit, "/internal/statistics/hourly?user_id=7")
    of_three = await ask(emit, "/internal/statistics/hourly?user_id=7&strategy_id=3&from=2027-01-15T10:20Z")

    created = {"order_type": "LIMIT", "created": 1, "cancelled": 0}
    cancelled = {"order_type": "MARKET", "created": 0, "cancelled": 1}
    assert everything == {
        "user_id": 7,
        "from": "2027-01-14T11:00:00.000Z",
        "to": "2027-01-15T11:00:00.000Z",
        "hours": [
            {"hour": "2027-01-15T09:00:00.000Z", "strategy_id": 3, "summaries": [created, cancelled]},
            {"hour": "2027-01-15T09:00:00.000Z", "strategy_id": 4, "summaries": [created]},
            {"hour": "2027-01-15T10:00:00.000Z", "strategy_id": 3, "summaries": [created]},
        ],
    }
    assert of_three["from"] == "2027-01-15T10:00:00.000Z"
    assert of_three["hours"] == [everything["hours"][2]]


@pytest.mark.gen_test
async def test_a_span_is_widened_to_whole_hours_and_its_end_does_not_belong_to_it(
    emit: Emitter, clock: list[int]
) -> None:
    await emit(7, 3)
    clock[0] += HOUR_MS
    await emit(7, 3)
    hours = "/internal/statistics/hourly?user_id=7"

    assert len((await ask(emit, f"{hours}&from=2027-01-15T09:59&to=2027-01-15T10:00"))["hours"]) == 1
    assert len((await ask(emit, f"{hours}&from=2027-01-15T09:59&to=2027-01-15T10:00:00.001Z"))["hours"]) == 2
    assert len((await ask(emit, f"{hours}&from=2027-01-15T11:00%2B02:00&to=2027-01-15T10:00Z"))["hours"]) == 1
    assert len((await ask(emit, f"{hours}&from=2026-12-16&to=2027-01-16"))["hours"]) == 2


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("", "user_id"),
        ("user_id=0", "user_id"),
        ("user_id=7&strategy_id=*", "strategy_id"),
        ("user_id=7&from=yesterday", "from"),
        ("user_id=7&from=1000000000000", "from"),
        ("user_id=7&from=2027-01-02&to=2027-01-01", "from"),
        ("user_id=7&from=1950-01-02&to=1950-01-03", "from"),
        ("user_id=7&from=2026-12-15&to=2027-01-15T00:00:01Z", "to"),
        ("user_id=7&to=2027-01-01&to=2027-01-02", "to"),
        ("user_id=7&from=9999-12-31T22:00Z&to=9999-12-31T23:59:59Z", "to"),
        ("user_id=7&from=9999-12-31T23:30Z", "from"),
    ],
)
@pytest.mark.gen_test
async def test_a_question_that_cannot_be_answered_names_the_parameter(
    emit: Emitter, query: str, parameter: str
) -> None:
    problem = await ask(emit, f"/internal/statistics/hourly?{query}", 422)

    assert (problem["code"], problem["errors"][0]["path"]) == ("invalid_query", parameter)


@pytest.mark.gen_test
async def test_the_last_hour_that_can_be_written_may_be_asked_for(
    emit: Emitter, http_client: AsyncHTTPClient, public_port: int
) -> None:
    query = "statistics/hourly?user_id=7&from=9999-12-31T21:00Z&to=9999-12-31T2"
    public = f"http://127.0.0.1:{public_port}/{query}"

    assert (await ask(emit, f"/internal/{query}3:00Z"))["to"] == "9999-12-31T23:00:00.000Z"
    assert (await http_client.fetch(f"{public}3:00Z")).code == 200
    assert (await http_client.fetch(f"{public}3:01Z", raise_error=False)).code == 422


@pytest.mark.gen_test
async def test_an_answer_that_would_be_too_long_is_refused_and_a_part_of_it_is_not(
    emit: Emitter, clock: list[int], monkeypatch: pytest.MonkeyPatch, http_client: AsyncHTTPClient, public_port: int
) -> None:
    monkeypatch.setattr(statistics, "MOST_ROWS", 4)
    for strategy_id in (3, 4):
        await emit(7, strategy_id, counted(), counted("MARKET"))
    hours = "/internal/statistics/hourly?user_id=7"

    assert len((await ask(emit, hours))["hours"]) == 2
    clock[0] += HOUR_MS
    await emit(7, 5)
    problem = await ask(emit, hours, 422)
    assert (problem["code"], problem["errors"][0]["path"]) == ("invalid_query", "to")
    assert len((await ask(emit, f"{hours}&to=2027-01-15T10:00"))["hours"]) == 2
    assert len((await ask(emit, f"{hours}&strategy_id=3"))["hours"]) == 1

    own = f"http://127.0.0.1:{public_port}/statistics/hourly?user_id=7"
    assert (await http_client.fetch(own, raise_error=False)).code == 422
    of_two = await http_client.fetch(f"{own}&strategy_id=3&strategy_id=5")
    assert [each["strategy_id"] for each in json.loads(of_two.body)["hours"]] == [3, 5]


@pytest.mark.gen_test
async def test_a_long_answer_gives_way_while_it_is_made(
    emit: Emitter, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    await emit(7, 3)
    await emit(7, 4)
    breathe = mock.AsyncMock()
    monkeypatch.setattr(hub.slices, "breathe", breathe)

    await ask(emit, "/internal/statistics/hourly?user_id=7")

    assert breathe.await_count == 2


@pytest.mark.gen_test
async def test_a_stream_is_told_at_the_turn_of_the_hour_what_was_counted_in_it(
    emit: Emitter, stream: Opener, hub: Hub, clock: list[int]
) -> None:
    await emit(7, 3, counted("MARKET"))
    await emit(7, 3, counted("LIMIT", "order_cancelled"))
    await emit(7, 4)
    turns: list[float] = []

    async def sleep(seconds: float) -> None:
        turns.append(seconds)
        clock[0] += HOUR_MS
        if len(turns) == 3:
            raise EndOfTest

    async with stream("user_id=7&strategy_id=3") as one, stream("user_id=7&strategy_id=*&shape=flat") as every:
        opened = await one.event()
        await every.event()
        with pytest.raises(EndOfTest):
            await HourlyNotices(hub, sleep).run()
        notice = await one.event()
        flat = [await every.data(), await every.data()]
        await emit(7, 3)
        update = await one.event()

    assert (notice.event, notice.last_event_id) == ("order_hourly_summary", opened.last_event_id)
    # The order in which the key first saw them, as in every frame.
    told = {
        "strategy_id": 3,
        "hour": "2027-01-15T09:00:00.000Z",
        "summaries": [
            {"order_type": "MARKET", "created": 1, "cancelled": 0},
            {"order_type": "LIMIT", "created": 0, "cancelled": 1},
        ],
    }
    assert json.loads(notice.data) == {"type": "order_hourly_summary", "data": told}
    assert flat[0] == told
    assert flat[1]["strategy_id"] == 4
    assert update.event == "order_batch_update", "an hour without counts has no notice"


class EndOfTest(Exception):
    """Leaves what runs for ever."""


@pytest.mark.gen_test
async def test_an_hour_that_ends_again_since_the_clock_was_set_back_is_stated_again(
    emit: Emitter, stream: Opener, hub: Hub, clock: list[int]
) -> None:
    clock[0] += HOUR_MS // 2
    await emit(7, 3)
    steps = iter([HOUR_MS, -HOUR_MS, 0, -24 * HOUR_MS, 25 * HOUR_MS])
    naps: list[float] = []

    async def sleep(seconds: float) -> None:
        naps.append(seconds)
        try:
            clock[0] += next(steps)
        except StopIteration:
            raise EndOfTest from None

    async with stream("user_id=7&strategy_id=3") as reader:
        await reader.event()
        with pytest.raises(EndOfTest):
            await HourlyNotices(hub, sleep).run()
        await emit(7, 3)
        events = [await reader.event() for _ in range(3)]

    assert [each.event for each in events] == ["order_hourly_summary"] * 2 + ["order_batch_update"]
    assert events[0].data == events[1].data
    assert all(0 < seconds <= 60 for seconds in naps)


# ---- batches


@pytest.mark.gen_test
async def test_what_happened_to_a_key_is_listed_in_order_and_in_pages(
    emit: Emitter, hub: Hub, clock: list[int]
) -> None:
    for _ in range(3):
        await emit(7, 3)
        clock[0] += 60_000
    await emit(7, 4)
    look = "/internal/batches?user_id=7&strategy_id=3"

    everything = await ask(emit, look)
    by_time = await ask(emit, f"{look}&from=2027-01-15T09:01&to=2027-01-15T09:02")
    behind = await ask(emit, f"{look}&after={hub.journal.epoch}-2")

    assert [batch["position"] for batch in everything["batches"]] == [f"{hub.journal.epoch}-{n}" for n in (1, 2, 3)]
    assert everything["has_more"] is False
    assert by_time["batches"] == [
        {
            "user_id": 7,
            "strategy_id": 3,
            "position": f"{hub.journal.epoch}-2",
            "timestamp": "2027-01-15T09:01:00.000Z",
            "summaries": [{"order_type": "LIMIT", "created": 1, "cancelled": 0}],
        }
    ]
    assert behind["batches"] == everything["batches"][2:]


@pytest.mark.gen_test
async def test_a_long_history_has_more_than_one_page(emit: Emitter) -> None:
    batch = {"user_id": 7, "strategy_id": 3, "batch_results": [counted()]}
    await emit.send(json.dumps([batch] * 1500).encode())

    first = await ask(emit, "/internal/batches?user_id=7&strategy_id=3")
    second = await ask(emit, f"/internal/batches?user_id=7&strategy_id=3&after={first['batches'][-1]['position']}")

    assert (len(first["batches"]), first["has_more"]) == (1000, True)
    assert (len(second["batches"]), second["has_more"]) == (500, False)


@pytest.mark.gen_test
async def test_a_caller_whose_answer_was_lost_finds_its_batch_by_its_key(emit: Emitter, hub: Hub) -> None:
    await emit(7, 3, counted(), {"success": True, "event_type": "order_amended"}, idempotency_key="run 42/1")

    found = await ask(emit, "/internal/batches?idempotency_key=run%2042/1")
    missing = await ask(emit, "/internal/batches?idempotency_key=run%2043")

    assert found["batches"] == [
        {
            "user_id": 7,
            "strategy_id": 3,
            "position": f"{hub.journal.epoch}-1",
            "timestamp": "2027-01-15T09:00:00.000Z",
            "summaries": [{"order_type": "LIMIT", "created": 1, "cancelled": 0}],
            "ignored": 1,
            "caller": "local",
            "idempotency_key": "run 42/1",
        }
    ]
    assert missing == {"batches": [], "has_more": False}


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("user_id=7", "strategy_id"),
        ("strategy_id=3", "user_id"),
        ("user_id=7&strategy_id=3&after=yesterday", "after"),
        ("user_id=7&strategy_id=3&after=0000000000000-1", "after"),
        ("idempotency_key=a&idempotency_key=b", "idempotency_key"),
        ("idempotency_key=", "idempotency_key"),
        ("idempotency_key=%D0%BA", "idempotency_key"),
        ("idempotency_key=a&user_id=7", "idempotency_key"),
    ],
)
@pytest.mark.gen_test
async def test_a_look_up_that_asks_for_nothing_names_the_parameter(emit: Emitter, query: str, parameter: str) -> None:
    problem = await ask(emit, f"/internal/batches?{query}", 422)

    assert (problem["code"], problem["errors"][0]["path"]) == ("invalid_query", parameter)


# ---- deletion


@pytest.mark.gen_test
async def test_a_deleted_user_is_gone_its_streams_are_told_and_its_old_positions_are_reset(
    emit: Emitter, stream: Opener, http_client: AsyncHTTPClient, base_url: str, hub: Hub
) -> None:
    old = (await emit(7, 3, idempotency_key="a"))["position"]
    await emit(8, 3)
    async with (
        stream("user_id=7&strategy_id=3") as one,
        stream("user_id=7&strategy_id=*") as every,
        stream("user_id=8&strategy_id=3") as other,
    ):
        for reader in (one, every, other):
            await reader.event()
        response = await http_client.fetch(base_url + "/internal/users/7", method="DELETE")
        told = [await reader.data() for reader in (one, every)]
        for reader in (one, every):
            await reader.end()
        await emit(8, 3)
        assert (await other.event()).event == "order_batch_update"

    epoch = hub.journal.epoch
    assert json.loads(response.body) == {"user_id": 7, "position": f"{epoch}-2", "rows": 1, "closed": 2}
    assert [each["data"] for each in told] == [{"reason": "account_deactivated", "reconnect": False}] * 2
    assert hub.closed["account_deactivated"] == 2
    assert (await ask(emit, "/internal/keys/7/3"))["batches"] == 0
    assert (await ask(emit, "/internal/statistics/hourly?user_id=7"))["hours"] == []
    assert (await ask(emit, "/internal/batches?idempotency_key=a"))["batches"] == []

    async with stream(f"user_id=7&strategy_id=3&last_event_id={old}") as late:
        reset = await late.event()
        anew = await emit(7, 3, idempotency_key="a")
        update = await late.event()

    assert json.loads(reset.data)["data"]["reason"] == "trimmed"
    assert json.loads(reset.data)["data"]["totals"] == [{"strategy_id": 3, "summaries": []}]
    assert (reset.last_event_id, update.last_event_id, anew["position"]) == (f"{epoch}-2", f"{epoch}-3", f"{epoch}-3")
    assert anew["duplicate"] is False

    async with stream(f"user_id=7&strategy_id=3&last_event_id={reset.last_event_id}") as resumed:
        assert (await resumed.data())["data"]["resumed"] is True
        assert (await resumed.event()).last_event_id == f"{epoch}-3"


@pytest.mark.gen_test
async def test_a_user_that_never_was_can_be_deleted(http_client: AsyncHTTPClient, base_url: str) -> None:
    response = await http_client.fetch(base_url + "/internal/users/7", method="DELETE")

    assert json.loads(response.body) == {"user_id": 7, "position": None, "rows": 0, "closed": 0}
