"""The wall clock is set, by hours and by days: nothing is forgotten, and nobody is disconnected."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.tally import Tally
from tests.e2e.wire import StreamSocket
from tests.process import PROGRAM, ServerProcess, broken, running_server

LIBRARIES = tuple(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
STEPS = ("+1h", "-1h", "+0", "+1d", "-1d", "+0")
CREATED = {"order_type": "LIMIT", "event_type": "order_created", "success": True}
BEATS = 13
"""Heartbeats to wait for after a step: more than a second, time for housekeeping at rest."""

AGES_BY_THE_WALL_CLOCK = "import time\ntime.monotonic_ns = time.time_ns"


class Clock:
    """The wall clock of a server, set by writing how far it is off."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.step("+0")

    def step(self, offset: str) -> None:
        """Set it: `+1h`, `-1d`."""
        self._path.write_text(f"{offset}\n")

    def command(self) -> tuple[str, ...]:
        """Starts what follows with this clock. Clocks that nobody can set are left alone."""
        if not LIBRARIES:
            pytest.skip("libfaketime is not installed")
        return (
            "env",
            f"LD_PRELOAD={LIBRARIES[0]}",
            f"FAKETIME_TIMESTAMP_FILE={self._path}",
            "FAKETIME_NO_CACHE=1",
            "FAKETIME_DONT_FAKE_MONOTONIC=1",
        )


@contextmanager
def server_with(clock: Clock, program: Sequence[str] = PROGRAM) -> Iterator[ServerProcess]:
    """Everything is kept for an hour only."""
    kept = ("--keep-hours=1", "--idempotency-hours=1", "--heartbeat-seconds=0.1")
    with running_server(*kept, command_prefix=clock.command(), program=program) as server:
        yield server


def keyed(server: ServerProcess) -> Any:
    batch = {"user_id": 7, "strategy_id": 3, "batch_results": [CREATED] * 5, "idempotency_key": "the first"}
    return server.post("/internal/emit", batch)


def beat(stream: StreamSocket, beats: int) -> None:
    """Until so many further heartbeats have come."""
    seen = sum(event.event == "stream_heartbeat" for event in stream.events)
    stream.read_until(lambda stream: sum(event.event == "stream_heartbeat" for event in stream.events) >= seen + beats)


def test_a_clock_that_is_set_trims_nothing_purges_nothing_and_disconnects_nobody(tmp_path: Path) -> None:
    clock = Clock(tmp_path / "clock")
    with (
        server_with(clock) as server,
        StreamSocket(server.public_port, "user_id=7&strategy_id=3&heartbeat=event&totals=1") as stream,
    ):
        stream.read_until(lambda stream: len(stream.events) == 1)
        first = keyed(server)
        days = set()
        for offset in STEPS:
            clock.step(offset)
            for _ in range(3):
                last = server.emit(7, 3, CREATED)
            beat(stream, BEATS)
            repeated = keyed(server)
            assert (repeated["duplicate"], repeated["position"]) == (True, first["position"])
            assert server.get("/internal/keys/7/3")["oldest_kept"] == first["position"]
            assert server.get("/internal/connections")["connections"] == 1
        stream.read_until(lambda stream: stream.events[-1].last_event_id == last["position"])
        tally = Tally()
        for event in stream.events:
            tally.add(event.event, event.data, event.last_event_id)
        assert tally.counts == {(3, "LIMIT", "created"): 5 + 3 * len(STEPS)}
        batches = server.get("/internal/batches?user_id=7&strategy_id=3")["batches"]
        days = {batch["timestamp"][:10] for batch in batches}
        hours = server.get(f"/internal/statistics/hourly?user_id=7&from={min(days)}&to={max(days)}T23:59:59Z")["hours"]
        assert len(days) >= 3, "the clock has been set"
        assert sum(hour["summaries"][0]["created"] for hour in hours) == 5 + 3 * len(STEPS)
        assert server.get("/internal/connections")["closed"] == {}


def test_a_build_that_ages_by_the_wall_clock_is_seen(tmp_path: Path) -> None:
    clock = Clock(tmp_path / "clock")
    with server_with(clock, broken(AGES_BY_THE_WALL_CLOCK)) as server:
        keyed(server)
        clock.step("+1d")
        assert keyed(server)["duplicate"] is False
