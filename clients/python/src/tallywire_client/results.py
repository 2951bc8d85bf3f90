"""What came of a batch: the answers of the server, and what this client has to say when there is none."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Summary:
    """Counts of one order type."""

    order_type: str
    created: int
    cancelled: int


@dataclass(frozen=True, slots=True)
class FieldProblem:
    """One bad field: where it stands, as JSONPath, and why."""

    path: str
    message: str


@dataclass(frozen=True, slots=True)
class Problem:
    """Why something was refused. `code` is one of the server's, or one of `CLIENT_CODES`; `status` is then 0."""

    code: str
    detail: str
    status: int = 0
    retry: str = "no"
    errors: tuple[FieldProblem, ...] = ()
    request_id: str = ""


CLIENT_CODES = ("queue_full", "closed", "not_configured", "not_encodable", "body_too_large", "client_fault")
"""Codes of problems that the client found itself, before anything was sent."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """Counted, once, and durable. `duplicate`: a call before this one had done it."""

    position: str
    summaries: tuple[Summary, ...]
    connections: int
    duplicate: bool
    ignored: int
    invalid: tuple[FieldProblem, ...]
    idempotency_key: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """Nothing in the batch counts, so nothing was counted."""

    reason: str
    ignored: int
    idempotency_key: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """Certainly not counted: `problem` says why."""

    problem: Problem
    idempotency_key: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """Perhaps counted, once, and perhaps not.

    `is_final` false: the client is still at work, and a later look may tell more. True: it will not send the batch
    again; `GET /internal/batches?idempotency_key=` tells what the server has.
    """

    reason: str
    idempotency_key: str
    is_final: bool


Result = Accepted | Skipped | Rejected | Unknown
