"""The lean front alone: what it promises beside being like Tornado's, or more strictly than that one."""

import socket
from collections import Counter
from contextlib import AsyncExitStack

import pytest
from msgspec.structs import replace
from tornado.ioloop import IOLoop

import server
from core.hub import Hub, Intake
from core.settings import Settings
from handlers import front, readiness
from handlers.front import FrontConnection
from tests.fronts import OTHERS
from tests.http.conftest import Emitter, port_of
from tests.http.probe import Turns, counted
from tests.http.wire import BATCH, Wire, chunked, emit_request, read_answers, request

LEAST_HEADER_BYTES = len(b"a: \r\n")


@pytest.fixture(params=OTHERS)
def http(request: pytest.FixtureRequest) -> str:
    """Overrides: Tornado's front is not concerned."""
    name: str = request.param
    return name


# ---- what is refused


@pytest.mark.gen_test
@pytest.mark.parametrize("version", ["2.0", "0.9"])
async def test_an_emit_of_a_version_that_is_not_spoken_is_refused_and_counts_nothing(
    internal_port: int, version: str
) -> None:
    async with await Wire.open(internal_port) as wire:
        await wire.send(emit_request(version=version))
        assert [answer.status for answer in read_answers(await wire.end())] == [400]

    assert await counted(internal_port) == 0


@pytest.mark.gen_test
async def test_a_head_of_16_000_headers_is_refused_and_read_no_further_than_to_the_limit(
    internal_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = 0
    on_header = FrontConnection.on_header

    def count(connection: FrontConnection, name: bytes, value: bytes) -> None:
        nonlocal read
        read += 1
        on_header(connection, name, value)

    monkeypatch.setattr(FrontConnection, "on_header", count)
    async with await Wire.open(internal_port) as wire:
        await wire.send(request("/healthz/live", *["a:"] * 16_000))
        assert [answer.status for answer in read_answers(await wire.end())] == [431]

    assert read <= server.MAX_HEADER_BYTES // LEAST_HEADER_BYTES + 1


@pytest.mark.gen_test
async def test_an_http_1_0_client_that_sends_chunks_gets_an_answer_and_the_end(internal_port: int) -> None:
    sent = emit_request("Connection: keep-alive", "Transfer-Encoding: chunked", version="1.0", body=chunked(BATCH))
    async with await Wire.open(internal_port) as wire:
        await wire.send(sent)
        answers = read_answers(await wire.end())

    assert [answer.header("connection") for answer in answers] == ["close"]
    assert await counted(internal_port) == [answer.status for answer in answers].count(200)


# ---- sharing the loop


@pytest.mark.gen_test(timeout=20)
async def test_refused_requests_of_one_read_give_way_to_others(
    internal_port: int, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns, answered_in = Turns(), Counter[int]()
    _count(turns, answered_in, hub, monkeypatch)
    # Each has had its time as soon as it is answered.
    monkeypatch.setattr(front, "ADVANCE_SECONDS", 0)
    sent = request("/internal/emit", "Content-Type: a/b", method="POST", body=b"") * 1500
    async with await Wire.open(internal_port) as wire:
        turns.begin()
        await wire.send(sent)
        answers = await wire.answers(1500)
        turns.end()

    assert {answer.status for answer in answers} == {415}
    assert answered_in.total() == 1500
    assert max(answered_in.values()) <= 2, "one, and another where a turn begins with it"


@pytest.mark.gen_test(timeout=20)
async def test_what_many_clients_pipeline_is_answered_a_little_of_it_in_a_turn(
    internal_port: int, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns, answered_in = Turns(), Counter[int]()
    _count(turns, answered_in, hub, monkeypatch)
    for seconds in ("ADVANCE_SECONDS", "GO_ON_SECONDS"):
        monkeypatch.setattr(front, seconds, 0)
    monkeypatch.setattr(readiness, "SERVE_SECONDS", 0)
    sent = request("/internal/emit", "Content-Type: a/b", method="POST", body=b"") * 50
    async with AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(await Wire.open(internal_port)) for _ in range(20)]
        turns.begin()
        for wire in wires:
            await wire.send(sent)
        for wire in wires:
            await wire.answers(50)
        turns.end()

    assert answered_in.total() == 1000
    assert max(answered_in.values()) <= 4, "one of those that wait, and one of those that have just sent something"


def _count(turns: Turns, answered_in: Counter[int], hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many emits begin in which turn of the loop."""
    begin_intake = hub.begin_intake

    def begin() -> Intake:
        answered_in[turns.count] += 1
        return begin_intake()

    monkeypatch.setattr(hub, "begin_intake", begin)


# ---- sockets


@pytest.mark.gen_test(timeout=20)
@pytest.mark.logs("Not accepting")
async def test_who_says_nothing_on_the_public_listener_leaves_descriptors_to_the_others(
    io_loop: IOLoop, hub: Hub, settings: Settings, http: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "available_connections", lambda: 3)
    listeners = server.bind(settings)
    http_servers = server.start_servers(replace(settings, http=http), hub, listeners)
    public, internal = port_of(listeners.public), port_of(listeners.internal)
    silent = [await Wire.open(public) for _ in range(3)]
    async with await Wire.open(public) as late, await Wire.open(internal) as operator:
        await late.send(request("/healthz/live"))
        for _ in range(3):
            await operator.send(request("/healthz/live"))
            assert (await operator.answer()).status == 200
        assert not late.received
        async with silent[0]:
            pass
        assert (await late.answer()).status == 200
    for wire in silent[1:]:
        async with wire:
            pass
    for http_server in http_servers:
        http_server.stop()
    await server.leave(settings, hub, http_servers)


def test_answers_do_not_wait_for_an_acknowledgement_on_either_listener(servers: server.Listeners) -> None:
    for listener in (*servers.public, *servers.internal):
        assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.gen_test(timeout=20)
async def test_a_client_that_half_closes_within_a_large_answer_gets_all_of_it(
    servers: server.Listeners, internal_port: int, emit: Emitter
) -> None:
    lines = b"".join(BATCH + b"\n" for _ in range(1000))
    await emit.send(lines, "application/x-ndjson")
    # Connections inherit it: most of the answer stays with the server until the client has read.
    for listener in servers.internal:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    asked = request("/internal/batches?user_id=7&strategy_id=3")
    async with await Wire.open(internal_port, buffer_bytes=16_384) as wire:
        await wire.send(asked)
        await wire.begin()
        wire.half_close()
        answers = read_answers(await wire.end())

    assert [(answer.status, answer.is_whole) for answer in answers] == [(200, True)]
    assert len(answers[0].body) > 50_000
