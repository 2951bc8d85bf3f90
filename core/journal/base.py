"""What the hub asks of a journal, and what every driver promises.

The journal assigns n and totals inside its transaction, from committed state only; a failed commit has nothing to
take back. Work is submitted without waiting and comes back, commits, loads and deletions alike, through one ordered
delivery: whatever a load shows, exactly the commits delivered before it are in it.

Ages (how long rows and idempotency records are kept) are measured on the journal's own clock, which is monotonic and
stands still while the journal is closed: a wall clock that is set, forwards or back, forgets nothing.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence

from msgspec import Struct

from core.counters import Distribution
from core.errors import Busy, IdempotencyConflict, TooManyOrderTypes, Unavailable
from core.models import Summary
from core.totals import Row

HOUR_MS = 3_600_000
"""Hours are counted since 1970, UTC: the hour of a batch is its `accepted_ms // HOUR_MS`."""


class JournalError(Exception):
    """The journal cannot be opened; the message names the file, what is wrong and the fix."""


class JournalFailed(Exception):
    """The journal cannot go on in this process; what is on disk must be read anew by the next one."""


class JournalLimits(Struct, frozen=True, kw_only=True):
    """What a journal keeps. Rows go when they are too old (ms), too many, or, on disk, when the file takes too much
    room (bytes, without a limit by default). Ages are on the journal's own clock."""

    max_rows: int
    max_age_ms: int
    idempotency_window_ms: int
    max_bytes: int = 2**62
    hours_age_ms: int = 400 * 24 * HOUR_MS


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
        self.failure: Unavailable | None = None


class Load:
    """The published state of one user. The driver fills in `n`, the heads of all the user's keys, and the `n` of the
    user's deletion, if there was one, as `floor`; or `failure`."""

    __slots__ = ("failure", "floor", "heads", "n", "user_id")

    def __init__(self, user_id: int) -> None:
        self.user_id = user_id
        self.n = 0
        self.floor = 0
        self.heads: Sequence[Row] = ()
        self.failure: Busy | None = None


class Deletion:
    """Everything of one user: rows, hours, idempotency records. The driver fills in `n` and `rows`, or `failure`.

    The user's sequence goes on behind `n`, a place that no batch has: a position from before can never be taken for
    one from after, it is `trimmed`. `rows`: how many were deleted, batches that had been trimmed not among them.
    """

    __slots__ = ("failure", "n", "rows", "user_id")

    def __init__(self, user_id: int) -> None:
        self.user_id = user_id
        self.n = 0
        self.rows = 0
        self.failure: Unavailable | None = None


class RevocationRecord(Struct, frozen=True, gc=False):
    """What was granted up to `revoked_ms` (Unix) counts no more for this user, this strategy, or both; 0: for all.

    Kept until `until_ms`: by then whatever was granted before has ended by itself.
    """

    user_id: int
    strategy_id: int
    revoked_ms: int
    until_ms: int


class Revoke:
    """Remember a revocation, in the place of an earlier one of the same. The driver may fill in `failure`."""

    __slots__ = ("failure", "record")

    def __init__(self, record: RevocationRecord) -> None:
        self.record = record
        self.failure: Unavailable | None = None


Work = Commit | Load | Deletion | Revoke


def sort_out(work: Sequence[Work]) -> tuple[list[Commit], list[Deletion | Revoke], list[Load]]:
    """Commits, what is rare, and loads, each in its order. Loads are worked on last, so that they show all that is
    delivered with them."""
    commits = [each for each in work if isinstance(each, Commit)]
    if len(commits) == len(work):
        return commits, [], []
    rare = [each for each in work if isinstance(each, Deletion | Revoke)]
    return commits, rare, [each for each in work if isinstance(each, Load)]


class Figures:
    """What a journal says of its work. Written by whoever does it, read anywhere.

    `used_bytes` is what `JournalLimits.max_bytes` bounds; both are 0 in memory, and no commit takes time there.
    """

    __slots__ = ("commit_batches", "commit_seconds", "max_bytes", "used_bytes")

    def __init__(self, max_bytes: int = 0) -> None:
        self.commit_seconds = Distribution(
            0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0
        )
        self.commit_batches = Distribution(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
        self.used_bytes = 0
        self.max_bytes = max_bytes


Deliver = Callable[[Sequence[Work]], None]


class KeyRecord(Struct, frozen=True):
    """The newest and the oldest row that is kept of one stream key."""

    head: Row
    oldest: Row


class BatchRecord(Struct, frozen=True, gc=False):
    """One accepted batch, looked up. `ignored` and `idempotency` are known when it was found by its key."""

    user_id: int
    strategy_id: int
    n: int
    accepted_ms: int
    summaries: tuple[Summary, ...]
    ignored: int | None = None
    idempotency: IdempotencyKey | None = None


class HourCounts(Struct, frozen=True, gc=False):
    """What was counted for one stream key in one hour, order types in alphabetical order."""

    hour: int
    user_id: int
    strategy_id: int
    summaries: tuple[Summary, ...]


class Journal(ABC):
    """A driver. All methods are called on the loop; `deliver` and `fail` are called on the loop, never within
    `submit`.

    Reads raise Busy when they cannot be answered now.
    """

    epoch: str
    revocations: Sequence[RevocationRecord]
    """Those that were there when it was opened."""
    figures: Figures

    @property
    @abstractmethod
    def refusal(self) -> Unavailable | None:
        """Why an emit would be refused now; None when emits are taken."""

    @property
    @abstractmethod
    def waiting(self) -> int:
        """How much work waits to be begun."""

    @abstractmethod
    def start(self, deliver: Deliver, fail: Callable[[JournalFailed], None]) -> None:
        """Begin to work; finished work goes to `deliver`, in order, several at once when they share a transaction.

        `fail` is called once, before the delivery of what failed, when the process must end.
        """

    @abstractmethod
    def submit(self, work: Work) -> None:
        """Take on work. Never blocks, never fails: a failure is delivered."""

    @abstractmethod
    async def rows_at(self, user_id: int, n: int, strategies: Collection[int]) -> dict[int, Row | None]:
        """For each strategy the newest row at or below n, a point read.

        `Row.before_the_first` when the key had none by then; None when that cannot be said any more: trimmed.
        """

    @abstractmethod
    async def key_record(self, user_id: int, strategy_id: int) -> KeyRecord | None:
        """What is kept of a stream key; None when nothing was ever accepted for it."""

    @abstractmethod
    async def key_records(self, user_id: int, after_strategy: int, limit: int) -> list[KeyRecord]:
        """What is kept of the keys of a user that something was accepted for, behind `after_strategy`, by strategy, at
        most `limit`."""

    @abstractmethod
    async def hours(
        self,
        users: Collection[int],
        strategies: Collection[int] | None,
        first_hour: int,
        end_hour: int,
        limit: int | None = None,
    ) -> list[HourCounts]:
        """Counts by hour and stream key of these users, exact up to the last commit, `end_hour` not included.

        Ordered by hour, user and strategy; None: every strategy. The first `limit` summaries at most: the last key may
        miss some of its own. Kept for `hours_age_ms`, longer than rows.
        """

    @abstractmethod
    async def batches(
        self, user_id: int, strategy_id: int, after_n: int, from_ms: int, to_ms: int, limit: int
    ) -> list[BatchRecord]:
        """The kept batches of a key behind `after_n`, accepted in [from_ms, to_ms), in order, at most `limit`."""

    @abstractmethod
    async def batches_of_key(self, key: str) -> list[BatchRecord]:
        """What was accepted under an idempotency key, at most one batch a caller."""

    @abstractmethod
    async def close(self) -> None:
        """Finish what was submitted, deliver it, and let go of all resources; harmless the second time."""
