"""How many streams may be opened, what the others are refused with, and how those that are told to go come back."""

from typing import Any

import pytest
from msgspec.structs import replace

from core.errors import Busy, Draining, TallywireError
from core.hub import Wanted
from core.sse import EventParser
from core.subscriber import stream_options
from tests.unit.world import FakeConnection, World

PLAIN = stream_options(chunked=False)


def limited(**limits: Any) -> World:
    """A world whose hub has these limits."""
    world = World()
    world.hub.limits = replace(world.hub.limits, **limits)
    return world


def open_stream(
    world: World, user_id: int = 7, address: str = "", strategies: tuple[int, ...] | None = (3,)
) -> tuple[FakeConnection, list[TallywireError]]:
    """Ask for a stream; what it is refused with."""
    connection, refusals = FakeConnection(user_id, PLAIN), list[TallywireError]()
    world.hub.open(Wanted(user_id, strategies, None, address=address), lambda: connection, refusals.append)
    world.settle()
    return connection, refusals


def test_a_user_has_no_more_streams_than_allowed_and_others_have_theirs() -> None:
    world = limited(max_streams_per_user=2)

    refusals = [open_stream(world, user_id)[1] for user_id in (7, 7, 7, 8, 7)]

    assert [len(each) for each in refusals] == [0, 0, 1, 0, 1]
    assert isinstance(refusals[2][0], Busy)
    assert world.hub.refused == {"streams_per_user": 2}
    world.close()


def test_a_stream_of_every_strategy_counts_like_any_other() -> None:
    world = limited(max_streams_per_user=1)

    open_stream(world, strategies=None)

    assert open_stream(world, strategies=(3, 4))[1]
    world.close()


def test_a_stream_that_has_ended_makes_room() -> None:
    world = limited(max_streams_per_user=1, max_streams_per_address=1)
    first, _ = open_stream(world, address="192.0.2.1")
    assert open_stream(world, address="192.0.2.2")[1]
    assert open_stream(world, 8, address="192.0.2.1")[1]

    first.close("client_closed")

    assert not open_stream(world, address="192.0.2.1")[1]
    assert world.hub.refused == {"streams_per_user": 1, "streams_per_address": 1}
    world.close()


def test_streams_of_a_user_that_were_asked_for_at_once_are_counted_like_others() -> None:
    world = limited(max_streams_per_user=2)
    refusals: list[TallywireError] = []

    for _ in range(5):
        world.hub.open(Wanted(7, (3,), None), lambda: FakeConnection(7, PLAIN), refusals.append)
    world.settle()

    assert len(refusals) == 3
    assert len(world.hub.registry) == 2
    world.close()


def test_an_address_has_no_more_streams_than_allowed_whoever_the_users_are() -> None:
    world = limited(max_streams_per_address=2)
    addresses = ["192.0.2.1", "192.0.2.1", "192.0.2.1", "192.0.2.2"]

    refusals = [open_stream(world, user_id, address)[1] for user_id, address in enumerate(addresses, 1)]

    assert [len(each) for each in refusals] == [0, 0, 1, 0]
    assert world.hub.refused == {"streams_per_address": 1}
    world.close()


def test_an_ipv6_client_cannot_have_more_by_changing_its_address() -> None:
    world = limited(max_streams_per_address=2)

    refusals = [open_stream(world, n, f"2001:db8:0:1::{n}")[1] for n in (1, 2, 3)]

    assert [len(each) for each in refusals] == [0, 0, 1]
    world.close()


def test_a_stream_whose_client_left_while_it_was_opened_counts_nowhere() -> None:
    world = limited(max_streams_per_user=1, max_streams_per_address=1)
    world.hub.open(Wanted(7, (3,), None, address="192.0.2.1"), lambda: None, lambda _refusal: None)
    world.settle()

    assert not open_stream(world, address="192.0.2.1")[1]
    world.close()


def test_addresses_of_streams_that_have_ended_are_not_kept() -> None:
    world = limited(max_streams_per_address=5)
    for n in range(3):
        open_stream(world, address=f"192.0.2.{n}")[0].close("client_closed")

    assert not world.hub.registry._of_address
    world.close()


def test_a_refusal_for_another_reason_is_counted_under_it() -> None:
    world = limited(max_connections=1)
    open_stream(world)
    assert isinstance(open_stream(world)[1][0], Busy)
    world.hub.is_draining = True
    assert isinstance(open_stream(world)[1][0], Draining)

    def without_descriptor() -> FakeConnection:
        raise Busy("No descriptor is left for a further stream.")

    world.hub.is_draining = False
    world.hub.limits = replace(world.hub.limits, max_connections=2)
    world.hub.open(Wanted(7, (3,), None), without_descriptor, lambda _refusal: None)
    world.settle()

    assert world.hub.refused == {"connections": 1, "draining": 1, "busy": 1}
    world.close()


@pytest.mark.parametrize("per_second", [20, 1000])
def test_streams_told_to_go_come_back_at_about_so_many_a_second(per_second: int) -> None:
    world = limited(reconnects_per_second=per_second, retry_ms=100)
    connections = [open_stream(world, user_id)[0] for user_id in range(1, 401)]
    world.loop.run_until_complete(world.hub.drain(10))

    retries = sorted(_last_retry_ms(connection) for connection in connections)
    usual_ms, spread_ms = 150, 1000 * len(connections) / per_second
    assert retries[-1] <= usual_ms + spread_ms
    middle = retries[300] - retries[100]
    # Half of them over half of the time; a spread that ignores the number or the setting is far off.
    assert 0.7 * spread_ms / 2 - usual_ms < middle < 1.3 * spread_ms / 2 + usual_ms
    world.close()


def _last_retry_ms(connection: FakeConnection) -> int:
    parser = EventParser()
    parser.feed(bytes(connection.sent))
    assert parser.retry_ms is not None
    return parser.retry_ms
