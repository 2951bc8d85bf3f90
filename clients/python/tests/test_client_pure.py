"""The parts of the client that do no I/O."""

import json
import random
from enum import Enum

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tallywire_client._backoff import Backoff
from tallywire_client._encoding import NotEncodableError, encode_batch, key_of
from tallywire_client._gatherer import Bounds, Entry, Gatherer
from tallywire_client._records import (
    Attempted,
    Begun,
    Handed,
    Moment,
    Record,
    Revoked,
    Settled,
    decode_all,
    encode,
)
from tallywire_client._replies import Again, Answered, Refused, judge
from tallywire_client.results import Accepted, Rejected, Skipped

ACCEPTED = {"status": "accepted", "position": "e-1", "summaries": [], "connections": 2, "ignored": 0, "duplicate": True}
RESULT = {"success": True, "order_type": "LIMIT", "event_type": "order_created"}


class OrderType(Enum):
    LIMIT = "LIMIT"


# ---- encoding


def decoded(results: object) -> object:
    return json.loads(encode_batch(7, 3, results, "k"))["batch_results"]


def test_a_batch_is_one_line_with_its_key() -> None:
    line = encode_batch(7, 3, [RESULT], "order\n7 é")

    assert b"\n" not in line
    assert json.loads(line) == {
        "user_id": 7,
        "strategy_id": 3,
        "idempotency_key": "order\n7 é",
        "batch_results": [RESULT],
    }
    assert key_of(line) == "order\n7 é"


def test_only_what_the_server_looks_at_leaves_the_process() -> None:
    assert decoded([{**RESULT, "account": "secret", "price": object()}]) == [RESULT]
    assert decoded([{"success": False, "order_type": "LIMIT", "error": "no margin"}, {}]) == [{"success": False}] * 2


def test_results_may_come_from_anything_that_can_be_gone_through() -> None:
    assert decoded(result for result in (RESULT, RESULT)) == [RESULT, RESULT]
    assert decoded(()) == []


@pytest.mark.parametrize("nothing", [None, 5, "LIMIT", b"", {"success": True}])
def test_what_is_no_list_is_not_encodable(nothing: object) -> None:
    with pytest.raises(NotEncodableError):
        encode_batch(7, 3, nothing, "k")


def test_an_enum_is_its_value_and_what_has_no_json_spoils_only_its_own_result() -> None:
    circle: list[object] = []
    circle.append(circle)
    odd = [{**RESULT, "order_type": OrderType.LIMIT}, {**RESULT, "order_type": object()}, 5, {"success": circle}]

    assert decoded([*odd, {**RESULT, "order_type": float("nan")}, RESULT]) == [
        RESULT,
        {**RESULT, "order_type": "<object>"},
        "<int>",
        "<dict>",
        "<dict>",
        RESULT,
    ]


def test_an_id_of_another_type_is_left_to_the_server() -> None:
    assert json.loads(encode_batch("7", None, [], "k"))["user_id"] == "7"


def test_true_and_one_are_not_the_same() -> None:
    assert decoded([RESULT, {**RESULT, "success": 1}]) == [RESULT, {**RESULT, "success": 1}]


# ---- back-off


def test_waits_are_drawn_below_a_bound_that_doubles_up_to_the_largest() -> None:
    bounds: list[float] = []

    def uniform(low: float, high: float) -> float:
        assert low == 0
        bounds.append(high)
        return high / 2

    backoff = Backoff(0.05, 1.0, uniform)
    waits = [backoff.next_seconds() for _ in range(2000)]

    assert bounds[:6] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0]
    assert set(bounds[6:]) == {1.0}
    assert waits[0] == 0.025


def test_what_the_server_asks_for_is_the_least() -> None:
    assert Backoff(0.05, 1.0, random.Random(1).uniform).next_seconds(5.0) >= 5.0


# ---- gathering

BOUNDS = Bounds(queue_batches=6, queue_bytes=60, call_batches=3, call_bytes=25, linger_seconds=0.5)


def entry(size: int = 4) -> Entry:
    return Entry(b"x" * size, "k", None)


def test_a_call_waits_for_others_as_long_as_the_first_one_lingers() -> None:
    gatherer = Gatherer(BOUNDS)

    assert gatherer.seconds_until_due(10.0) is None
    gatherer.add(entry(), 10.0)
    gatherer.add(entry(), 10.4)
    assert gatherer.seconds_until_due(10.4) == pytest.approx(0.1)
    assert gatherer.seconds_until_due(11.0) == 0.0


def test_a_full_call_waits_for_nobody() -> None:
    by_count, by_size = Gatherer(BOUNDS), Gatherer(BOUNDS)
    for _ in range(3):
        by_count.add(entry(), 10.0)
    by_size.add(entry(24), 10.0)

    assert by_count.seconds_until_due(10.0) == 0.0
    assert by_size.seconds_until_due(10.0) == 0.0


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(0, 30))
def test_batches_leave_in_order_within_the_bounds_and_are_held_until_released(sizes: list[int], taken: int) -> None:
    gatherer = Gatherer(BOUNDS)
    held: list[Entry] = []
    calls: list[list[Entry]] = []
    added: list[Entry] = []
    for number, size in enumerate(sizes):
        if gatherer.has_room_for(size):
            added.append(entry(size))
            held.append(added[-1])
            gatherer.add(added[-1], 0.0)
        if number % 3 == taken % 3 and len(gatherer):
            calls.append(gatherer.take())
            if number % 2:
                gatherer.release(calls[-1])
                held = [each for each in held if each not in calls[-1]]
        assert gatherer.held_batches == len(held) <= BOUNDS.queue_batches
        assert gatherer.held_bytes == sum(len(each.line) for each in held) <= BOUNDS.queue_bytes
    calls.append(gatherer.drain())
    assert [each for call in calls for each in call] == added
    for call in calls[:-1]:
        assert 0 < len(call) <= BOUNDS.call_batches
        assert len(call) == 1 or sum(len(each.line) + 1 for each in call) <= BOUNDS.call_bytes


# ---- replies


def test_each_batch_gets_its_own_answer() -> None:
    lines = [
        ACCEPTED,
        {"status": "skipped", "reason": "no_successful_orders", "ignored": 1},
        {"status": "rejected", "problem": {"code": "invalid_batch", "status": 422, "retry": "no"}},
        {"status": "rejected", "problem": {"code": "busy", "status": 503, "retry": "later"}},
    ]
    reply = judge(200, "", b"".join(json.dumps(line).encode() + b"\n" for line in lines), list("abcd"))

    assert isinstance(reply, Answered)
    accepted, skipped, rejected, again = reply.answers
    assert isinstance(accepted, Accepted)
    assert (accepted.idempotency_key, accepted.connections, accepted.duplicate) == ("a", 2, True)
    assert skipped == Skipped("no_successful_orders", 1, "b")
    assert isinstance(rejected, Rejected)
    assert rejected.problem.code == "invalid_batch"
    assert isinstance(again, Again)


@pytest.mark.parametrize(
    ("status", "problem", "unsent"),
    [
        (503, {"code": "outcome_unknown", "retry": "same key"}, False),
        (500, {"code": "internal_error", "retry": "same key"}, False),
        (503, {"code": "busy", "retry": "later"}, True),
        (503, {"code": "disk_full", "retry": "later"}, True),
        (502, None, False),
        (429, None, False),
    ],
)
def test_what_may_go_well_another_time_is_sent_again(status: int, problem: object, unsent: bool) -> None:
    reply = judge(status, "3", json.dumps(problem).encode() if problem else b"<html>", ["a"])

    assert isinstance(reply, Again)
    assert reply.is_unsent is unsent
    assert reply.after_seconds == 3.0


@pytest.mark.parametrize(
    ("status", "of_the_batches"), [(400, True), (413, True), (401, False), (404, False), (302, False)]
)
def test_what_would_be_refused_again_is_told_apart(status: int, of_the_batches: bool) -> None:
    reply = judge(status, "", b"", ["a"])

    assert isinstance(reply, Refused)
    assert reply.is_of_the_batches is of_the_batches


@given(
    st.integers(100, 599),
    st.text(max_size=5),
    st.binary(max_size=60) | st.sampled_from([b"[" * 100_000, b"{}\n", b"1\n"]),
)
def test_no_response_makes_it_raise(status: int, retry_after: str, body: bytes) -> None:
    judge(status, retry_after, body, ["a"])


@given(
    st.recursive(
        st.none() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["status", "summaries", "problem"]), inner),
    )
)
def test_no_answer_makes_it_raise(value: object) -> None:
    assert not isinstance(judge(200, "", json.dumps(value).encode() + b"\n", ["a"]), Refused)


# ---- records

MOMENTS = st.builds(
    Moment, st.integers(0, 2**33).map(float), st.integers(0, 2**30).map(float), st.sampled_from(["", "boot-1"])
)
LINES = st.text().map(lambda text: json.dumps({"t": text}).encode())
RECORDS: st.SearchStrategy[Record] = st.one_of(
    st.builds(Begun, st.integers(0, 9), st.sampled_from(["", "boot-1"])),
    st.builds(Handed, st.integers(1, 2**40), st.integers(0, 2**33).map(float), LINES),
    st.builds(Attempted, st.integers(1, 2**40), MOMENTS),
    st.builds(Revoked, st.integers(1, 2**40)),
    st.builds(Settled, st.integers(1, 2**40)),
)


@given(st.lists(RECORDS))
def test_records_are_read_as_they_were_written(records: list[Record]) -> None:
    assert [record for record, _ in decode_all(b"".join(map(encode, records)))] == records


@given(st.lists(RECORDS, min_size=1, max_size=4), st.data())
def test_a_tail_torn_at_any_byte_costs_its_own_record_only(records: list[Record], data: st.DataObject) -> None:
    content = b"".join(map(encode, records))
    whole = content[: -len(encode(records[-1]))]
    torn_at = data.draw(st.integers(len(whole), len(content) - 1))

    assert [record for record, _ in decode_all(content[:torn_at])] == records[:-1]


@given(st.lists(RECORDS, min_size=2, max_size=4), st.data())
def test_a_damaged_line_costs_itself_only(records: list[Record], data: st.DataObject) -> None:
    lines = [encode(record) for record in records]
    which = data.draw(st.integers(0, len(lines) - 1))
    place = data.draw(st.integers(0, len(lines[which]) - 2))
    flipped = bytes([lines[which][place] ^ 0x80])
    lines[which] = lines[which][:place] + flipped + lines[which][place + 1 :]

    assert [record for record, _ in decode_all(b"".join(lines))] == records[:which] + records[which + 1 :]


def test_time_is_measured_by_the_clock_that_both_moments_share() -> None:
    first = Moment(1000.0, 50.0, "boot-1")

    assert Moment(9.0, 60.0, "boot-1").seconds_since(first) == 10.0
    assert Moment(1500.0, 3.0, "boot-2").seconds_since(first) == 500.0
    assert Moment(900.0, 3.0, "boot-2").seconds_since(first) == float("inf")
    assert Moment(1500.0, 60.0, "").seconds_since(Moment(1000.0, 50.0, "")) == 500.0


class Lazy(dict[str, object]):
    """Of a class of the caller's, which raises whatever it likes."""

    def get(self, *_arguments: object) -> object:
        raise RuntimeError("no connection to the database")


@pytest.mark.parametrize(
    "odd", [{**RESULT, "order_type": "\ud800"}, {**RESULT, "event_type": "\udfff\ud800"}, Lazy(RESULT)]
)
def test_what_cannot_be_read_or_written_spoils_only_its_own_result(odd: object) -> None:
    sent = encode_batch(7, 3, [RESULT, odd, RESULT], "k")
    first, stand_in, last = msgspec.json.decode(sent)["batch_results"]
    assert first == last == RESULT
    assert stand_in != RESULT


def test_a_character_beyond_the_basic_plane_is_sent() -> None:
    assert (
        json.loads(encode_batch(7, 3, [{**RESULT, "order_type": "📦"}], "k"))["batch_results"][0]["order_type"] == "📦"
    )
