"""What has been revoked, and whom that concerns. Pure."""

from collections.abc import Iterable

from core.journal.base import RevocationRecord
from core.principal import Principal

_ALL = 0


class Revocations:
    """By user and strategy, 0 for all of them: the Unix time in ms up to which grants count no more."""

    def __init__(self, records: Iterable[RevocationRecord]) -> None:
        self._revoked: dict[tuple[int, int], int] = {}
        for record in records:
            self.add(record)

    def add(self, record: RevocationRecord) -> None:
        """One more, in the place of an earlier one of the same."""
        self._revoked[record.user_id, record.strategy_id] = record.revoked_ms

    def concern(self, principal: Principal, strategies: Iterable[int] | None) -> bool:
        """Whether what this principal was granted counts no more for one of these strategies, None: for every one.

        What does not say when it was granted is the business of whoever grants it anew at each request: a proxy.
        """
        if principal.issued_at is None or not self._revoked:
            return False
        issued_ms = principal.issued_at * 1000
        user_id = principal.user_id
        if strategies is None:
            return any(
                user in (user_id, _ALL) and revoked_ms >= issued_ms
                for (user, _strategy), revoked_ms in self._revoked.items()
            )
        return any(
            self._revoked.get((user, strategy), -1) >= issued_ms
            for strategy in (_ALL, *strategies)
            for user in (user_id, _ALL)
        )
