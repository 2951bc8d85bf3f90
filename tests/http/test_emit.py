"""POST /internal/emit, from outside."""

import json
from typing import Any

import msgspec
import pytest

from core.hub import Hub
from tests.http.conftest import DEADLINE_SECONDS, Emitter, counted

EXAMPLE = {
    "user_id": 7,
    "strategy_id": 3,
    "batch_results": [
        {"order_type": "LIMIT", "event_type": "order_created", "success": True},
        {"order_type": "STOP_LIMIT", "event_type": "order_cancelled", "success": True},
        {"success": False, "error": "insufficient margin"},
    ],
}


@pytest.mark.gen_test
async def test_the_answer_is_the_one_of_the_design(emit: Emitter, hub: Hub) -> None:
    response = await emit.send(json.dumps(EXAMPLE).encode())

    assert response.code == 200
    assert response.headers["Content-Type"] == "application/json"
    assert response.body.decode() == (
        '{"status":"accepted","position":"' + hub.journal.epoch + '-1","summaries":'
        '[{"order_type":"LIMIT","created":1,"cancelled":0},{"order_type":"STOP_LIMIT","created":0,"cancelled":1}],'
        '"connections":0,"ignored":0,"duplicate":false}'
    )


@pytest.mark.gen_test
async def test_nothing_that_counts_is_skipped_and_uses_no_position(emit: Emitter) -> None:
    skipped = await emit(7, 3, {"success": False}, {"success": True, "event_type": "order_executed"})
    accepted = await emit(7, 3)

    assert skipped == {"status": "skipped", "reason": "no_successful_orders", "ignored": 1}
    assert accepted["position"].endswith("-1")


@pytest.mark.gen_test
async def test_an_invalid_result_is_listed_and_the_rest_counts(emit: Emitter) -> None:
    answer = await emit(
        7,
        3,
        counted("limit"),
        counted("MARKET"),
        {"success": "yes"},
        {**counted(), "order_type": 5},
        {"success": True, "event_type": "order_created"},
        7,  # type: ignore[arg-type]  # no result at all
    )

    assert answer["summaries"] == [{"order_type": "MARKET", "created": 1, "cancelled": 0}]
    assert [problem["path"] for problem in answer["invalid"]] == [
        "$.batch_results[0].order_type",
        "$.batch_results[2].success",
        "$.batch_results[3].order_type",
        "$.batch_results[4].order_type",
        "$.batch_results[5]",
    ]


@pytest.mark.gen_test
async def test_only_invalid_results_are_refused_as_a_whole(emit: Emitter) -> None:
    response = await emit.send(json.dumps({**EXAMPLE, "batch_results": [counted("limit")]}).encode())

    problem = json.loads(response.body)
    assert response.code == 422
    assert response.headers["Content-Type"] == "application/problem+json"
    assert problem["code"] == "invalid_results"
    assert problem["errors"][0]["path"] == "$.batch_results[0].order_type"
    assert problem["retry"] == "no"


@pytest.mark.gen_test
@pytest.mark.parametrize("strategy", [{}, {"strategy_id": 0}, {"strategy_id": None}])
@pytest.mark.parametrize("results", [[], [counted()], [counted("bad type")]])
async def test_a_missing_strategy_blocks_the_emit_whatever_the_results(
    emit: Emitter, strategy: dict[str, object], results: list[object]
) -> None:
    response = await emit.send(json.dumps({"user_id": 7, "batch_results": results, **strategy}).encode())

    assert response.code == 422
    assert json.loads(response.body)["code"] == "strategy_id_missing"


def _batch(**changes: object) -> bytes:
    return json.dumps({**EXAMPLE, **changes}).encode()


BAD_BODIES: list[tuple[str, bytes, str, int, str]] = [
    ("nothing", b"", "application/json", 400, "malformed_body"),
    ("no JSON", b"{'user_id': 7}", "application/json", 400, "malformed_body"),
    ("cut JSON", _batch()[:-1], "application/json", 400, "malformed_body"),
    ("two bodies", _batch() + _batch(), "application/json", 400, "malformed_body"),
    ("invalid UTF-8", b'{"user_id":7,"strategy_id":3,"note":"\xff"}', "application/json", 400, "malformed_body"),
    ("a surrogate half", _batch()[:-1] + b',"note":"\xed\xa0\x80"}', "application/json", 400, "malformed_body"),
    ("deep nesting", b'{"user_id":7,"note":' + b"[" * 100_000, "application/json", 400, "malformed_body"),
    ("deep array", b"[" * 100_000, "application/json", 400, "malformed_body"),
    ("deep msgpack", b"\x91" * 100_000, "application/msgpack", 400, "malformed_body"),
    ("no msgpack", b"\xc1", "application/msgpack", 400, "malformed_body"),
    ("a string", b'"hello"', "application/json", 422, "invalid_batch"),
    ("a user of text", _batch(user_id="7"), "application/json", 422, "invalid_batch"),
    ("a user of true", _batch(user_id=True), "application/json", 422, "invalid_batch"),
    ("user zero", _batch(user_id=0), "application/json", 422, "invalid_batch"),
    ("a user beyond 2^53", _batch(user_id=2**53), "application/json", 422, "invalid_batch"),
    ("a negative strategy", _batch(strategy_id=-1), "application/json", 422, "invalid_batch"),
    ("results of text", _batch(batch_results="all"), "application/json", 422, "invalid_batch"),
    ("no results", b'{"user_id":7,"strategy_id":3}', "application/json", 422, "invalid_batch"),
    ("too many results", _batch(batch_results=[{}] * 10_001), "application/json", 422, "too_many_results"),
    ("a control character", _batch(batch_results=[counted("LIM\u0000IT")]), "application/json", 422, "invalid_results"),
    ("an order type of 33", _batch(batch_results=[counted("A" * 33)]), "application/json", 422, "invalid_results"),
    ("a line break", _batch(batch_results=[counted("LIMIT\n")]), "application/json", 422, "invalid_results"),
    ("an empty key", _batch(idempotency_key=""), "application/json", 422, "invalid_idempotency_key"),
    ("a key of 129", _batch(idempotency_key="k" * 129), "application/json", 422, "invalid_idempotency_key"),
    ("a key beyond ASCII", _batch(idempotency_key="ключ"), "application/json", 422, "invalid_idempotency_key"),
    ("1 MiB and one byte", b" " * (2**20 + 1), "application/json", 413, "body_too_large"),
    ("8 MiB and one byte", b" " * (2**23 + 1), "application/x-ndjson", 413, "body_too_large"),
    ("no content type", _batch(), "", 415, "unsupported_media_type"),
    ("a form", _batch(), "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
    ("too many batches", b"[" + b"{}," * 10_000 + b"{}]", "application/json", 422, "too_many_batches"),
    ("too many lines", b"{}\n" * 10_001, "application/x-ndjson", 422, "too_many_batches"),
]


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("body", "content_type", "status", "code"), [case[1:] for case in BAD_BODIES], ids=[case[0] for case in BAD_BODIES]
)
async def test_bad_input_is_named_and_costs_the_next_call_nothing(
    emit: Emitter, body: bytes, content_type: str, status: int, code: str
) -> None:
    response = await emit.send(body, content_type)
    after = await emit(7, 3)

    problem = json.loads(response.body)
    assert (response.code, problem["status"], problem["code"]) == (status, status, code)
    assert response.headers["Content-Type"] == "application/problem+json"
    assert after["position"].endswith("-1"), "nothing of the bad call was counted"


@pytest.mark.gen_test
async def test_wrong_types_are_named_by_their_path(emit: Emitter) -> None:
    response = await emit.send(_batch(user_id="7"))

    assert json.loads(response.body)["errors"] == [{"path": "$.user_id", "message": "Expected `int`, got `str`"}]


@pytest.mark.gen_test
async def test_a_number_no_float_can_hold_takes_its_own_result_only(emit: Emitter) -> None:
    body = _batch(batch_results=[counted(), counted()]).replace(b'"LIMIT"', b"1e999", 1)

    answer = json.loads((await emit.send(body)).body)

    assert answer["summaries"] == [{"order_type": "LIMIT", "created": 1, "cancelled": 0}]
    assert [problem["path"] for problem in answer["invalid"]] == ["$.batch_results[0].order_type"]


MANY: list[Any] = [
    EXAMPLE,
    {"user_id": 7, "strategy_id": 0, "batch_results": []},
    {"user_id": "x"},
    {"user_id": 8, "strategy_id": 1, "batch_results": [{"success": False}]},
    {"user_id": 7, "strategy_id": 4, "batch_results": [counted("MARKET")], "idempotency_key": "again"},
    {"user_id": 7, "strategy_id": 4, "batch_results": [counted("MARKET")], "idempotency_key": "again"},
    {"user_id": 7, "strategy_id": 5, "batch_results": [counted("MARKET")], "idempotency_key": "again"},
]


def _many(encoding: str) -> tuple[bytes, str]:
    if encoding == "array":
        return json.dumps(MANY).encode(), "application/json; charset=utf-8"
    if encoding == "msgpack":
        return msgspec.msgpack.encode(MANY), "application/msgpack"
    return b"\n\n".join(json.dumps(item).encode() for item in MANY) + b"\n", "application/x-ndjson"


@pytest.mark.gen_test
@pytest.mark.parametrize("encoding", ["array", "ndjson", "msgpack"])
async def test_many_batches_are_answered_one_by_one_and_none_harms_another(emit: Emitter, encoding: str) -> None:
    response = await emit.send(*_many(encoding))

    assert response.code == 200
    answers = (
        [json.loads(line) for line in response.body.splitlines()] if encoding == "ndjson" else json.loads(response.body)
    )
    told = [answer.get("problem", {}).get("code", answer["status"]) for answer in answers]
    assert told == [
        "accepted",
        "strategy_id_missing",
        "invalid_batch",
        "skipped",
        "accepted",
        "accepted",
        "idempotency_conflict",
    ]
    assert [answer.get("duplicate") for answer in answers[4:6]] == [False, True]
    assert answers[4]["position"] == answers[5]["position"]
    assert [answer.get("idempotency_key") for answer in answers[4:]] == ["again"] * 3


@pytest.mark.gen_test
async def test_an_msgpack_batch_counts_like_a_json_one(emit: Emitter) -> None:
    response = await emit.send(msgspec.msgpack.encode(EXAMPLE), "application/msgpack")

    assert [summary["order_type"] for summary in json.loads(response.body)["summaries"]] == ["LIMIT", "STOP_LIMIT"]


@pytest.mark.gen_test
async def test_a_large_batch_that_is_decoded_in_slices_counts_the_same(emit: Emitter) -> None:
    four: list[dict[str, object]] = [
        counted("LIMIT"),
        counted("MARKET", "order_cancelled"),
        {"success": False},
        counted("bad"),
    ]

    answer = await emit(7, 3, *four * 2500)

    assert answer["summaries"] == [
        {"order_type": "LIMIT", "created": 2500, "cancelled": 0},
        {"order_type": "MARKET", "created": 0, "cancelled": 2500},
    ]
    assert len(answer["invalid"]) == 2500


@pytest.mark.gen_test
async def test_the_header_names_a_single_batch_once(emit: Emitter) -> None:
    key = {"Idempotency-Key": "order-run-1"}
    first = json.loads((await emit.send(_batch(), headers=key)).body)
    second = json.loads((await emit.send(_batch(batch_results=EXAMPLE["batch_results"][::-1]), headers=key)).body)  # type: ignore[index]
    other = await emit.send(_batch(strategy_id=4), headers=key)
    many = await emit.send(b"[" + _batch() + b"]", headers=key)

    assert (first["duplicate"], second["duplicate"]) == (False, True)
    assert second["position"] == first["position"]
    assert second["summaries"] == first["summaries"]
    assert first["idempotency_key"] == "order-run-1"
    assert json.loads(other.body)["code"] == "idempotency_conflict"
    assert json.loads(many.body)["code"] == "invalid_idempotency_key"


@pytest.mark.gen_test
async def test_the_33rd_order_type_of_a_key_is_refused_and_its_batch_counts_nothing(emit: Emitter) -> None:
    await emit(7, 3, *[counted(f"T{index}") for index in range(32)])
    response = await emit.send(_batch(batch_results=[counted("T0"), counted("ONE_MORE")]))
    after = json.loads((await emit.get("/internal/keys/7/3")).body)

    assert json.loads(response.body)["code"] == "too_many_order_types"
    assert {summary["created"] for summary in after["totals"]} == {1}


@pytest.mark.gen_test
async def test_the_request_id_is_echoed_or_made(emit: Emitter) -> None:
    given = await emit.send(_batch(), headers={"X-Request-Id": "abc-123"})
    made = await emit.send(_batch(), headers={"X-Request-Id": "bad id"})
    refused = await emit.send(b"{", headers={"X-Request-Id": "abc-124"})

    assert given.headers["X-Request-Id"] == "abc-123"
    assert made.headers["X-Request-Id"] not in ("", "bad id")
    assert json.loads(refused.body)["request_id"] == "abc-124"


@pytest.mark.gen_test
async def test_a_draining_server_refuses_emits_and_says_when_to_come_back(emit: Emitter, hub: Hub) -> None:
    await hub.drain(DEADLINE_SECONDS)
    response = await emit.send(_batch())
    ready = await emit.get("/healthz/ready")

    assert response.code == 503
    assert response.headers["Retry-After"] == "1"
    assert json.loads(response.body)["code"] == "draining"
    assert (ready.code, json.loads(ready.body)) == (503, {"status": "draining"})
