"""Which owners are called for which sockets, the same on every system."""

import asyncio
import select
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress

import pytest
from tornado.ioloop import IOLoop

from handlers.readiness import EVENTS_AT_ONCE, READ, WRITE, EpollReadiness, LoopReadiness, Readiness, readiness

KINDS: list[Callable[[asyncio.AbstractEventLoop], Readiness]] = [LoopReadiness]
if hasattr(select, "epoll"):
    KINDS.append(EpollReadiness)


class Pair:
    """Two ends of a connection; ours is watched, and what it is told is written down."""

    def __init__(self, told: list[tuple[str, str]], name: str = "a") -> None:
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        self.told = told
        self.name = name

    def on_readable(self) -> None:
        """Take what is there, so that it is told once."""
        self.told.append((self.name, "read"))
        with suppress(OSError):
            self.ours.recv(1)

    def on_writable(self) -> None:
        """Note it."""
        self.told.append((self.name, "write"))

    def close(self) -> None:
        """Both ends."""
        self.ours.close()
        self.theirs.close()


class World:
    """A readiness of one kind, and pairs of sockets."""

    def __init__(self, io_loop: IOLoop, kind: Callable[[asyncio.AbstractEventLoop], Readiness]) -> None:
        self._io_loop = io_loop
        self.told: list[tuple[str, str]] = []
        self.pairs: list[Pair] = []
        self.ready = kind(io_loop.asyncio_loop)  # type: ignore[attr-defined]  # the only kind

    def pair(self, name: str = "a") -> Pair:
        """A new connection that nobody watches."""
        pair = Pair(self.told, name)
        self.pairs.append(pair)
        return pair

    def turn(self, turns: int = 4) -> None:
        """Let the loop look, several times."""

        async def wait() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)

        begun: Callable[[], Awaitable[None]] = wait
        self._io_loop.run_sync(begun)


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def world(io_loop: IOLoop, request: pytest.FixtureRequest) -> Iterator[World]:
    world = World(io_loop, request.param)
    yield world
    for pair in world.pairs:
        if pair.ours.fileno() >= 0:
            world.ready.forget(pair.ours.fileno())
        pair.close()


def test_each_owner_is_called_for_what_it_waits_for(world: World) -> None:
    reader, writer, both, neither = (
        world.pair("reader"),
        world.pair("writer"),
        world.pair("both"),
        world.pair("neither"),
    )
    for pair, events in ((reader, READ), (writer, WRITE), (both, READ | WRITE), (neither, 0)):
        world.ready.watch(pair.ours.fileno(), pair, events)
        pair.theirs.send(b"x")

    world.turn()

    assert set(world.told) == {("reader", "read"), ("writer", "write"), ("both", "read"), ("both", "write")}


def test_nothing_is_told_without_a_reason(world: World) -> None:
    pair = world.pair()
    world.ready.watch(pair.ours.fileno(), pair, READ)

    world.turn()

    assert world.told == []


def test_the_wish_can_be_changed(world: World) -> None:
    pair = world.pair()
    pair.theirs.send(b"x")
    world.ready.watch(pair.ours.fileno(), pair, READ | WRITE)
    world.ready.watch(pair.ours.fileno(), pair, 0)
    world.turn()
    assert world.told == []

    world.ready.watch(pair.ours.fileno(), pair, READ)
    world.turn()

    assert world.told == [("a", "read")]


def test_the_last_owner_alone_is_told(world: World) -> None:
    first = world.pair("first")
    world.ready.watch(first.ours.fileno(), first, READ)
    second = world.pair("second")
    second.ours.close()
    second.ours = first.ours
    world.ready.watch(first.ours.fileno(), second, READ)
    first.theirs.send(b"x")

    world.turn()

    assert world.told == [("second", "read")]


def test_who_is_forgotten_is_not_told_and_may_come_again(world: World) -> None:
    pair = world.pair()
    world.ready.watch(pair.ours.fileno(), pair, READ)
    world.ready.forget(pair.ours.fileno())
    world.ready.forget(pair.ours.fileno())
    pair.theirs.send(b"x")
    world.turn()
    assert world.told == []

    world.ready.watch(pair.ours.fileno(), pair, READ)
    world.turn()

    assert world.told == [("a", "read")]


@pytest.mark.parametrize("events", [READ, WRITE])
def test_an_end_is_told_whatever_was_waited_for(world: World, events: int) -> None:
    pair = world.pair()
    with suppress(BlockingIOError):
        while pair.ours.send(bytes(2**16)):
            pass
    world.ready.watch(pair.ours.fileno(), pair, events)
    world.turn()
    assert world.told == []

    pair.theirs.close()
    world.turn()

    assert world.told


@pytest.mark.logs("Uncaught exception", "Exception in callback")
def test_a_fault_of_one_owner_stays_with_it(world: World, io_loop: IOLoop) -> None:
    faults: list[object] = []
    io_loop.asyncio_loop.set_exception_handler(lambda _loop, context: faults.append(context))  # type: ignore[attr-defined]  # the only kind
    broken, sound = world.pair("broken"), world.pair("sound")

    class Fault(Pair):
        def on_readable(self) -> None:
            super().on_readable()
            raise RuntimeError("broken")

    broken.__class__ = Fault
    for pair in (broken, sound):
        world.ready.watch(pair.ours.fileno(), pair, READ)
        pair.theirs.send(b"x")

    world.turn()

    assert sorted(world.told) == [("broken", "read"), ("sound", "read")]


def test_more_than_one_turn_serves_are_all_served(world: World) -> None:
    pairs = [world.pair(str(number)) for number in range(3 * EVENTS_AT_ONCE + 1)]
    for pair in pairs:
        world.ready.watch(pair.ours.fileno(), pair, READ)
        pair.theirs.send(b"x")

    world.turn(8)

    assert sorted(world.told) == sorted((pair.name, "read") for pair in pairs)


def test_who_is_ended_by_another_is_not_told_in_the_same_turn(world: World) -> None:
    pairs = [world.pair("first"), world.pair("second")]

    def end_the_other(at: int) -> None:
        world.told.append((pairs[at].name, "read"))
        for each in pairs:
            if each.ours.fileno() >= 0:
                world.ready.forget(each.ours.fileno())
                each.close()

    class Ending:
        def __init__(self, at: int) -> None:
            self.at = at

        def on_readable(self) -> None:
            end_the_other(self.at)

        def on_writable(self) -> None:
            raise AssertionError("it has been forgotten")

    for at, pair in enumerate(pairs):
        world.ready.watch(pair.ours.fileno(), Ending(at), READ | WRITE)
        pair.theirs.send(b"x")

    world.turn()

    assert len(world.told) == 1


def test_the_system_has_its_best(io_loop: IOLoop) -> None:
    assert isinstance(readiness(io_loop.asyncio_loop), KINDS[-1])  # type: ignore[attr-defined, arg-type]  # the only kind
