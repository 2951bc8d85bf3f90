"""What has been revoked, and whom that concerns. Pure."""

from collections.abc import Container, Iterable

from core.journal.base import RevocationRecord
from core.principal import Principal

_ALL = 0


class Revocations:
    """By user, then by strategy, 0 for all of them: the Unix time in ms up to which grants count no more."""

    def __init__(self, records: Iterable[RevocationRecord]) -> None:
        self._records: dict[int, dict[int, RevocationRecord]] = {}
        for record in records:
            self.add(record)

    def add(self, record: RevocationRecord) -> None:
        """One more, in the place of an earlier one of the same; a clock that has been set back takes nothing back."""
        of_user = self._records.setdefault(record.user_id, {})
        known = of_user.get(record.strategy_id)
        if known is None or known.revoked_ms < record.revoked_ms:
            of_user[record.strategy_id] = record
        for strategy_id in [id_ for id_, held in of_user.items() if held.until_ms < record.revoked_ms]:
            del of_user[strategy_id]

    def concern(self, principal: Principal, strategies: Iterable[int] | None, counted: Container[int] = ()) -> bool:
        """Whether what this principal was granted counts no more for one of these strategies.

        None: for every one, and of those that are revoked for all users the ones that are `counted` for this one.
        What does not say when it was granted is the business of whoever grants it anew at each request: a proxy.
        """
        if principal.issued_at is None or not self._records:
            return False
        issued_ms = principal.issued_at * 1000
        own, of_all = self._records.get(principal.user_id, {}), self._records.get(_ALL, {})
        if strategies is None:
            return any(record.revoked_ms >= issued_ms for record in own.values()) or any(
                record.revoked_ms >= issued_ms
                for strategy_id, record in of_all.items()
                if strategy_id == _ALL or strategy_id in counted
            )
        return any(
            record is not None and record.revoked_ms >= issued_ms
            for strategy_id in (_ALL, *strategies)
            for record in (own.get(strategy_id), of_all.get(strategy_id))
        )
