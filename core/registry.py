"""Who listens: user and stream key to subscribers. Holds only users somebody is connected to, or is about to be.

Memory therefore follows the open connections, not every user ever seen; whoever comes back is loaded from the
journal, in order with the commits, so that what is loaded equals what has been published.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator

from core.addresses import counted_as
from core.subscriber import StreamKey, Subscriber
from core.totals import Row


class User:
    """The published state of one user: the head of the sequence and of each stream key.

    While somebody follows every strategy, `keys` stand in order of publication, the newest last. `floor`: the place
    behind which the user began anew after a deletion.
    """

    __slots__ = ("everything", "floor", "holds", "keys", "n", "undelivered", "user_id")

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
        self.subscribers: dict[Subscriber, None] = {}
        self._of_address: Counter[str] = Counter()
        """Only of those whose address is known: the kernel would have to be asked for each of the others."""

    def __len__(self) -> int:
        return len(self.subscribers)

    def user(self, user_id: int) -> User | None:
        """The user, when somebody is connected to it or about to be."""
        return self._users.get(user_id)

    def hold(self, user: User) -> None:
        """Keep the user until `let_go`."""
        self._users[user.user_id] = user
        user.holds += 1

    def let_go(self, user: User) -> None:
        """Take one hold back; the last one forgets the user."""
        user.holds -= 1
        if not user.holds:
            del self._users[user.user_id]

    def add(self, subscriber: Subscriber, user: User, strategies: tuple[int, ...] | None) -> None:
        """Register under the named strategies, or with None under every one, future ones included."""
        self.hold(user)
        self.subscribers[subscriber] = None
        if subscriber.address:
            self._of_address[counted_as(subscriber.address)] += 1
        if strategies is None:
            user.follow_everything(subscriber)
            return
        keys = {strategy_id: user.key(strategy_id) for strategy_id in strategies}
        subscriber.keys = keys[strategies[0]].alone if len(keys) == 1 else keys
        for key in keys.values():
            key.subscribers[subscriber] = None

    def remove(self, subscriber: Subscriber) -> None:
        """Forget a connection; harmless when it is not registered."""
        if subscriber not in self.subscribers:
            return
        del self.subscribers[subscriber]
        if subscriber.address:
            self._forget_address(counted_as(subscriber.address))
        user = self._users[subscriber.user_id]
        if subscriber.follows_all:
            user.unfollow_everything(subscriber)
        else:
            for key in subscriber.keys.values():
                del key.subscribers[subscriber]
                user.forget_if_unused(key)
        self.let_go(user)

    def of_user(self, user_id: int) -> Iterator[Subscriber]:
        """The connections of one user."""
        return (subscriber for subscriber in self.subscribers if subscriber.user_id == user_id)

    def count_of_address(self, address: str) -> int:
        """The connections of one client address, or of its network; see `counted_as`."""
        return self._of_address.get(counted_as(address), 0)

    def _forget_address(self, network: str) -> None:
        self._of_address[network] -= 1
        if not self._of_address[network]:
            del self._of_address[network]
