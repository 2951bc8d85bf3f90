"""Who listens: users that are held, keys that come and go, and the order that lets a follower of everything see
what has moved without looking at every key."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.models import Summary
from core.registry import Registry, User
from core.subscriber import StreamKey, Subscriber, stream_options
from core.totals import Row

BATCH = (Summary("LIMIT", 1, 0),)


def stream(user_id: int = 7) -> Subscriber:
    return Subscriber(user_id, stream_options())


def row(strategy_id: int, n: int, user_id: int = 7) -> Row:
    """The head of a key after its first batch, accepted as the user's n-th."""
    return Row.before_the_first(user_id, strategy_id).next(n, 1_000, BATCH)


def strategies(user: User) -> list[int]:
    return list(user.keys)


# ---- users


def test_a_user_is_known_from_its_first_hold_to_its_last() -> None:
    registry, user = Registry(), User(7, 0, [])
    assert registry.user(7) is None

    registry.hold(user)
    registry.hold(user)
    registry.let_go(user)
    assert registry.user(7) is user

    registry.let_go(user)
    assert registry.user(7) is None


def test_users_are_held_each_by_itself() -> None:
    registry, seven, eight = Registry(), User(7, 0, []), User(8, 0, [])
    registry.hold(seven)
    registry.hold(eight)

    registry.let_go(seven)

    assert registry.user(7) is None
    assert registry.user(8) is eight


@pytest.mark.parametrize("named", [(3,), (3, 4), None], ids=["one", "several", "everything"])
def test_a_connection_holds_its_user(named: tuple[int, ...] | None) -> None:
    registry, user, subscriber = Registry(), User(7, 0, []), stream()
    registry.hold(user)
    registry.add(subscriber, user, named)
    registry.let_go(user)
    assert registry.user(7) is user

    registry.remove(subscriber)

    assert registry.user(7) is None
    assert not user.keys
    assert not user.everything
    assert len(registry) == 0


def test_removing_a_connection_that_is_not_registered_is_harmless() -> None:
    registry, user, subscriber = Registry(), User(7, 0, []), stream()
    registry.add(subscriber, user, (3,))
    registry.remove(stream())
    assert registry.user(7) is user

    registry.remove(subscriber)
    registry.remove(subscriber)

    assert registry.user(7) is None


def test_the_connections_of_a_user_are_found() -> None:
    registry, seven, eight = Registry(), User(7, 0, []), User(8, 0, [])
    of_seven, of_eight = [stream(7), stream(7)], stream(8)
    registry.add(of_seven[0], seven, (3,))
    registry.add(of_eight, eight, (3,))
    registry.add(of_seven[1], seven, None)

    assert list(registry.of_user(7)) == of_seven
    assert list(registry.of_user(8)) == [of_eight]
    assert list(registry.of_user(9)) == []
    assert len(registry) == 3


# ---- keys


def test_keys_that_nobody_asked_for_and_nothing_was_counted_for_are_forgotten_with_their_last_connection() -> None:
    registry, user = Registry(), User(7, 1, [row(3, 1)])
    first, second = stream(), stream()
    registry.add(first, user, (3, 4, 5))
    registry.add(second, user, (4,))
    assert sorted(user.keys) == [3, 4, 5]

    registry.remove(first)
    assert sorted(user.keys) == [3, 4], "names cost nothing to invent, so memory must not be kept for them"

    registry.hold(user)
    registry.remove(second)
    assert sorted(user.keys) == [3]


def test_a_key_with_a_count_stays_when_its_last_connection_leaves() -> None:
    registry, user, subscriber = Registry(), User(7, 0, []), stream()
    registry.add(stream(), user, (9,))
    registry.add(subscriber, user, (3,))
    user.publish(row(3, 1))

    registry.remove(subscriber)

    # A follower of everything that comes later needs its totals.
    assert user.keys[3].head.n == 1
    assert not user.keys[3].subscribers


def test_a_key_is_made_once() -> None:
    user = User(7, 0, [])

    assert user.key(3) is user.key(3)
    assert user.key(3).head == Row.before_the_first(7, 3)


def test_a_connection_of_one_key_shares_the_mapping_of_that_key() -> None:
    registry, user = Registry(), User(7, 0, [])
    subscribers = [stream(), stream()]
    for subscriber in subscribers:
        registry.add(subscriber, user, (3,))

    assert subscribers[0].keys is subscribers[1].keys is user.key(3).alone
    assert list(user.key(3).subscribers) == subscribers


def test_a_strategy_named_twice_is_followed_once() -> None:
    registry, user, subscriber = Registry(), User(7, 0, []), stream()
    registry.add(subscriber, user, (3, 3))

    assert subscriber.keys is user.key(3).alone
    registry.remove(subscriber)
    assert not user.keys


def test_a_follower_of_everything_sees_keys_that_come_later() -> None:
    registry, user, subscriber = Registry(), User(7, 0, []), stream()
    registry.add(subscriber, user, None)

    key = user.publish(row(3, 1))

    assert subscriber.follows_all
    assert list(subscriber.keys.values()) == [key]
    assert subscriber.behind() == [key]


# ---- listeners


def test_the_listeners_of_a_key_are_those_who_named_it_and_those_who_follow_everything() -> None:
    registry, user = Registry(), User(7, 0, [])
    three, four, both, everything = stream(), stream(), stream(), stream()
    registry.add(three, user, (3,))
    registry.add(four, user, (4,))
    registry.add(both, user, (3, 4))
    registry.add(everything, user, None)

    assert set(user.listeners(user.key(3))) == {three, both, everything}
    assert set(user.listeners(user.key(4))) == {four, both, everything}
    assert len(user.listeners(user.key(3))) == user.count_listeners(3) == 3
    assert user.count_listeners(5) == 1, "whoever follows everything follows what nobody named"

    registry.remove(both)
    registry.remove(everything)
    assert user.listeners(user.key(3)) == [three]
    assert (user.count_listeners(4), user.count_listeners(5)) == (1, 0)


# ---- order


def followed(user: User) -> User:
    """A user with a connection that follows everything: only such a one needs an order."""
    user.follow_everything(stream())
    return user


def test_a_followed_user_has_its_newest_key_last() -> None:
    user = followed(User(7, 9, [row(3, 9), row(4, 2), row(5, 5)]))

    assert strategies(user) == [4, 5, 3]
    assert user.n == 9


def test_a_published_key_becomes_the_newest() -> None:
    user = followed(User(7, 3, [row(3, 1), row(4, 2), row(5, 3)]))

    published = user.publish(row(4, 4))

    assert published is user.keys[4]
    assert published.head.n == user.n == 4
    assert strategies(user) == [3, 5, 4]


def test_a_key_that_was_only_asked_for_is_the_oldest() -> None:
    user = followed(User(7, 1, [row(3, 1)]))

    user.key(4)

    assert strategies(user) == [4, 3]


def test_who_comes_to_follow_everything_again_finds_the_order_of_what_was_published_meanwhile() -> None:
    user = User(7, 3, [row(3, 1), row(4, 2), row(5, 3)])
    first, second = stream(), stream()
    user.follow_everything(first)
    user.unfollow_everything(first)
    user.publish(row(3, 4))

    user.follow_everything(second)

    assert strategies(user) == [4, 5, 3]
    assert second.keys is user.keys


@given(
    st.lists(st.tuples(st.sampled_from(["publish", "ask", "leave"]), st.integers(1, 6)), max_size=30),
    st.integers(0, 30),
    st.randoms(use_true_random=False),
)
def test_a_follower_of_everything_finds_every_key_that_has_moved(
    acts: list[tuple[str, int]], n: int, order: random.Random
) -> None:
    heads = [row(strategy_id, at) for at, strategy_id in enumerate(order.sample(range(1, 7), 3), 1)]
    user = User(7, 3, order.sample(heads, 3))
    registry, follower, named = Registry(), stream(), dict[int, Subscriber]()
    registry.add(follower, user, None)
    for what, strategy_id in acts:
        if what == "publish":
            user.publish(user.key(strategy_id).head.next(user.n + 1, 1_000, BATCH))
        elif what == "ask" and strategy_id not in named:
            named[strategy_id] = stream()
            registry.add(named[strategy_id], user, (strategy_id,))
        elif what == "leave" and strategy_id in named:
            registry.remove(named.pop(strategy_id))
    follower.n = n

    def by_head(key: StreamKey) -> int:
        return key.head.n

    assert [key.head.n for key in user.keys.values()] == sorted(map(by_head, user.keys.values()))
    assert sorted(follower.behind(), key=by_head) == sorted(
        (key for key in user.keys.values() if key.head.n > n), key=by_head
    )
    assert all(user.keys[strategy_id].subscribers == {named[strategy_id]: None} for strategy_id in named)
    assert all(key.head.number or key.subscribers for key in user.keys.values())
