"""What a scrape is made of: the look at all connections and what it costs, distributions, what the kernel says."""

import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.exposition import choose_encoder

from core import process
from core.counters import Distribution
from core.hub import Wanted
from core.metrics import Build, Snapshot, snapshot, standing_now
from core.process import process_facts
from core.subscriber import State, StreamKey, Subscriber, stream_options
from tests.unit.world import FakeConnection, World, result

PLAIN = stream_options(chunked=False)
MANY = 10_000
BUILD = Build("1.0", "lean", "none", "python")


@contextmanager
def crowd(count: int, *, follows_all: bool = False) -> Iterator[World]:
    """A user, a stream key and a stream each, told of one batch."""
    world = World(max_connections=count)
    try:
        for user_id in range(1, count + 1):
            connection = FakeConnection(user_id, PLAIN)
            world.connections.append(connection)
            wanted = Wanted(user_id, None if follows_all else (1,), None)
            world.hub.open(wanted, partial(lambda opened: opened, connection), lambda _refusal: None)
        publish_to_all(world)
        yield world
    finally:
        world.close()


def publish_to_all(world: World) -> None:
    """One batch for each."""
    world.commit()
    world.steps.run_all()
    world.emit(*[(connection.user_id, 1, (result(),)) for connection in world.connections])
    world.commit()
    world.steps.run_all()


def stall(world: World) -> None:
    """Every client stops reading in the middle of a frame, and one more batch is behind it."""
    for connection in world.connections:
        connection.room = 10
    publish_to_all(world)
    publish_to_all(world)


def taken(world: World) -> Snapshot:
    """A scrape."""
    return world.loop.run_until_complete(snapshot(world.hub, BUILD, 1))


def least_seconds(work: Callable[[], object], times: int = 7) -> float:
    """CPU of this thread, so that what else the machine does is left out."""
    seconds = []
    for _ in range(times):
        begun = time.thread_time()
        work()
        seconds.append(time.thread_time() - begun)
    return min(seconds)


def a_millisecond_of_work() -> None:
    """About that on the machine of docs/performance.md: attributes, a comparison and additions."""
    key, total = StreamKey.__new__(StreamKey), 0
    key.strategy_id = 1
    for _ in range(25_000):
        if key.strategy_id > total:
            total += key.strategy_id
        total -= key.strategy_id


# ---- what it costs


@pytest.mark.parametrize("follows_all", [False, True], ids=["by name", "everything"])
def test_a_scrape_of_10_000_lagging_streams_with_a_key_each_costs_a_few_milliseconds(follows_all: bool) -> None:
    """At most twenty calibrated milliseconds, of which 8 to 13 are used."""
    encode, _ = choose_encoder("")
    with crowd(MANY, follows_all=follows_all) as world:
        stall(world)
        standing = standing_now(world.hub)
        assert (standing.connections, standing.lagging, standing.blocked) == (MANY, MANY, MANY)
        assert len(world.hub.registry.users) == MANY

        seconds = least_seconds(lambda: encode(taken(world)))

    assert seconds < 20 * least_seconds(a_millisecond_of_work)


def test_a_stream_is_looked_at_once_however_many_keys_its_user_has(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    for strategy_id in range(1, 200):
        world.emit_now(7, strategy_id)
    world.open(FakeConnection(7, PLAIN), None, None)
    world.commit()
    world.steps.run_all()
    world.emit_now(7, 3)
    looked: list[object] = []
    original = Subscriber.pending_counts

    def pending_counts(self: Subscriber) -> int:
        looked.append(self)
        return original(self)

    monkeypatch.setattr(Subscriber, "pending_counts", pending_counts)
    taken(world)

    assert looked == world.connections
    world.close()


# ---- what it says


def test_a_stream_that_lags_says_since_when() -> None:
    world = World()
    world.emit_now(7, 3)
    connection = FakeConnection(7, PLAIN)
    world.open(connection, (3,), None)
    world.commit()
    world.steps.run_all()
    world.now_ms = 10_000
    connection.let_in(10)
    world.emit_now(7, 3)
    world.now_ms = 15_000
    world.emit_now(7, 3)
    world.now_ms = 18_000

    standing = standing_now(world.hub)

    assert connection.state is State.BLOCKED
    assert (standing.pending, standing.oldest_unsent_seconds) == (2, 8.0)
    connection.let_in(None)
    standing = standing_now(world.hub)
    assert (standing.lagging, standing.oldest_unsent_seconds) == (0, 0.0)
    world.close()


def test_a_stream_that_waits_for_its_turn_lags_and_is_not_blocked() -> None:
    world = World(coalesce_ms=5)
    world.open(FakeConnection(7, PLAIN), (3,), None)
    world.commit()
    world.steps.run_all()
    world.emit_now(7, 3)
    world.now_ms = 2_000
    world.emit_now(7, 3)
    world.now_ms = 5_000

    standing = standing_now(world.hub)

    assert (standing.lagging, standing.blocked, standing.oldest_unsent_seconds) == (1, 0, 3.0)
    assert standing.unaccounted == 0
    world.close()


@settings(deadline=None)
@given(st.lists(st.sampled_from([0.5, 1, 1.5, 2, 3, 4, 5]), max_size=30))
def test_a_distribution_counts_each_value_at_the_first_bound_that_is_not_below_it(values: list[float]) -> None:
    distribution = Distribution(1, 2, 4)
    for value in values:
        distribution.add(value)

    up_to = [sum(distribution.counts[: index + 1]) for index in range(4)]
    assert up_to == [sum(value <= bound for value in values) for bound in (1, 2, 4, float("inf"))]
    assert distribution.total == sum(values)


# ---- the process


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the kernel says it in /proc on Linux only")
def test_what_the_kernel_says_of_this_process() -> None:
    facts = process_facts()
    with Path("/dev/null").open():
        one_more = process_facts()

    assert facts is not None
    assert one_more is not None
    assert one_more.open_descriptors - facts.open_descriptors == 1
    assert facts.max_descriptors == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert facts.start_seconds < time.time() < facts.start_seconds + 10**6
    times = os.times()
    assert abs(facts.cpu_seconds - times.user - times.system) < 1
    assert 0 < facts.resident_bytes < facts.virtual_bytes


def test_a_kernel_that_says_nothing_makes_no_scrape_fail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(process, "_STAT", str(tmp_path / "nothing"))
    world = World()
    encode, _ = choose_encoder("")

    text = encode(taken(world)).decode()

    assert "\ntallywire_connections 0.0\n" in text
    assert "process_" not in text
    world.close()
