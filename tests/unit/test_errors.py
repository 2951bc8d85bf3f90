"""The error tree as it is drawn, and the table of errors that is made of it."""

import re
from collections.abc import Iterator
from typing import get_args

import pytest

from core import errors
from core.errors import (
    ERRORS,
    MOST_SHOWN,
    BodyTooLarge,
    Busy,
    DiskFull,
    Draining,
    FieldProblem,
    Forbidden,
    HeadTooLarge,
    IdempotencyConflict,
    InternalError,
    InvalidBatch,
    InvalidBody,
    InvalidIdempotencyKey,
    InvalidQuery,
    InvalidResults,
    JournalFull,
    MalformedBody,
    MalformedRequest,
    MethodNotAllowed,
    OutcomeUnknown,
    Refused,
    Retry,
    RouteNotFound,
    StrategyIdMissing,
    TallywireError,
    TooManyBatches,
    TooManyOrderTypes,
    TooManyResults,
    Unauthorized,
    Unavailable,
    UnsupportedMediaType,
    shown,
)

_DRAWN = re.compile(
    r"^(?P<branches>[│├└─ ]*)(?P<name>[A-Z]\w+)(?:\s+(?P<status>\d{3}) (?P<code>[a-z_]+))?", re.MULTILINE
)

SAMPLES: tuple[TallywireError, ...] = (
    MalformedRequest("Invalid header token"),
    MalformedBody("Not JSON."),
    Unauthorized("There is no token."),
    Forbidden("Strategy 4 is not one of those that you may read."),
    RouteNotFound("/nowhere"),
    MethodNotAllowed("PUT", "/stream", ("GET", "HEAD")),
    BodyTooLarge(1048576),
    UnsupportedMediaType("text/plain", ("application/json",)),
    HeadTooLarge(16384),
    InvalidBatch("$.user_id", "Expected `int`"),
    InvalidBody("Expected `int`", "$.user_id"),
    InvalidResults((FieldProblem("$.batch_results[0].order_type", "expected an order type"),)),
    StrategyIdMissing(),
    TooManyResults(10001, 10000),
    TooManyBatches(10000),
    TooManyOrderTypes(32),
    InvalidIdempotencyKey("A key has at most 128 characters", "$.idempotency_key"),
    IdempotencyConflict("1k7q2m9x4v0ce-42"),
    InvalidQuery("user_id", "must be an integer"),
    Busy("Too much waits."),
    Draining(),
    DiskFull(),
    JournalFull(4096),
    OutcomeUnknown(),
    InternalError(),
)
"""One of each."""


def drawn() -> list[tuple[int, str, str | None, str | None]]:
    """The lines of the tree: depth, class, status and code."""
    tree = (errors.__doc__ or "").partition("The tree::")[2].partition("An error carries")[0]
    lines = (re.sub(r"^    ", "", line) for line in tree.splitlines())
    return [
        (len(match["branches"]) // 4, match["name"], match["status"], match["code"])
        for line in lines
        if (match := _DRAWN.match(line))
    ]


def existing(
    error: type[TallywireError] = TallywireError, depth: int = 0
) -> Iterator[tuple[int, type[TallywireError]]]:
    """The classes as they are, parents before their children, in the order of the module."""
    yield depth, error
    for child in error.__subclasses__():
        yield from existing(child, depth + 1)


def leaves() -> list[type[TallywireError]]:
    return [error for _depth, error in existing() if not error.__subclasses__()]


def test_the_tree_in_the_docstring_is_the_tree_that_exists() -> None:
    assert drawn() == [
        (depth, error.__name__, *((None, None) if error.__subclasses__() else (str(error.status), error.code)))
        for depth, error in existing()
    ]


def test_the_table_has_every_error_that_can_be_told_and_no_other() -> None:
    assert list(ERRORS) == leaves()


def test_each_code_belongs_to_one_error() -> None:
    codes = [error.code for error in ERRORS]

    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", code) for code in codes)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.code)
def test_an_error_says_whose_mistake_it_is_and_whether_to_repeat(error: type[TallywireError]) -> None:
    assert error.title
    assert error.retry in get_args(Retry)
    if issubclass(error, Refused):
        assert 400 <= error.status < 500
        assert error.retry == "no"
        assert error.retry_after_seconds is None
    elif issubclass(error, Unavailable):
        assert error.status == 503
        assert error.retry != "no"
        assert error.retry_after_seconds is not None
    else:
        assert error.status == 500


def test_repeating_what_may_have_been_counted_asks_for_the_same_key() -> None:
    assert {error.code for error in ERRORS if error.retry == "same key"} == {"outcome_unknown", "internal_error"}


def test_there_is_a_sample_of_every_error() -> None:
    assert [type(sample) for sample in SAMPLES] == list(ERRORS)


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: error.code)
def test_the_detail_is_a_sentence_built_from_the_fields(error: TallywireError) -> None:
    assert re.fullmatch(r"\S.*\.", error.detail)
    assert str(error) == error.detail


@pytest.mark.parametrize(
    ("error", "facts"),
    [
        (RouteNotFound("/nowhere"), ["/nowhere"]),
        (MethodNotAllowed("PUT", "/stream", ("GET", "HEAD")), ["PUT", "/stream", "GET, HEAD"]),
        (BodyTooLarge(1048576), ["1048576", "The body"]),
        (BodyTooLarge(1048576, "The batch"), ["1048576", "The batch"]),
        (UnsupportedMediaType("text/plain", ("application/json", "b/c")), ["text/plain", "application/json, b/c"]),
        (UnsupportedMediaType("", ("application/json",)), ["none"]),
        (TooManyResults(10001, 10000), ["10001", "10000"]),
        (TooManyBatches(9999), ["9999"]),
        (TooManyOrderTypes(32), ["32"]),
        (IdempotencyConflict("1k7q2m9x4v0ce-42"), ["1k7q2m9x4v0ce-42"]),
    ],
    ids=lambda value: value.code if isinstance(value, TallywireError) else "",
)
def test_a_detail_names_what_it_is_about(error: TallywireError, facts: list[str]) -> None:
    assert [fact for fact in facts if fact not in error.detail] == []


@pytest.mark.parametrize(
    "error",
    [
        RouteNotFound("x" * 5000),
        MethodNotAllowed("x" * 5000, "x" * 5000, ("GET", "HEAD")),
        UnsupportedMediaType("x" * 5000, ("application/json",)),
    ],
    ids=lambda error: error.code,
)
def test_a_detail_repeats_no_more_than_so_much_of_what_a_caller_wrote(error: TallywireError) -> None:
    assert max(map(len, re.findall("x+…", error.detail))) == MOST_SHOWN
    assert error.detail.count("x") <= 2 * MOST_SHOWN


def test_what_is_short_enough_is_shown_as_it_is() -> None:
    assert shown("x" * MOST_SHOWN) == "x" * MOST_SHOWN
    assert shown("x" * (MOST_SHOWN + 1)) == "x" * (MOST_SHOWN - 1) + "…"


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (InvalidBatch("$.user_id", "Expected `int`"), FieldProblem("$.user_id", "Expected `int`")),
        (StrategyIdMissing(), FieldProblem("$.strategy_id", "strategy_id is missing or zero")),
        (TooManyResults(10001, 10000), FieldProblem("$.batch_results", "10001 results, the limit is 10000")),
        (InvalidIdempotencyKey("Too long", "Idempotency-Key"), FieldProblem("Idempotency-Key", "Too long")),
        (InvalidQuery("user_id", "must be an integer"), FieldProblem("user_id", "must be an integer")),
    ],
    ids=lambda value: value.code if isinstance(value, TallywireError) else "",
)
def test_an_error_about_a_field_names_it(error: TallywireError, problem: FieldProblem) -> None:
    assert error.problems == (problem,)
    assert problem.message in error.detail
