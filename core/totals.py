"""The one law: a frame is the difference between two totals. Positions, totals, rows, differences. Pure.

A stream key's totals only grow, and its order types keep the order in which they were first seen. So the types
of earlier totals are always a prefix of the types of later ones, and a difference is a walk along both.
"""

import re
import secrets
from collections.abc import Iterable

from msgspec import Struct

from core.errors import TooManyOrderTypes
from core.models import MAX_ID, Summary

MAX_ORDER_TYPES = 32
"""Order types of one stream key. Bounds a frame (32 summaries are about 2.5 KiB) and what a connection is owed."""

_BASE32 = "0123456789abcdefghjkmnpqrstvwxyz"
_EPOCH_CHARACTERS = 13
_POSITION = re.compile(rf"([{_BASE32}]{{{_EPOCH_CHARACTERS}}})-(0|[1-9][0-9]{{0,15}})")


def new_epoch() -> str:
    """A random name for a journal's lifetime: 13 characters, 65 bits."""
    return "".join(secrets.choice(_BASE32) for _ in range(_EPOCH_CHARACTERS))


class Position(Struct, frozen=True, gc=False):
    """A place in one user's sequence of accepted batches, written `<epoch>-<n>`."""

    epoch: str
    n: int

    def __str__(self) -> str:
        return write_position(self.epoch, self.n)

    @classmethod
    def parse(cls, text: str) -> "Position":
        """The position that `text` writes.

        Raises ValueError when it is not one: another form, a leading zero, n above 2^53 - 1.
        """
        match = _POSITION.fullmatch(text)
        if match is None or int(match[2]) > MAX_ID:
            raise ValueError("not a position")
        return cls(match[1], int(match[2]))


def write_position(epoch: str, n: int) -> str:
    """As `str(Position(epoch, n))`."""
    return f"{epoch}-{n}"


class Totals(Struct, frozen=True, gc=False):
    """The running counts of one stream key by order type, in the order in which the key first saw the types.

    `counts`: all of them together, so that how much is owed is a subtraction.
    """

    summaries: tuple[Summary, ...]
    counts: int

    @classmethod
    def of(cls, summaries: tuple[Summary, ...]) -> "Totals":
        """The totals that these summaries state."""
        return cls(summaries, count(summaries))

    def plus(self, batch: Iterable[Summary]) -> "Totals":
        """These totals with a batch counted in.

        Raises TooManyOrderTypes when the key would have more than 32.
        """
        summaries, counts = list(self.summaries), self.counts
        for added in batch:
            counts += added.created + added.cancelled
            # A walk, not a mapping: a key has two to four types as a rule, and never more than 32.
            for index, before in enumerate(summaries):
                if before.order_type == added.order_type:
                    summaries[index] = Summary(
                        before.order_type, before.created + added.created, before.cancelled + added.cancelled
                    )
                    break
            else:
                # At once: a batch may name 10,000, and the walk for each would take seconds.
                if len(summaries) == MAX_ORDER_TYPES:
                    raise TooManyOrderTypes(MAX_ORDER_TYPES)
                summaries.append(added)
        return Totals(tuple(summaries), counts)

    def minus(self, earlier: "Totals") -> tuple[Summary, ...]:
        """What was counted since `earlier` totals of the same key; types without a change are left out."""
        known = len(earlier.summaries)
        changed = [
            Summary(now.order_type, now.created - then.created, now.cancelled - then.cancelled)
            for now, then in zip(self.summaries, earlier.summaries, strict=False)
            if now is not then and now != then
        ]
        return (*changed, *self.summaries[known:])


NOTHING = Totals((), 0)
"""The totals of a key before its first batch."""


def count(summaries: Iterable[Summary]) -> int:
    """How many orders they count, created and cancelled."""
    counts = 0
    for summary in summaries:
        counts += summary.created + summary.cancelled
    return counts


class Row(Struct, frozen=True, gc=False):
    """One accepted batch as the journal keeps it, and at the same time the head of its key after it.

    `n`: its place in the user's sequence. `number`: its running number within the key. `accepted_ms`: Unix time
    in milliseconds. `totals`: the key's totals after it. Two rows of a key are enough for any difference.
    """

    user_id: int
    strategy_id: int
    n: int
    number: int
    accepted_ms: int
    totals: Totals

    @classmethod
    def before_the_first(cls, user_id: int, strategy_id: int) -> "Row":
        """Where every stream key starts: nothing counted."""
        return cls(user_id, strategy_id, 0, 0, 0, NOTHING)

    def next(self, n: int, accepted_ms: int, batch: Iterable[Summary]) -> "Row":
        """The row of the key's next batch. Raises TooManyOrderTypes."""
        return Row(self.user_id, self.strategy_id, n, self.number + 1, accepted_ms, self.totals.plus(batch))


class Difference(Struct, frozen=True, gc=False):
    """What one stream key owes a connection: the summaries, and how many batches they merge."""

    strategy_id: int
    summaries: tuple[Summary, ...]
    batches: int
    accepted_ms: int
    n: int
    totals: Totals


def difference(now: Row, then: Row) -> Difference:
    """The one act: current totals minus the totals that somebody has been brought up to."""
    return Difference(
        now.strategy_id,
        now.totals.minus(then.totals),
        now.number - then.number,
        now.accepted_ms,
        now.n,
        now.totals,
    )
