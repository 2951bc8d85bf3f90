"""Every error the server tells anybody about, each with a stable code.

The tree::

    TallywireError
    ├── Refused                        the caller's mistake: 4xx, do not repeat unchanged
    │   ├── MalformedRequest           400 malformed_request
    │   ├── MalformedBody              400 malformed_body
    │   ├── Unauthorized               401 unauthorized
    │   ├── Forbidden                  403 forbidden
    │   ├── RouteNotFound              404 not_found
    │   ├── MethodNotAllowed           405 method_not_allowed
    │   ├── BodyTooLarge               413 body_too_large
    │   ├── UnsupportedMediaType       415 unsupported_media_type
    │   ├── HeadTooLarge               431 head_too_large
    │   ├── InvalidBatch               422 invalid_batch
    │   ├── InvalidBody                422 invalid_body
    │   ├── InvalidResults             422 invalid_results
    │   ├── StrategyIdMissing          422 strategy_id_missing
    │   ├── TooManyResults             422 too_many_results
    │   ├── TooManyBatches             422 too_many_batches
    │   ├── TooManyOrderTypes          422 too_many_order_types
    │   ├── InvalidIdempotencyKey      422 invalid_idempotency_key
    │   ├── IdempotencyConflict        422 idempotency_conflict
    │   └── InvalidQuery               422 invalid_query
    ├── Unavailable                    our state: 503, repeat later
    │   ├── Busy                       503 busy
    │   ├── Draining                   503 draining
    │   ├── DiskFull                   503 disk_full
    │   ├── JournalFull                503 journal_full
    │   └── OutcomeUnknown             503 outcome_unknown (repeat with the same key)
    └── InternalError                  500 internal_error

An error carries its fields; its ``detail`` is built from them, so that what a person
reads and what a program reads cannot differ. ``ERRORS`` is the documented table.
"""

from typing import ClassVar, Literal, final

from msgspec import Struct

Retry = Literal["no", "later", "same key"]


MOST_SHOWN = 200
"""Characters of what a caller wrote that are repeated to it, or logged."""


def shown(text: str) -> str:
    """So much of a text as is repeated or logged, an ellipsis in the place of the rest."""
    return text if len(text) <= MOST_SHOWN else text[: MOST_SHOWN - 1] + "…"


@final
class FieldProblem(Struct, frozen=True, gc=False):
    """One bad field: where it stands (JSONPath, or the name of a query parameter) and why."""

    path: str
    message: str


class TallywireError(Exception):
    """An answer that is not the one asked for. Subclasses fix code, status, title and retry."""

    code: ClassVar[str]
    status: ClassVar[int]
    title: ClassVar[str]
    retry: ClassVar[Retry] = "no"
    retry_after_seconds: ClassVar[int | None] = None

    def __init__(self, detail: str, problems: tuple[FieldProblem, ...] = ()) -> None:
        super().__init__(detail)
        self.detail = detail
        self.problems = problems


class Refused(TallywireError):
    """The caller's mistake; the same request would be refused again."""


class Unavailable(TallywireError):
    """The server's state; the same request may succeed later."""

    status = 503
    retry: ClassVar[Retry] = "later"
    retry_after_seconds = 1


class MalformedRequest(Refused):
    """It is not HTTP as RFC 9112 writes it; what follows on the connection is not looked at."""

    code = "malformed_request"
    status = 400
    title = "The request cannot be read"

    def __init__(self, reason: str = "it is not HTTP/1.1") -> None:
        super().__init__(f"The request cannot be read: {reason}.")


class MalformedBody(Refused):
    """The body cannot be read as what its Content-Type says."""

    code = "malformed_body"
    status = 400
    title = "The body cannot be read"


class Unauthorized(Refused):
    """Nobody knows who asks: there is no token, or not one that counts."""

    code = "unauthorized"
    status = 401
    title = "It is not known who asks"

    def __init__(self, detail: str, *, knows_key: bool = True) -> None:
        super().__init__(detail)
        self.knows_key = knows_key
        """False: the token names a key that another look at where keys come from may find."""


class Forbidden(Refused):
    """It is known who asks, and this is not theirs to do or to read."""

    code = "forbidden"
    status = 403
    title = "This is not allowed to whoever asks"


class RouteNotFound(Refused):
    code = "not_found"
    status = 404
    title = "There is nothing here"

    def __init__(self, path: str) -> None:
        super().__init__(
            f"No route {shown(path)} on this listener: "
            "/stream is on the public one, what begins with /internal on the other, and /metrics and /console/, too."
        )


class MethodNotAllowed(Refused):
    code = "method_not_allowed"
    status = 405
    title = "This route does not take that method"

    def __init__(self, method: str, path: str, allowed: tuple[str, ...]) -> None:
        super().__init__(f"{shown(path)} takes {', '.join(allowed)}, not {shown(method)}.")
        self.allowed = allowed


class BodyTooLarge(Refused):
    code = "body_too_large"
    status = 413
    title = "The body is too large"

    def __init__(self, limit_bytes: int, what: str = "The body") -> None:
        super().__init__(f"{what} is larger than {limit_bytes} bytes.")
        self.limit_bytes = limit_bytes


class UnsupportedMediaType(Refused):
    code = "unsupported_media_type"
    status = 415
    title = "This Content-Type is not understood"

    def __init__(self, content_type: str, known: tuple[str, ...]) -> None:
        given = f"{shown(content_type)!r}" if content_type else "none"
        super().__init__(f"Content-Type is {given}; it must be one of {', '.join(known)}.")


class HeadTooLarge(Refused):
    code = "head_too_large"
    status = 431
    title = "The head of the request is too large"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"Request line and headers are larger than {limit_bytes} bytes.")
        self.limit_bytes = limit_bytes


class InvalidBatch(Refused):
    code = "invalid_batch"
    status = 422
    title = "The batch is not of the right form"

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{message} at {path}.", (FieldProblem(path, message),))


class InvalidBody(Refused):
    code = "invalid_body"
    status = 422
    title = "The body is not of the right form"

    def __init__(self, message: str, path: str) -> None:
        super().__init__(f"{message} at {path}.", (FieldProblem(path, message),))


class InvalidResults(Refused):
    code = "invalid_results"
    status = 422
    title = "No result of the batch can be counted"

    def __init__(self, problems: tuple[FieldProblem, ...]) -> None:
        super().__init__(f"{len(problems)} results are invalid and nothing else counts.", problems)


class StrategyIdMissing(Refused):
    code = "strategy_id_missing"
    status = 422
    title = "The batch names no strategy"

    def __init__(self) -> None:
        message = "strategy_id is missing or zero"
        super().__init__(
            f"{message}; a batch goes to whoever listens to its user and strategy, so it needs both.",
            (FieldProblem("$.strategy_id", message),),
        )


class TooManyResults(Refused):
    code = "too_many_results"
    status = 422
    title = "The batch has too many results"

    def __init__(self, count: int, limit: int) -> None:
        message = f"{count} results, the limit is {limit}"
        super().__init__(f"{message}; send several batches.", (FieldProblem("$.batch_results", message),))


class TooManyBatches(Refused):
    code = "too_many_batches"
    status = 422
    title = "The call has too many batches"

    def __init__(self, limit: int) -> None:
        super().__init__(f"A call carries at most {limit} batches; send several calls.")


class TooManyOrderTypes(Refused):
    code = "too_many_order_types"
    status = 422
    title = "The stream key would have too many order types"

    def __init__(self, limit: int) -> None:
        super().__init__(f"A stream key has at most {limit} order types; nothing of this batch was counted.")


class InvalidIdempotencyKey(Refused):
    code = "invalid_idempotency_key"
    status = 422
    title = "The idempotency key is not usable"

    def __init__(self, message: str, path: str) -> None:
        super().__init__(f"{message}.", (FieldProblem(path, message),))


class IdempotencyConflict(Refused):
    code = "idempotency_conflict"
    status = 422
    title = "The idempotency key belongs to another batch"

    def __init__(self, position: str) -> None:
        super().__init__(
            f"This key was used for a different batch, accepted as {position}; nothing of this one was counted."
        )


class InvalidQuery(Refused):
    code = "invalid_query"
    status = 422
    title = "A query parameter is not usable"

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}.", (FieldProblem(name, message),))


class Busy(Unavailable):
    code = "busy"
    title = "The server has as much to do as it may take on"


class Draining(Unavailable):
    code = "draining"
    title = "The server is shutting down"

    def __init__(self) -> None:
        super().__init__("The server is shutting down; call again, another one will answer.")


class DiskFull(Unavailable):
    code = "disk_full"
    title = "The journal's disk is full"
    retry_after_seconds = 5

    def __init__(self) -> None:
        super().__init__(
            "The disk has no room for further batches, so this one was not accepted; streams go on. Emits are taken "
            "again by themselves once there is room."
        )


class JournalFull(Unavailable):
    code = "journal_full"
    title = "The journal is as large as it may become"
    retry_after_seconds = 60

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(
            f"What must be kept fills the {limit_bytes} bytes that the journal may use, so this batch was not "
            "accepted; streams go on. Raise keep_bytes, or wait until idempotency keys and hours are old enough."
        )
        self.limit_bytes = limit_bytes


class OutcomeUnknown(Unavailable):
    """The journal could not say whether the commit happened. Nothing of it was published."""

    code = "outcome_unknown"
    title = "It is not known whether the batches were accepted"
    retry = "same key"

    def __init__(self) -> None:
        super().__init__(
            "The journal could not confirm the commit. Repeat with the same idempotency key: "
            "whatever was accepted then counts once."
        )


class InternalError(TallywireError):
    code = "internal_error"
    status = 500
    title = "The server made a mistake"
    retry = "same key"

    def __init__(self) -> None:
        super().__init__("This is a fault of the server; its log has the details under the request id.")


ERRORS: tuple[type[TallywireError], ...] = (
    MalformedRequest,
    MalformedBody,
    Unauthorized,
    Forbidden,
    RouteNotFound,
    MethodNotAllowed,
    BodyTooLarge,
    UnsupportedMediaType,
    HeadTooLarge,
    InvalidBatch,
    InvalidBody,
    InvalidResults,
    StrategyIdMissing,
    TooManyResults,
    TooManyBatches,
    TooManyOrderTypes,
    InvalidIdempotencyKey,
    IdempotencyConflict,
    InvalidQuery,
    Busy,
    Draining,
    DiskFull,
    JournalFull,
    OutcomeUnknown,
    InternalError,
)
