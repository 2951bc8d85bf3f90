"""Who reads, and what it may. Pure."""

from collections.abc import Collection

from msgspec import Struct

from core.errors import Forbidden


class Principal(Struct, frozen=True):
    """Who reads. `strategies` None: every one. `issued_at` and `expires_at` in Unix seconds, None: nobody says."""

    user_id: int
    strategies: frozenset[int] | None
    issued_at: float | None = None
    expires_at: float | None = None

    def readable(self, asked: Collection[int] | None) -> Collection[int] | None:
        """What of the strategies that are asked for (None: of every one) it may read. Raises Forbidden."""
        if asked is None or self.strategies is None:
            return self.strategies if asked is None else asked
        foreign = sorted(set(asked) - self.strategies)
        if foreign:
            raise Forbidden(f"Strategy {foreign[0]} is not one of those that you may read.")
        return asked
