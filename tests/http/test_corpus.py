"""Every front answers the corpus of requests like the oracle, or more strictly, however its bytes are split."""

import pytest

import server
from core.settings import Settings
from tests.fronts import FRONTS, ORACLE, OTHERS
from tests.http import corpus
from tests.http.conftest import port_of, with_settings
from tests.http.corpus import Case, cases
from tests.http.probe import counted, in_pieces, judge, outcome_of
from tests.http.strictness import is_steady

CASES = {case.name: case for case in cases()}


@pytest.fixture
def settings() -> Settings:
    """Whose Host is judged elsewhere (test_guard.py): here it is only to be read."""
    return with_settings(insecure=("internal",))


def test_no_case_hides_another_and_no_exception_is_left_over() -> None:
    assert len(CASES) == len(cases())
    assert set(corpus.OR_ELSE) <= CASES.keys()


@pytest.mark.gen_test
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
async def test_the_oracle_answers_as_recorded(fronts: dict[str, server.Listeners], case: Case) -> None:
    outcome = await outcome_of(_port(fronts[ORACLE], case), [case.sent])

    assert str(outcome) == case.expected


@pytest.mark.gen_test
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("front", OTHERS)
async def test_a_front_answers_like_the_oracle_or_more_strictly(
    fronts: dict[str, server.Listeners], front: str, case: Case
) -> None:
    before = await counted(port_of(fronts[ORACLE].internal))
    whole = await outcome_of(_port(fronts[front], case), [case.sent])
    behind = await counted(port_of(fronts[ORACLE].internal))
    split = await outcome_of(_port(fronts[front], case), in_pieces(case.sent))

    wrong = await judge(case.sent, whole, _port(fronts[ORACLE], case))
    assert wrong is None or str(whole) == case.or_else, wrong
    assert is_steady(case.sent, whole, split), f"{split} when split, {whole} otherwise"
    told = sum(b'"status":"accepted"' in answer.body for answer in whole.answers)
    assert behind - before == told, "it counts what it does not tell"


@pytest.mark.gen_test
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("front", FRONTS)
async def test_the_other_listener_bears_it_as_well(fronts: dict[str, server.Listeners], front: str, case: Case) -> None:
    listeners = fronts[front]
    outcome = await outcome_of(
        port_of(listeners.public if case.listener == "internal" else listeners.internal), [case.sent]
    )

    assert not outcome.is_hanging
    assert [status for status in outcome.statuses if status >= 500] == []


def _port(listeners: server.Listeners, case: Case) -> int:
    return port_of(listeners.internal if case.listener == "internal" else listeners.public)
