"""Committed heads in memory, so that a user who emits often is read from the file once. Bounded; pure."""

from collections import OrderedDict
from collections.abc import Collection, Iterable

from core.journal.sqlite.packing import DELETION
from core.totals import Row

MOST_HEADS = 50_000
"""Heads kept: about 25 MiB with three order types each."""


class UserHeads:
    """The user's last n, the n of its deletion, and the newest row of each key with its seq."""

    __slots__ = ("floor", "heads", "n")

    def __init__(self) -> None:
        self.n = self.floor = 0
        self.heads: dict[int, tuple[Row, int]] = {}


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

    def fetched(self, users: Collection[int], heads: Iterable[tuple[Row, int]]) -> None:
        """Take over what the file holds of users that were unknown."""
        for user_id in users:
            self._users[user_id] = UserHeads()
            self._size += 1
        for row, seq in heads:
            user = self._users[row.user_id]
            user.n = max(user.n, row.n)
            if row.strategy_id == DELETION:
                user.floor = row.n
            else:
                self._put(user, row, seq)

    def user(self, user_id: int) -> UserHeads:
        """A user that has been fetched."""
        return self._users[user_id]

    def apply(self, row: Row, seq: int) -> None:
        """Take over a row that has been committed."""
        user = self._users[row.user_id]
        user.n = row.n
        self._put(user, row, seq)

    def forget(self, user_id: int) -> None:
        """Fetch this user anew the next time."""
        user = self._users.pop(user_id, None)
        if user is not None:
            self._size -= 1 + len(user.heads)

    def shrink(self) -> None:
        """Forget whoever was used longest ago, until the bound holds. Never within a transaction."""
        while self._size > MOST_HEADS and len(self._users) > 1:
            self.forget(next(iter(self._users)))

    def _put(self, user: UserHeads, row: Row, seq: int) -> None:
        self._size += row.strategy_id not in user.heads
        user.heads[row.strategy_id] = row, seq
