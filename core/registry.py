"""Who listens: user and stream key to subscribers. Holds only users somebody is connected to, or is about to be.

Memory therefore follows the open connections, not every user ever seen; whoever comes back is loaded from the
journal, in order with the commits, so that what is loaded equals what has been published.
"""

from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Iterator
from itertools import chain

from core.addresses import counted_as
from core.counters import StreamCounters
from core.subscriber import StreamKey, Subscriber
from core.totals import Row

SHARDS, STREAMS_A_SHARD = 64, 160
"""10,000 streams fit, and a look at one takes some 0.3 ms. Users fill one after the other: those that came together lie
together in memory, and looking at all of them takes half the time."""


class Shard:
    """The connections of some users, few enough to be looked at in one step of the loop, and what they have counted: so
    that both are of one moment. All connections of a user are in one."""

    __slots__ = ("counters", "subscribers")

    def __init__(self) -> None:
        self.counters = StreamCounters()
        self.subscribers: dict[Subscriber, None] = {}


class User:
    """The published state of one user: the head of the sequence and of each stream key.

    While somebody follows every strategy, `keys` stand in order of publication, the newest last. `floor`: the place
    behind which the user began anew after a deletion. `shard`: where its connections are, from the first hold on.
    """

    __slots__ = ("everything", "floor", "holds", "keys", "n", "shard", "undelivered", "user_id")

    shard: Shard

    def __init__(self, user_id: int, n: int, heads: Iterable[Row], floor: int = 0) -> None:
        self.user_id = user_id
        self.n = n
        self.floor = floor
        self.keys: dict[int, StreamKey] = {row.strategy_id: StreamKey(row) for row in heads}
        self.everything: dict[Subscriber, None] | None = None
        """Connections that follow every strategy of this user. The order of `keys` is for them alone: it and a mapping
        of nobody would be a tenth of the memory of a user with one connection."""
        self.holds = 0
        """Connections, and openings in flight. At zero the user is forgotten."""
        self.undelivered: dict[StreamKey, None] | None = None
        """Keys published within an open coalescing window; None while no window is open."""

    def key(self, strategy_id: int) -> StreamKey:
        """The stream key, made when nobody has counted or asked before."""
        key = self.keys.get(strategy_id)
        if key is None:
            key = self.keys[strategy_id] = StreamKey(Row.before_the_first(self.user_id, strategy_id))
            if isinstance(self.keys, OrderedDict):
                # Oldest first: at the other end it would hide the keys that have moved from `Subscriber.behind`.
                self.keys.move_to_end(strategy_id, last=False)
        return key

    def publish(self, row: Row) -> StreamKey:
        """Move the heads to a committed row."""
        key = self.key(row.strategy_id)
        key.publish(row)
        if isinstance(self.keys, OrderedDict):
            self.keys.move_to_end(row.strategy_id)
        self.n = row.n
        return key

    def begin_anew(self, n: int) -> None:
        """Forget all that was counted; the sequence goes on behind n. Its streams have been told to go."""
        self.n = self.floor = n
        for key in self.keys.values():
            key.publish(Row.before_the_first(self.user_id, key.strategy_id))
        for key in list(self.keys.values()):
            self.forget_if_unused(key)

    def forget_if_unused(self, key: StreamKey) -> None:
        """Drop a key that nobody listens to and nothing was counted for: names cost nothing to invent."""
        if not key.subscribers and not key.head.number:
            del self.keys[key.strategy_id]

    def listeners(self, key: StreamKey) -> list[Subscriber]:
        """Everyone registered under the key, by name or by following everything."""
        return [*key.subscribers, *self.everything] if self.everything else list(key.subscribers)

    def count_listeners(self, strategy_id: int) -> int:
        """How many are registered under the strategy."""
        key = self.keys.get(strategy_id)
        return len(self.everything or ()) + (len(key.subscribers) if key else 0)

    def follow_everything(self, subscriber: Subscriber) -> None:
        """Register under every strategy, future ones included."""
        if self.everything is None:
            self.everything = {}
            self.keys = OrderedDict(sorted(self.keys.items(), key=lambda item: item[1].head.n))
        self.everything[subscriber] = None
        subscriber.follows_all = True
        subscriber.keys = self.keys

    def unfollow_everything(self, subscriber: Subscriber) -> None:
        """Forget a connection that was registered so."""
        if self.everything is not None:
            del self.everything[subscriber]
            if not self.everything:
                self.everything = None
                self.keys = dict(self.keys)


class Registry:
    """Users by id, and their connections."""

    def __init__(self) -> None:
        self._users: dict[int, User] = {}
        self.shards = tuple(Shard() for _ in range(SHARDS))
        self._filling = 0
        """Place of the shard that new users come to."""
        self._count = 0
        self._silent: set[Subscriber] = set()
        """Registered, but what is published is not owed to them: they have not begun, or have been told to go. Few, and
        none most of the time, so they are counted instead of the others."""
        self._silent_under: Counter[StreamKey | User] = Counter()
        self._of_address: Counter[str] = Counter()
        """Only of those whose address is known: the kernel would have to be asked for each of the others."""

    def __len__(self) -> int:
        return self._count

    @property
    def subscribers(self) -> Iterator[Subscriber]:
        """Every connection."""
        return chain.from_iterable(shard.subscribers for shard in self.shards)

    @property
    def users(self) -> Collection[User]:
        """Those that somebody is connected to or about to be."""
        return self._users.values()

    def user(self, user_id: int) -> User | None:
        """The user, when somebody is connected to it or about to be."""
        return self._users.get(user_id)

    def hold(self, user: User) -> None:
        """Keep the user until `let_go`."""
        if not user.holds:
            self._users[user.user_id] = user
            user.shard = self._shard_with_room()
        user.holds += 1

    def let_go(self, user: User) -> None:
        """Take one hold back; the last one forgets the user."""
        user.holds -= 1
        if not user.holds:
            del self._users[user.user_id]

    def add(self, subscriber: Subscriber, user: User, strategies: tuple[int, ...] | None) -> None:
        """Register under the named strategies, or with None under every one, future ones included."""
        self.hold(user)
        user.shard.subscribers[subscriber] = None
        subscriber.counters = user.shard.counters
        self._count += 1
        if subscriber.address:
            self._of_address[counted_as(subscriber.address)] += 1
        if strategies is None:
            user.follow_everything(subscriber)
            return
        keys = {strategy_id: user.key(strategy_id) for strategy_id in strategies}
        subscriber.keys = keys[strategies[0]].alone if len(keys) == 1 else keys
        for key in keys.values():
            key.subscribers[subscriber] = None

    def look_at(self, subscriber: Subscriber) -> None:
        """Whether what is published from now on is owed to it.

        To be called in the step in which it is registered, if it has not begun by its end, in which it begins, and in
        which it is told to go.
        """
        if subscriber.is_owed:
            self._forget_silent(subscriber)
        elif self._has(subscriber) and subscriber not in self._silent:
            self._silent.add(subscriber)
            for place in self._where(subscriber):
                self._silent_under[place] += 1

    def count_owed(self, user: User, key: StreamKey) -> int:
        """To how many connections it is owed what is published under this key now."""
        listeners = user.count_listeners(key.strategy_id)
        if self._silent:
            return listeners - self._silent_under.get(key, 0) - self._silent_under.get(user, 0)
        return listeners

    def remove(self, subscriber: Subscriber) -> None:
        """Forget a connection; harmless when it is not registered."""
        if not self._has(subscriber):
            return
        self._forget_silent(subscriber)
        self._count -= 1
        if subscriber.address:
            self._forget_address(counted_as(subscriber.address))
        user = self._users[subscriber.user_id]
        del user.shard.subscribers[subscriber]
        if subscriber.follows_all:
            user.unfollow_everything(subscriber)
        else:
            for key in subscriber.keys.values():
                del key.subscribers[subscriber]
                user.forget_if_unused(key)
        self.let_go(user)

    def of_user(self, user_id: int) -> Iterator[Subscriber]:
        """The connections of one user."""
        user = self._users.get(user_id)
        return (each for each in (user.shard.subscribers if user else ()) if each.user_id == user_id)

    def count_of_address(self, address: str) -> int:
        """The connections of one client address, or of its network; see `counted_as`."""
        return self._of_address.get(counted_as(address), 0)

    def _has(self, subscriber: Subscriber) -> bool:
        user = self._users.get(subscriber.user_id)
        return user is not None and subscriber in user.shard.subscribers

    def _shard_with_room(self) -> Shard:
        """When all are full they are filled further, a user each."""
        if len(self.shards[self._filling].subscribers) >= STREAMS_A_SHARD:
            self._filling = (self._filling + 1) % SHARDS
        return self.shards[self._filling]

    def _forget_silent(self, subscriber: Subscriber) -> None:
        if subscriber not in self._silent:
            return
        self._silent.discard(subscriber)
        for place in self._where(subscriber):
            self._silent_under[place] -= 1
            if not self._silent_under[place]:
                del self._silent_under[place]

    def _where(self, subscriber: Subscriber) -> Collection[StreamKey | User]:
        """What it is registered under."""
        return (self._users[subscriber.user_id],) if subscriber.follows_all else tuple(subscriber.keys.values())

    def _forget_address(self, network: str) -> None:
        self._of_address[network] -= 1
        if not self._of_address[network]:
            del self._of_address[network]
