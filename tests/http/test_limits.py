"""Limits of the public listener over real sockets: who is refused, how it is told, and what an operator sees of it."""

import json
from typing import Any

import pytest

from core.hub import Hub
from core.pace import Pace
from core.settings import Settings
from tests.http.conftest import Emitter, Opener, with_settings
from tests.http.wire import Wire, request

STREAM = "/stream?user_id=7&strategy_id=3"
EVENTS = "Accept: text/event-stream"


async def report(emit: Emitter) -> Any:
    return json.loads((await emit.get("/internal/connections")).body)


@pytest.mark.gen_test
async def test_the_report_tells_of_refusals_lag_and_the_log_when_there_is_nothing_to_tell(emit: Emitter) -> None:
    facts = await report(emit)

    assert facts["refused"] == {}
    assert facts["accepts_delayed"] == 0
    assert set(facts["loop"]) == {"lag_ms_recent_max", "lag_ms_max", "tasks"}
    assert 0 <= facts["loop"]["lag_ms_recent_max"] <= facts["loop"]["lag_ms_max"]
    assert facts["log"] == {"lines_dropped": 0}


class TestFewStreamsPerUser:
    @pytest.fixture
    def settings(self) -> Settings:
        return with_settings(max_streams_per_user=2)

    @pytest.mark.gen_test
    async def test_one_more_is_told_busy_within_a_stream_and_the_others_go_on(
        self, emit: Emitter, stream: Opener
    ) -> None:
        async with stream("user_id=7&strategy_id=3") as one, stream("user_id=7&strategy_id=*") as two:
            await one.event()
            await two.event()
            async with stream("user_id=7&strategy_id=4", EVENTS) as more:
                assert more.status == 200
                assert (await more.data())["data"] == {"reason": "busy", "reconnect": True}
                assert more.parser.retry_ms is not None
            async with stream("user_id=8&strategy_id=3") as other:
                assert (await other.event()).event == "stream_open"
            assert (await emit(7, 3))["connections"] == 2
            assert (await one.event()).event == (await two.event()).event == "order_batch_update"
            facts = await report(emit)

        assert facts["refused"] == {"streams_per_user": 1}

    @pytest.mark.gen_test
    async def test_who_reads_no_streams_is_told_by_a_problem(self, public_port: int, stream: Opener) -> None:
        async with (
            stream("user_id=7&strategy_id=3"),
            stream("user_id=7&strategy_id=3"),
            await Wire.open(public_port) as wire,
        ):
            await wire.send(request(STREAM, "Accept: application/json"))
            answer = await wire.answer()

        assert (answer.status, json.loads(answer.body)["code"]) == (503, "busy")
        assert answer.header("retry-after") is not None


class TestFewStreamsPerAddress:
    """The test's own address is a proxy, so that one machine can be many clients."""

    @pytest.fixture
    def settings(self) -> Settings:
        return with_settings(max_streams_per_address=1, proxy_addresses=("127.0.0.0/8",))

    @pytest.mark.gen_test
    async def test_clients_behind_a_proxy_are_counted_and_shown_for_themselves(
        self, emit: Emitter, stream: Opener
    ) -> None:
        one, two, claims = (
            f"X-Forwarded-For: {hops}" for hops in ("198.51.100.1", "198.51.100.2", "192.0.2.9, 198.51.100.1")
        )
        async with stream("user_id=7&strategy_id=3", one) as first, stream("user_id=8&strategy_id=3", two) as second:
            assert (await first.event()).event == (await second.event()).event == "stream_open"
            async with stream("user_id=9&strategy_id=3", claims, EVENTS) as third:
                assert (await third.data())["data"]["reason"] == "busy"
            facts = await report(emit)

        assert sorted(each["peer"] for each in facts["slowest"]) == ["198.51.100.1", "198.51.100.2"]
        assert facts["refused"] == {"streams_per_address": 1}

    @pytest.mark.gen_test
    async def test_a_proxy_is_counted_itself_when_it_names_nobody(self, stream: Opener, hub: Hub) -> None:
        async with stream("user_id=7&strategy_id=3") as first:
            await first.event()
            async with stream("user_id=8&strategy_id=3", EVENTS) as second:
                assert (await second.data())["data"]["reason"] == "busy"

        assert hub.refused == {"streams_per_address": 1}


class TestNoProxy:
    @pytest.fixture
    def settings(self) -> Settings:
        return with_settings(max_streams_per_address=1, proxy_addresses=("198.51.100.0/24",))

    @pytest.mark.gen_test
    async def test_who_is_no_proxy_is_not_believed(self, emit: Emitter, stream: Opener) -> None:
        async with stream("user_id=7&strategy_id=3", "X-Forwarded-For: 192.0.2.1") as first:
            await first.event()
            async with stream("user_id=8&strategy_id=3", "X-Forwarded-For: 192.0.2.2", EVENTS) as second:
                assert (await second.data())["data"]["reason"] == "busy"
            facts = await report(emit)

        assert facts["slowest"][0]["peer"].startswith("127.0.0.1:")


class TestSlowAccepts:
    @pytest.fixture
    def http(self) -> str:
        """Overrides: Tornado's server accepts as it likes."""
        return "lean"

    @pytest.fixture
    def settings(self) -> Settings:
        return with_settings(max_accepts_per_second=20)

    @pytest.mark.gen_test
    async def test_a_crowd_is_let_in_at_its_pace_and_everybody_is_answered(
        self, emit: Emitter, public_port: int, hub: Hub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        most_at_once, spent = hub.accepts.left(0), list[int]()
        monkeypatch.setattr(Pace, "spend", _noting(Pace.spend, spent))
        wires = [await Wire.open(public_port) for _ in range(8)]
        for wire in wires:
            await wire.send(request("/healthz/live"))
        for wire in wires:
            assert (await wire.answer()).status == 200
            wire._socket.close()

        assert sum(spent) == len(wires)
        assert max(spent) <= most_at_once == 2
        assert (await report(emit))["accepts_delayed"] >= 1


def _noting(spend: Any, spent: list[int]) -> Any:
    def noting(pace: Pace, count: int) -> None:
        # That of the internal listener has no limit.
        if pace._per_second:
            spent.append(count)
        spend(pace, count)

    return noting
