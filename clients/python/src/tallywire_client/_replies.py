"""The response to a call of many batches, judged, pure: what is settled, what is to be sent again, what was refused."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tallywire_client.results import Accepted, FieldProblem, Problem, Rejected, Result, Skipped, Summary

MAX_RETRY_AFTER_SECONDS = 120.0
"""A server that asks for more is asked again by then."""

_AGAIN_STATUSES = frozenset({408, 425, 429})
OF_THE_BATCHES = frozenset({400, 413, 422})
"""Statuses that tell of what was sent. Any other refusal tells of the address or the key, whatever is sent there."""


@dataclass(frozen=True, slots=True)
class Again:
    """Send it again, with its key. `is_unsent`: certainly nothing of it has arrived."""

    reason: str
    after_seconds: float = 0.0
    is_unsent: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """The call as a whole was refused, and would be again."""

    problem: Problem

    @property
    def is_of_the_batches(self) -> bool:
        """Whether one of the batches may be at fault."""
        return self.problem.status in OF_THE_BATCHES


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer for each batch, in order."""

    answers: Sequence[Result | Again]


Reply = Answered | Again | Refused


class _UnreadableError(Exception):
    """Not what a Tallywire answers."""


def judge(status: int, retry_after: str, body: bytes, keys: Sequence[str]) -> Reply:
    """What to do after a response to a call of batches with these keys. Never raises, whatever is in the body."""
    try:
        if status == 200:
            return _answered(body, keys)
        problem = read_problem(_object(json.loads(body)), status)
    except (_UnreadableError, ValueError, RecursionError):
        if status == 200:
            return Again("the answer is not one of a Tallywire")
        problem = Problem("unexpected_status", f"status {status}, and not by a Tallywire", status, _retry_of(status))
    if problem.retry == "no":
        return Refused(problem)
    # "later" is said by a server that has accepted nothing of it.
    return Again(f"{status} {problem.code}: {problem.detail}", seconds_of(retry_after), problem.retry == "later")


def read_problem(fields: Mapping[str, object], status: int) -> Problem:
    """A problem+json as a Problem; what is missing is taken from the status."""
    return Problem(
        code=_text(fields, "code") or "unexpected_status",
        detail=_text(fields, "detail"),
        status=status,
        retry=_text(fields, "retry") or _retry_of(status),
        errors=_field_problems(fields.get("errors")),
        request_id=_text(fields, "request_id"),
    )


def seconds_of(retry_after: str) -> float:
    """Of a Retry-After in seconds; 0 when there is none, or a date, which our server never sends."""
    text = retry_after.strip()
    return min(float(text), MAX_RETRY_AFTER_SECONDS) if text.isascii() and text.isdigit() else 0.0


def read_summaries(value: object) -> tuple[Summary, ...]:
    """A list of summaries as the wire has it. Raises ValueError for anything else."""
    try:
        return tuple(_summary(_object(each)) for each in _list(value))
    except _UnreadableError as error:
        raise ValueError(*error.args) from error


def _retry_of(status: int) -> str:
    return "same key" if status >= 500 or status in _AGAIN_STATUSES else "no"


def _answered(body: bytes, keys: Sequence[str]) -> Reply:
    lines = body.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    if len(lines) != len(keys):
        raise _UnreadableError(f"{len(lines)} answers to {len(keys)} batches")
    items = _list(json.loads(b"[" + b",".join(lines) + b"]"))
    if len(items) != len(keys):
        raise _UnreadableError(f"{len(items)} answers to {len(keys)} batches")
    return Answered([_answer(_object(item), key) for item, key in zip(items, keys, strict=True)])


def _answer(fields: Mapping[str, object], key: str) -> Result | Again:
    match fields.get("status"):
        case "accepted":
            return Accepted(
                _text(fields, "position"),
                tuple(_summary(_object(each)) for each in _list(fields.get("summaries"))),
                _number(fields, "connections"),
                fields.get("duplicate") is True,
                _number(fields, "ignored"),
                _field_problems(fields.get("invalid")),
                key,
            )
        case "skipped":
            return Skipped(_text(fields, "reason"), _number(fields, "ignored"), key)
        case "rejected":
            stated = _object(fields.get("problem"))
            problem = read_problem(stated, _number(stated, "status"))
            if problem.retry == "no":
                return Rejected(problem, key)
            return Again(f"{problem.code}: {problem.detail}")
    raise _UnreadableError("an answer without a status")


def _summary(fields: Mapping[str, object]) -> Summary:
    return Summary(_text(fields, "order_type"), _number(fields, "created"), _number(fields, "cancelled"))


def _field_problems(value: object) -> tuple[FieldProblem, ...]:
    if not isinstance(value, list):
        return ()
    return tuple(FieldProblem(_text(each, "path"), _text(each, "message")) for each in value if isinstance(each, dict))


def _object(value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise _UnreadableError("not an object")
    return value


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise _UnreadableError("not a list")
    return value


def _text(fields: Mapping[str, object], name: str) -> str:
    value = fields.get(name)
    return value if isinstance(value, str) else ""


def _number(fields: Mapping[str, object], name: str) -> int:
    value = fields.get(name)
    return value if isinstance(value, int) else 0
