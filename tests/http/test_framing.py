"""HTTP/1 as a client sees it, in raw bytes: where requests begin and end, and when connections do."""

import asyncio
import json
import re

import pytest
from msgspec.structs import replace

import server
from core.hub import EmitCall, Hub
from core.journal.base import Work
from core.settings import Settings
from handlers import dispatch, emit
from handlers.emit import EmitRequest, Respond
from tests.fronts import ORACLE
from tests.http.conftest import DEADLINE_SECONDS, Emitter, Opener, port_of, with_settings
from tests.http.probe import Turns, counted
from tests.http.test_stream import until
from tests.http.wire import (
    BATCH,
    JSON,
    QUIET_TURNS,
    Answer,
    Wire,
    chunked,
    each_byte,
    emit_request,
    read_answers,
    request,
)

LIVE = request("/healthz/live")
SHORT_SECONDS = 0.3
"""A time-out that a test waits for."""

LONG_SECONDS = 60
"""One that would fail it: longer than DEADLINE_SECONDS."""

FEWEST_TURNS = 5
"""That others get while a call is worked on that would hold the loop for tens of milliseconds."""


def named(number: int, sent: bytes) -> bytes:
    """The request with an id, which its answer repeats."""
    return sent.replace(b"\r\n", b"\r\nX-Request-Id: n%d\r\n" % number, 1)


def names(answers: list[Answer]) -> list[str | None]:
    return [answer.header("x-request-id") for answer in answers]


# ---- one connection, many requests

MIXED: list[tuple[bytes, int]] = [
    (emit_request(), 200),
    (LIVE, 200),
    (emit_request(body=b"{"), 400),
    (request("/nowhere"), 404),
    (request("/nowhere", method="POST", body=b"x" * 5000), 404),
    (request("/internal/emit"), 405),
    (request("/internal/emit", method="POST", body=BATCH), 415),
    (emit_request(body=BATCH.replace(b'"strategy_id":3', b'"strategy_id":0')), 422),
    (request("/internal/keys/7/x"), 422),
    (request("/internal/keys/7/3"), 200),
    (emit_request("Transfer-Encoding: chunked", body=chunked(BATCH)), 200),
    (emit_request("Transfer-Encoding: chunked", body=chunked(b"[", BATCH, b"]")), 200),
]
"""Requests that leave the connection open, whatever they are answered."""


@pytest.mark.gen_test
async def test_a_connection_carries_one_request_after_another_whatever_was_answered(internal_port: int) -> None:
    async with await Wire.open(internal_port) as wire:
        for number, (sent, status) in enumerate(MIXED):
            await wire.send(named(number, sent))
            answer = await wire.answer()
            assert (answer.status, answer.header("x-request-id")) == (status, f"n{number}")
            assert answer.header("connection") is None
        await wire.settle()
        assert (wire.received, wire.has_ended) == (b"", False)


@pytest.mark.gen_test
async def test_the_public_listener_keeps_connections_open_too(public_port: int) -> None:
    async with await Wire.open(public_port) as wire:
        for target, status in (("/healthz/live", 200), ("/internal/emit", 404), ("/stream?user_id=x", 422)):
            await wire.send(request(target))
            assert (await wire.answer()).status == status
        await wire.settle()
        assert (wire.received, wire.has_ended) == (b"", False)


@pytest.mark.gen_test
@pytest.mark.parametrize("in_pieces", [False, True], ids=["whole", "in pieces of 7 bytes"])
async def test_pipelined_requests_are_answered_in_their_order(internal_port: int, in_pieces: bool) -> None:
    sent = b"".join(named(number, each) for number, (each, _) in enumerate(MIXED))
    async with await Wire.open(internal_port) as wire:
        await wire.send(*([sent[at : at + 7] for at in range(0, len(sent), 7)] if in_pieces else [sent]))
        answers = await wire.answers(len(MIXED))
        await wire.settle()
        assert (wire.received, wire.has_ended) == (b"", False)

    assert names(answers) == [f"n{number}" for number in range(len(MIXED))]
    assert [answer.status for answer in answers] == [status for _, status in MIXED]


@pytest.mark.gen_test(timeout=20)
async def test_300_pipelined_requests_are_answered_in_their_order(internal_port: int) -> None:
    each = [MIXED[number % len(MIXED)] for number in range(300)]
    sent = b"".join(named(number, sent) for number, (sent, _) in enumerate(each))
    async with await Wire.open(internal_port) as wire:
        _, answers = await asyncio.gather(wire.send(sent), wire.answers(300))

    assert names(answers) == [f"n{number}" for number in range(300)]
    assert [answer.status for answer in answers] == [status for _, status in each]
    positions = [int(n) for answer in answers for n in re.findall(rb'"position":"[a-z0-9]+-(\d+)"', answer.body)]
    assert positions == sorted(set(positions)), "accepted in the order they were sent"


@pytest.mark.gen_test(timeout=20)
async def test_what_a_connection_has_asked_before_is_not_held_against_a_body_that_is_late(internal_port: int) -> None:
    head, body = emit_request().partition(BATCH)[:2]
    async with await Wire.open(internal_port) as wire:
        for _ in range(1000):
            await wire.send(LIVE)
            assert (await wire.answer()).status == 200
        await wire.send(head)
        await wire.settle()
        await wire.send(body)
        assert (await wire.answer()).status == 200


@pytest.mark.gen_test
async def test_a_client_that_half_closes_behind_its_requests_gets_no_answer_out_of_order(internal_port: int) -> None:
    sent = [named(number, emit_request()) for number in range(5)]
    async with await Wire.open(internal_port) as wire:
        await wire.send(b"".join(sent))
        wire.half_close()
        answers = read_answers(await wire.end())

    assert names(answers) == [f"n{number}" for number in range(len(answers))]
    assert all(answer.is_whole and answer.status == 200 for answer in answers)
    assert len(answers) <= await counted(internal_port) <= len(sent)


@pytest.mark.gen_test
async def test_an_answered_client_that_half_closes_is_let_go(internal_port: int) -> None:
    async with await Wire.open(internal_port) as wire:
        await wire.send(emit_request())
        assert (await wire.answer()).status == 200
        wire.half_close()
        assert await wire.end() == b""


# ---- what headers say


@pytest.mark.gen_test
@pytest.mark.parametrize("behind", [" ", "\t", " \t "], ids=["space", "tab", "both"])
async def test_white_space_behind_an_idempotency_key_is_not_part_of_it(internal_port: int, behind: str) -> None:
    async with await Wire.open(internal_port) as wire:
        await wire.send(emit_request("Idempotency-Key: k") + emit_request(f"Idempotency-Key: k{behind}"))
        first, second = [json.loads(answer.body) for answer in await wire.answers(2)]

    assert (first["duplicate"], second["duplicate"]) == (False, True)
    assert first["position"] == second["position"]
    assert await counted(internal_port) == 1


@pytest.mark.gen_test
@pytest.mark.parametrize("behind", [" ", "\t", " \t "], ids=["space", "tab", "both"])
async def test_white_space_behind_a_position_is_not_part_of_it(emit: Emitter, stream: Opener, behind: str) -> None:
    position = (await emit(7, 3))["position"]
    async with stream("user_id=7&strategy_id=3", f"Last-Event-ID: {position}{behind}") as reader:
        opened = await reader.data()

    assert (opened["type"], opened["data"].get("resumed")) == ("stream_open", True)


# ---- when a connection ends


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("version", "headers", "said"),
    [
        # A client that speaks HTTP/1.0 knows.
        ("1.0", (), (None, "close")),
        ("1.0", ("Connection: close",), (None, "close")),
        ("1.1", ("Connection: close",), ("close",)),
        ("1.1", ("connection: CLOSE",), ("close",)),
    ],
)
async def test_a_client_that_asks_for_one_answer_gets_one_and_the_end(
    internal_port: int, http: str, version: str, headers: tuple[str, ...], said: tuple[str | None, ...]
) -> None:
    async with await Wire.open(internal_port) as wire:
        # What stands behind such a request was never asked.
        await wire.send(emit_request(*headers, version=version) + emit_request())
        answers = read_answers(await wire.end())

    assert [answer.status for answer in answers] == [200]
    assert answers[0].header("connection") in said
    # Tornado serves the next one that it has read already, and has nobody left to tell.
    assert await counted(internal_port) == (2 if http == ORACLE else 1)


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("version", "headers", "said"),
    [("1.0", ("Connection: keep-alive",), "Keep-Alive"), ("1.1", ("Connection: keep-alive",), None)],
)
async def test_a_client_that_asks_to_keep_the_connection_keeps_it(
    internal_port: int, version: str, headers: tuple[str, ...], said: str | None
) -> None:
    async with await Wire.open(internal_port) as wire:
        await wire.send(emit_request(*headers, version=version) * 2)
        answers = await wire.answers(2)
        await wire.settle()
        assert (wire.received, wire.has_ended) == (b"", False)

    assert [(answer.status, answer.header("connection")) for answer in answers] == [(200, said)] * 2


@pytest.mark.gen_test
@pytest.mark.parametrize("listener", ["public", "internal"])
async def test_an_http_1_0_request_needs_no_host_and_an_http_1_1_request_does(
    servers: server.Listeners, listener: str
) -> None:
    port = port_of(getattr(servers, listener))
    async with await Wire.open(port) as old, await Wire.open(port) as modern:
        await old.send(request("/healthz/live", version="1.0", host=""))
        await modern.send(request("/healthz/live", host=""))
        assert [answer.status for answer in read_answers(await old.end())] == [200]
        assert [answer.status for answer in read_answers(await modern.end())] == [400]


# ---- heads


@pytest.mark.gen_test
@pytest.mark.parametrize("target", ["/healthz/live", "/healthz/ready", "/healthz/ready?for=emit"])
async def test_a_head_request_gets_the_head_of_a_get_and_nothing_behind_it(public_port: int, target: str) -> None:
    async with await Wire.open(public_port) as wire:
        await wire.send(request(target, method="HEAD") + request(target))
        head = await wire.answer(is_to_head=True)
        got = await wire.answer()

    assert (head.status, head.body) == (got.status, b"")
    assert head.header("content-length") == got.header("content-length") == str(len(got.body))
    assert [name for name, _ in head.headers] == [name for name, _ in got.headers]


@pytest.mark.gen_test
@pytest.mark.parametrize("target", ["/nowhere", "/stream?user_id=7&strategy_id=3"])
async def test_a_refused_head_request_has_no_body_either(public_port: int, target: str) -> None:
    async with await Wire.open(public_port) as wire:
        await wire.send(request(target, method="HEAD") + LIVE)
        refused = await wire.answer(is_to_head=True)
        assert (await wire.answer()).body == b'{"status":"ok"}'

    assert refused.status in (404, 405)
    assert int(refused.header("content-length") or "") > 0


@pytest.mark.gen_test
@pytest.mark.parametrize("listener", ["public", "internal"])
async def test_a_request_may_arrive_byte_by_byte(servers: server.Listeners, listener: str) -> None:
    sent = LIVE if listener == "public" else emit_request()
    async with await Wire.open(port_of(getattr(servers, listener))) as wire:
        await wire.send(*each_byte(sent)[:-1])
        await wire.settle()
        assert wire.received == b"", "nothing before the last byte"
        await wire.send(sent[-1:])
        assert (await wire.answer()).status == 200


@pytest.mark.gen_test
@pytest.mark.parametrize("padding", [15 * 1024, 10])
async def test_headers_within_the_limit_are_read(public_port: int, padding: int) -> None:
    fields = [f"X-{number}: {'a' * (padding // 100)}" for number in range(100)]
    async with await Wire.open(public_port) as wire:
        await wire.send(request("/healthz/live", *fields[: 100 if padding > 100 else 10]))
        assert (await wire.answer()).status == 200


ENDLESS_BYTES = 2**18
"""More than a server reads at once."""

TOO_LARGE = {
    "one header": request("/healthz/live", "X: " + "a" * server.MAX_HEADER_BYTES),
    "many headers": request("/healthz/live", *["X: a"] * 4096),
    "the target": request("/" + "a" * server.MAX_HEADER_BYTES),
    "a line that never ends": b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * ENDLESS_BYTES,
    "a method that never ends": b"G" * ENDLESS_BYTES,
    "a name that never ends": b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X" * ENDLESS_BYTES,
    "headers that never end": b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: a\r\n" * (ENDLESS_BYTES // 6),
}


@pytest.mark.gen_test
@pytest.mark.parametrize("sent", TOO_LARGE.values(), ids=TOO_LARGE.keys())
@pytest.mark.parametrize("size", [1000, 2**20], ids=["in pieces", "whole"])
async def test_headers_beyond_the_limit_end_the_connection(public_port: int, sent: bytes, size: int) -> None:
    async with await Wire.open(public_port) as wire:
        await wire.send(*[sent[at : at + size] for at in range(0, len(sent), size)])
        answers = read_answers(await wire.end())

    # Tornado cuts without a word.
    assert [answer.status for answer in answers] in ([], [431], [400])


# ---- bodies

CHUNKED = emit_request("Transfer-Encoding: chunked", body=chunked(BATCH))
BY_THE_BYTE = emit_request("Transfer-Encoding: chunked", body=chunked(*each_byte(BATCH)))


def sized_by(size: bytes) -> bytes:
    """An emit in one chunk, its size written like this."""
    return emit_request("Transfer-Encoding: Chunked", body=b"%b\r\n%b\r\n0\r\n\r\n" % (size, BATCH + b" " * 60))


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "pieces",
    [
        [CHUNKED],
        each_byte(CHUNKED),
        [BY_THE_BYTE],
        each_byte(BY_THE_BYTE),
        [sized_by(b"%X" % (len(BATCH) + 60))],
        [sized_by(b"000000%x" % (len(BATCH) + 60))],
    ],
    ids=["whole", "byte by byte", "chunks of one byte", "both", "capital digits", "leading zeros"],
)
async def test_a_chunked_body_counts_like_any_other(internal_port: int, pieces: list[bytes]) -> None:
    async with await Wire.open(internal_port) as wire:
        await wire.send(*pieces)
        answer = await wire.answer()
        await wire.send(LIVE)
        assert (await wire.answer()).status == 200

    assert json.loads(answer.body)["summaries"] == [{"order_type": "LIMIT", "created": 1, "cancelled": 0}]


@pytest.mark.gen_test(timeout=20)
async def test_a_body_of_many_tiny_chunks_is_read_whole(internal_port: int) -> None:
    batch = BATCH + b" " * 30_000
    async with await Wire.open(internal_port) as wire:
        await wire.send(emit_request("Transfer-Encoding: chunked", body=chunked(*each_byte(batch))) + LIVE)
        assert [answer.status for answer in await wire.answers(2)] == [200, 200]


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "body",
    [
        b"%x;name=value\r\n%b\r\n0\r\n\r\n" % (len(BATCH), BATCH),
        b'%x;name="quoted; value"\r\n%b\r\n0;last\r\n\r\n' % (len(BATCH), BATCH),
        b"%x\r\n%b\r\n0\r\nX-Checksum: 17\r\n\r\n" % (len(BATCH), BATCH),
    ],
    ids=["extension", "quoted extension", "trailer"],
)
async def test_extensions_and_trailers_are_ignored_or_refused_and_count_nothing_twice(
    internal_port: int, body: bytes
) -> None:
    async with await Wire.open(internal_port) as wire:
        await wire.send(
            emit_request("Transfer-Encoding: chunked", body=body) + request("/healthz/live", "Connection: close")
        )
        statuses = [answer.status for answer in read_answers(await wire.end())]

    # Tornado refuses what RFC 9112 tells it to ignore.
    assert statuses in ([200, 200], [400])
    assert await counted(internal_port) == statuses.count(200) // 2


@pytest.mark.gen_test
@pytest.mark.parametrize("framing", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
async def test_a_body_that_ends_early_counts_nothing(internal_port: int, hub: Hub, framing: str) -> None:
    async with await Wire.open(internal_port) as wire:
        await wire.send(emit_request(framing, body=BATCH if "Length" in framing else chunked(BATCH)[:-2]))
        await wire.settle()
        assert (wire.received, wire.has_ended) == (b"", False), "the rest may still come"
        wire.half_close()
        assert [answer.status for answer in read_answers(await wire.end())] in ([], [400])

    assert await counted(internal_port) == 0
    assert hub.held_bytes == 0


@pytest.mark.gen_test(timeout=20)
@pytest.mark.parametrize("framing", ["Content-Length", "chunked"])
async def test_a_body_beyond_the_limit_is_read_refused_and_the_connection_goes_on(
    internal_port: int, hub: Hub, framing: str
) -> None:
    body = b" " * (2**20 + 1)
    sent = emit_request(body=body)
    if framing == "chunked":
        sent = emit_request("Transfer-Encoding: chunked", body=chunked(body[: 2**19], body[2**19 :]))
    async with await Wire.open(internal_port) as wire:
        await wire.send(sent + LIVE)
        refused, after = await wire.answers(2)

    assert (refused.status, json.loads(refused.body)["code"]) == (413, "body_too_large")
    assert refused.header("content-length") == str(len(refused.body))
    assert after.status == 200
    assert hub.held_bytes == 0


@pytest.mark.gen_test
@pytest.mark.parametrize("expects", [(), ("Expect: 100-continue",)], ids=["", "100"])
@pytest.mark.parametrize(
    ("target", "size"),
    [("/internal/emit", 2**26 + 1), ("/internal/emit", 10**17), ("/nowhere", 2**16 + 1)],
)
async def test_a_body_that_nobody_would_read_is_refused_before_it_comes(
    internal_port: int, target: str, size: int, expects: tuple[str, ...]
) -> None:
    async with await Wire.open(internal_port) as wire:
        await wire.send(request(target, JSON, f"Content-Length: {size}", *expects, method="POST"))
        answers = read_answers(await wire.end())

    assert [(answer.status, json.loads(answer.body)["code"]) for answer in answers] == [(413, "body_too_large")]
    assert answers[0].header("content-length") == str(len(answers[0].body))


@pytest.mark.gen_test
async def test_an_unwanted_chunked_body_is_cut_when_it_grows_too_long(internal_port: int) -> None:
    pieces = chunked(*[b"x" * 4096] * 32)
    async with await Wire.open(internal_port) as wire:
        await wire.send(request("/nowhere", "Transfer-Encoding: chunked", method="POST", body=pieces) + LIVE)
        statuses = [answer.status for answer in read_answers(await wire.end())]

    assert statuses in ([], [400], [413])


@pytest.mark.gen_test
async def test_an_emit_in_chunks_that_never_ends_is_cut(
    internal_port: int, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "MAX_UNREAD_BYTES", 2**16)
    monkeypatch.setattr(emit.EmitHandler, "max_unread_bytes", 2**16)
    async with await Wire.open(internal_port) as wire:
        await wire.send(emit_request("Transfer-Encoding: chunked", body=chunked(BATCH, *[b" " * 4096] * 32)) + LIVE)
        statuses = [answer.status for answer in read_answers(await wire.end())]

    assert statuses in ([], [400], [413])
    assert await counted(internal_port) == 0
    assert hub.held_bytes == 0


@pytest.mark.gen_test
async def test_who_expects_100_is_told_to_continue_before_the_body(internal_port: int) -> None:
    head, body = (emit_request("Expect: 100-continue").partition(BATCH)[0], BATCH)
    async with await Wire.open(internal_port) as wire:
        await wire.send(head)
        assert (await wire.answer()).status == 100
        await wire.settle()
        assert wire.received == b""
        await wire.send(body)
        assert (await wire.answer()).status == 200
        await wire.send(LIVE)
        assert (await wire.answer()).status == 200


@pytest.mark.gen_test
async def test_who_expects_100_and_will_be_refused_learns_why(internal_port: int) -> None:
    sent = request("/internal/emit", "Expect: 100-continue", method="POST", body=BATCH)
    async with await Wire.open(internal_port) as wire:
        await wire.send(sent.partition(BATCH)[0])
        first = await wire.answer()
        if first.status == 100:
            # Refused when the body has been read: its sender may not wait for the answer.
            await wire.send(BATCH)
            first = await wire.answer()

    assert (first.status, json.loads(first.body)["code"]) == (415, "unsupported_media_type")


# ---- bodies of many small parts


@pytest.mark.gen_test(timeout=20)
@pytest.mark.parametrize(
    ("media_type", "body", "status", "complaints"),
    [
        ("application/x-ndjson", b"0\n" * 9000, 200, 9000),
        ("application/json", b"[" + b",".join([b"0"] * 9000) + b"]", 200, 9000),
        ("application/json", BATCH.partition(b"[")[0] + b"[" + b",".join([b"0"] * 9999) + b"]}", 422, 9999),
    ],
    ids=["lines", "array", "results"],
)
async def test_parts_that_cannot_be_read_do_not_hold_the_loop_however_many(
    internal_port: int,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    media_type: str,
    body: bytes,
    status: int,
    complaints: int,
) -> None:
    turns = Turns()
    begin_emit, commit = emit.emit, hub.commit

    def begin(hub: Hub, called: EmitRequest, respond: Respond) -> None:
        turns.begin()
        begin_emit(hub, called, respond)

    def end(call: EmitCall) -> None:
        turns.end()
        commit(call)

    monkeypatch.setattr(emit, "emit", begin)
    monkeypatch.setattr(hub, "commit", end)
    async with await Wire.open(internal_port) as wire:
        await wire.send(request("/internal/emit", f"Content-Type: {media_type}", method="POST", body=body))
        answer = await wire.answer()

    assert turns.count >= FEWEST_TURNS, "between the whole body and its commit"
    assert (answer.status, answer.body.count(b'"message":"Expected `object`')) == (status, complaints)


# ---- time-outs


class TestShortPatience:
    @pytest.fixture(autouse=True)
    def short(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Ahead of the servers, which are told when they start."""
        monkeypatch.setattr(server, "PUBLIC_IDLE_SECONDS", SHORT_SECONDS)
        monkeypatch.setattr(server, "INTERNAL_IDLE_SECONDS", SHORT_SECONDS)
        monkeypatch.setattr(server, "HEADER_SECONDS", SHORT_SECONDS)
        monkeypatch.setattr(server, "BODY_SECONDS", LONG_SECONDS)

    @pytest.mark.gen_test
    @pytest.mark.parametrize(
        "sent", [b"", b"GET /healthz/live HTTP/1.1\r\nHo", b"\r\n"], ids=["nothing", "half", "line"]
    )
    @pytest.mark.parametrize("listener", ["public", "internal"])
    async def test_a_client_that_asks_nothing_is_let_go_without_an_answer(
        self, servers: server.Listeners, listener: str, sent: bytes
    ) -> None:
        async with await Wire.open(port_of(getattr(servers, listener))) as wire:
            await wire.send(sent)
            assert read_answers(await wire.end()) == []

    @pytest.mark.gen_test
    async def test_a_connection_that_has_been_used_is_let_go_like_a_fresh_one(self, internal_port: int) -> None:
        async with await Wire.open(internal_port) as wire:
            await wire.send(emit_request() + emit_request()[:20])
            assert (await wire.answer()).status == 200
            assert await wire.end() == b""

    @pytest.mark.gen_test
    async def test_a_slow_body_is_not_a_slow_head(self, internal_port: int) -> None:
        sent = emit_request()
        async with await Wire.open(internal_port) as slow, await Wire.open(internal_port) as idle:
            await slow.send(sent[:-1])
            # It came later and its patience has ended: so has that for a head on the other.
            await idle.end()
            await slow.send(sent[-1:])
            assert (await slow.answer()).status == 200

    @pytest.mark.gen_test
    async def test_an_open_stream_is_no_idle_connection(self, public_port: int) -> None:
        async with await Wire.open(public_port) as stream, await Wire.open(public_port) as idle:
            await stream.send(request("/stream?user_id=7&strategy_id=3"))
            await idle.end()
            await stream.settle()
            assert not stream.has_ended

    @pytest.mark.gen_test
    async def test_a_client_that_waits_for_a_commit_is_not_late_with_the_request_that_it_has_begun(
        self, internal_port: int, hub: Hub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        submit, withheld = hub.journal.submit, list[Work]()
        monkeypatch.setattr(hub.journal, "submit", withheld.append)
        async with await Wire.open(internal_port) as wire, await Wire.open(internal_port) as idle:
            await wire.send(emit_request())
            await until(lambda: withheld, "the emit waits for its commit")
            await wire.send(emit_request()[:20])
            await wire.settle()
            # It comes later and its patience ends: so would that for a head on the other.
            await idle.send(emit_request()[:20])
            await idle.end()
            submit(withheld.pop())
            assert (await wire.answer()).status == 200


class TestShortPatienceForBodies:
    @pytest.fixture(autouse=True)
    def short(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(server, "PUBLIC_IDLE_SECONDS", LONG_SECONDS)
        monkeypatch.setattr(server, "INTERNAL_IDLE_SECONDS", LONG_SECONDS)
        monkeypatch.setattr(server, "HEADER_SECONDS", LONG_SECONDS)
        monkeypatch.setattr(server, "BODY_SECONDS", SHORT_SECONDS)

    @pytest.mark.gen_test
    @pytest.mark.parametrize("sent", [emit_request()[:-1], CHUNKED[:-1], CHUNKED[:-9]])
    async def test_a_body_that_does_not_come_ends_the_connection_and_counts_nothing(
        self, internal_port: int, hub: Hub, sent: bytes
    ) -> None:
        async with await Wire.open(internal_port) as wire:
            await wire.send(sent)
            assert [answer.status for answer in read_answers(await wire.end())] in ([], [408])

        assert await counted(internal_port) == 0
        assert hub.held_bytes == 0

    @pytest.mark.gen_test
    async def test_a_body_that_trickles_has_no_more_time_than_one_that_stands_still(self, internal_port: int) -> None:
        async with await Wire.open(internal_port) as wire, await Wire.open(internal_port) as still:
            await wire.send(emit_request("Content-Length: 1000000", body=b""))
            await still.send(emit_request("Content-Length: 1000000", body=b""))
            while not still.has_ended:
                await wire.send(b" ")
                await still.settle()
            await wire.end()

    @pytest.mark.gen_test
    async def test_a_connection_between_two_requests_waits_for_no_body(self, internal_port: int) -> None:
        async with await Wire.open(internal_port) as wire, await Wire.open(internal_port) as slow:
            await wire.send(emit_request())
            assert (await wire.answer()).status == 200
            await slow.send(emit_request()[:-1])
            await slow.end()
            await wire.send(emit_request())
            assert (await wire.answer()).status == 200


# ---- clients that leave, or do not read


class TestJournalOnDisk:
    @pytest.fixture
    def settings(self) -> Settings:
        """A commit takes a thread and a sync: the client is gone before its answer."""
        return with_settings(durability="power")

    @pytest.mark.gen_test
    async def test_a_client_that_leaves_before_its_answer_has_counted_once(self, internal_port: int, hub: Hub) -> None:
        sent = emit_request()
        async with await Wire.open(internal_port) as wire:
            # The loop, and with it the server, has no turn in between.
            assert wire.send_some(sent) == len(sent)

        async def is_counted() -> bool:
            return await counted(internal_port) == 1

        async with asyncio.timeout(DEADLINE_SECONDS):
            while not await is_counted():
                pass
        # It can be looked up as soon as it is committed, which is before it is answered.
        await until(lambda: not hub._intakes, "the emit is done with")
        assert hub.held_bytes == 0


@pytest.mark.gen_test
@pytest.mark.parametrize("resets", [False, True])
async def test_a_client_that_leaves_within_its_body_holds_nothing(internal_port: int, hub: Hub, resets: bool) -> None:
    async with await Wire.open(internal_port) as wire:
        await wire.send(emit_request()[:-1])
        await until(lambda: hub.held_bytes > 0, "some of the body has arrived")
        if resets:
            wire.reset()
    await until(lambda: not hub._intakes, "the emit is given up")

    assert hub.held_bytes == 0
    assert await counted(internal_port) == 0


@pytest.mark.gen_test(timeout=20)
@pytest.mark.parametrize(
    "sent",
    [emit_request("Expect: 100-continue"), emit_request("Transfer-Encoding: chunked", body=chunked(BATCH))],
    ids=["100", "chunked"],
)
async def test_a_client_that_resets_right_behind_its_emit_leaves_nothing_held(
    internal_port: int, hub: Hub, sent: bytes
) -> None:
    for number in range(30):
        async with await Wire.open(internal_port) as wire:
            assert wire.send_some(sent) == len(sent)
            for _ in range(number % 6):
                await asyncio.sleep(0)
            wire.reset()
    async with await Wire.open(internal_port) as wire:
        await wire.send(LIVE)
        assert (await wire.answer()).status == 200
        # By now those who came earlier have been looked at too.
        await wire.settle()

    assert hub.held_bytes == 0
    assert not hub._intakes


@pytest.mark.gen_test(timeout=30)
async def test_a_client_that_does_not_read_its_answers_is_not_read_any_further(public_port: int) -> None:
    each = request("/healthz/live", "X-Padding: " + "a" * 200)
    offered = each * 40_000
    async with await Wire.open(public_port, buffer_bytes=4096) as wire:
        taken = await _offer(wire, offered)
        assert taken < len(offered) // 4, "read although nobody takes the answers"
        whole = taken // len(each)
        wire.half_close()
        answers = await wire.answers(whole)
        assert {(answer.status, answer.body) for answer in answers} == {(200, b'{"status":"ok"}')}
        assert await wire.end() == b""


async def _offer(wire: Wire, data: bytes) -> int:
    """Send until nothing is taken any more; how much was."""
    taken = quiet = 0
    while quiet < QUIET_TURNS:
        size = wire.send_some(data[taken : taken + 65536])
        taken += size
        quiet = 0 if size else quiet + 1
        await asyncio.sleep(0)
    return taken


# ---- what is not for this server


@pytest.mark.gen_test
async def test_an_offer_to_upgrade_is_answered_in_http_1_1(public_port: int) -> None:
    offers = {
        "h2c": ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA"),
        "websocket": ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="),
    }
    async with await Wire.open(public_port) as wire:
        for headers in offers.values():
            await wire.send(request("/healthz/live", *headers))
            answer = await wire.answer()
            assert (answer.status, answer.body, answer.header("upgrade")) == (200, b'{"status":"ok"}', None)


@pytest.mark.gen_test(timeout=20)
async def test_600_pipelined_offers_to_upgrade_are_answered_in_their_order(public_port: int) -> None:
    offer = request("/healthz/live", "Connection: upgrade", "Upgrade: a")
    sent = b"".join(named(number, offer) for number in range(600)) + named(600, request("/nowhere"))
    async with await Wire.open(public_port) as wire:
        _, answers = await asyncio.gather(wire.send(sent), wire.answers(601))

    assert names(answers) == [f"n{number}" for number in range(601)]
    assert [answer.status for answer in answers] == [200] * 600 + [404]


@pytest.mark.gen_test
async def test_an_emit_that_offers_to_upgrade_keeps_its_body(internal_port: int) -> None:
    async with await Wire.open(internal_port) as wire:
        await wire.send(emit_request("Connection: Upgrade", "Upgrade: h2c") + LIVE)
        assert [answer.status for answer in await wire.answers(2)] == [200, 200]

    assert await counted(internal_port) == 1


@pytest.mark.gen_test
async def test_an_absolute_target_is_no_route(public_port: int) -> None:
    async with await Wire.open(public_port) as wire:
        await wire.send(request("http://a/healthz/live") + LIVE)
        absolute, live = await wire.answers(2)

    assert (absolute.status, live.status) == (404, 200)


class TestOneStream:
    @pytest.fixture
    def settings(self) -> Settings:
        return with_settings(max_connections=1)

    @pytest.mark.gen_test
    async def test_a_stream_refused_for_load_is_told_each_header_once(self, public_port: int) -> None:
        async with await Wire.open(public_port) as first, await Wire.open(public_port) as second:
            await first.send(request("/stream?user_id=7&strategy_id=3"))
            await first.begin()
            await second.send(request("/stream?user_id=7&strategy_id=3", "Accept: text/event-stream"))
            answer = await second.answer()

        assert b'"busy"' in answer.body
        assert answer.header("content-type") == "text/event-stream; charset=utf-8"
        given = [name for name, _ in answer.headers]
        assert sorted(given) == sorted(set(given))


# ---- the end of the server


@pytest.mark.gen_test
async def test_a_server_that_ends_closes_idle_connections_and_answers_what_it_is_reading(
    hub: Hub, settings: Settings, http: str
) -> None:
    listeners = server.bind(settings)
    http_servers = server.start_servers(replace(settings, http=http), hub, listeners)
    sent, port = emit_request(), port_of(listeners.internal)
    async with await Wire.open(port) as used, await Wire.open(port) as fresh, await Wire.open(port) as busy:
        await used.send(LIVE)
        await used.answer()
        await busy.send(sent[:-1])
        await until(lambda: hub.held_bytes > 0, "the emit has begun")
        for http_server in http_servers:
            http_server.stop()
        leaving = asyncio.create_task(server.leave(settings, hub, http_servers))
        await until(lambda: hub.is_draining, "the server leaves")
        await fresh.settle()
        assert not leaving.done(), "an emit in flight is waited for"
        await busy.send(sent[-1:])
        assert (await busy.answer()).status == 200
        for wire in (used, fresh, busy):
            assert await wire.end() == b""
        await leaving
