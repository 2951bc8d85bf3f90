import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import TooManyOrderTypes
from core.models import MAX_ID, Summary
from core.totals import MAX_ORDER_TYPES, NOTHING, Position, Row, difference, new_epoch

ORDER_TYPES = st.sampled_from(["LIMIT", "MARKET", "STOP_LIMIT", "STOP_MARKET"])
SUMMARIES = st.lists(
    st.builds(Summary, ORDER_TYPES, st.integers(0, 5), st.integers(0, 5)).filter(lambda s: s.created or s.cancelled),
    max_size=4,
    unique_by=lambda summary: summary.order_type,
)


def counts(summaries: tuple[Summary, ...]) -> dict[str, tuple[int, int]]:
    return {summary.order_type: (summary.created, summary.cancelled) for summary in summaries}


@given(st.lists(SUMMARIES), st.data())
def test_difference_of_two_rows_is_the_sum_of_the_batches_between_them(
    batches: list[list[Summary]], data: st.DataObject
) -> None:
    rows = [Row.before_the_first(7, 3)]
    for n, batch in enumerate(batches, 1):
        rows.append(rows[-1].next(n, n, batch))
    start = data.draw(st.integers(0, len(batches)))
    end = data.draw(st.integers(start, len(batches)))

    owed = difference(rows[end], rows[start])

    expected: dict[str, tuple[int, int]] = {}
    for batch in batches[start:end]:
        for summary in batch:
            created, cancelled = expected.get(summary.order_type, (0, 0))
            expected[summary.order_type] = (created + summary.created, cancelled + summary.cancelled)
    assert counts(owed.summaries) == expected
    assert owed.batches == end - start


@given(st.lists(SUMMARIES, min_size=1))
def test_differences_list_order_types_in_the_order_the_key_first_saw_them(batches: list[list[Summary]]) -> None:
    totals, first_seen = NOTHING, dict[str, None]()
    for batch in batches:
        before, totals = totals, totals.plus(batch)
        first_seen.update({summary.order_type: None for summary in batch})
        changed = [summary.order_type for summary in totals.minus(before)]
        assert changed == [order_type for order_type in first_seen if order_type in changed]


def test_totals_of_more_than_32_order_types_cannot_be_built() -> None:
    full = NOTHING.plus([Summary(f"T{index}", 1, 0) for index in range(MAX_ORDER_TYPES)])

    with pytest.raises(TooManyOrderTypes):
        full.plus([Summary("ONE_MORE", 1, 0)])
    assert len(full.plus([Summary("T0", 1, 0)]).summaries) == MAX_ORDER_TYPES


@given(st.integers(0, MAX_ID))
def test_a_position_reads_back_as_it_was_written(n: int) -> None:
    position = Position(new_epoch(), n)

    assert Position.parse(str(position)) == position


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "1k7q2m9x4v0ce",
        "1k7q2m9x4v0ce-",
        "1k7q2m9x4v0ce-01",
        "1k7q2m9x4v0ce--1",
        "1k7q2m9x4v0ce-9007199254740992",
        "1k7q2m9x4v0ce-99999999999999999999",
        "1K7Q2M9X4V0CE-1",
        "1k7q2m9x4v0c-1",
        "1k7q2m9x4v0cl-1",
        "1k7q2m9x4v0ce-1\n",
        "1k7q2m9x4v0ce-\u0661",
        " 1k7q2m9x4v0ce-1",
    ],
)
def test_what_is_not_a_position_cannot_become_one(text: str) -> None:
    with pytest.raises(ValueError, match="not a position"):
        Position.parse(text)


def test_epochs_are_13_characters_that_need_no_pre_flight_and_differ() -> None:
    epochs = {new_epoch() for _ in range(100)}

    assert len(epochs) == 100
    assert all(len(epoch) == 13 and epoch.isalnum() for epoch in epochs)
