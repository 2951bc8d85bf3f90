"""What the hub asks of a journal, and what every driver promises.

The journal assigns n and totals inside its transaction, from committed state only; a failed commit has nothing to
take back. Work is submitted without waiting and comes back, commits and loads alike, through one ordered
delivery: whatever a load shows, exactly the commits delivered before it are in it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence

from msgspec import Struct

from core.errors import Busy, IdempotencyConflict, OutcomeUnknown, TooManyOrderTypes
from core.models import Summary
from core.totals import Row


class IdempotencyKey(Struct, frozen=True, gc=False):
    """A caller's name for one batch. Keys of different callers never meet."""

    caller: str
    key: str


class Entry(Struct, frozen=True, gc=False):
    """One counted batch on its way into the journal. `ignored` is kept only to repeat the answer."""

    user_id: int
    strategy_id: int
    summaries: tuple[Summary, ...]
    accepted_ms: int
    ignored: int = 0
    idempotency: IdempotencyKey | None = None


class Recorded(Struct, frozen=True, gc=False):
    """The batch is in the journal as the user's n-th. `row` is None when it already was, under the same key."""

    n: int
    summaries: tuple[Summary, ...]
    ignored: int
    row: Row | None


Outcome = Recorded | TooManyOrderTypes | IdempotencyConflict


class Commit:
    """The entries of one call. The driver fills in `outcomes`, one an entry, or `failure` for all of them."""

    __slots__ = ("entries", "failure", "outcomes")

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.outcomes: Sequence[Outcome] = ()
        self.failure: OutcomeUnknown | None = None


class Load:
    """The published state of one user. The driver fills in `n` and the heads of all the user's keys, or `failure`."""

    __slots__ = ("failure", "heads", "n", "user_id")

    def __init__(self, user_id: int) -> None:
        self.user_id = user_id
        self.n = 0
        self.heads: Sequence[Row] = ()
        self.failure: Busy | None = None


Deliver = Callable[[Sequence[Commit | Load]], None]


class KeyRecord(Struct, frozen=True):
    """The newest and the oldest row that is kept of one stream key."""

    head: Row
    oldest: Row


class Journal(ABC):
    """A driver. All methods are called on the loop; `deliver` is called on the loop, never within `submit`."""

    epoch: str

    @abstractmethod
    def start(self, deliver: Deliver) -> None:
        """Begin to work; finished work goes to `deliver`, in order, several at once when they share a transaction."""

    @abstractmethod
    def submit(self, work: Commit | Load) -> None:
        """Take on work. Never blocks, never fails: a failure is delivered."""

    @abstractmethod
    async def rows_at(self, user_id: int, n: int, strategies: Collection[int]) -> dict[int, Row | None]:
        """For each strategy the newest row at or below n, a point read.

        `Row.before_the_first` when the key had none by then; None when that cannot be said any more: trimmed.
        Raises Busy when it cannot be read now.
        """

    @abstractmethod
    async def key_record(self, user_id: int, strategy_id: int) -> KeyRecord | None:
        """What is kept of a stream key; None when nothing was ever accepted for it."""

    @abstractmethod
    async def close(self) -> None:
        """Finish what was submitted, deliver it, and let go of all resources."""
