"""The short torture, and the proof that it can fail: planted mistakes, and evidence that has been tampered with."""

import json
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.process import ROOT
from tests.torture.killed_server import MISTAKES, POINTS
from tests.torture.rounds import MOST_HITS, RANDOM, Plan, Report, plan, torture

SEED = 7


@pytest.fixture(scope="module")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """Each point once and a few kills at random; the directory is evidence for further tests."""
    directory = tmp_path_factory.mktemp("torture")
    chance = random.Random(SEED)
    # First at random, so that there is something to recover; trimming last, so that there is something to trim.
    points = [RANDOM, *MOST_HITS, RANDOM, RANDOM]
    return directory, torture(directory, [plan(point, chance) for point in points], seed=SEED)


def test_kills_at_every_point_lose_nothing_and_count_nothing_twice(short_run: tuple[Path, Report]) -> None:
    _directory, report = short_run

    assert report.is_exact, report.verdict
    assert not report.missing
    assert not report.unexpected
    assert report.reached == {**dict.fromkeys(MOST_HITS, 1), RANDOM: 3}


def test_every_point_has_its_place_in_the_plan() -> None:
    assert POINTS.keys() == MOST_HITS.keys()


FOUND_AS: dict[str, tuple[str, list[Plan]]] = {
    "publish before commit": ("shown", [Plan("after insert", 60), Plan("after insert", 40)]),
    # Every eighth transaction commits: here four that were answered are open.
    "commit later": ("lost", [Plan("after commit", 13)]),
    "forget keys": ("counted twice", [Plan("after commit", 20)]),
    "reuse n": ("position used twice", [Plan("after commit", 20)]),
    "resume skips": ("wrong sums", [Plan("before publish", 20), Plan("after commit", 20)]),
    "resume repeats": ("wrong sums", [Plan("before publish", 20), Plan("after commit", 20)]),
    "reset needlessly": ("continuity", [Plan("before publish", 20), Plan("after commit", 20)]),
}
"""For each planted mistake what it is found as, and the lives that are enough to see it."""


@pytest.mark.parametrize("mistake", FOUND_AS)
def test_a_planted_mistake_is_found_out(mistake: str, tmp_path: Path) -> None:
    name, lives = FOUND_AS[mistake]

    report = torture(tmp_path, lives, seed=SEED, mistake=mistake, settle_seconds=3)

    assert not report.is_exact, report.verdict
    assert name in violations(report.verdict), report.verdict


def test_every_planted_mistake_is_tried() -> None:
    assert FOUND_AS.keys() == MISTAKES.keys()


def violations(verdict: str) -> str:
    """The line that names the kinds of violations."""
    return verdict.strip().splitlines()[-1].removeprefix("VIOLATIONS")


# ---- evidence that has been tampered with


def change_lines(path: Path, change: Callable[[list[Any]], list[Any]]) -> None:
    lines = change([json.loads(line) for line in path.read_text().splitlines()])
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def in_journal(statement: str) -> Callable[[Path], None]:
    def tamper(directory: Path) -> None:
        with closing(sqlite3.connect(directory / "tallywire.db", isolation_level=None)) as connection:
            assert connection.execute(statement).rowcount > 0

    return tamper


def in_file(name: str, change: Callable[[list[Any]], list[Any]]) -> Callable[[Path], None]:
    return lambda directory: change_lines(directory / name, change)


def without_a_frame(lines: list[Any]) -> list[Any]:
    at = next(n for n, line in enumerate(lines) if line.get("event") == "order_batch_update")
    return lines[:at] + lines[at + 1 :]


def frame_twice(lines: list[Any]) -> list[Any]:
    at = next(n for n, line in enumerate(lines) if line.get("event") == "order_batch_update")
    return lines[: at + 1] + lines[at:]


def accepted_calls(lines: list[Any]) -> list[tuple[Any, Any]]:
    """Calls and their outcomes that put batches into the journal for certain: answered, with batches that have no key.

    Of any other call there may be nothing in the journal, or another one's doing, and evidence about it shows nothing.
    """
    calls = {line["call"]: line for line in lines if "batches" in line}
    outcomes = [line for line in lines if line.get("outcome") == "answered" and line["status"] == 200]
    pairs = [(calls[outcome["call"]], outcome) for outcome in outcomes]
    return [(call, outcome) for call, outcome in pairs if any(not batch[3] for batch in call["batches"])]


def without_an_answered_call(lines: list[Any]) -> list[Any]:
    call, _outcome = accepted_calls(lines)[-1]
    return [line for line in lines if line["call"] != call["call"]]


def with_one_more_acknowledged(lines: list[Any]) -> list[Any]:
    _call, answered = accepted_calls(lines)[-1]
    call = {"call": 10**6, "life": answered["life"], "batches": [[10**6, 1, 1, "", [["LIMIT", 9, 9]]]]}
    return [*lines, call, {**answered, "call": 10**6, "answers": answered["answers"][:1]}]


def with_half_a_call(lines: list[Any]) -> list[Any]:
    """A call of which nobody knows the outcome has one more batch than landed."""
    landed, outcome = accepted_calls(lines)[0]
    landed["batches"] = [*(batch for batch in landed["batches"] if not batch[3]), [10**6, 1, 1, "", [["LIMIT", 9, 9]]]]
    outcome.update(outcome="no answer", status=0, answers=[])
    return lines


def with_a_key_never_answered(lines: list[Any]) -> list[Any]:
    call = {"call": 10**6, "life": 1, "batches": [[10**6, 1, 1, "never", [["LIMIT", 9, 9]]]]}
    return [*lines, call]


def trimmed_too_far(directory: Path) -> None:
    """After one life a row that was owed is not there."""
    path = sorted(directory.glob("journal-*.json"))[3]
    epoch, trimmed_to, rolled_up_to, rows = json.loads(path.read_text())
    path.write_text(json.dumps([epoch, trimmed_to, rolled_up_to, rows[:-5] + rows[-4:]]))


TAMPERED: dict[str, tuple[str, Callable[[Path], None]]] = {
    "a row is changed": ("position used twice", in_journal("UPDATE rows SET summaries = '[[\"LIMIT\",9,9]]'")),
    "a row is gone": ("lost", in_journal("DELETE FROM rows WHERE seq = (SELECT max(seq) FROM rows) - 3")),
    "a row goes too early": ("lost", trimmed_too_far),
    "an hour counts more": ("wrong totals", in_journal("UPDATE hours SET created = created + 1")),
    "a key is not remembered": ("key forgotten", in_journal("DELETE FROM idempotency WHERE id = 1")),
    "a frame is missing": ("continuity", in_file("client-00.jsonl", without_a_frame)),
    "a frame comes twice": ("wrong sums", in_file("client-00.jsonl", frame_twice)),
    "the last event is missing": ("shown", in_file("client-04.jsonl", lambda lines: lines[:-2])),
    "a batch was never sent": ("counted never sent", in_file("ledger.jsonl", without_an_answered_call)),
    "an answer has no row": ("lost", in_file("ledger.jsonl", with_one_more_acknowledged)),
    "a call is torn": ("torn call", in_file("ledger.jsonl", with_half_a_call)),
    "a key is never answered": ("key forgotten", in_file("ledger.jsonl", with_a_key_never_answered)),
}


@pytest.mark.parametrize("tampering", TAMPERED)
def test_evidence_against_the_server_is_seen(tampering: str, short_run: tuple[Path, Report], tmp_path: Path) -> None:
    directory, _report = short_run
    copy = tmp_path / "run"
    shutil.copytree(directory, copy)
    name, tamper = TAMPERED[tampering]

    tamper(copy)
    checked = subprocess.run(
        [sys.executable, "-m", "tests.torture.checker", str(copy)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert checked.returncode == 1, checked.stderr
    assert name in violations(checked.stdout), checked.stdout + checked.stderr


def test_the_checker_shares_no_code_with_the_product() -> None:
    program = "import sys, tests.torture.checker; print(*sys.modules)"
    imported = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)

    assert not {"core", "handlers", "server", "tornado", "msgspec"} & set(imported.stdout.split())
