"""The sums of `tallywire tail`: what each event does to them, and what is not believed."""

import json

import pytest

from core.commands.tally import Change, Closing, Contradiction, Expiring, Heartbeat, Hour, Opening, Said, Tally
from core.models import Summary
from core.sse import ServerSentEvent
from core.totals import Totals

EPOCH = "1k7q2m9x4v0ce"


def at(n: int) -> str:
    return f"{EPOCH}-{n}"


def counts(created: int, cancelled: int = 0, order_type: str = "LIMIT") -> dict[str, object]:
    return {"order_type": order_type, "created": created, "cancelled": cancelled}


def opening(n: int, *, resumed: bool = False, **totals: int) -> ServerSentEvent:
    listed = [{"strategy_id": int(name[1:]), "summaries": [counts(number)]} for name, number in totals.items()]
    data = {"position": at(n), "strategies": "*", "resumed": resumed, "heartbeat_seconds": 15, "totals": listed}
    return control("stream_open", data, at(n))


def control(event: str, data: object, event_id: str = "") -> ServerSentEvent:
    return ServerSentEvent(event, json.dumps({"type": event, "data": data}), event_id)


def update_data(
    after: int, created: int, total: int | None, strategy_id: int = 3, batches: int = 1
) -> dict[str, object]:
    stream: dict[str, object] = {"strategy_id": strategy_id, "after": at(after), "batches": batches}
    if total is not None:
        stream["totals"] = [counts(total)]
    data = {"summaries": [counts(created)], "timestamp": "2026-01-31T14:00:00.000Z"}
    return {"type": "order_batch_update", "data": data, "stream": stream}


def update(after: int, n: int, created: int, total: int | None) -> ServerSentEvent:
    return ServerSentEvent("order_batch_update", json.dumps(update_data(after, created, total)), at(n))


def taken(*events: ServerSentEvent) -> tuple[Tally, list[Said]]:
    tally = Tally()
    return tally, [tally.take(event) for event in events]


def test_an_update_is_added_and_moves_the_position() -> None:
    tally, said = taken(opening(5, s3=10), update(5, 6, 2, 12))

    totals = Totals.of((Summary("LIMIT", 12, 0),))
    assert said[1] == (Change(3, "2026-01-31T14:00:00.000Z", 1, (Summary("LIMIT", 2, 0),), totals),)
    assert (tally.position, tally.sums, tally.batches) == (at(6), {3: totals}, 1)


def test_a_catch_up_is_added_as_a_whole() -> None:
    data = {
        "type": "order_batch_catch_up",
        "updates": [update_data(5, 2, 12), update_data(5, 1, 1, 4, batches=3)],
        "after": at(5),
    }
    tally, _said = taken(opening(5, s3=10), ServerSentEvent("order_batch_catch_up", json.dumps(data), at(9)))

    assert (tally.position, tally.batches) == (at(9), 4)
    assert {key: totals.summaries for key, totals in tally.sums.items()} == {
        3: (Summary("LIMIT", 12, 0),),
        4: (Summary("LIMIT", 1, 0),),
    }


def test_a_reset_replaces_every_sum() -> None:
    data = {"reason": "epoch", "position": "0" * 13 + "-1", "strategies": "*", "heartbeat_seconds": 15, "totals": []}
    tally, said = taken(opening(5, s3=10), control("stream_reset", data, "0" * 13 + "-1"))

    assert isinstance(said[1], Opening)
    assert said[1].reason == "epoch"
    assert (tally.sums, tally.position) == ({}, "0" * 13 + "-1")


def test_a_stream_that_resumes_must_agree_with_the_sums() -> None:
    tally, _said = taken(opening(5, s3=10), opening(5, resumed=True, s3=10))

    assert tally.position == at(5)
    with pytest.raises(Contradiction, match="totals of strategy 3") as caught:
        tally.take(opening(5, resumed=True, s3=11))
    assert caught.value.loses_sums


def test_who_begins_at_a_position_takes_the_totals_there() -> None:
    tally = Tally(at(5))
    tally.take(opening(5, resumed=True, s3=10))
    tally.take(update(5, 6, 1, 11))

    assert tally.sums[3].summaries == (Summary("LIMIT", 11, 0),)


@pytest.mark.parametrize(
    ("event", "loses_sums"),
    [
        (update(4, 6, 2, 12), False),
        (update(6, 7, 2, 12), False),
        (update(5, 6, 2, 13), True),
        (control("stream_heartbeat", {"position": at(6), "timestamp": "2026-01-31T14:00:00.000Z"}), False),
    ],
    ids=["doubled", "lost", "other totals", "a heartbeat elsewhere"],
)
def test_what_does_not_follow_is_not_added(event: ServerSentEvent, loses_sums: bool) -> None:
    tally, _said = taken(opening(5, s3=10))

    with pytest.raises(Contradiction) as caught:
        tally.take(event)

    assert caught.value.loses_sums is loses_sums
    assert (tally.position, tally.sums[3].summaries, tally.batches) == (at(5), (Summary("LIMIT", 10, 0),), 0)


def test_what_tells_something_changes_no_sum() -> None:
    hour = {"strategy_id": 3, "hour": "2026-01-31T14:00:00.000Z", "summaries": [counts(9)]}
    tally, said = taken(
        opening(5, s3=10),
        control("stream_heartbeat", {"position": at(5), "timestamp": "2026-01-31T14:00:00.000Z"}),
        control("stream_expiring", {"expires_at": "2026-01-31T14:00:00.000Z", "seconds_left": 60}),
        control("order_hourly_summary", hour),
        control("stream_closing", {"reason": "a later one", "reconnect": False}),
        control("of_a_later_version", {"anything": 1}),
    )

    assert [type(each) for each in said[1:]] == [Heartbeat, Expiring, Hour, Closing, type(None)]
    assert (tally.position, tally.sums[3].summaries) == (at(5), (Summary("LIMIT", 10, 0),))
