"""Were the promises kept? Run as `python -m tests.torture.checker DIRECTORY`; ends with 1 and named violations if not.

It reads what callers were told (`ledger.jsonl`), what clients got (`client-*.jsonl`), the journal (`tallywire.db`), and
which rows the journal held when each server had died (`journal-*.json`): rows are trimmed, but never before one of
these looks, so that all of them together are every row there ever was. It knows nothing of the product's code.

From the rows follows what each batch counted and where; everything else is compared with them:

- `lost`: a batch that a caller was told is accepted is not the row of just that position, or was not when it was told;
- `counted twice`: a batch has two rows, whether it has a key or not;
- `counted never sent`: a row is no batch of the ledger, or one that cannot have arrived;
- `torn call`: of a call that nobody knows the outcome of, some batches are in the journal and some are not;
- `position used twice`: two looks, or two rows, disagree about one;
- `key forgotten`: a batch with a key was answered in two ways, never, or is not remembered;
- `wrong totals`: rows, hours and totals of the journal do not add up;
- `shown`: a client was shown what the journal did not hold, holds otherwise, or has not got;
- `continuity`: a client's stream did not go on where it stood, or was reset without need;
- `wrong sums`: what a client added up is not what was counted;
- `incomplete`: the run itself cannot be judged.
"""

import json
import sys
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.torture.journal_file import Counts, JournalContents, JournalRow, read_journal, read_rows

Sums = Counter[tuple[str, str]]
"""By order type and `created` or `cancelled`; nothing is zero."""

MOST_PRINTED = 20


class Findings:
    """Violations, and numbers for the summary."""

    def __init__(self) -> None:
        self.violations: list[str] = []
        self.counted: Counter[str] = Counter()
        self.largest_merge = 0

    def expect(self, holds: bool, name: str, what: str) -> bool:
        """Note a violation unless it holds; answers whether it does."""
        if not holds:
            self.violations.append(f"{name}: {what}")
        return holds


def summed(counts: Iterable[Iterable[Any]]) -> Sums:
    """Counts without order and without zeros."""
    sums: Sums = Counter()
    for order_type, created, cancelled in counts:
        sums[order_type, "created"] += created
        sums[order_type, "cancelled"] += cancelled
    return +sums


def of_summaries(summaries: Any) -> Counts:
    """Counts as the wire states them."""
    return [(summary["order_type"], summary["created"], summary["cancelled"]) for summary in summaries]


def lines_of(path: Path) -> Iterator[Any]:
    """The lines that were written to a file."""
    with path.open() as file:
        yield from map(json.loads, file)


# ---- the journal


class Truth:
    """Every row there ever was, and which of them the journal held after each life."""

    def __init__(self, directory: Path, keep_rows: int, findings: Findings) -> None:
        self._findings = findings
        self._keep_rows = keep_rows
        self.final = read_journal(directory / "tallywire.db")
        looks = [(int(path.stem[-4:]), read_rows(path)) for path in sorted(directory.glob("journal-*.json"))]
        self.epoch = self.final.epoch
        self.rows: dict[int, JournalRow] = {}
        self.last_seqs = {life: look.last_seq for life, look in looks}
        for life, look in [*looks, (looks[-1][0], self.final)]:
            self._add(life, look)
        self.by_position: dict[tuple[int, int], JournalRow] = {}
        self.by_key: dict[tuple[int, int], list[JournalRow]] = defaultdict(list)
        for _seq, row in sorted(self.rows.items()):
            self._index(row)
        self._lives = sorted(self.last_seqs)
        self._check_density()
        self._check_looks(looks)
        self._check_hours()

    def _add(self, life: int, look: JournalContents) -> None:
        same_epoch = not look.epoch or look.epoch == self.epoch
        self._findings.expect(same_epoch, "continuity", f"after life {life} the epoch is {look.epoch}")
        for row in look.rows:
            known = self.rows.setdefault(row.seq, row)
            self._findings.expect(known == row, "position used twice", f"after life {life} {row} was {known} before")

    def _index(self, row: JournalRow) -> None:
        known = self.by_position.setdefault((row.user_id, row.n), row)
        self._findings.expect(known is row, "position used twice", f"{row} and {known}")
        rows = self.by_key[row.user_id, row.strategy_id]
        before = rows[-1] if rows else None
        totals = summed(row.summaries) + (summed(before.totals) if before else Counter())
        number = before.number + 1 if before else 1
        is_sum = summed(row.totals) == totals and row.number == number
        self._findings.expect(is_sum, "wrong totals", f"{row} follows {before}")
        rows.append(row)

    def _check_density(self) -> None:
        seqs = sorted(self.rows)
        self._findings.expect(
            seqs == list(range(1, len(seqs) + 1)),
            "incomplete",
            "rows were trimmed before anybody saw them, or are gone",
        )
        for user_id in {user_id for user_id, _n in self.by_position}:
            places = [row.n for row in self.rows.values() if row.user_id == user_id]
            is_dense = places == list(range(1, len(places) + 1))
            self._findings.expect(is_dense, "position used twice", f"the places of user {user_id} are {places[-20:]}")

    def _check_looks(self, looks: list[tuple[int, JournalContents]]) -> None:
        """A row that is not there any more has been trimmed: the next one of its key was one too many."""
        for life, look in [*looks, (looks[-1][0], self.final)]:
            held = {row.seq for row in look.rows}
            passed = {
                (row.user_id, row.strategy_id): row.seq for row in self.rows.values() if row.seq <= look.trimmed_to
            }
            owed = {*passed.values(), *range(look.trimmed_to + 1, look.last_seq + 1)}
            self._findings.expect(owed <= held, "lost", f"after life {life} rows {sorted(owed - held)[:20]} are gone")
            is_surplus = look.trimmed_to <= max(0, look.last_seq - self._keep_rows)
            self._findings.expect(is_surplus, "lost", f"after life {life} rows to {look.trimmed_to} were trimmed")

    def _check_hours(self) -> None:
        hours: dict[tuple[int, int], Sums] = defaultdict(Counter)
        for hour in self.final.hours:
            hours[hour.user_id, hour.strategy_id] += summed([hour[2:]])
        for row in self.rows.values():
            if row.seq > self.final.rolled_up_to:
                hours[row.user_id, row.strategy_id] += summed(row.summaries)
        for key, rows in self.by_key.items():
            is_sum = hours[key] == summed(rows[-1].totals)
            self._findings.expect(is_sum, "wrong totals", f"the hours of {key} are {hours[key]}, not {rows[-1].totals}")

    def life_of(self, row: JournalRow) -> int:
        """The life in which it was committed: after it the row was there for the first time."""
        return next(life for life in self._lives if self.last_seqs[life] >= row.seq)

    def place(self, position: str) -> int:
        """The n of a position of this journal; -1 for any other text."""
        epoch, _, n = position.rpartition("-")
        return int(n) if epoch == self.epoch and n.isdigit() else -1

    def strategies(self, user_id: int) -> set[int]:
        """Those with a row."""
        return {strategy_id for user, strategy_id in self.by_key if user == user_id}

    def at(self, user_id: int, strategy_id: int, n: int) -> JournalRow | None:
        """The newest row of the key at or below n."""
        rows = self.by_key.get((user_id, strategy_id), [])
        found = bisect_right(rows, n, key=lambda row: row.n)
        return rows[found - 1] if found else None

    def totals(self, user_id: int, strategy_id: int, n: int) -> Sums:
        """What the key had counted at n."""
        row = self.at(user_id, strategy_id, n)
        return summed(row.totals) if row else Counter()


# ---- the callers


class Sent:
    """All that is known of one batch from the ledger."""

    def __init__(self, user_id: int, strategy_id: int, key: str, counts: Counts) -> None:
        self.user_id = user_id
        self.strategy_id = strategy_id
        self.key = key
        self.counts = counts
        self.answers: list[tuple[str, bool, Any, int]] = []
        """Position, whether it was a duplicate, summaries, and the life by whose end it was told."""
        self.undetermined: list[tuple[int, int]] = []
        """For each call that may have arrived and was not answered: the lives in which it was under way."""


def check_callers(directory: Path, truth: Truth, findings: Findings) -> None:
    """What callers were told is what the journal has; the rest of the journal is what nobody was told."""
    batches, unknown_calls = _read_ledger(directory / "ledger.jsonl", findings)
    rows_of: dict[int, list[JournalRow]] = defaultdict(list)
    number_of = {_signature(sent.user_id, sent.strategy_id, sent.counts): number for number, sent in batches.items()}
    for row in truth.rows.values():
        number = number_of.get(_signature(row.user_id, row.strategy_id, row.summaries))
        if findings.expect(number is not None, "counted never sent", f"{row}") and number is not None:
            rows_of[number].append(row)
    for number, sent in batches.items():
        _check_batch(f"batch {number}", sent, rows_of[number], truth, findings)
    for call, numbers in unknown_calls.items():
        # Those with a key may have been counted by another call.
        landed = {bool(rows_of[number]) for number in numbers if not batches[number].key}
        findings.expect(len(landed) < 2, "torn call", f"call {call} with batches {numbers}")
    remembered = {record.key: record for record in truth.final.keys}
    for number, sent in batches.items():
        if sent.key and rows_of[number]:
            record, row = remembered.get(sent.key), rows_of[number][0]
            is_same = record is not None and record[1:] == (row.user_id, row.strategy_id, row.n, row.summaries)
            findings.expect(is_same, "key forgotten", f"{sent.key} is {record}, the row is {row}")
    known_keys = {sent.key for sent in batches.values()}
    findings.expect(remembered.keys() <= known_keys, "counted never sent", "keys that nobody used")


def _signature(user_id: int, strategy_id: int, counts: Counts) -> tuple[Any, ...]:
    return user_id, strategy_id, *sorted(map(tuple, counts))


def _read_ledger(path: Path, findings: Findings) -> tuple[dict[int, Sent], dict[int, list[int]]]:
    batches: dict[int, Sent] = {}
    open_calls: dict[int, tuple[int, list[int]]] = {}
    unknown_calls: dict[int, list[int]] = {}
    for line in lines_of(path):
        call = line["call"]
        if "batches" in line:
            for number, user_id, strategy_id, key, counts in line["batches"]:
                batches.setdefault(number, Sent(user_id, strategy_id, key, [tuple(count) for count in counts]))
            open_calls[call] = line["life"], [batch[0] for batch in line["batches"]]
            findings.counted["calls"] += 1
            continue
        begun, numbers = open_calls.pop(call)
        if line["outcome"] == "torn":
            findings.counted["calls torn by the caller"] += 1
        elif line["outcome"] == "answered" and line["status"] == 200:
            findings.expect(len(line["answers"]) == len(numbers), "lost", f"answers of call {call}")
            for number, answer in zip(numbers, line["answers"], strict=False):
                _note_answer(number, batches[number], answer, line["life"], findings)
        else:
            is_refused = line["outcome"] == "answered"
            findings.counted[f"calls answered {line['status']}" if is_refused else "calls without an answer"] += 1
            unknown_calls[call] = numbers
            for number in numbers:
                batches[number].undetermined.append((begun, line["life"]))
    for call, (begun, numbers) in open_calls.items():
        unknown_calls[call] = numbers
        for number in numbers:
            batches[number].undetermined.append((begun, sys.maxsize))
    return batches, unknown_calls


def _note_answer(number: int, sent: Sent, answer: Any, told: int, findings: Findings) -> None:
    if findings.expect(answer["status"] == "accepted", "lost", f"batch {number} was answered {answer}"):
        sent.answers.append((answer["position"], answer["duplicate"], of_summaries(answer["summaries"]), told))
        findings.counted["duplicates told"] += answer["duplicate"]


def _check_batch(name: str, sent: Sent, rows: list[JournalRow], truth: Truth, findings: Findings) -> None:
    """One batch: counted once if it was told, at most once if not."""
    findings.expect(len(rows) < 2, "counted twice", f"{name} with key {sent.key!r} is {rows}")
    findings.counted["batches"] += 1
    firsts = [answer for answer in sent.answers if not answer[1]]
    findings.expect(len(firsts) < 2, "counted twice", f"{name} with key {sent.key!r} was accepted as {firsts}")
    if rows and not firsts:
        # Counted by a call that nobody was told of; such a call is over when its server is.
        is_possible = any(begun <= truth.life_of(rows[0]) <= ended for begun, ended in sent.undetermined)
        findings.expect(is_possible, "counted never sent", f"{name} is {rows}, under way in {sent.undetermined}")
    if not sent.answers:
        kind = "landed" if rows else "did not land"
        findings.counted[f"undetermined, {kind}"] += 1
        findings.expect(not sent.key, "key forgotten", f"{name} has the key {sent.key} and was never answered")
        return
    findings.counted["acknowledged"] += 1
    for position, is_duplicate, summaries, told in sent.answers:
        row = truth.by_position.get((sent.user_id, truth.place(position)))
        is_it = row in rows and row is not None and row.summaries == summaries
        if findings.expect(is_it, "lost", f"{name} was accepted at {position}, where the journal has {row}") and row:
            was_durable = row.seq <= truth.last_seqs[told]
            findings.expect(was_durable, "lost", f"{name} was told in life {told}, and not in the journal after it")
        findings.expect(not is_duplicate or bool(sent.key), "counted twice", f"{name} has no key and was a duplicate")


# ---- the clients


class Client:
    """What one client got, event by event, against the truth."""

    def __init__(self, path: Path, truth: Truth, findings: Findings, keep_rows: int) -> None:
        first, *self._lines = lines_of(path)
        self.name: str = first["client"]
        self._user_id: int = first["user_id"]
        self._follows_all = first["strategies"] == "*"
        self._followed = truth.strategies(self._user_id) if self._follows_all else set(first["strategies"])
        self._truth = truth
        self._findings = findings
        self._keep_rows = keep_rows
        self._position = ""
        self._asked = ""
        self._life = 0
        self._awaits_opening = False
        self._base: dict[int, Sums] = {}
        self._sums: dict[int, Sums] = {}

    def check(self) -> None:
        """All events, and the end."""
        for line in self._lines:
            if "connection" in line:
                self._connect(line)
            else:
                self._read(line["event"], line["id"], json.loads(line["data"]))
        rows = [self._truth.at(self._user_id, strategy_id, sys.maxsize) for strategy_id in self._followed]
        last = max((row.n for row in rows if row), default=0)
        self._expect(self._place() == last, "shown", f"it ended at {self._position}, the journal at {last}")
        for strategy_id in self._followed:
            counted = self._totals(strategy_id, sys.maxsize)
            sums = self._base.get(strategy_id, Counter()) + self._sums.get(strategy_id, Counter())
            self._expect(sums == counted, "wrong sums", f"strategy {strategy_id}: {sums} instead of {counted}")
        self._findings.counted["clients"] += 1

    def _expect(self, holds: bool, name: str, what: str) -> bool:
        return self._findings.expect(holds, name, f"{self.name}, life {self._life}: {what}")

    def _place(self) -> int:
        return self._truth.place(self._position)

    def _totals(self, strategy_id: int, n: int) -> Sums:
        return self._truth.totals(self._user_id, strategy_id, n)

    def _connect(self, line: Any) -> None:
        self._life = line["lives"][1]
        self._asked = line["last_event_id"]
        self._awaits_opening = True
        self._expect(line["status"] == 200, "continuity", f"the stream was refused with {line['status']}")
        self._expect(self._asked in ("", self._position), "incomplete", f"{self._asked} was not its position")
        self._findings.counted["connections"] += 1
        self._findings.counted["resumes"] += bool(self._asked)

    def _read(self, event: str, event_id: str, fields: Any) -> None:
        self._findings.counted["events"] += 1
        is_first, self._awaits_opening = self._awaits_opening, False
        opens = event in ("stream_open", "stream_reset", "stream_closing")
        self._expect(opens or not is_first, "continuity", f"the first event is {event}")
        match event:
            case "stream_open":
                self._expect(is_first, "continuity", "a second stream_open")
                self._open(event_id, fields["data"])
            case "stream_reset":
                self._expect(is_first, "continuity", "a stream_reset within the stream")
                self._reset(event_id, fields["data"])
            case "order_batch_update":
                self._take([fields], event_id, fields["stream"]["after"])
            case "order_batch_catch_up":
                self._findings.counted["atomic catch-ups"] += 1
                self._take(fields["updates"], event_id, fields["after"])
            case "stream_closing" | "order_hourly_summary":
                self._findings.counted[event] += 1
            case _:
                self._expect(False, "shown", f"a ghost: {event}")

    def _open(self, event_id: str, fields: Any) -> None:
        is_resumed = bool(self._asked)
        self._expect(fields["resumed"] is is_resumed, "continuity", f"asked for {self._asked!r}: {fields}")
        self._expect(event_id == fields["position"], "continuity", f"{event_id} opens {fields}")
        if is_resumed:
            self._expect(event_id == self._asked, "continuity", f"asked for {self._asked}, resumed at {event_id}")
        else:
            self._start(event_id)
        self._check_held(event_id)
        if "totals" in fields:
            self._check_stated(fields["totals"])

    def _reset(self, event_id: str, fields: Any) -> None:
        """Legitimate when rows it needs are trimmed; then its totals are the new sums, and must be right."""
        self._findings.counted["resets"] += 1
        self._expect(fields["reason"] == "trimmed", "continuity", f"a reset with reason {fields['reason']}")
        trimmed_to = self._truth.last_seqs[self._life] - self._keep_rows
        following = [self._following(strategy_id, self._truth.place(event_id)) for strategy_id in self._followed]
        is_needed = any(row is not None and row.seq <= trimmed_to for row in following)
        self._expect(is_needed, "continuity", f"reset at {self._asked}, and nothing it needs can have been trimmed")
        self._start(event_id)
        self._check_held(event_id)
        self._check_stated(fields["totals"])

    def _following(self, strategy_id: int, head: int) -> JournalRow | None:
        """The row behind the one that says what the key had counted where the client stood (its newest there, or its
        very first): once that is trimmed past, nobody can tell any more."""
        asked = self._truth.place(self._asked)
        row, newest = (self._truth.at(self._user_id, strategy_id, n) for n in (asked, head))
        if row is newest:
            return None
        rows = self._truth.by_key[self._user_id, strategy_id]
        at = rows.index(row) if row else 0
        return rows[at + 1] if at + 1 < len(rows) else None

    def _start(self, position: str) -> None:
        """Add up from here on: what was counted before is taken from the journal."""
        self._position = position
        self._expect(self._place() >= 0, "shown", f"{position} is no position of epoch {self._truth.epoch}")
        self._base = {strategy_id: self._totals(strategy_id, self._place()) for strategy_id in self._followed}
        self._sums = {strategy_id: Counter() for strategy_id in self._followed}

    def _check_held(self, position: str) -> None:
        """Durable before visible: the place was in the journal when the server that showed it had died."""
        n = self._truth.place(position)
        row = self._truth.by_position.get((self._user_id, n))
        is_there = n == 0 or (row is not None and row.seq <= self._truth.last_seqs[self._life])
        self._expect(is_there, "shown", f"{position}, and the journal has {row}")

    def _check_stated(self, totals: Any) -> None:
        stated = {item["strategy_id"]: summed(of_summaries(item["summaries"])) for item in totals}
        n = self._place()
        true = {strategy_id: self._totals(strategy_id, n) for strategy_id in self._followed}
        if self._follows_all:
            true = {strategy_id: sums for strategy_id, sums in true.items() if sums}
        self._expect(stated == true, "wrong sums", f"stated at {self._position}: {stated} instead of {true}")

    def _take(self, updates: Any, event_id: str, after: str) -> None:
        """A frame is the difference between two totals."""
        self._findings.counted["frames"] += 1
        self._expect(after == self._position, "continuity", f"{event_id} follows {after}, it stood at {self._position}")
        self._check_held(event_id)
        begun, n = self._truth.place(after), self._truth.place(event_id)
        moved = {
            s for s in self._followed if self._truth.at(self._user_id, s, n) != self._truth.at(self._user_id, s, begun)
        }
        told = [update["stream"]["strategy_id"] for update in updates]
        self._expect(told == sorted(moved), "shown", f"{event_id} tells of strategies {told}, counted were {moved}")
        for update in updates:
            self._take_one(update, event_id, begun, n)
        newest = [self._truth.at(self._user_id, strategy_id, n) for strategy_id in told]
        is_last = n in {row.n for row in newest if row}
        self._expect(is_last, "shown", f"{event_id} is not the position of a batch of {told}")
        self._position = event_id

    def _take_one(self, update: Any, event_id: str, begun: int, n: int) -> None:
        stream, counts = update["stream"], of_summaries(update["data"]["summaries"])
        strategy_id, name = stream["strategy_id"], f"{event_id}, strategy {stream['strategy_id']}"
        row, before = (self._truth.at(self._user_id, strategy_id, place) for place in (n, begun))
        if row is None or strategy_id not in self._followed:
            self._expect(False, "shown", f"{name}: nothing was counted there for this client")
            return
        counted = self._totals(strategy_id, n) - self._totals(strategy_id, begun)
        self._expect(summed(counts) == counted, "shown", f"{name}: {summed(counts)} instead of {counted}")
        batches = row.number - (before.number if before else 0)
        self._expect(stream["batches"] == batches, "shown", f"{name}: {stream['batches']} instead of {batches} batches")
        accepted = datetime.fromtimestamp(row.accepted_ms / 1000, UTC).isoformat(timespec="milliseconds")
        is_when = update["data"]["timestamp"] == accepted.replace("+00:00", "Z")
        self._expect(is_when, "shown", f"{name}: {update['data']['timestamp']} instead of {accepted}")
        self._sums[strategy_id] = self._sums.get(strategy_id, Counter()) + summed(counts)
        if "totals" in stream:
            sums = self._base.get(strategy_id, Counter()) + self._sums[strategy_id]
            is_sum = summed(of_summaries(stream["totals"])) == sums
            self._expect(is_sum, "wrong sums", f"{name}: {stream['totals']} are stated, {sums} were added up")
        self._findings.counted["batches in frames"] += batches
        self._findings.counted["merged frames"] += batches > 1
        self._findings.largest_merge = max(self._findings.largest_merge, batches)


def check(directory: Path) -> Findings:
    """Everything in the directory of a run."""
    findings = Findings()
    keep_rows = json.loads((directory / "run.json").read_text())["keep_rows"]
    truth = Truth(directory, keep_rows, findings)
    findings.counted["rows"] = len(truth.rows)
    findings.counted["rows trimmed"] = len(truth.rows) - len(truth.final.rows)
    findings.expect(bool(truth.rows), "incomplete", "nothing was counted")
    check_callers(directory, truth, findings)
    paths = sorted(directory.glob("client-*.jsonl"))
    findings.expect(bool(paths), "incomplete", "there were no clients")
    for path in paths:
        Client(path, truth, findings, keep_rows).check()
    return findings


def main() -> int:
    """Print the summary and the violations."""
    findings = check(Path(sys.argv[1]))
    for name, count in findings.counted.items():
        print(f"{name:32}{count:>9,}")
    print(f"{'largest merge, batches':32}{findings.largest_merge:>9,}")
    for violation in findings.violations[:MOST_PRINTED]:
        print(f"VIOLATION {violation}"[:600])
    if findings.violations:
        names = Counter(violation.partition(":")[0] for violation in findings.violations)
        print("VIOLATIONS", ", ".join(f"{count} {name}" for name, count in names.items()))
        return 1
    print("EXACT: nothing was lost, nothing counted twice, no position used twice")
    return 0


if __name__ == "__main__":
    sys.exit(main())
