"""The counting rules of an emit: what counts, what is ignored, what is invalid, and in which order."""

from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.aggregation import Aggregation, unreadable
from core.errors import FieldProblem
from core.models import BatchResult, Summary

CREATED, CANCELLED = "order_created", "order_cancelled"
LONGEST = "L" + "0" * 31


def result(success: object = True, order_type: object = "LIMIT", event_type: object = CREATED) -> BatchResult:
    return BatchResult(success, order_type, event_type)


def read(results: Iterable[BatchResult | FieldProblem]) -> Iterator[BatchResult]:
    """The results as they are counted: a problem stands for one that cannot be read."""
    return (unreadable(one) if isinstance(one, FieldProblem) else one for one in results)


def aggregate(results: Iterable[BatchResult | FieldProblem]) -> Aggregation:
    """A whole batch counted at once."""
    aggregation = Aggregation()
    aggregation.add(read(results))
    return aggregation


@pytest.mark.parametrize(
    ("counted", "summary"),
    [
        (result(), Summary("LIMIT", 1, 0)),
        (result(event_type=CANCELLED), Summary("LIMIT", 0, 1)),
        (result(order_type="STOP_MARKET"), Summary("STOP_MARKET", 1, 0)),
        (result(order_type="A_TYPE_OF_TOMORROW_2"), Summary("A_TYPE_OF_TOMORROW_2", 1, 0)),
        (result(order_type="X"), Summary("X", 1, 0)),
        (result(order_type=LONGEST), Summary(LONGEST, 1, 0)),
    ],
)
def test_a_successful_result_with_a_known_event_type_counts(counted: BatchResult, summary: Summary) -> None:
    aggregation = aggregate([counted])

    assert aggregation.summaries == (summary,)
    assert (aggregation.seen, aggregation.ignored, aggregation.invalid) == (1, 0, [])


@pytest.mark.parametrize("success", [False, None])
@pytest.mark.parametrize("order_type", ["LIMIT", "not one", None, 7, ["LIMIT"]])
@pytest.mark.parametrize("event_type", [CREATED, "other", None, 7, {}])
def test_nothing_else_is_looked_at_of_a_result_that_did_not_succeed(
    success: object, order_type: object, event_type: object
) -> None:
    aggregation = aggregate([result(success, order_type, event_type)])

    assert aggregation.summaries == ()
    assert (aggregation.seen, aggregation.ignored, aggregation.invalid) == (1, 0, [])


def test_a_result_without_any_field_counts_nothing() -> None:
    aggregation = aggregate([BatchResult()])

    assert (aggregation.summaries, aggregation.ignored, aggregation.invalid) == ((), 0, [])


@pytest.mark.parametrize("success", ["true", "", 1, 0, 1.0, [], {}])
def test_a_success_that_is_neither_true_false_nor_null_is_invalid(success: object) -> None:
    aggregation = aggregate([result(), result(success)])

    assert aggregation.summaries == (Summary("LIMIT", 1, 0),)
    assert [problem.path for problem in aggregation.invalid] == ["$.batch_results[1].success"]


@pytest.mark.parametrize("event_type", ["order_filled", "ORDER_CREATED", "", None, 7, ["order_created"], {}])
@pytest.mark.parametrize("order_type", ["LIMIT", "not one", None])
def test_any_other_event_type_counts_nothing_and_is_reported_as_ignored(event_type: object, order_type: object) -> None:
    aggregation = aggregate([result(order_type=order_type, event_type=event_type)])

    assert aggregation.summaries == ()
    assert (aggregation.ignored, aggregation.invalid) == (1, [])


@pytest.mark.parametrize(
    "order_type",
    [
        None,
        7,
        ["LIMIT"],
        {},
        True,
        "",
        "limit",
        "Limit",
        "1LIMIT",
        "_LIMIT",
        "STOP LIMIT",
        "STOP-LIMIT",
        "LIMIT\n",
        " LIMIT",
        "\u00c4RGER",
        "LIMIT\u0661",
        LONGEST + "0",
    ],
)
@pytest.mark.parametrize("event_type", [CREATED, CANCELLED])
def test_a_result_that_should_count_and_has_no_order_type_is_invalid_and_the_rest_counts(
    order_type: object, event_type: str
) -> None:
    aggregation = aggregate([result(), result(order_type=order_type, event_type=event_type), result()])

    assert aggregation.summaries == (Summary("LIMIT", 2, 0),)
    assert aggregation.ignored == 0
    (problem,) = aggregation.invalid
    assert problem.path == "$.batch_results[1].order_type"
    assert "[A-Z][A-Z0-9_]{0,31}" in problem.message


def test_a_result_that_could_not_be_read_is_invalid_at_its_place_and_the_rest_counts() -> None:
    half_of_it = FieldProblem("$.order_type", "invalid string")
    nothing_of_it = FieldProblem("$", "Expected `object`, got `int`")

    aggregation = aggregate([result(), half_of_it, result(False), nothing_of_it])

    assert aggregation.summaries == (Summary("LIMIT", 1, 0),)
    assert aggregation.invalid == [
        FieldProblem("$.batch_results[1].order_type", "invalid string"),
        FieldProblem("$.batch_results[3]", "Expected `object`, got `int`"),
    ]
    assert aggregation.seen == 4


def test_order_types_stand_in_the_order_in_which_the_batch_first_counts_them() -> None:
    aggregation = aggregate(
        [
            result(False, "STOP_MARKET"),
            result(order_type="MARKET", event_type="order_filled"),
            result(order_type="STOP_LIMIT", event_type=CANCELLED),
            result(order_type="MARKET"),
            result(order_type="LIMIT"),
            result(order_type="STOP_LIMIT"),
        ]
    )

    assert aggregation.summaries == (Summary("STOP_LIMIT", 1, 1), Summary("MARKET", 1, 0), Summary("LIMIT", 1, 0))


def test_the_example_of_the_design_counts_as_it_says() -> None:
    aggregation = aggregate(
        [result(), result(order_type="STOP_LIMIT", event_type=CANCELLED), BatchResult(success=False)]
    )

    assert aggregation.summaries == (Summary("LIMIT", 1, 0), Summary("STOP_LIMIT", 0, 1))


def test_a_batch_without_results_comes_to_nothing() -> None:
    aggregation = aggregate([])

    assert (aggregation.summaries, aggregation.seen, aggregation.ignored, aggregation.invalid) == ((), 0, 0, [])


# ---- properties

ANYTHING: st.SearchStrategy[object] = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=3))
COUNTED = st.builds(
    result, st.just(True), st.sampled_from(["LIMIT", "MARKET", "STOP_LIMIT"]), st.sampled_from([CREATED, CANCELLED])
)
RESULTS = st.lists(
    st.one_of(
        COUNTED,
        COUNTED,
        st.builds(
            result,
            st.sampled_from([True, True, True, False, None, "true"]),
            st.one_of(st.sampled_from(["LIMIT", "MARKET", "STOP_LIMIT", "limit"]), ANYTHING),
            st.one_of(st.sampled_from([CREATED, CANCELLED]), ANYTHING),
        ),
        st.builds(FieldProblem, st.sampled_from(["$", "$.order_type"]), st.just("unreadable")),
    ),
    max_size=40,
)


def is_order_type(value: object) -> bool:
    if not isinstance(value, str) or not 1 <= len(value) <= 32 or not "A" <= value[0] <= "Z":
        return False
    return all("A" <= character <= "Z" or "0" <= character <= "9" or character == "_" for character in value)


@given(RESULTS)
def test_an_aggregation_equals_a_naive_count(results: list[BatchResult | FieldProblem]) -> None:
    succeeded = [one for one in results if isinstance(one, BatchResult) and one.success is True]
    relevant = [one for one in succeeded if one.event_type in (CREATED, CANCELLED)]
    counted = [one for one in relevant if is_order_type(one.order_type)]
    first_seen = list(dict.fromkeys(str(one.order_type) for one in counted))
    refused = [one for one in results if isinstance(one, FieldProblem) or one.success not in (True, False, None)]

    aggregation = aggregate(results)

    assert aggregation.summaries == tuple(
        Summary(
            order_type,
            sum(one.order_type == order_type and one.event_type == CREATED for one in counted),
            sum(one.order_type == order_type and one.event_type == CANCELLED for one in counted),
        )
        for order_type in first_seen
    )
    assert aggregation.seen == len(results)
    assert aggregation.ignored == len(succeeded) - len(relevant)
    assert len(aggregation.invalid) == len(refused) + len(relevant) - len(counted)


@given(RESULTS, st.data())
def test_portions_of_any_size_come_to_the_same_as_the_whole(
    results: list[BatchResult | FieldProblem], data: st.DataObject
) -> None:
    whole, portioned = aggregate(results), Aggregation()
    rest = list(results)
    while rest:
        size = data.draw(st.integers(0, len(rest)))
        portioned.add(read(rest[:size]))
        del rest[:size]
        if not size:
            portioned.add(read(rest[:1]))
            del rest[:1]

    assert portioned.summaries == whole.summaries
    assert (portioned.seen, portioned.ignored) == (whole.seen, whole.ignored)
    assert portioned.invalid == whole.invalid


def state(value: object) -> Iterator[object]:
    """Everything that an aggregation holds on to."""
    yield value
    if isinstance(value, Aggregation):
        for name in Aggregation.__slots__:
            yield from state(getattr(value, name))
    elif isinstance(value, dict):
        yield from (inner for item in value.items() for inner in state(item))
    elif isinstance(value, list | tuple):
        yield from (inner for item in value for inner in state(item))


def test_memory_is_taken_for_order_types_and_not_for_results() -> None:
    def results(count: int) -> Iterator[BatchResult]:
        for index in range(count):
            yield result(index % 5 != 0, f"T{index % 4}", [CREATED, CANCELLED, "order_filled"][index % 3])

    few, many = aggregate(results(60)), aggregate(results(10_000))

    assert not hasattr(many, "__dict__"), "whatever it holds stands in its slots"
    assert many.seen == 10_000
    assert len(many.summaries) == 4
    assert len(list(state(many))) == len(list(state(few)))
