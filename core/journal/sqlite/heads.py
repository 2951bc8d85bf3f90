"""Committed heads in memory, so that a user who emits often is read from the file once. Bounded; pure."""

from collections import OrderedDict
from collections.abc import Collection, Iterable

from core.journal.sqlite.packing import DELETION
from core.totals import Row

MOST_HEADS = 50_000
"""Heads kept: about 25 MiB with three order types each."""


class UserHeads:
    """The user's last n, the n of its deletion, and the newest row of each key."""

    __slots__ = ("floor", "heads", "n")

    def __init__(self) -> None:
        self.n = self.floor = 0
        self.heads: dict[int, Row] = {}

    def add(self, row: Row) -> None:
        """Take over a row, or a deletion, that the file holds; of two of a key the newer one counts."""
        self.n = max(self.n, row.n)
        if row.strategy_id == DELETION:
            self.floor = max(self.floor, row.n)
        elif row.strategy_id not in self.heads or self.heads[row.strategy_id].n < row.n:
            self.heads[row.strategy_id] = row


class Heads:
    """Users, the one used longest ago first."""

    def __init__(self) -> None:
        self._users: OrderedDict[int, UserHeads] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def unknown(self, users: Iterable[int]) -> list[int]:
        """Those that must be fetched; the others are used now."""
        missing = []
        for user_id in users:
            if user_id in self._users:
                self._users.move_to_end(user_id)
            else:
                missing.append(user_id)
        return missing

    def fetched(self, users: Collection[int], rows: Iterable[Row]) -> None:
        """Take over what the file holds of users that were unknown."""
        found = {user_id: UserHeads() for user_id in users}
        for row in rows:
            found[row.user_id].add(row)
        self._users.update(found)
        self._size += sum(1 + len(user.heads) for user in found.values())

    def user(self, user_id: int) -> UserHeads:
        """A user that has been fetched."""
        return self._users[user_id]

    def apply(self, rows: Iterable[Row]) -> None:
        """Take over rows that have been committed, in their order."""
        users = self._users
        for row in rows:
            user = users[row.user_id]
            user.n = row.n
            heads = user.heads
            self._size -= len(heads)
            heads[row.strategy_id] = row
            self._size += len(heads)

    def forget(self, user_id: int) -> None:
        """Fetch this user anew the next time."""
        user = self._users.pop(user_id, None)
        if user is not None:
            self._size -= 1 + len(user.heads)

    def shrink(self) -> None:
        """Forget whoever was used longest ago, until the bound holds. Never within a transaction."""
        while self._size > MOST_HEADS and len(self._users) > 1:
            self.forget(next(iter(self._users)))
