"""What a client has added up from its events, with every promise about them checked on the way."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

KNOWN_EVENTS = {
    "stream_open",
    "stream_reset",
    "order_batch_update",
    "order_batch_catch_up",
    "stream_heartbeat",
    "stream_expiring",
    "stream_closing",
    "order_hourly_summary",
}

Counts = Counter[tuple[int, str, str]]
"""By strategy, order type and `created` or `cancelled`."""

COUNTED = {"order_created": "created", "order_cancelled": "cancelled"}


def counted(strategy_id: int, results: Iterable[Mapping[str, object]]) -> Counts:
    """What results count, by the rules of the emit route and without its code."""
    return Counter(
        (strategy_id, str(result["order_type"]), COUNTED[str(result["event_type"])])
        for result in results
        if result.get("success") is True and result.get("event_type") in COUNTED
    )


def place(position: str) -> int:
    """The n of a position. A client may not look into one; a test that asks for more than a client may."""
    return int(position.rpartition("-")[2])


class Tally:
    """The sums and the position of one client. `largest_merge`: most batches that one update carried."""

    def __init__(self, position: str = "") -> None:
        self.position = position
        self.counts: Counts = Counter()
        self.updates = 0
        self.largest_merge = 0
        self.opened = 0

    def add(self, event: str, data: str, event_id: str) -> None:
        """Count an event. `event_id`: the id in force when the client delivered it."""
        assert event in KNOWN_EVENTS, f"a ghost: {event!r} {data!r} {event_id!r}"
        fields = json.loads(data)
        match event:
            case "stream_open":
                self._open(fields["data"], event_id)
            case "order_batch_update":
                assert fields["type"] == event
                self._update(fields, event_id)
            case "order_batch_catch_up":
                assert fields["type"] == event
                assert fields["after"] == self.position
                for update in fields["updates"]:
                    self._update(update, event_id, moves=False)
                self.position = event_id
            case "stream_reset":
                raise AssertionError(f"no position was lost, and yet: {data}")

    def _open(self, opening: Any, event_id: str) -> None:
        assert event_id == opening["position"]
        assert opening["resumed"] is bool(self.position)
        assert event_id == (self.position or event_id), "a stream resumes at the client's own position"
        self.position = event_id
        self.opened += 1

    def _update(self, update: Any, event_id: str, *, moves: bool = True) -> None:
        stream = update["stream"]
        assert stream["after"] == self.position, "each frame starts where the one before ended"
        assert place(event_id) > place(self.position)
        strategy_id = stream["strategy_id"]
        self.counts += summed(strategy_id, update["data"]["summaries"])
        self.updates += 1
        self.largest_merge = max(self.largest_merge, stream["batches"])
        if "totals" in stream:
            assert summed(strategy_id, stream["totals"]) == only(self.counts, strategy_id), "the stated totals"
        if moves:
            self.position = event_id


def summed(strategy_id: int, summaries: Any) -> Counts:
    """The counts that summaries state."""
    return +Counter(
        {
            (strategy_id, summary["order_type"], kind): summary[kind]
            for summary in summaries
            for kind in ("created", "cancelled")
        }
    )


def only(counts: Counts, *strategies: int) -> Counts:
    """The part of these strategies."""
    return Counter({key: count for key, count in counts.items() if key[0] in strategies})
