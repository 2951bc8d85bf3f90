"""A reader's state, fed by hand: what fits is handed over once, what does not is not."""

import json
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tallywire_client._follower import MAX_WAIT_SECONDS, Follower
from tallywire_client._sse import Block, BlockParser
from tallywire_client.events import CatchUp, Closing, Event, Expiring, HourlySummary, Opened, Reset, Update
from tallywire_client.results import Summary

Counts = dict[str, tuple[int, int]]


def summaries(counts: Counts) -> list[dict[str, object]]:
    return [{"order_type": name, "created": c, "cancelled": d} for name, (c, d) in counts.items()]


def block(event: str, data: object, event_id: str | None = None, retry_ms: int | None = None) -> bytes:
    retry = "" if retry_ms is None else f"retry: {retry_ms}\n"
    last = "" if event_id is None else f"id: {event_id}\n"
    return f"event: {event}\n{retry}data: {json.dumps(data)}\n{last}\n".encode()


def control(event: str, event_id: str | None = None, retry_ms: int | None = None, **data: object) -> bytes:
    return block(event, {"type": event, "data": data}, event_id, retry_ms)


def opening(position: str, totals: Counts, *, resumed: bool = False, heartbeat_seconds: int = 15) -> bytes:
    return control(
        "stream_open",
        position,
        1000,
        position=position,
        strategies=[3],
        resumed=resumed,
        heartbeat_seconds=heartbeat_seconds,
        totals=[{"strategy_id": 3, "summaries": summaries(totals)}],
    )


def fields(after: str, difference: Counts, totals: Counts, strategy_id: int = 3) -> dict[str, object]:
    return {
        "type": "order_batch_update",
        "data": {"summaries": summaries(difference), "timestamp": "2026-01-31T14:59:22.972Z"},
        "stream": {"strategy_id": strategy_id, "after": after, "batches": 1, "totals": summaries(totals)},
    }


def update(after: str, position: str, difference: Counts, totals: Counts) -> bytes:
    return block("order_batch_update", fields(after, difference, totals), position)


def follower(position: str = "") -> Follower:
    made = Follower(position, random.Random(1).uniform)
    made.connected()
    return made


def fed(reader: Follower, *blocks: bytes) -> list[Event | None]:
    return list(reader.feed(b"".join(blocks)))


FIRST = opening("e-1", {"LIMIT": (2, 0)})
SECOND = update("e-1", "e-2", {"LIMIT": (1, 1)}, {"LIMIT": (3, 1)})


def test_sums_and_position_move_together() -> None:
    reader = follower()
    seen = [(type(event), reader.position, reader.totals[3]) for event in reader.feed(FIRST + SECOND)]

    assert seen == [(Opened, "e-1", (Summary("LIMIT", 2, 0),)), (Update, "e-2", (Summary("LIMIT", 3, 1),))]


@pytest.mark.parametrize(
    "misfit",
    [
        update("e-7", "e-8", {"LIMIT": (1, 0)}, {"LIMIT": (3, 0)}),
        SECOND.replace(b"id: e-2\n", b""),
        block("order_batch_update", "nonsense", "e-2"),
        b"event: order_batch_update\ndata: {\nid: e-2\n\n",
        control("stream_heartbeat", position="e-9"),
        block("order_batch_catch_up", {"updates": [fields("e-0", {}, {"LIMIT": (2, 0)})]}, "e-2"),
    ],
    ids=["gap", "no id", "other shape", "no json", "heartbeat elsewhere", "gap in catch-up"],
)
def test_what_does_not_fit_is_asked_for_again_and_not_handed_over(misfit: bytes) -> None:
    reader = follower()

    assert isinstance(fed(reader, FIRST, misfit)[1], type(None))
    assert reader.misfits == 1
    assert (reader.position, reader.totals) == ("e-1", {3: (Summary("LIMIT", 2, 0),)})
    reader.ended()
    reader.connected()
    resumed, again = fed(reader, opening("e-1", {"LIMIT": (2, 0)}, resumed=True), SECOND)
    assert isinstance(resumed, Opened)
    assert isinstance(again, Update)


def test_a_frame_that_comes_twice_counts_once() -> None:
    reader = follower()

    assert [type(event) for event in fed(reader, FIRST, SECOND, SECOND)] == [Opened, Update, type(None)]


def test_sums_that_are_wrong_begin_anew() -> None:
    reader = follower()
    wrong = update("e-1", "e-2", {"LIMIT": (1, 1)}, {"LIMIT": (9, 9)})

    assert fed(reader, FIRST, wrong)[1:] == [None]
    assert reader.position == "", "the next stream starts without a position, from the totals that it states"


def test_a_resumed_stream_must_be_at_the_position() -> None:
    reader = follower("e-1")

    assert fed(reader, opening("e-5", {}, resumed=True)) == [None]


def test_a_reset_replaces_everything() -> None:
    reader = follower()
    reset = control(
        "stream_reset", "f-9", 1000, reason="epoch", position="f-9", strategies="*", heartbeat_seconds=15,
        totals=[{"strategy_id": 4, "summaries": summaries({"MARKET": (1, 0)})}],
    )  # fmt: skip
    fed(reader, FIRST)
    reader.ended()
    reader.connected()

    assert [type(event) for event in fed(reader, reset)] == [Reset]
    assert (reader.position, reader.totals) == ("f-9", {4: (Summary("MARKET", 1, 0),)})


def test_a_catch_up_moves_all_its_strategies_in_one_step() -> None:
    reader = follower()
    both = [
        fields("e-1", {"LIMIT": (1, 0)}, {"LIMIT": (3, 0)}),
        fields("e-1", {"MARKET": (0, 2)}, {"MARKET": (0, 2)}, 4),
    ]
    event = fed(reader, FIRST, block("order_batch_catch_up", {"updates": both, "after": "e-1"}, "e-5"))[1]

    assert isinstance(event, CatchUp)
    assert [each.strategy_id for each in event.updates] == [3, 4]
    assert reader.position == "e-5"
    assert reader.totals == {3: (Summary("LIMIT", 3, 0),), 4: (Summary("MARKET", 0, 2),)}


def test_closing_ends_the_connection_and_perhaps_everything() -> None:
    comes_back, over = follower(), follower()

    assert fed(comes_back, FIRST, control("stream_closing", None, 1849, reason="draining", reconnect=True))[1:] == [
        Closing("draining", reconnect=True),
        None,
    ]
    assert not comes_back.is_over
    assert comes_back.wait_seconds() == 1.849
    fed(over, FIRST, control("stream_closing", None, 1, reason="revoked", reconnect=False))
    assert over.is_over


def test_notices_change_nothing_and_what_is_unknown_is_passed_over() -> None:
    reader = follower()
    events = fed(
        reader,
        FIRST,
        b":\n",
        control("stream_heartbeat", position="e-1"),
        control("stream_expiring", expires_at="2026-01-31T14:00:00.000Z", seconds_left=60),
        control("order_hourly_summary", strategy_id=3, hour="h", summaries=summaries({"LIMIT": (9, 9)})),
        control("something_new", whatever=1),
    )

    assert [type(event) for event in events[1:]] == [Expiring, HourlySummary]
    assert (reader.position, reader.totals) == ("e-1", {3: (Summary("LIMIT", 2, 0),)})


def test_waits_grow_while_there_is_no_stream_and_are_never_shorter_than_asked() -> None:
    reader = follower()
    fed(reader, FIRST)
    reader.ended()
    assert reader.wait_seconds() == 1.0, "after a cut, what the server said"
    waits = []
    for _ in range(40):
        reader.connected()
        reader.ended()
        waits.append(reader.wait_seconds())
    assert all(1.0 <= wait <= MAX_WAIT_SECONDS for wait in waits)
    assert max(waits) == MAX_WAIT_SECONDS
    reader.connected()
    fed(reader, opening("e-1", {"LIMIT": (2, 0)}, resumed=True))
    reader.ended()
    assert reader.wait_seconds() == 1.0


def test_silence_is_three_heartbeats() -> None:
    reader = follower()
    fed(reader, opening("e-1", {}, heartbeat_seconds=20))

    assert reader.silence_seconds == 60


STREAM = FIRST + b":\n" + SECOND + b":\n" + control("stream_heartbeat", position="e-2") + block("é", "ü", "e-3")


def test_a_stream_may_be_cut_into_pieces_anywhere() -> None:
    whole = BlockParser().feed(STREAM)
    for cut in range(len(STREAM) + 1):
        parser = BlockParser()
        assert parser.feed(STREAM[:cut]) + parser.feed(STREAM[cut:]) == whole, cut


def test_a_block_that_was_not_finished_is_none() -> None:
    parser = BlockParser()

    assert parser.feed(SECOND[:-1]) == []
    assert parser.feed(b"\n") == [Block("order_batch_update", SECOND.decode().split("\n")[1][6:], "e-2", None)]


@given(st.binary(), st.lists(st.integers(0, 50)))
def test_no_bytes_make_it_raise(data: bytes, cuts: list[int]) -> None:
    reader = follower()
    start = 0
    for cut in [*sorted(cuts), len(data)]:
        list(reader.feed(data[start:cut]))
        start = max(start, cut)


@given(
    st.lists(st.tuples(st.sampled_from(["LIMIT", "MARKET"]), st.integers(0, 5), st.integers(0, 5)), max_size=12),
    st.data(),
)
def test_over_cuts_at_any_byte_the_sums_are_those_of_the_server(
    batches: list[tuple[str, int, int]], data: st.DataObject
) -> None:
    """A server of one strategy in a few lines: it resumes with one frame that is the difference."""
    totals: list[Counts] = [{}]
    for name, created, cancelled in batches:
        before = totals[-1].get(name, (0, 0))
        totals.append({**totals[-1], name: (before[0] + created, before[1] + cancelled)})
    reader, head = Follower("", random.Random(1).uniform), 0
    connections = data.draw(st.integers(1, 5))
    for number in range(connections):
        reader.connected()
        at = int(reader.position.partition("-")[2]) if reader.position else head
        served = opening(f"e-{at}", totals[at], resumed=bool(reader.position))
        head = len(batches) if number == connections - 1 else data.draw(st.integers(head, len(batches)))
        marks = sorted({at, head, data.draw(st.integers(at, head))})
        for start, end in pairwise(marks):
            difference = {
                name: (c - totals[start].get(name, (0, 0))[0], d - totals[start].get(name, (0, 0))[1])
                for name, (c, d) in totals[end].items()
            }
            served += update(f"e-{start}", f"e-{end}", difference, totals[end])
        is_last = number == connections - 1
        cut = len(served) if is_last else data.draw(st.integers(0, len(served)))
        assert None not in list(reader.feed(served[:cut]))
        reader.ended()
    shown = {each.order_type: (each.created, each.cancelled) for each in reader.totals.get(3, ())}
    assert shown == totals[-1]
    assert reader.position == f"e-{len(batches)}"
