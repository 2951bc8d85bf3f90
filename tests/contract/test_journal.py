"""The contract of a journal, run unmodified over every driver in `tests.contract.journal.DRIVERS`."""

import asyncio
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct
from tornado.ioloop import IOLoop

from core.errors import IdempotencyConflict, OutcomeUnknown, TooManyOrderTypes
from core.journal.base import (
    HOUR_MS,
    BatchRecord,
    Commit,
    Entry,
    HourCounts,
    IdempotencyKey,
    KeyRecord,
    Load,
    Outcome,
    Recorded,
    Work,
)
from core.models import Summary
from core.totals import MAX_ORDER_TYPES, Position, Row
from tests.contract.journal import (
    DRIVERS,
    Desk,
    Driver,
    Limits,
    Model,
    entry,
    opened,
    recorded,
    row_of,
    types,
)

pytestmark = pytest.mark.logs("Journal error")


@pytest.fixture
def limits() -> Limits:
    """What the journal keeps: everything, unless a test is parametrised `with_limits`."""
    return Limits()


def with_limits(
    max_rows: int = Limits().max_rows,
    max_age_ms: int = Limits().max_age_ms,
    idempotency_window_ms: int = Limits().idempotency_window_ms,
) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("limits", [Limits(max_rows, max_age_ms, idempotency_window_ms)], ids=[""])


def _desk(driver: Driver, limits: Limits, io_loop: IOLoop, directory: Path) -> Iterator[Desk]:
    desks: list[Desk] = []

    async def open_it() -> None:
        desks.append(Desk(driver, directory, limits))

    with driver.surroundings():
        io_loop.run_sync(open_it)
        yield desks[0]
        io_loop.run_sync(desks[0].close)


each_driver = pytest.mark.parametrize("driver", DRIVERS, ids=lambda driver: driver.name)


@pytest.fixture(params=DRIVERS, ids=lambda driver: driver.name)
def journal(request: pytest.FixtureRequest, limits: Limits, io_loop: IOLoop, tmp_path: Path) -> Iterator[Desk]:
    yield from _desk(request.param, limits, io_loop, tmp_path)


@pytest.fixture(params=[driver for driver in DRIVERS if driver.can_fail], ids=lambda driver: driver.name)
def failing_journal(request: pytest.FixtureRequest, limits: Limits, io_loop: IOLoop, tmp_path: Path) -> Iterator[Desk]:
    """One whose transactions fail while `fails` is set."""
    yield from _desk(request.param, limits, io_loop, tmp_path)


# ---- n, number, totals


@pytest.mark.gen_test
async def test_n_is_dense_per_user_over_strategies(journal: Desk) -> None:
    rows = await journal.record(*(entry(user_id=user_id, strategy_id=strategy_id) for user_id, strategy_id in KEYS))
    rows += await journal.record(*(entry(user_id=user_id, strategy_id=strategy_id) for user_id, strategy_id in KEYS))

    assert [row.n for row in rows if row.user_id == 7] == [1, 2, 3, 4, 5, 6]
    assert [row.n for row in rows if row.user_id == 8] == [1, 2, 3, 4]
    assert [(row.user_id, row.strategy_id) for row in rows] == KEYS * 2


KEYS = [(7, 3), (8, 3), (7, 4), (7, 3), (8, 5)]


@pytest.mark.gen_test
async def test_each_stream_key_has_its_own_running_number_and_totals(journal: Desk) -> None:
    await journal.record(entry(Summary("LIMIT", 2, 0)))
    await journal.record(entry(Summary("LIMIT", 50, 50), strategy_id=4), entry(Summary("LIMIT", 70, 0), user_id=8))
    await journal.record(entry(Summary("MARKET", 0, 1), Summary("LIMIT", 1, 1)))

    (row,) = await journal.record(entry(Summary("MARKET", 1, 0), accepted_ms=1_234))

    assert (row.user_id, row.strategy_id, row.n, row.number) == (7, 3, 4, 3)
    assert row.accepted_ms == 1_234
    assert row.totals.summaries == (Summary("LIMIT", 3, 1), Summary("MARKET", 1, 1))


@pytest.mark.gen_test
async def test_an_outcome_repeats_what_was_counted_and_ignored(journal: Desk) -> None:
    summaries = (Summary("MARKET", 1, 0), Summary("LIMIT", 0, 2))

    outcome = recorded((await journal.call(entry(*summaries, ignored=3))).outcomes[0])

    assert (outcome.n, outcome.summaries, outcome.ignored) == (1, summaries, 3)


@pytest.mark.gen_test
async def test_a_call_has_one_outcome_for_each_of_its_batches_in_their_order(journal: Desk) -> None:
    commit = await journal.call(*(entry(Summary("LIMIT", created, 0)) for created in range(1, 101)))

    assert commit.failure is None
    assert [recorded(outcome).summaries[0].created for outcome in commit.outcomes] == list(range(1, 101))
    assert [recorded(outcome).n for outcome in commit.outcomes] == list(range(1, 101))


@pytest.mark.gen_test
async def test_the_epoch_makes_positions_that_can_be_parsed(journal: Desk) -> None:
    position = Position(journal.journal.epoch, 1)

    assert Position.parse(str(position)) == position


# ---- delivery


@pytest.mark.gen_test
async def test_calls_come_back_in_the_order_in_which_they_were_submitted(journal: Desk) -> None:
    calls = [journal.submit_call(entry(user_id=index % 3 + 1)) for index in range(50)]
    await journal.delivery_of(*calls)

    assert journal.delivered == calls


@pytest.mark.gen_test
async def test_a_load_shows_exactly_the_commits_delivered_before_it(journal: Desk) -> None:
    for index in range(40):
        journal.submit_call(entry(strategy_id=index % 4 + 1), entry(user_id=8))
        if index % 3 == 0:
            journal.submit(Load(7))
    last = Load(7)
    journal.submit(last)
    await journal.delivery_of(last, await journal.call(entry(user_id=8)))

    model = Model(Limits())
    for work in journal.delivered:
        if isinstance(work, Commit):
            for batch, outcome in zip(work.entries, work.outcomes, strict=True):
                model.take(batch, outcome)
        elif isinstance(work, Load):
            assert_shows(work, model)
    assert model.n(7) == 40


@pytest.mark.gen_test
async def test_a_load_has_the_newest_row_of_every_key_of_its_user(journal: Desk) -> None:
    await journal.record(entry(strategy_id=3), entry(strategy_id=4), entry(user_id=8, strategy_id=5))
    (newest,) = await journal.record(entry(strategy_id=3))

    load = await journal.load(7)

    assert load.n == 3
    assert {row.strategy_id: row.n for row in load.heads} == {3: 3, 4: 2}
    assert newest in load.heads


@pytest.mark.gen_test
async def test_a_crowd_that_loads_the_same_users_at_once_is_told_the_same(journal: Desk) -> None:
    (head,) = await journal.record(entry(user_id=8))
    loads = [Load(user_id) for user_id in (7, 8, 7, 8, 7)]
    for load in loads:
        journal.submit(load)
    await journal.delivery_of(*loads)
    (row,) = await journal.record(entry())

    assert [list(load.heads) for load in loads] == [[], [head], [], [head], []]
    assert list((await journal.load(7)).heads) == [row]


@pytest.mark.gen_test
async def test_a_user_without_batches_loads_as_nothing(journal: Desk) -> None:
    await journal.record(entry(user_id=8))

    load = await journal.load(7)

    assert (load.n, list(load.heads)) == (0, [])


@pytest.mark.gen_test
async def test_nothing_is_delivered_within_submit(journal: Desk) -> None:
    commit, load = journal.submit_call(entry()), Load(7)
    journal.submit(load)

    # No step of the loop has been taken: whoever submits may still be in the middle of something.
    assert journal.delivered == []
    await journal.delivery_of(commit, load)


@pytest.mark.gen_test
async def test_work_submitted_while_taking_delivery_is_delivered_later(journal: Desk) -> None:
    followers: list[Load] = []

    def follow(_work: object) -> None:
        journal.on_delivery = lambda _work: None
        followers.append(Load(7))
        journal.submit(followers[0])

    journal.on_delivery = follow
    commit = await journal.call(entry())
    await journal.delivery_of(followers[0])

    assert journal.delivered == [commit, followers[0]]
    assert followers[0].n == 1


@pytest.mark.gen_test
async def test_what_was_delivered_can_be_read(journal: Desk) -> None:
    read: list[asyncio.Task[Row | None]] = []
    journal.on_delivery = lambda _work: read.append(asyncio.ensure_future(journal.row_at(1)))

    commit = await journal.call(entry())

    assert await read[0] == row_of(commit.outcomes[0])


@each_driver
def test_close_delivers_what_was_submitted(driver: Driver, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(driver, tmp_path) as journal:
            commits, load = [journal.submit_call(entry()) for _ in range(20)], Load(7)
            journal.submit(load)
        assert set(journal.delivered) == {*commits, load}
        assert [recorded(commit.outcomes[0]).n for commit in commits] == list(range(1, 21))

    asyncio.run(scenario())


@pytest.mark.gen_test
async def test_a_large_call_is_one_transaction_however_long_it_takes(journal: Desk) -> None:
    large = journal.submit_call(*(entry(strategy_id=index % 3 + 1) for index in range(500)))
    works: list[Work] = [large]
    while large not in journal.delivered:
        works += [journal.submit_call(entry(), entry(strategy_id=4, key="a")), Load(7)]
        journal.submit(works[-1])
        await asyncio.sleep(0)
    await journal.delivery_of(*works)

    n = 0
    for work in journal.delivered:
        if isinstance(work, Commit):
            rows = [outcome.row for outcome in work.outcomes if isinstance(outcome, Recorded) and outcome.row]
            assert [row.n for row in rows] == list(range(n + 1, n + len(rows) + 1))
            n += len(rows)
        elif isinstance(work, Load):
            assert (work.n, max((row.n for row in work.heads), default=0)) == (n, n)
    assert n == 500 + (len(works) - 1) // 2 + 1


# ---- group commit


COUNTS = st.sampled_from([(1, 0), (0, 1), (2, 3)])
FEW_TYPES = st.dictionaries(st.sampled_from(["LIMIT", "MARKET", "STOP_LIMIT"]), COUNTS, min_size=1).map(
    lambda counts: tuple(Summary(order_type, *count) for order_type, count in counts.items())
)
MANY_TYPES = st.sampled_from([types(0, 16), types(16, 16), types(32, 1)])
"""Two of these fill a key; the third is one too many."""

ENTRIES = st.builds(
    Entry,
    st.sampled_from([7, 7, 8]),
    st.sampled_from([3, 4]),
    st.one_of(FEW_TYPES, FEW_TYPES, MANY_TYPES),
    st.integers(1_000, 2_000),
    st.integers(0, 2),
    st.sampled_from(
        [None, None, IdempotencyKey("orders", "a"), IdempotencyKey("orders", "b"), IdempotencyKey("others", "a")]
    ),
)
CALLS = st.lists(st.lists(ENTRIES, min_size=1, max_size=4), min_size=1, max_size=5)


def plain(outcome: Outcome) -> object:
    """An outcome without what differs between two journals: their epoch."""
    if isinstance(outcome, Recorded):
        return outcome
    return type(outcome), outcome.detail.partition("-")[2]


@each_driver
@settings(max_examples=50, deadline=None, report_multiple_bugs=False)
@given(calls=CALLS)
def test_calls_that_share_a_transaction_come_to_the_same_as_one_by_one(
    driver: Driver, calls: list[list[Entry]]
) -> None:
    async def outcomes(*, together: bool) -> list[object]:
        with TemporaryDirectory() as directory:
            async with opened(driver, Path(directory)) as journal:
                commits = []
                for entries in calls:
                    commits.append(journal.submit_call(*entries))
                    if not together:
                        await journal.delivery_of(commits[-1])
                await journal.delivery_of(*commits)
                return [plain(outcome) for commit in commits for outcome in commit.outcomes]

    assert asyncio.run(outcomes(together=True)) == asyncio.run(outcomes(together=False))


# ---- reading


@pytest.mark.parametrize(
    ("n", "found"),
    [
        pytest.param(0, 0, id="before everything"),
        pytest.param(1, 0, id="before the key's first"),
        pytest.param(2, 2, id="at the first"),
        pytest.param(3, 2, id="between"),
        pytest.param(4, 2, id="just below the next"),
        pytest.param(5, 5, id="at the newest"),
        pytest.param(6, 5, id="at the head of the user"),
        pytest.param(2**53 - 1, 5, id="above"),
    ],
)
@pytest.mark.gen_test
async def test_the_row_at_n_is_the_newest_of_its_key_at_or_below_it(journal: Desk, n: int, found: int) -> None:
    rows = {row.n: row for row in await journal.record(*(entry(strategy_id=s) for s in (4, 3, 4, 4, 3, 4)))}
    await journal.record(*[entry(user_id=8)] * 6)

    assert await journal.row_at(n) == rows.get(found, Row.before_the_first(7, 3))


@pytest.mark.parametrize("user_id", [7, 8], ids=["a key", "a user"])
@pytest.mark.gen_test
async def test_what_nothing_was_accepted_for_starts_from_nothing(journal: Desk, user_id: int) -> None:
    await journal.record(entry())

    assert await journal.row_at(1, user_id, 5) == Row.before_the_first(user_id, 5)


@pytest.mark.gen_test
async def test_rows_are_read_for_exactly_the_strategies_asked_for(journal: Desk) -> None:
    first, second, _third = await journal.record(entry(strategy_id=3), entry(strategy_id=4), entry(strategy_id=5))

    assert await journal.journal.rows_at(7, 3, {3, 4, 6}) == {3: first, 4: second, 6: Row.before_the_first(7, 6)}
    assert await journal.journal.rows_at(7, 3, []) == {}


@pytest.mark.gen_test
async def test_a_key_record_has_the_newest_and_the_oldest_row(journal: Desk) -> None:
    (oldest,) = await journal.record(entry())
    await journal.record(entry(strategy_id=4), entry())
    (newest,) = await journal.record(entry())

    assert await journal.journal.key_record(7, 3) == KeyRecord(newest, oldest)


@pytest.mark.gen_test
async def test_a_key_without_batches_has_no_record(journal: Desk) -> None:
    await journal.record(entry())

    assert await journal.journal.key_record(7, 4) is None
    assert await journal.journal.key_record(8, 3) is None


@pytest.mark.gen_test
async def test_the_keys_of_a_user_come_by_strategy_behind_another_and_no_more_than_asked_for(journal: Desk) -> None:
    for strategy_id in (9, 3, 5, 3, 4):
        await journal.record(entry(strategy_id=strategy_id), entry(user_id=8, strategy_id=strategy_id + 1))
    each = [await journal.journal.key_record(7, strategy_id) for strategy_id in (3, 4, 5, 9)]

    assert None not in each
    assert await journal.journal.key_records(7, 0, 10) == each
    assert await journal.journal.key_records(7, 0, 3) == each[:3]
    assert await journal.journal.key_records(7, 3, 2) == each[1:3]
    assert await journal.journal.key_records(7, 6, 10) == each[3:]
    assert await journal.journal.key_records(7, 9, 10) == []
    assert await journal.journal.key_records(99, 0, 10) == []


# ---- trimming


@with_limits(max_rows=3)
@pytest.mark.gen_test
async def test_no_row_is_trimmed_before_there_are_too_many(journal: Desk) -> None:
    rows = await journal.record(*[entry()] * 10)
    rows += await journal.record(entry())

    assert [await journal.row_at(n) for n in (9, 10, 11)] == rows[-3:]


@with_limits(max_rows=3)
@pytest.mark.gen_test
async def test_a_position_below_the_oldest_kept_row_cannot_be_judged_any_more(journal: Desk) -> None:
    await journal.record(*[entry()] * 10)

    async def is_trimmed() -> bool:
        return await journal.row_at(1) is None

    await journal.commit_until(is_trimmed)
    assert await journal.row_at(0) is None
    before = None
    while True:
        record = await journal.journal.key_record(7, 3)
        assert record is not None
        assert record.oldest.n > 1
        below = await journal.row_at(record.oldest.n - 1)
        at = await journal.row_at(record.oldest.n)
        # A driver may go on trimming by itself while it is being read.
        if record == before:
            break
        before = record
    assert (below, at) == (None, record.oldest)
    assert await journal.row_at(10) == record.head


@with_limits(max_age_ms=1_000)
@pytest.mark.gen_test
async def test_rows_are_trimmed_by_age_and_not_before(journal: Desk) -> None:
    old = await journal.record(entry())
    journal.now_ms += 1
    old += await journal.record(entry())
    journal.now_ms = 2_000
    await journal.record(entry())
    assert [await journal.row_at(n) for n in (1, 2)] == old

    async def is_trimmed() -> bool:
        return await journal.row_at(1) is None

    # It is old, and still says what the totals were when the second one, which is not, came.
    journal.now_ms = 2_001
    await journal.record(*[entry(user_id=8)] * 20)
    assert await journal.row_at(1) == old[0]

    journal.now_ms = 2_002
    await journal.commit_until(is_trimmed)
    assert await journal.row_at(2) == old[1]


@with_limits(max_rows=3)
@pytest.mark.gen_test
async def test_a_quiet_key_is_not_reset_by_its_next_batch_because_a_busy_one_was_trimmed(journal: Desk) -> None:
    (before,) = await journal.record(entry(strategy_id=4))
    (quiet,) = await journal.record(entry(strategy_id=4))
    await journal.record(*[entry()] * 10)

    async def busy_is_trimmed() -> bool:
        return await journal.row_at(8) is None

    await journal.commit_until(busy_is_trimmed)
    left_at = (await journal.load(7)).n
    await journal.record(entry(strategy_id=4))

    # Somebody who was away for that one batch.
    assert await journal.row_at(left_at, strategy_id=4) == quiet
    assert before.totals != quiet.totals


@with_limits(max_age_ms=1_000, idempotency_window_ms=1_000)
@pytest.mark.gen_test
async def test_a_wall_clock_that_jumps_forgets_nothing(journal: Desk) -> None:
    day_ms = 24 * HOUR_MS
    noon = 20_000 * day_ms
    rows = await journal.record(entry(accepted_ms=noon, key="a"))
    for accepted_ms in (noon + day_ms, noon - day_ms, noon + HOUR_MS, noon - HOUR_MS):
        journal.now_ms += 100
        rows += await journal.record(*[entry(accepted_ms=accepted_ms)] * 20)

    assert [await journal.row_at(n) for n in range(1, 82)] == rows
    assert recorded((await journal.call(entry(key="a"))).outcomes[0]).row is None


@with_limits(max_age_ms=1_000)
@pytest.mark.gen_test
async def test_a_long_backlog_is_trimmed_to_its_end(journal: Desk) -> None:
    await journal.record(*[entry()] * 2_500)

    async def is_trimmed() -> bool:
        return await journal.row_at(2_499) is None

    journal.now_ms = 10_000
    await journal.commit_until(is_trimmed)
    assert (await journal.load(7)).n == 2_500


@with_limits(max_rows=2, max_age_ms=10)
@pytest.mark.gen_test
async def test_the_newest_row_of_a_quiet_key_stays(journal: Desk) -> None:
    quiet = (await journal.record(entry(strategy_id=4), entry(strategy_id=4)))[-1]
    for journal.now_ms in range(2_000, 2_050):
        await journal.record(entry())

    assert [await journal.row_at(n, strategy_id=4) for n in (2, 30, 52)] == [quiet] * 3
    assert quiet in (await journal.load(7)).heads
    record = await journal.journal.key_record(7, 4)
    assert record is not None
    assert record.head == quiet


@with_limits(max_rows=2)
@pytest.mark.gen_test
async def test_a_quiet_key_that_keeps_its_first_row_is_known_to_have_had_none_before(journal: Desk) -> None:
    await journal.record(entry(strategy_id=3))
    (first,) = await journal.record(entry(strategy_id=4))
    await journal.record(*[entry(strategy_id=3)] * 20)

    assert first.number == 1
    assert await journal.row_at(1, strategy_id=4) == Row.before_the_first(7, 4)


@with_limits(max_rows=2)
@pytest.mark.gen_test
async def test_a_quiet_key_goes_on_from_its_totals(journal: Desk) -> None:
    await journal.record(entry(Summary("LIMIT", 5, 1), strategy_id=4))
    await journal.record(*[entry(strategy_id=3)] * 20)

    (row,) = await journal.record(entry(Summary("LIMIT", 1, 1), strategy_id=4))

    assert (row.n, row.number) == (22, 2)
    assert row.totals.summaries == (Summary("LIMIT", 6, 2),)
    assert await journal.row_at(22, strategy_id=4) == row

    async def is_trimmed() -> bool:
        return await journal.row_at(21, strategy_id=4) is None

    await journal.commit_until(is_trimmed)
    assert await journal.row_at(0, strategy_id=4) is None


@with_limits(max_rows=1)
@pytest.mark.gen_test
async def test_n_stays_dense_when_rows_are_trimmed(journal: Desk) -> None:
    rows = [row for _ in range(20) for row in await journal.record(entry(), entry(strategy_id=4))]

    assert [row.n for row in rows] == list(range(1, 41))
    assert [row.number for row in rows] == [number for number in range(1, 21) for _ in range(2)]


# ---- too many order types


@pytest.mark.gen_test
async def test_too_many_order_types_refuse_that_batch_only(journal: Desk) -> None:
    commit = await journal.call(
        entry(*types(0, MAX_ORDER_TYPES)),
        entry(Summary("ONE_MORE", 1, 0), Summary("T0", 1, 0)),
        entry(Summary("ONE_MORE", 1, 0), strategy_id=4),
        entry(Summary("T0", 1, 0)),
    )

    assert commit.failure is None
    assert isinstance(commit.outcomes[1], TooManyOrderTypes)
    assert [recorded(commit.outcomes[index]).n for index in (0, 2, 3)] == [1, 2, 3]
    # Nothing of a refused batch counts: not even the type that the key knew.
    assert row_of(commit.outcomes[3]).totals.summaries[0] == Summary("T0", 2, 0)
    assert row_of(commit.outcomes[3]).number == 2


@pytest.mark.gen_test
async def test_the_limit_of_order_types_holds_within_one_transaction(journal: Desk) -> None:
    await journal.record(entry(*types(0, MAX_ORDER_TYPES - 1)))

    last, beyond = journal.submit_call(entry(*types(100, 1))), journal.submit_call(entry(*types(200, 1)))
    await journal.delivery_of(last, beyond)

    assert len(row_of(last.outcomes[0]).totals.summaries) == MAX_ORDER_TYPES
    assert isinstance(beyond.outcomes[0], TooManyOrderTypes)
    assert (await journal.load(7)).n == 2


@pytest.mark.gen_test
async def test_a_single_batch_of_too_many_order_types_leaves_no_key_behind(journal: Desk) -> None:
    commit = await journal.call(entry(*types(0, MAX_ORDER_TYPES + 1)))

    assert isinstance(commit.outcomes[0], TooManyOrderTypes)
    assert await journal.journal.key_record(7, 3) is None
    assert (await journal.load(7)).n == 0


# ---- idempotency


@pytest.mark.gen_test
async def test_a_key_used_twice_in_one_call_counts_once(journal: Desk) -> None:
    commit = await journal.call(entry(key="a"), entry(key="a"), entry())

    assert_second_repeats_first(*commit.outcomes[:2])
    assert row_of(commit.outcomes[2]).n == 2


@pytest.mark.gen_test
async def test_a_key_used_by_two_calls_at_once_counts_once(journal: Desk) -> None:
    first, second = journal.submit_call(entry(key="a")), journal.submit_call(entry(key="a"))
    await journal.delivery_of(first, second)

    assert_second_repeats_first(*first.outcomes, *second.outcomes)


@pytest.mark.gen_test
async def test_a_key_used_again_later_counts_once(journal: Desk) -> None:
    first = await journal.call(entry(key="a"))
    await journal.record(entry(), entry(strategy_id=4))
    second = await journal.call(entry(key="a"))

    assert_second_repeats_first(*first.outcomes, *second.outcomes)
    assert (await journal.load(7)).n == 3


@pytest.mark.gen_test
async def test_the_repeated_answer_is_that_of_the_first_whatever_the_second_left_out(journal: Desk) -> None:
    counted = (Summary("MARKET", 1, 0), Summary("LIMIT", 0, 2))
    await journal.record(entry(), entry(*counted, ignored=5, key="a", accepted_ms=1_000))

    commit = await journal.call(entry(*reversed(counted), ignored=0, key="a", accepted_ms=1_500))

    assert commit.outcomes[0] == Recorded(2, counted, 5, None)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(entry(Summary("LIMIT", 2, 0), key="a"), id="created"),
        pytest.param(entry(Summary("LIMIT", 1, 1), key="a"), id="cancelled"),
        pytest.param(entry(Summary("MARKET", 1, 0), key="a"), id="order type"),
        pytest.param(entry(Summary("LIMIT", 1, 0), Summary("MARKET", 1, 0), key="a"), id="one type more"),
        pytest.param(entry(strategy_id=4, key="a"), id="strategy"),
        pytest.param(entry(user_id=8, key="a"), id="user"),
    ],
)
@pytest.mark.gen_test
async def test_a_key_of_another_batch_is_a_conflict_that_counts_nothing(journal: Desk, other: Entry) -> None:
    await journal.record(entry(), entry(key="a"))

    commit = await journal.call(other, entry(strategy_id=9), entry(key="a"))

    conflict, neighbour, repeated = commit.outcomes
    assert isinstance(conflict, IdempotencyConflict)
    assert str(Position(journal.journal.epoch, 2)) in conflict.detail
    assert row_of(neighbour).n == 3
    # The conflict has not taken the key over.
    assert recorded(repeated) == Recorded(2, entry().summaries, 0, None)
    assert (await journal.load(other.user_id)).n == (3 if other.user_id == 7 else 0)


@pytest.mark.gen_test
async def test_a_conflict_within_one_call_is_seen(journal: Desk) -> None:
    commit = await journal.call(entry(key="a"), entry(Summary("LIMIT", 9, 9), key="a"))

    assert isinstance(commit.outcomes[1], IdempotencyConflict)
    assert (await journal.load(7)).n == 1


@pytest.mark.gen_test
async def test_keys_of_different_callers_never_meet(journal: Desk) -> None:
    commit = await journal.call(
        entry(key="a", caller="orders"),
        entry(Summary("LIMIT", 9, 9), key="a", caller="others"),
        entry(key="a", caller="orders"),
    )

    assert [recorded(outcome).n for outcome in commit.outcomes] == [1, 2, 1]


@pytest.mark.gen_test
async def test_batches_without_a_key_are_never_taken_for_repeated(journal: Desk) -> None:
    assert [row.n for row in await journal.record(entry(), entry(), entry())] == [1, 2, 3]


@pytest.mark.gen_test
async def test_a_refused_batch_stores_no_key(journal: Desk) -> None:
    refused = await journal.call(entry(*types(0, MAX_ORDER_TYPES + 1), key="a"))
    accepted = await journal.call(entry(key="a"))

    assert isinstance(refused.outcomes[0], TooManyOrderTypes)
    assert row_of(accepted.outcomes[0]).n == 1


@with_limits(max_rows=1)
@pytest.mark.gen_test
async def test_a_key_outlives_the_row_of_its_batch(journal: Desk) -> None:
    await journal.record(entry(key="a", ignored=2))

    async def is_trimmed() -> bool:
        await journal.record(entry())
        return await journal.row_at(1) is None

    await journal.commit_until(is_trimmed)
    commit = await journal.call(entry(key="a"))

    assert commit.outcomes[0] == Recorded(1, entry().summaries, 2, None)


@with_limits(idempotency_window_ms=1_000)
@pytest.mark.gen_test
async def test_a_key_counts_once_until_its_window_has_passed(journal: Desk) -> None:
    await journal.record(entry(key="a"))
    journal.now_ms = 2_000
    await journal.record(entry())

    within = await journal.call(entry(key="a"))
    journal.now_ms = 2_001
    (beyond,) = await journal.record(entry(Summary("MARKET", 1, 0), key="a"))

    assert within.outcomes[0] == Recorded(1, entry().summaries, 0, None)
    assert beyond.n == 3


@with_limits(idempotency_window_ms=1_000)
@pytest.mark.gen_test
async def test_a_key_used_again_after_its_window_has_a_new_one(journal: Desk) -> None:
    await journal.record(entry(key="a"))
    journal.now_ms = 1_500
    await journal.record(entry(key="b"))
    journal.now_ms = 2_100
    await journal.record(entry(key="a"))

    # Whatever is purged in the meantime, the younger record of the key stays.
    journal.now_ms = 2_900
    await journal.record(*[entry()] * 10)
    journal.now_ms = 3_100
    commit = await journal.call(entry(key="a"), entry(key="b"))

    assert commit.outcomes[0] == Recorded(3, entry().summaries, 0, None)
    assert row_of(commit.outcomes[1]).n == 14


@with_limits(idempotency_window_ms=1_000)
@pytest.mark.gen_test
async def test_younger_keys_stay_when_older_ones_go(journal: Desk) -> None:
    keys = [f"key {index}" for index in range(200)]
    for index, key in enumerate(keys):
        journal.now_ms = 1_000 + 10 * index
        await journal.record(entry(key=key))

    journal.now_ms = 2_990
    commit = await journal.call(*(entry(key=key) for key in keys))

    assert [recorded(outcome).row is None for outcome in commit.outcomes] == [False] * 99 + [True] * 101


# ---- commits that fail


@pytest.mark.gen_test
async def test_a_failed_commit_fails_whole_calls(failing_journal: Desk) -> None:
    journal = failing_journal
    await journal.record(entry(key="a"))
    journal.fails = True

    calls = [journal.submit_call(entry(), entry(strategy_id=4)), journal.submit_call(entry(key="a"), entry(user_id=8))]
    await journal.delivery_of(*calls)

    for commit in calls:
        assert isinstance(commit.failure, OutcomeUnknown)
        assert list(commit.outcomes) == []


@pytest.mark.gen_test
async def test_a_failed_commit_changes_nothing(failing_journal: Desk) -> None:
    journal = failing_journal
    (head,) = await journal.record(entry(*types(0, MAX_ORDER_TYPES - 1)))
    journal.fails = True
    await journal.call(entry(*types(100, 1), key="a"), entry(strategy_id=4), entry(user_id=8))
    journal.fails = False

    load = await journal.load(7)
    assert (load.n, list(load.heads)) == (1, [head])
    assert (await journal.load(8)).n == 0
    assert await journal.row_at(5) == head
    assert await journal.journal.key_record(7, 4) is None
    (row,) = await journal.record(entry(*types(200, 1), key="a"))
    assert (row.n, row.number) == (2, 2)


@pytest.mark.gen_test
async def test_loads_are_answered_while_commits_fail(failing_journal: Desk) -> None:
    journal = failing_journal
    (head,) = await journal.record(entry())
    journal.fails = True

    commit, load = journal.submit_call(entry()), Load(7)
    journal.submit(load)
    await journal.delivery_of(commit, load)

    assert (load.n, list(load.heads)) == (1, [head])


@with_limits(max_rows=2)
@pytest.mark.gen_test
async def test_a_failed_commit_trims_nothing(failing_journal: Desk) -> None:
    journal = failing_journal
    rows = await journal.record(entry(), entry())
    journal.fails = True
    await journal.call(*[entry()] * 10)
    journal.fails = False

    assert [await journal.row_at(n) for n in (0, 1, 2)] == [Row.before_the_first(7, 3), *rows]


# ---- hours


HOUR = 500_000
"""The hour in which most of these batches are accepted."""


def at(hour: int, minute: int = 0) -> int:
    return hour * HOUR_MS + minute * 60_000


@pytest.mark.gen_test
async def test_hours_hold_what_was_counted_in_them(journal: Desk) -> None:
    await journal.record(
        entry(Summary("MARKET", 1, 2), accepted_ms=at(HOUR)),
        entry(Summary("LIMIT", 3, 0), Summary("MARKET", 1, 0), accepted_ms=at(HOUR, 59)),
        entry(Summary("LIMIT", 5, 5), accepted_ms=at(HOUR + 1)),
        entry(Summary("LIMIT", 7, 0), strategy_id=4, accepted_ms=at(HOUR)),
        entry(Summary("LIMIT", 9, 0), user_id=8, accepted_ms=at(HOUR)),
    )

    assert await journal.journal.hours([7], None, HOUR, HOUR + 1) == [
        HourCounts(HOUR, 7, 3, (Summary("LIMIT", 3, 0), Summary("MARKET", 2, 2))),
        HourCounts(HOUR, 7, 4, (Summary("LIMIT", 7, 0),)),
    ]
    assert await journal.journal.hours([7, 8], [3], HOUR, HOUR + 2) == [
        HourCounts(HOUR, 7, 3, (Summary("LIMIT", 3, 0), Summary("MARKET", 2, 2))),
        HourCounts(HOUR, 8, 3, (Summary("LIMIT", 9, 0),)),
        HourCounts(HOUR + 1, 7, 3, (Summary("LIMIT", 5, 5),)),
    ]
    assert await journal.journal.hours([7], None, HOUR + 2, HOUR + 2) == []
    assert await journal.journal.hours([], None, HOUR, HOUR + 2) == []


@pytest.mark.gen_test
async def test_hours_are_those_of_the_strategies_that_are_asked_for(journal: Desk) -> None:
    await journal.record(*(entry(strategy_id=strategy_id, accepted_ms=at(HOUR)) for strategy_id in (3, 4, 5, 6)))

    async def asked(*strategies: int) -> list[int]:
        return [each.strategy_id for each in await journal.journal.hours([7], strategies, HOUR, HOUR + 1)]

    assert await asked(5, 3) == [3, 5]
    assert await asked(6, 9) == [6]
    assert await asked() == []


@pytest.mark.parametrize("limit", [0, 1, 3, 4, 100, 119, 120, 200])
@pytest.mark.gen_test
async def test_the_first_hours_alone_are_exact_too(journal: Desk, limit: int) -> None:
    # Some are rolled up by now, others are not.
    for batch in range(60):
        summaries = Summary("LIMIT", 1, 0), Summary("MARKET", batch, 1)
        user_id, strategy_id = 7 + batch % 2, 3 + batch % 3
        await journal.record(
            entry(*summaries, user_id=user_id, strategy_id=strategy_id, accepted_ms=at(HOUR + batch // 6))
        )

    def flat(hours: list[HourCounts]) -> list[tuple[int, int, int, Summary]]:
        return [(each.hour, each.user_id, each.strategy_id, summary) for each in hours for summary in each.summaries]

    everything = flat(await journal.journal.hours([8, 7], None, HOUR, HOUR + 60))
    first = flat(await journal.journal.hours([8, 7], None, HOUR, HOUR + 60, limit))

    assert len(everything) == 120
    assert first == everything[:limit]


@with_limits(max_rows=2)
@pytest.mark.gen_test
async def test_hours_are_exact_after_every_commit_whatever_is_rolled_up_and_trimmed(journal: Desk) -> None:
    for batches in range(1, 120):
        # A clock that goes back puts a batch into an earlier hour.
        await journal.record(entry(Summary("LIMIT", batches, 1), accepted_ms=at(HOUR + batches % 3)))
        hours = await journal.journal.hours([7], None, HOUR, HOUR + 3)
        assert sum(each.summaries[0].created for each in hours) == batches * (batches + 1) // 2
        assert sum(each.summaries[0].cancelled for each in hours) == batches
    assert [each.summaries[0].cancelled for each in hours] == [39, 40, 40]


@pytest.mark.gen_test
async def test_repeated_and_refused_batches_are_in_no_hour(journal: Desk) -> None:
    await journal.call(entry(key="a", accepted_ms=at(HOUR)), entry(*types(0, 33), strategy_id=4, accepted_ms=at(HOUR)))
    await journal.call(entry(key="a", accepted_ms=at(HOUR)))

    assert await journal.journal.hours([7], None, HOUR, HOUR + 1) == [HourCounts(HOUR, 7, 3, entry().summaries)]


# ---- looking batches up


@pytest.mark.gen_test
async def test_batches_are_found_by_key_and_time(journal: Desk) -> None:
    await journal.record(*(entry(Summary("LIMIT", n, 0), accepted_ms=at(HOUR, n)) for n in range(1, 6)))
    await journal.record(entry(strategy_id=4, accepted_ms=at(HOUR, 3)))

    def found(n: int) -> BatchRecord:
        return BatchRecord(7, 3, n, at(HOUR, n), (Summary("LIMIT", n, 0),))

    look = journal.journal.batches
    assert await look(7, 3, 0, at(HOUR, 2), at(HOUR, 4), 10) == [found(2), found(3)]
    assert await look(7, 3, 0, 0, at(HOUR + 1), 2) == [found(1), found(2)]
    assert await look(7, 3, 2, 0, at(HOUR + 1), 2) == [found(3), found(4)]
    assert await look(7, 5, 0, 0, at(HOUR + 1), 10) == []
    assert await look(8, 3, 0, 0, at(HOUR + 1), 10) == []


@with_limits(idempotency_window_ms=1_000)
@pytest.mark.gen_test
async def test_a_key_is_not_found_beyond_its_window(journal: Desk) -> None:
    await journal.record(entry(key="a"))
    journal.now_ms = 2_000
    assert len(await journal.journal.batches_of_key("a")) == 1
    journal.now_ms = 2_001
    assert await journal.journal.batches_of_key("a") == []


@with_limits(max_rows=1)
@pytest.mark.gen_test
async def test_a_batch_is_found_by_its_key_with_what_was_answered(journal: Desk) -> None:
    first = entry(Summary("LIMIT", 2, 1), ignored=3, key="a", accepted_ms=5)
    await journal.record(first, entry(Summary("MARKET", 1, 0), user_id=8, key="a", caller="others", accepted_ms=6))
    await journal.record(*[entry(key="b")] + [entry()] * 20)

    found = sorted(await journal.journal.batches_of_key("a"), key=lambda record: record.user_id)
    assert found == [
        BatchRecord(7, 3, 1, 5, first.summaries, 3, IdempotencyKey("orders", "a")),
        BatchRecord(8, 3, 1, 6, (Summary("MARKET", 1, 0),), 0, IdempotencyKey("others", "a")),
    ]
    assert await journal.journal.batches_of_key("A") == []


# ---- deletion


@pytest.mark.gen_test
async def test_a_deletion_leaves_nothing_of_its_user_and_all_of_the_others(journal: Desk) -> None:
    await journal.record(entry(key="a"), entry(strategy_id=4), entry(), entry(user_id=8, key="b"))

    deletion = await journal.delete(7)

    assert (deletion.failure, deletion.n, deletion.rows) == (None, 4, 3)
    load = await journal.load(7)
    assert (load.n, load.floor, list(load.heads)) == (4, 4, [])
    assert await journal.journal.key_record(7, 3) is None
    assert await journal.journal.key_records(7, 0, 10) == []
    assert await journal.journal.hours([7], None, 0, 1) == []
    assert await journal.journal.batches(7, 3, 0, 0, 10**12, 10) == []
    assert await journal.journal.batches_of_key("a") == []
    assert (await journal.load(8)).n == 1
    assert len(await journal.journal.hours([8], None, 0, 1)) == 1
    assert len(await journal.journal.batches_of_key("b")) == 1


@pytest.mark.gen_test
async def test_no_position_from_before_a_deletion_is_taken_for_one_from_after(journal: Desk) -> None:
    await journal.record(entry(), entry(), entry(strategy_id=4))
    await journal.delete(7)
    assert [await journal.row_at(n) for n in range(4)] == [None] * 4
    assert await journal.row_at(4) == Row.before_the_first(7, 3)

    (row,) = await journal.record(entry(Summary("LIMIT", 9, 0)))

    assert (row.n, row.number, row.totals.summaries) == (5, 1, (Summary("LIMIT", 9, 0),))
    assert await journal.row_at(3) is None
    assert await journal.row_at(4) == Row.before_the_first(7, 3)
    assert await journal.row_at(5) == row


@pytest.mark.gen_test
async def test_a_user_can_be_deleted_again_and_one_without_batches_at_all(journal: Desk) -> None:
    assert (await journal.delete(7)).n == 0
    await journal.record(entry())
    await journal.delete(7)
    await journal.record(entry(), entry())
    again = await journal.delete(7)

    assert (again.n, again.rows) == (5, 2)
    assert (await journal.load(7)).n == 5
    assert await journal.row_at(4) is None


@with_limits(max_rows=2)
@pytest.mark.gen_test
async def test_trimming_goes_on_over_a_deletion(journal: Desk) -> None:
    await journal.record(*[entry()] * 5, *[entry(user_id=8)] * 5)
    await journal.delete(7)
    rows = await journal.record(*[entry(Summary("LIMIT", 3, 0))] * 5)

    async def is_trimmed() -> bool:
        return await journal.row_at(8) is None

    await journal.commit_until(is_trimmed)
    assert await journal.row_at(11) == rows[-1]
    assert [each.summaries for each in await journal.journal.hours([7], None, 0, 1)] == [(Summary("LIMIT", 15, 0),)]


# ---- everything at once, against the naive model


class Turn(Struct, frozen=True):
    """Calls submitted together, with loads between them; with `fails` none of them may be committed."""

    calls: list[list[Entry]]
    loads: list[int]
    fails: bool


TURNS = st.lists(
    st.builds(Turn, CALLS, st.lists(st.sampled_from([7, 8]), max_size=3), st.sampled_from([False, False, True])),
    min_size=1,
    max_size=5,
)


@each_driver
@settings(max_examples=100, deadline=None, report_multiple_bugs=False)
@given(turns=TURNS, limits=st.sampled_from([Limits(), Limits(max_rows=3), Limits(max_rows=1)]))
def test_a_journal_says_what_a_list_of_all_batches_says(driver: Driver, turns: list[Turn], limits: Limits) -> None:
    async def scenario() -> None:
        model = Model(limits)
        with TemporaryDirectory() as directory:
            async with opened(driver, Path(directory), limits) as journal:
                for turn in turns:
                    await take(turn, journal, model, can_fail=driver.can_fail)
                    await check_reads(journal, model)

    asyncio.run(scenario())


async def take(turn: Turn, journal: Desk, model: Model, *, can_fail: bool) -> None:
    journal.fails = turn.fails and can_fail
    seen = len(journal.delivered)
    works: list[Work] = []
    for index, entries in enumerate(turn.calls):
        works.append(journal.submit_call(*entries))
        if index < len(turn.loads):
            works.append(Load(turn.loads[index]))
            journal.submit(works[-1])
    await journal.delivery_of(*works)
    for work in journal.delivered[seen:]:
        if isinstance(work, Load):
            assert_shows(work, model)
        elif work.failure is not None:
            assert journal.fails
        elif isinstance(work, Commit):
            # A transaction that has nothing to write cannot fail.
            assert not journal.fails or not any(isinstance(each, Recorded) and each.row for each in work.outcomes)
            for batch, outcome in zip(work.entries, work.outcomes, strict=True):
                model.take(batch, outcome)


async def check_reads(journal: Desk, model: Model) -> None:
    for user_id in (7, 8):
        head = model.n(user_id)
        for n in {0, 1, head // 2, head - 1, head}:
            for strategy_id, row in (await journal.journal.rows_at(user_id, max(n, 0), [3, 4, 5])).items():
                model.check_row_at(user_id, max(n, 0), strategy_id, row)
        heads = model.heads(user_id)
        for strategy_id in (3, 4):
            record = await journal.journal.key_record(user_id, strategy_id)
            assert (record and record.head) == heads.get(strategy_id)
        records = await journal.journal.key_records(user_id, 0, 10)
        assert [record.head for record in records] == [heads[strategy_id] for strategy_id in sorted(heads)]


def assert_shows(load: Load, model: Model) -> None:
    """The load shows what the model holds."""
    assert load.failure is None
    assert load.n == model.n(load.user_id)
    assert by_strategy(load.heads) == model.heads(load.user_id)


def by_strategy(rows: Iterable[Row]) -> dict[int, Row]:
    listed = list(rows)
    heads = {row.strategy_id: row for row in listed}
    assert len(heads) == len(listed)
    return heads


def assert_second_repeats_first(first: Outcome, second: Outcome) -> None:
    """The second outcome is the first one's, without a row."""
    counted = recorded(first)
    assert row_of(first).n == counted.n
    assert second == Recorded(counted.n, counted.summaries, counted.ignored, None)
