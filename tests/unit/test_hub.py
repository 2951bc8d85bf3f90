"""The hub on moments that a random walk seldom meets."""

from collections.abc import Callable
from unittest import mock

import pytest

from core.errors import Draining, InternalError, OutcomeUnknown, TallywireError
from core.heartbeat import SLOTS
from core.hub import BEATS_AT_ONCE, Hub, Wanted
from core.journal.base import Deliver, JournalFailed
from core.metrics import standing_now
from core.models import Revocation
from core.publisher import STEP_SECONDS, WRITES_BETWEEN_LOOKS
from core.statistics import HourlyNotices
from core.subscriber import Frame, State, StreamKey, Subscriber, stream_options
from tests.unit.world import Client, FakeConnection, HesitantJournal, World, result

PLAIN = stream_options(chunked=False)


def crowd(world: World, count: int) -> list[Client]:
    """So many clients of one key, all up to date."""
    clients = [Client(world, 7, (3,), PLAIN) for _ in range(count)]
    for client in clients:
        client.connect()
    world.settle()
    return clients


def emit_and_begin_to_publish(world: World) -> None:
    """A step that is over before it reaches the end of a crowd."""
    world.seconds_a_look = STEP_SECONDS
    world.emit((7, 3, [result()]))
    world.commit()


def test_a_stream_that_opens_during_a_pass_gets_the_next_batch_too() -> None:
    world = World()
    crowd(world, 3 * WRITES_BETWEEN_LOOKS)
    emit_and_begin_to_publish(world)
    assert world.steps.due, "the pass is not complete"
    newcomer = Client(world, 7, (3,), PLAIN)
    newcomer.connect()
    emit_and_begin_to_publish(world)
    world.seconds_a_look = 0
    world.settle()

    newcomer.read()
    newcomer.check_is_complete()
    world.close()


def test_a_pass_goes_on_where_it_stands_when_the_head_moves() -> None:
    world = World()
    clients = crowd(world, 3 * WRITES_BETWEEN_LOOKS)
    emit_and_begin_to_publish(world)
    emit_and_begin_to_publish(world)
    world.steps.run_one()
    clients[-1].read()

    assert clients[-1].events[-1] == "order_batch_update", "the end of the list is not starved"
    world.seconds_a_look = 0
    world.settle()
    for client in clients:
        client.read()
        client.check_is_complete()
    world.close()


def let_in(connection: FakeConnection, world: World) -> None:
    """Open a stream of one key on a connection whose bytes nobody adds up."""
    world.open(connection, (3,), None)


class Broken(FakeConnection):
    """A connection whose transport has a bug."""

    is_broken = False

    def transmit(self, data: bytes | memoryview) -> int:
        if self.is_broken:
            raise RuntimeError("a bug")
        return super().transmit(data)


@pytest.mark.logs("Fan-out failed")
def test_a_fault_ends_one_stream_and_harms_no_other_and_no_answer() -> None:
    world = World()
    before, after = crowd(world, 2)
    broken = Broken(7, PLAIN)

    let_in(broken, world)
    late = crowd(world, 1)[0]
    broken.is_broken = True
    answer = world.emit_now(7, 3)

    assert answer.connections == 4  # type: ignore[union-attr]  # accepted
    assert broken.state is State.CLOSED
    assert world.hub.closed == {"fault": 1}
    for client in (before, after, late):
        client.read()
        client.check_is_complete()
    world.close()


class Untellable(FakeConnection):
    """A connection for which no frame can be made."""

    is_broken = False

    def _frame(self, behind: list[StreamKey]) -> Frame:
        if self.is_broken:
            raise RuntimeError("a bug")
        return super()._frame(behind)


@pytest.mark.logs("Fan-out failed")
@pytest.mark.parametrize("strategies", [None, (3, 4)], ids=["everything", "several"])
def test_a_frame_that_cannot_be_made_ends_the_stream_that_it_is_for(strategies: tuple[int, ...] | None) -> None:
    world = World()
    sound, broken = crowd(world, 2), Untellable(7, PLAIN)

    world.open(broken, strategies, None)
    sound += crowd(world, 1)
    broken.is_broken = True
    world.emit_now(7, 3)

    assert broken.state is State.CLOSED
    assert world.hub.closed == {"fault": 1}
    for client in sound:
        client.read()
        client.check_is_complete()
    world.close()


@pytest.mark.logs("Publishing failed")
def test_a_fault_while_publishing_answers_its_call_and_lets_the_next_one_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    with monkeypatch.context() as patch:
        patch.setattr(Hub, "_answer", lambda *_: 1 / 0)
        failing = world.emit((7, 3, [result()]))
        world.commit()
        world.spin()

    assert isinstance(failing.exception(), InternalError)
    assert world.emit_now(7, 3).position.endswith("-2")  # type: ignore[union-attr]  # accepted
    world.tasks.remove(failing)
    world.close()


def test_a_stream_whose_user_is_still_being_loaded_is_refused_when_the_server_drains() -> None:
    world = World()

    connection = FakeConnection(7, PLAIN)
    refusals = world.open(connection, (3,), None)
    world.hub.is_draining = True
    world.commit()

    (refusal,) = refusals
    assert isinstance(refusal, Draining)
    assert not connection.sent
    assert world.hub.registry.user(7) is None
    world.close()


@pytest.mark.logs("Opening failed", "Publishing failed")
def test_a_refusal_that_fails_keeps_nobody_else_of_the_same_delivery_waiting() -> None:
    world = World()
    connection = FakeConnection(8, PLAIN)

    def fail(_refusal: TallywireError) -> None:
        raise RuntimeError("a bug")

    world.hub.open(Wanted(7, (3,), None), lambda: None, fail)
    refusals = world.open(connection, (3,), None)
    world.hub.is_draining = True
    world.commit()

    assert [type(refusal) for refusal in refusals] == [Draining]
    world.close()


def test_what_a_key_publishes_before_a_resume_has_begun_to_read_is_not_missed() -> None:
    world = World()
    crowd(world, 1)
    client = Client(world, 7, (3, 4), PLAIN)
    client.connect()
    world.settle()
    client.read()
    client.connection.close("reset")  # type: ignore[union-attr]  # connected
    world.emit_now(7, 3)
    world.emit((7, 4, [result()]))
    with mock.patch.object(world, "spin"):
        # Strategy 3 has moved, so its totals are read; 4 moves before the task that reads has had a turn.
        client.reconnect()
        world.commits.run_all()
    world.settle()
    client.read()

    client.check_is_complete()
    assert client.sums[3]
    assert client.sums[4]
    world.close()


def test_a_stream_that_is_opening_when_the_server_drains_gets_its_head_and_a_word() -> None:
    world = World()
    position = world.emit_now(7, 3).position  # type: ignore[union-attr]  # accepted
    world.emit_now(7, 3)
    world.journal.reads_wait = True
    connection = FakeConnection(7, PLAIN)
    connection.prologue = b"HTTP/1.1 200 OK\r\n\r\n"

    world.open(connection, (3,), position)
    world.commit()
    assert not connection.has_ended
    world.start(world.hub.drain(5))
    world.release_reads()

    assert connection.state is State.CLOSED
    assert connection.sent.startswith(b"HTTP/1.1 200 OK\r\n\r\nevent: stream_closing\n")
    assert world.hub.closed == {"draining": 1}
    world.close()


@pytest.mark.logs("Emits still in flight")
def test_an_emit_that_never_ends_keeps_no_stream_from_its_farewell() -> None:
    world = World()
    (client,) = crowd(world, 1)
    world.hub.begin_intake()
    world.loop.run_until_complete(world.hub.drain(0.2))
    client.read()

    assert client.events[-1] == "stream_closing"
    world.close()


def test_a_cancelled_caller_does_not_undo_its_commit() -> None:
    world = World()
    (client,) = crowd(world, 1)

    task = world.emit((7, 3, [result()]))
    world.spin()
    task.cancel()
    world.commit()
    world.settle()
    client.read()

    assert task.cancelled()
    client.check_is_complete()
    assert client.sums[3]
    world.close()


@pytest.mark.logs("Transaction failed", "Commit failed")
def test_a_fault_of_the_journal_answers_who_waits_and_lets_the_next_commit_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    with monkeypatch.context() as patch:
        patch.setattr(type(world.journal), "persist", lambda *_: 1 / 0)
        failing = world.emit((7, 3, [result()]))
        world.commit()
    world.spin()

    assert isinstance(failing.exception(), OutcomeUnknown)
    assert world.emit_now(7, 3).position.endswith("-1")  # type: ignore[union-attr]  # accepted
    world.close()


@pytest.mark.logs("Heartbeat failed")
def test_a_fault_in_a_heartbeat_ends_that_stream_only() -> None:
    world = World()
    broken, sound = Broken(7, PLAIN), Client(world, 7, (3,), stream_options(event_heartbeat=True, chunked=False))

    let_in(broken, world)
    sound.connect()
    world.commit()
    broken.is_broken = True
    for _ in range(SLOTS):
        world.run_timers()
    sound.read()

    assert broken.state is State.CLOSED
    assert sound.events == ["stream_open", "stream_heartbeat"]
    world.close()


def test_streams_that_are_due_together_beat_a_few_at_a_time_and_each_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.hub.random.random", lambda: 0.0)  # all in one slot
    world = World()
    clients = [Client(world, 7, (3,), stream_options(event_heartbeat=True, chunked=False)) for _ in range(11)]
    for client in clients:
        client.connect()
    world.commit()

    def beats() -> list[int]:
        for client in clients:
            client.read()
        return [client.events.count("stream_heartbeat") for client in clients]

    for _ in range(SLOTS):
        if not world.steps.due:
            world.run_timers()
    assert sum(beats()) == BEATS_AT_ONCE
    gone = clients.pop(beats().index(0))
    assert gone.connection is not None
    gone.connection.close("client_closed")
    world.steps.run_one()
    assert sum(beats()) == 2 * BEATS_AT_ONCE - 1, "its turn was this one"
    world.steps.run_one()

    assert beats() == [1] * 10
    assert not world.steps.due
    world.close()


def test_a_blocked_stream_of_a_deleted_user_hears_of_it_when_it_reads_and_leaves_nothing_behind() -> None:
    world = World()
    blocked, other = crowd(world, 2)
    assert blocked.connection is not None
    blocked.connection.let_in(10)
    world.emit_now(7, 3)
    world.emit_now(7, 3)
    deleted = world.start(world.hub.delete_user(7))
    world.commit()
    other.read()

    assert (deleted.result().rows, deleted.result().closed) == (2, 2)
    assert other.events[-2:] == ["order_batch_update", "stream_closing"]
    assert len(world.hub.registry) == 1, "one still has something to read"
    anew = world.emit_now(7, 3)
    assert anew.position.endswith("-4")  # type: ignore[union-attr]  # accepted
    blocked.connection.let_in(None)
    blocked.read()
    assert blocked.events[-2:] == ["order_batch_update", "stream_closing"]
    assert not len(world.hub.registry)
    assert world.hub.registry.user(7) is None
    world.close()


def test_a_deletion_ends_a_coalescing_window_without_telling_anybody_what_is_gone() -> None:
    world = World(coalesce_ms=5)
    (client,) = crowd(world, 1)
    world.emit_now(7, 3)
    world.emit_now(7, 3)
    world.start(world.hub.delete_user(7))
    world.commit()
    newcomer = FakeConnection(7, PLAIN)

    let_in(newcomer, world)
    world.commit()
    world.settle()
    client.read()

    assert client.events[-1] == "stream_closing"
    assert b"order_batch_update" not in newcomer.sent
    world.emit_now(7, 3)
    world.settle()
    assert b'"created":1' in newcomer.sent
    world.close()


@pytest.mark.logs("Farewell failed")
def test_a_fault_of_one_stream_keeps_no_deletion_from_being_answered() -> None:
    world = World()
    broken = Broken(7, PLAIN)

    let_in(broken, world)
    world.commit()
    world.emit_now(7, 3)
    broken.is_broken = True
    deleted = world.start(world.hub.delete_user(7))
    world.commit()

    assert deleted.result().rows == 1
    assert broken.state is State.CLOSED
    world.close()


def no_frame(_self: Subscriber, _key: StreamKey) -> Frame:
    raise RuntimeError("a bug")


def revoked(world: World) -> object:
    return world.start(world.hub.revoke(Revocation(7)))


def deleted(world: World) -> object:
    return world.start(world.hub.delete_user(7))


def drained(world: World) -> object:
    return world.start(world.hub.drain(1))


@pytest.mark.logs("Farewell failed")
@pytest.mark.parametrize("told_to_go", [revoked, deleted, drained])
def test_a_stream_whose_last_frame_cannot_be_made_goes_all_the_same(
    told_to_go: Callable[[World], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(coalesce_ms=5)
    connection = FakeConnection(7, PLAIN)

    let_in(connection, world)
    world.commit()
    world.emit_now(7, 3)
    world.emit_now(7, 3)
    assert connection.behind()
    monkeypatch.setattr(Subscriber, "encode_alone", no_frame)
    told_to_go(world)
    world.commit()

    assert connection.state is State.CLOSED
    assert standing_now(world.hub).unaccounted == 0
    world.close()


def test_a_stream_that_cannot_be_told_what_it_missed_ends_and_is_owed_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.emit_now(7, 3)
    world.emit_now(7, 3)
    connection = FakeConnection(7, PLAIN)
    monkeypatch.setattr(Subscriber, "encode_alone", no_frame)

    world.open(connection, (3,), f"{world.journal.epoch}-1")
    world.commit()
    monkeypatch.undo()
    world.emit_now(7, 3)

    assert connection.state is State.CLOSED
    assert standing_now(world.hub).unaccounted == 0
    with pytest.raises(RuntimeError, match="a bug"):
        world.close()


def test_a_deletion_is_refused_while_the_server_drains() -> None:
    world = World()
    world.hub.is_draining = True
    refused = world.loop.create_task(world.hub.delete_user(7))
    world.spin()

    assert isinstance(refused.exception(), Draining)
    world.close()


def test_a_journal_that_cannot_go_on_refuses_further_work_before_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[JournalFailed] = []
    given: list[Callable[[JournalFailed], None]] = []
    start = HesitantJournal.start

    def begin(self: HesitantJournal, deliver: Deliver, fail: Callable[[JournalFailed], None]) -> None:
        given.append(fail)
        start(self, deliver, fail)

    monkeypatch.setattr(World, "_fail", failures.append)
    monkeypatch.setattr(HesitantJournal, "start", begin)
    world = World()
    given[0](JournalFailed("a sync failed"))

    assert len(failures) == 1
    with pytest.raises(Draining):
        world.hub.begin_intake()
    world.close()


@pytest.mark.logs("Hourly summary failed")
def test_a_fault_of_one_stream_keeps_no_other_from_its_hourly_summary() -> None:
    world = World()
    before, after = crowd(world, 2)
    broken = Broken(7, PLAIN)

    let_in(broken, world)
    late = crowd(world, 1)[0]
    world.emit_now(7, 3)
    broken.is_broken = True
    world.start(HourlyNotices(world.hub).announce(0))
    for client in (before, after, late):
        client.read()

    assert {client.events[-1] for client in (before, after, late)} == {"order_hourly_summary"}
    assert broken.state is State.CLOSED
    world.close()
