"""The wire: every JSON object that enters or leaves the server, as frozen structs.

Field order is part of the wire: msgspec writes fields in the order in which they stand here.
This module holds shapes only; what they mean is decided elsewhere.
"""

from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, ClassVar, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from core.errors import FieldProblem, TallywireError

MAX_ID = 2**53 - 1
"""Largest id and largest n: the largest integer that a JavaScript number holds exactly."""

UserId = Annotated[int, Meta(ge=1, le=MAX_ID)]
StrategyId = Annotated[int, Meta(ge=1, le=MAX_ID)]
StrategyIdOrNone = Annotated[int, Meta(ge=0, le=MAX_ID)] | None

Shape = Literal["envelope", "flat"]


class Summary(Struct, frozen=True, gc=False):
    """The counts of one order type, in a batch, in a difference or in totals."""

    order_type: str
    created: int
    cancelled: int


class BatchResult(Struct, frozen=True, gc=False):
    """One result of a batch, unchecked: `core.aggregation` says which ones count.

    The fields are deliberately untyped: a result that did not succeed is not looked at, so nothing in it may
    make its neighbours unreadable. Order services attach fields of their own; they are skipped.
    """

    success: object = None
    order_type: object = None
    event_type: object = None


class Batch(Struct, frozen=True):
    """What one emit carries. The limits on its results are checked after decoding."""

    user_id: UserId
    batch_results: list[BatchResult]
    strategy_id: StrategyIdOrNone = None
    idempotency_key: str | None = None


class Accepted(Struct, frozen=True, tag_field="status", tag="accepted"):
    """The batch is in the journal and every connection of its key has been or will be told.

    `connections`: registered under the key at that moment. `duplicate`: this is the answer to an earlier
    call with the same key; nothing was sent.
    """

    position: str
    summaries: tuple[Summary, ...]
    connections: int
    ignored: int
    duplicate: bool
    invalid: tuple[FieldProblem, ...] | UnsetType = UNSET
    idempotency_key: str | UnsetType = UNSET


class Skipped(Struct, frozen=True, tag_field="status", tag="skipped"):
    """No result counted: nothing was journalled, nothing sent."""

    reason: Literal["no_successful_orders"]
    ignored: int
    idempotency_key: str | UnsetType = UNSET


class Problem(Struct, frozen=True):
    """An RFC 9457 problem. `type` is a stable URN of the code; `retry` says what a caller should do."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    retry: str
    errors: tuple[FieldProblem, ...] | UnsetType = UNSET
    request_id: str | UnsetType = UNSET


class Rejected(Struct, frozen=True, tag_field="status", tag="rejected"):
    """One batch of a call of many was refused; the others are not affected."""

    problem: Problem
    idempotency_key: str | UnsetType = UNSET


EmitAnswer = Accepted | Skipped | Rejected


def problem_of(error: TallywireError, request_id: str | UnsetType = UNSET) -> Problem:
    """The problem object that tells `error` to a program and to a person."""
    return Problem(
        type=f"urn:tallywire:problem:{error.code}",
        title=error.title,
        status=error.status,
        detail=error.detail,
        code=error.code,
        retry=error.retry,
        errors=error.problems or UNSET,
        request_id=request_id,
    )


class OrderBatchEvent(Struct, frozen=True, gc=False):
    """A batch that has been counted: what `emit_order_batch_event` accepts. `timestamp`: Unix time in ms."""

    summaries: tuple[Summary, ...]
    strategy_id: int | None
    user_id: int
    timestamp: int


class UpdateData(Struct, frozen=True, gc=False):
    """The owner's format: exactly these fields, in this order. Nothing is ever added in here."""

    summaries: tuple[Summary, ...]
    timestamp: str


class StreamInfo(Struct, frozen=True, gc=False):
    """What Tallywire adds to an update: whose it is, where the stream stood, how many batches it merges."""

    strategy_id: int
    after: str
    batches: int
    totals: tuple[Summary, ...] | UnsetType = UNSET


class OrderBatchUpdate(Struct, frozen=True, gc=False, tag_field="type", tag="order_batch_update"):
    """The data line of `order_batch_update` with `shape=envelope`."""

    data: UpdateData
    stream: StreamInfo


class FlatOrderBatchUpdate(Struct, frozen=True, gc=False):
    """The same with `shape=flat`: the type stands in `event:`, only the inner object on the data line."""

    summaries: tuple[Summary, ...]
    timestamp: str
    stream: StreamInfo


class OrderBatchCatchUp(Struct, frozen=True, gc=False, tag_field="type", tag="order_batch_catch_up"):
    """Several strategies of one stream in one atomic event, by strategy."""

    updates: tuple[OrderBatchUpdate, ...]
    after: str


class FlatOrderBatchCatchUp(Struct, frozen=True, gc=False):
    """The same with `shape=flat`."""

    updates: tuple[FlatOrderBatchUpdate, ...]
    after: str


class StrategyTotals(Struct, frozen=True, gc=False):
    """The totals of one stream key."""

    strategy_id: int
    summaries: tuple[Summary, ...]


Strategies = tuple[int, ...] | Literal["*"]
"""What a stream carries: named strategies in ascending order, or every one, future ones included."""


class StreamOpen(Struct, frozen=True, gc=False):
    """First event of a stream that starts or resumes without loss. `position`: where it starts or resumes."""

    event: ClassVar[str] = "stream_open"
    position: str
    strategies: Strategies
    resumed: bool
    heartbeat_seconds: float
    totals: tuple[StrategyTotals, ...] | UnsetType = UNSET


ResetReason = Literal["malformed", "epoch", "future", "trimmed"]


class StreamReset(Struct, frozen=True, gc=False):
    """First event instead, when continuity cannot be shown: `totals` replace what the client has added up."""

    event: ClassVar[str] = "stream_reset"
    reason: ResetReason
    position: str
    strategies: Strategies
    heartbeat_seconds: float
    totals: tuple[StrategyTotals, ...]


class StreamHeartbeat(Struct, frozen=True, gc=False):
    """With `heartbeat=event`: the last position written to this stream, so that a gap can be noticed."""

    event: ClassVar[str] = "stream_heartbeat"
    position: str
    timestamp: str


class StreamExpiring(Struct, frozen=True, gc=False):
    """A warning: the token that the stream was opened with ends at `expires_at`."""

    event: ClassVar[str] = "stream_expiring"
    expires_at: str
    seconds_left: int


RevocationReason = Literal["revoked", "strategy_deleted", "account_deactivated"]
ClosingReason = Literal[
    "draining", "rotation", "busy", "token_expired", "revoked", "strategy_deleted", "account_deactivated"
]


class StreamClosing(Struct, frozen=True, gc=False):
    """The server ends the stream now; with `reconnect` after the `retry:` that this event carries."""

    event: ClassVar[str] = "stream_closing"
    reason: ClosingReason
    reconnect: bool


class OrderHourlySummary(Struct, frozen=True, gc=False):
    """What was counted for one strategy in the hour that began at `hour`: a notice at its end, without an id."""

    event: ClassVar[str] = "order_hourly_summary"
    strategy_id: int
    hour: str
    summaries: tuple[Summary, ...]


ControlEvent = StreamOpen | StreamReset | StreamHeartbeat | StreamExpiring | StreamClosing | OrderHourlySummary


def iso_timestamp(unix_ms: int) -> str:
    """ISO 8601, UTC, milliseconds, `Z`."""
    return f"{_iso_second(unix_ms // 1000)}.{unix_ms % 1000:03d}Z"


@lru_cache(64)
def _iso_second(unix_seconds: int) -> str:
    return datetime.fromtimestamp(unix_seconds, UTC).isoformat().removesuffix("+00:00")


class KeyFacts(Struct, frozen=True):
    """`GET /internal/keys/{user}/{strategy}`: what the journal knows of one stream key.

    `head` and `oldest_kept`: positions of its newest and oldest row, null when it has none. `batches`: how many
    were ever accepted.
    """

    user_id: int
    strategy_id: int
    totals: tuple[Summary, ...] = ()
    batches: int = 0
    head: str | None = None
    oldest_kept: str | None = None
    last_accepted: str | None = None
    connections: int = 0


class KeysReport(Struct, frozen=True):
    """`GET /internal/keys/{user}`: the stream keys of a user that something was accepted for, by strategy. `has_more`:
    further ones lie behind the last; ask again with `after` its strategy."""

    user_id: int
    keys: tuple[KeyFacts, ...]
    has_more: bool


class ConnectionFacts(Struct, frozen=True):
    """One open stream. `behind_batches`: how many batches of its keys it has not been sent yet."""

    user_id: int
    strategies: Strategies
    state: str
    position: str
    behind_batches: int
    unsent_bytes: int
    age_seconds: float
    peer: str


class LoopFacts(Struct, frozen=True):
    """How late the loop was, in the last ten seconds and ever, and how many tasks it has."""

    lag_ms_recent_max: float
    lag_ms_max: float
    tasks: int


class LogFacts(Struct, frozen=True):
    """What became of log lines."""

    lines_dropped: int


class LimitFacts(Struct, frozen=True):
    """How many streams may be open, and how many the settings want; fewer where descriptors are."""

    max_connections: int
    wanted: int


class ConnectionsReport(Struct, frozen=True):
    """`GET /internal/connections`. `slowest` lists at most 20, most behind first; `closed` counts ends by reason,
    `refused` streams that were not opened, `accepts_delayed` how often clients waited to be accepted."""

    connections: int
    lagging: int
    blocked: int
    slowest: tuple[ConnectionFacts, ...]
    closed: dict[str, int]
    refused: dict[str, int]
    accepts_delayed: int
    loop: LoopFacts
    log: LogFacts
    limits: LimitFacts


class Health(Struct, frozen=True):
    """`/healthz/live` and `/healthz/ready`; with `?for=emit` the code that an emit would be refused with."""

    status: str


class HourFacts(Struct, frozen=True):
    """What was counted for one strategy in the hour that began at `hour`, order types in alphabetical order."""

    hour: str
    strategy_id: int
    summaries: tuple[Summary, ...]


class HourlyStatistics(Struct, frozen=True, rename={"from_": "from"}):
    """`GET /internal/statistics/hourly`: hours in [from, to) in which something was counted, by hour and strategy."""

    user_id: int
    from_: str
    to: str
    hours: tuple[HourFacts, ...]


class BatchFacts(Struct, frozen=True):
    """One accepted batch. `caller`, `idempotency_key` and `ignored` stand there when it was found by its key."""

    user_id: int
    strategy_id: int
    position: str
    timestamp: str
    summaries: tuple[Summary, ...]
    ignored: int | UnsetType = UNSET
    caller: str | UnsetType = UNSET
    idempotency_key: str | UnsetType = UNSET


class BatchesReport(Struct, frozen=True):
    """`GET /internal/batches`, in order. `has_more`: further ones lie behind the last; ask again with `after` it."""

    batches: tuple[BatchFacts, ...]
    has_more: bool


class Revocation(Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /internal/revoke`: whose streams end, by user, by strategy or both, and why."""

    user_id: UserId | None = None
    strategy_id: StrategyId | None = None
    reason: RevocationReason = "revoked"


class Revoked(Struct, frozen=True):
    """Its answer: tokens from before `timestamp` count no more for what was revoked; so many streams were ended."""

    timestamp: str
    closed: int


class UserTotals(Struct, frozen=True):
    """`GET /totals`: what was counted up to `position`, by strategy."""

    user_id: int
    position: str
    totals: tuple[StrategyTotals, ...]


class Session(Struct, frozen=True):
    """`POST /stream/session`: the cookie that was set counts until then."""

    expires_at: str


class Ticket(Struct, frozen=True):
    """`POST /stream/ticket`: starts one stream, as its query parameter `ticket`, until then."""

    ticket: str
    expires_at: str


class DeletedUser(Struct, frozen=True):
    """`DELETE /internal/users/{user}`: the user's sequence goes on behind `position`, null when it had none."""

    user_id: int
    position: str | None
    rows: int
    closed: int
