"""GET /stream, from outside: over real sockets, with real kernel buffers."""

import asyncio
import json
from collections import Counter
from typing import Any

import pytest

from core.hub import Hub
from core.settings import Settings
from core.subscriber import State
from tests.http.conftest import DEADLINE_SECONDS, Emitter, Opener, StreamReader, counted, with_settings


async def until(condition: Any, what: str) -> None:
    """Let the loop turn until the condition holds."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not condition():
            await asyncio.sleep(0)
    assert condition(), what


async def first_event(reader: StreamReader) -> Any:
    """The data of the first event."""
    return (await reader.data())["data"]


@pytest.mark.gen_test
async def test_one_batch_is_one_event_of_the_owners_format_byte_for_byte(
    emit: Emitter, stream: Opener, hub: Hub
) -> None:
    results = [counted()] * 5 + [counted("LIMIT", "order_cancelled")] * 3 + [counted("STOP_LIMIT")] * 2
    async with stream("user_id=7&strategy_id=3") as reader:
        opened = await reader.event()
        answer = await emit(7, 3, *results)
        update = await reader.event()

    epoch = hub.journal.epoch
    timestamp = json.loads(update.data)["data"]["timestamp"]
    assert reader.body.decode().partition("\n\n")[2] == (
        "event: order_batch_update\n"
        'data: {"type":"order_batch_update","data":{"summaries":[{"order_type":"LIMIT","created":5,"cancelled":3},'
        '{"order_type":"STOP_LIMIT","created":2,"cancelled":0}],"timestamp":"' + timestamp + '"},'
        '"stream":{"strategy_id":3,"after":"' + epoch + '-0","batches":1}}\n'
        f"id: {epoch}-1\n\n"
    )
    assert len(timestamp) == len("2025-10-30T12:34:56.789Z")
    assert opened.last_event_id == f"{epoch}-0"
    assert update.last_event_id == answer["position"]
    assert answer["connections"] == 1


@pytest.mark.gen_test
async def test_the_response_head_keeps_proxies_and_caches_out_of_it(stream: Opener) -> None:
    async with stream("user_id=7&strategy_id=3") as reader:
        assert reader.status == 200
        assert reader.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert reader.headers["cache-control"] == "no-store, no-transform"
        assert reader.headers["x-accel-buffering"] == "no"
        assert reader.headers["x-content-type-options"] == "nosniff"
        assert reader.headers["transfer-encoding"] == "chunked"


@pytest.mark.gen_test
async def test_the_first_event_says_where_the_stream_starts_and_when_to_come_back(stream: Opener, hub: Hub) -> None:
    async with stream("user_id=7&strategy_id=5&strategy_id=3&strategy_id=5") as reader:
        event = await reader.event()

    assert json.loads(event.data) == {
        "type": "stream_open",
        "data": {
            "position": f"{hub.journal.epoch}-0",
            "strategies": [3, 5],
            "resumed": False,
            "heartbeat_seconds": 15,
        },
    }
    assert reader.parser.retry_ms is not None
    assert 1000 <= reader.parser.retry_ms <= 3000


@pytest.mark.gen_test
async def test_an_http_1_0_client_gets_the_same_bytes_without_chunks(emit: Emitter, stream: Opener) -> None:
    async with stream("user_id=7&strategy_id=3") as new, stream("user_id=7&strategy_id=3", version="1.0") as old:
        await new.event()
        await old.event()
        await emit(7, 3)
        await new.event()
        await old.event()

    assert "transfer-encoding" not in old.headers
    assert old.body.partition(b"\n\n")[2] == new.body.partition(b"\n\n")[2]


@pytest.mark.gen_test
async def test_nobody_sees_another_users_or_strategys_batches(emit: Emitter, stream: Opener) -> None:
    async with stream("user_id=7&strategy_id=3") as mine, stream("user_id=8&strategy_id=3") as other:
        await mine.event()
        await other.event()
        await emit(8, 3, counted("MARKET"))
        await emit(7, 4, counted("STOP_LIMIT"))
        await emit(7, 3, counted("LIMIT"))
        update = await mine.data()

        assert update["data"]["summaries"] == [{"order_type": "LIMIT", "created": 1, "cancelled": 0}]
        assert (await other.data())["data"]["summaries"][0]["order_type"] == "MARKET"


@pytest.mark.gen_test
async def test_flat_puts_only_the_inner_object_on_the_data_line(emit: Emitter, stream: Opener) -> None:
    async with stream("user_id=7&strategy_id=3&shape=flat") as reader:
        opened = await reader.data()
        await emit(7, 3)
        event = await reader.event()

    assert opened["strategies"] == [3]
    assert event.event == "order_batch_update"
    assert list(json.loads(event.data)) == ["summaries", "timestamp", "stream"]


class TestFlatByDefault:
    """A setting chooses the shape of streams that do not ask."""

    @pytest.fixture
    def settings(self) -> Settings:
        return with_settings(shape="flat")

    @pytest.mark.gen_test
    async def test_streams_that_do_not_ask_are_flat(self, stream: Opener) -> None:
        async with stream("user_id=7&strategy_id=3") as flat, stream("user_id=7&strategy_id=3&shape=envelope") as not_:
            assert "strategies" in await flat.data()
            assert "type" in await not_.data()


@pytest.mark.gen_test
async def test_totals_are_stated_when_asked_for(emit: Emitter, stream: Opener) -> None:
    await emit(7, 3)
    async with stream("user_id=7&strategy_id=3&totals=1") as reader:
        opened = await first_event(reader)
        await emit(7, 3, counted("MARKET"))
        update = await reader.data()

    limit, market = [{"order_type": name, "created": 1, "cancelled": 0} for name in ("LIMIT", "MARKET")]
    assert opened["totals"] == [{"strategy_id": 3, "summaries": [limit]}]
    assert update["data"]["summaries"] == [market]
    assert update["stream"]["totals"] == [limit, market]


@pytest.mark.gen_test
@pytest.mark.parametrize("how", ["header", "query"])
async def test_a_resume_gets_everything_missed_as_one_event(emit: Emitter, stream: Opener, how: str) -> None:
    position = (await emit(7, 3))["position"]
    await emit(7, 3, counted("MARKET"), counted())
    await emit(7, 3, counted("MARKET", "order_cancelled"))
    last = (await emit(7, 4))["position"]
    headers = [f"Last-Event-ID: {position}"] if how == "header" else []
    query = "" if headers else f"&last_event_id={position}"
    async with stream("user_id=7&strategy_id=3" + query, *headers) as reader:
        opened = await reader.event()
        missed = await reader.event()

    assert opened.last_event_id == position, "the client's own position, never the head"
    assert json.loads(opened.data)["data"]["resumed"] is True
    data = json.loads(missed.data)
    assert data["data"]["summaries"] == [
        {"order_type": "LIMIT", "created": 1, "cancelled": 0},
        {"order_type": "MARKET", "created": 1, "cancelled": 1},
    ]
    assert data["stream"] == {"strategy_id": 3, "after": position, "batches": 2}
    assert missed.last_event_id != last, "a batch of another strategy is not this stream's position"


@pytest.mark.gen_test
async def test_the_header_wins_over_the_query_as_a_native_reconnect_needs(emit: Emitter, stream: Opener) -> None:
    first = (await emit(7, 3))["position"]
    second = (await emit(7, 3))["position"]
    async with stream(f"user_id=7&strategy_id=3&last_event_id={first}", f"Last-Event-ID: {second}") as reader:
        assert (await reader.event()).last_event_id == second


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("position", "reason"),
    [("garbage", "malformed"), ("0" * 13 + "-1", "epoch"), ("{epoch}-9", "future"), ("{epoch}-02", "malformed")],
)
async def test_what_cannot_be_continued_is_reset_with_totals_that_replace(
    emit: Emitter, stream: Opener, hub: Hub, position: str, reason: str
) -> None:
    head = (await emit(7, 3))["position"]
    asked = position.format(epoch=hub.journal.epoch)
    async with stream("user_id=7&strategy_id=3&strategy_id=4", f"Last-Event-ID: {asked}") as reader:
        event = await reader.event()
        await emit(7, 4)
        update = await reader.data()

    data = json.loads(event.data)["data"]
    assert event.event == "stream_reset"
    assert event.last_event_id == head
    assert reader.parser.retry_ms is not None
    assert data["reason"] == reason
    assert data["totals"] == [
        {"strategy_id": 3, "summaries": [{"order_type": "LIMIT", "created": 1, "cancelled": 0}]},
        {"strategy_id": 4, "summaries": []},
    ]
    assert update["stream"]["after"] == head


class TestTrimmed:
    """A journal that keeps two rows."""

    @pytest.fixture
    def settings(self) -> Settings:
        return with_settings(keep_rows=2)

    @pytest.mark.gen_test
    async def test_a_position_below_what_is_kept_is_reset_and_a_quiet_strategy_is_not(
        self, emit: Emitter, stream: Opener
    ) -> None:
        first = (await emit(7, 4))["position"]
        for _ in range(5):
            await emit(7, 3)
        header = f"Last-Event-ID: {first}"
        async with (
            stream("user_id=7&strategy_id=3", header) as busy,
            stream("user_id=7&strategy_id=4", header) as quiet,
        ):
            reset = await first_event(busy)
            opened = await first_event(quiet)

        assert reset["reason"] == "trimmed"
        assert reset["totals"][0]["summaries"][0]["created"] == 5
        assert opened["resumed"] is True


@pytest.mark.gen_test
async def test_a_stream_of_everything_gets_strategies_that_did_not_exist_when_it_opened(
    emit: Emitter, stream: Opener
) -> None:
    await emit(7, 3)
    async with stream("user_id=7&strategy_id=*") as reader:
        opened = await first_event(reader)
        answer = await emit(7, 99)
        update = await reader.data()

    assert opened["strategies"] == "*"
    assert answer["connections"] == 1
    assert update["stream"]["strategy_id"] == 99


@pytest.mark.gen_test
async def test_several_strategies_that_lag_arrive_as_one_atomic_event(emit: Emitter, stream: Opener, hub: Hub) -> None:
    start = f"{hub.journal.epoch}-0"
    for strategy_id in (5, 3, 5):
        last = (await emit(7, strategy_id))["position"]
    async with stream("user_id=7&strategy_id=3&strategy_id=5", f"Last-Event-ID: {start}") as reader:
        await reader.event()
        event = await reader.event()

    data = json.loads(event.data)
    assert event.event == data["type"] == "order_batch_catch_up"
    assert event.last_event_id == last
    assert data["after"] == start
    assert [(update["type"], update["stream"]) for update in data["updates"]] == [
        ("order_batch_update", {"strategy_id": 3, "after": start, "batches": 1}),
        ("order_batch_update", {"strategy_id": 5, "after": start, "batches": 2}),
    ]


@pytest.mark.gen_test(timeout=30)
async def test_a_client_that_stops_reading_costs_a_bounded_amount_and_gets_one_merged_event(
    emit: Emitter, stream: Opener, hub: Hub
) -> None:
    async with stream("user_id=7&strategy_id=3", receive_bytes=4096) as reader:
        await reader.event()
        reader.writer.transport.pause_reading()
        sent = 0
        (subscriber,) = hub.registry.subscribers
        while subscriber.state is not State.BLOCKED:
            await emit(7, 3)
            sent += 1
            assert sent < 2000, "the kernel hides the slow client"
        unsent = subscriber.unsent_bytes
        for _ in range(50):
            await emit(7, 3)
        sent += 50
        report = json.loads((await emit.get("/internal/connections?user_id=7")).body)

        assert subscriber.unsent_bytes == unsent < 1000, "one unsent rest, whatever happens meanwhile"
        assert (report["lagging"], report["blocked"]) == (1, 1)
        assert report["slowest"][0]["behind_batches"] == 50
        reader.writer.transport.resume_reading()
        counts: Counter[int] = Counter()
        while sum(counts.elements()) < sent:
            counts[(await reader.data())["stream"]["batches"]] += 1

    assert counts[50] == 1
    assert set(counts) == {1, 50}


@pytest.mark.gen_test
async def test_a_client_that_leaves_is_forgotten_with_its_reason(stream: Opener, hub: Hub) -> None:
    async with stream("user_id=7&strategy_id=3") as reader:
        await reader.event()
    await until(lambda: not len(hub.registry), "the stream is gone")

    assert hub.closed == {"client_closed": 1}
    assert hub.registry.user(7) is None


@pytest.mark.gen_test
async def test_bytes_behind_the_request_end_the_stream(stream: Opener, hub: Hub) -> None:
    async with stream("user_id=7&strategy_id=3") as reader:
        await reader.event()
        reader.writer.write(b"GET / HTTP/1.1\r\n")
        await until(lambda: not len(hub.registry), "the stream is gone")

    assert hub.closed == {"client_sent_data": 1}


@pytest.mark.gen_test
async def test_bytes_sent_together_with_the_request_are_not_lost_but_end_it(public_port: int, hub: Hub) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", public_port)
    writer.write(b"GET /stream?user_id=7&strategy_id=3 HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HTTP/1.1\r\n\r\n")

    assert await reader.read() == b""
    assert not len(hub.registry)
    writer.close()


class TestHeartbeats:
    """Often enough for a test to see some."""

    @pytest.fixture
    def settings(self) -> Settings:
        return with_settings(heartbeat_seconds=0.15)

    @pytest.mark.gen_test
    async def test_the_default_heartbeat_is_a_comment_of_one_line(self, emit: Emitter, stream: Opener) -> None:
        async with stream("user_id=7&strategy_id=3") as reader:
            await reader.event()
            while not reader.parser.comments:
                await reader._read_more()
            comments = reader.body.partition(b"\n\n")[2]
            await emit(7, 3)
            update = await reader.event()

        assert set(comments.split(b"\n")) == {b":", b""}
        assert b"\n\n" not in comments
        assert update.event == "order_batch_update"

    @pytest.mark.gen_test
    async def test_an_event_heartbeat_states_the_position_of_this_stream(self, emit: Emitter, stream: Opener) -> None:
        async with stream("user_id=7&strategy_id=3&heartbeat=event") as reader:
            await reader.event()
            position = (await emit(7, 3))["position"]
            await emit(7, 4)
            await reader.event()
            beat = await reader.event()

        assert beat.event == "stream_heartbeat"
        assert json.loads(beat.data)["data"]["position"] == position
        assert beat.last_event_id == position, "a heartbeat carries no id of its own"
        assert b"\nid: " not in reader.body.rpartition(b"event: stream_heartbeat")[2]


class TestCoalescing:
    """A window that is longer than the test's emits take."""

    @pytest.fixture
    def settings(self) -> Settings:
        return with_settings(coalesce_ms=150)

    @pytest.mark.gen_test
    async def test_the_first_batch_goes_at_once_and_the_rest_of_the_window_as_one(
        self, emit: Emitter, stream: Opener
    ) -> None:
        async with stream("user_id=7&strategy_id=3") as reader:
            await reader.event()
            for _ in range(4):
                await emit(7, 3)
            first, second = await reader.data(), await reader.data()

        assert first["stream"]["batches"] == 1
        assert second["stream"]["batches"] == 3


class TestFull:
    """A server that takes one stream."""

    @pytest.fixture
    def settings(self) -> Settings:
        return with_settings(max_connections=1)

    @pytest.mark.gen_test
    @pytest.mark.parametrize("accept", ["*/*", "text/event-stream", "text/html, text/event-stream;q=0.5"])
    async def test_a_stream_refused_for_load_gets_200_and_is_told_to_come_back(
        self, stream: Opener, accept: str
    ) -> None:
        async with (
            stream("user_id=7&strategy_id=3"),
            stream("user_id=7&strategy_id=3", f"Accept: {accept}", "Connection: close") as reader,
        ):
            event = await reader.event()

        assert reader.status == 200
        assert json.loads(event.data)["data"] == {"reason": "busy", "reconnect": True}
        assert reader.parser.retry_ms is not None
        assert event.last_event_id == ""

    @pytest.mark.gen_test
    async def test_whoever_does_not_accept_a_stream_gets_a_problem(self, stream: Opener) -> None:
        async with (
            stream("user_id=7&strategy_id=3"),
            stream("user_id=7&strategy_id=3", "Accept: application/json") as reader,
        ):
            assert reader.status == 503
            assert reader.headers["content-type"] == "application/problem+json"
            assert reader.headers["retry-after"] == "1"


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("strategy_id=3", "user_id"),
        ("user_id=&strategy_id=3", "user_id"),
        ("user_id=0&strategy_id=3", "user_id"),
        ("user_id=9007199254740992&strategy_id=3", "user_id"),
        ("user_id=7&user_id=8&strategy_id=3", "user_id"),
        ("user_id=%D9%A7&strategy_id=3", "user_id"),
        ("user_id=7", "strategy_id"),
        ("user_id=7&strategy_id=x", "strategy_id"),
        ("user_id=7&strategy_id=0", "strategy_id"),
        ("user_id=7&strategy_id=3&strategy_id=*", "strategy_id"),
        ("user_id=7&" + "&".join(f"strategy_id={n}" for n in range(1, 66)), "strategy_id"),
        ("user_id=7&strategy_id=3&shape=round", "shape"),
        ("user_id=7&strategy_id=3&heartbeat=none", "heartbeat"),
        ("user_id=7&strategy_id=3&totals=yes", "totals"),
        ("&".join(f"a{n}=1" for n in range(200)), "query"),
    ],
)
async def test_a_bad_query_is_named(stream: Opener, query: str, name: str) -> None:
    async with stream(query, "Origin: http://localhost:5173") as reader:
        body = json.loads(await reader.reader.readexactly(int(reader.headers["content-length"])))

    assert reader.status == body["status"] == 422
    assert body["code"] == "invalid_query"
    assert [problem["path"] for problem in body["errors"]] == [name]
    assert reader.headers["access-control-allow-origin"] == "http://localhost:5173", "the page can read why"


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://localhost:5173", True),
        ("http://127.0.0.1:3000", True),
        ("http://localhost", True),
        ("http://localhost.evil.example", False),
        ("http://127.0.0.1.evil.example:80", False),
        ("https://example.com", False),
        ("null", False),
    ],
)
async def test_pages_of_development_servers_may_read_and_no_others(stream: Opener, origin: str, allowed: bool) -> None:
    async with stream("user_id=7&strategy_id=3", f"Origin: {origin}") as reader:
        assert reader.headers.get("access-control-allow-origin") == (origin if allowed else None)
        assert reader.headers["vary"] == "Origin"


@pytest.mark.gen_test
async def test_a_drained_stream_is_brought_up_to_date_told_and_ended(emit: Emitter, stream: Opener, hub: Hub) -> None:
    async with stream("user_id=7&strategy_id=3") as reader:
        await reader.event()
        position = (await emit(7, 3))["position"]
        await hub.drain(DEADLINE_SECONDS)
        await reader.event()
        closing = await reader.event()
        await reader.end()

    assert json.loads(closing.data) == {"type": "stream_closing", "data": {"reason": "draining", "reconnect": True}}
    assert closing.last_event_id == position
    assert hub.closed == {"draining": 1}
