"""`tallywire emit`: one batch from options, or any number from a file or a pipe."""

import re
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import click
import msgspec
from msgspec import UNSET, Raw, Struct

from core.commands.calls import (
    Answer,
    Target,
    Unreachable,
    internal_target,
    problem_ending,
    refusal,
    request,
    server_options,
)
from core.commands.endings import CommandFailed, ExitCode
from core.commands.terminal import Advance, count, counts, note, progress, say
from core.logs import printable
from core.models import Accepted, Batch, EmitAnswer, Rejected, Skipped

EMIT = "/internal/emit"
KIND = {"Content-Type": "application/x-ndjson"}

CALL_BATCHES = 1000
CALL_BYTES = 2**20
"""Of a call: a tenth of what the server takes, so that the bar moves and a lost answer concerns few."""

READ_BYTES = 2**18
MOST_RESULTS = 10_000
"""Of a batch."""

_COUNT = re.compile(r"([A-Z][A-Z0-9_]{0,31})(?:=([1-9][0-9]{0,4}))?")
_SEVERITY = (ExitCode.UNKNOWN, ExitCode.REFUSED, ExitCode.LATER)
"""Of several endings the first here is that of the command."""

_decode_answer = msgspec.json.Decoder(EmitAnswer).decode


class Tried(Struct):
    """What has become of the batches so far."""

    accepted: int = 0
    duplicate: int = 0
    skipped: int = 0
    rejected: int = 0
    endings: set[int] = msgspec.field(default_factory=set)

    @property
    def batches(self) -> int:
        """All of them."""
        return self.accepted + self.duplicate + self.skipped + self.rejected

    @property
    def ending(self) -> int:
        """The exit code of all of them together."""
        return next((code for code in _SEVERITY if code in self.endings), ExitCode.DONE)


@click.command("emit")
@click.argument("source", required=False, metavar="[FILE|-]")
@click.option("--user", type=click.IntRange(1), help="Whose batch it is.")
@click.option("--strategy", type=click.IntRange(1), help="Of which strategy.")
@click.option("--created", multiple=True, metavar="TYPE[=N]", help="Orders created, as LIMIT=3. May be repeated.")
@click.option("--cancelled", multiple=True, metavar="TYPE[=N]", help="Orders cancelled, likewise.")
@click.option("--idempotency-key", help="Repeated with the same key it counts once. Default: a new one.")
@click.option("--json", "as_json", is_flag=True, help="Print each answer as one object a line.")
@server_options
def emit(
    source: str | None,
    user: int | None,
    strategy: int | None,
    created: Sequence[str],
    cancelled: Sequence[str],
    idempotency_key: str | None,
    as_json: bool,
    url: str | None,
    key_file: Path | None,
    ca_file: Path | None,
) -> None:
    """Emit one batch, or all those of FILE.

    One batch: --user, --strategy, and what was created and cancelled. FILE (- is standard input) holds a batch or an
    array of batches as JSON, or one a line; of a pipe, batches leave as they come.

    Exit code: 0 when every batch was accepted, a duplicate or skipped.
    """
    target = internal_target(url, key_file, ca_file)
    tried = Tried()
    if source is None:
        if user is None or strategy is None:
            raise click.UsageError("name a FILE, or --user and --strategy of one batch.")
        key = idempotency_key or secrets.token_hex(16)
        batch = _batch(user, strategy, created, cancelled, key)
        _emit(target, [batch], tried, as_json=as_json, repeat=f"--idempotency-key {key}")
    elif user or strategy or created or cancelled or idempotency_key:
        raise click.UsageError("a FILE says everything about its batches: leave the options of a single one out.")
    else:
        _emit_all(target, source, tried, as_json=as_json)
    if tried.batches > 1 and not as_json:
        note(
            f"{tried.batches} batches: {tried.accepted} accepted, {tried.duplicate} duplicate, "
            f"{tried.skipped} skipped, {tried.rejected} rejected"
        )
    click.get_current_context().exit(tried.ending)


def _batch(user: int, strategy: int, created: Sequence[str], cancelled: Sequence[str], key: str) -> bytes:
    results: list[dict[str, object]] = []
    for option, event_type, given in (
        ("--created", "order_created", created),
        ("--cancelled", "order_cancelled", cancelled),
    ):
        for text in given:
            match = _COUNT.fullmatch(text)
            if match is None:
                raise click.BadParameter(f"{text!r} is not TYPE=N, as LIMIT=3", param_hint=option)
            result: dict[str, object] = {"success": True, "order_type": match[1], "event_type": event_type}
            results += [result] * int(match[2] or 1)
    if not 0 < len(results) <= MOST_RESULTS:
        raise click.UsageError(f"a batch has 1 to {MOST_RESULTS} orders: say --created TYPE=N or --cancelled TYPE=N.")
    fields = {"user_id": user, "strategy_id": strategy, "batch_results": results, "idempotency_key": key}
    return msgspec.json.encode(fields)


def _emit_all(target: Target, source: str, tried: Tried, *, as_json: bool) -> None:
    with _opened(source) as (lines, advance):
        # A bar and answers on one terminal would write over each other.
        for batches, done in _groups(lines):
            _emit(target, batches, tried, as_json=as_json, repeat="")
            advance(done)


@contextmanager
def _opened(source: str) -> Iterator[tuple[BinaryIO, Advance]]:
    with ExitStack() as stack:
        if source == "-":
            yield sys.stdin.buffer, lambda _done: None
            return
        path = Path(source)
        file = stack.enter_context(path.open("rb"))
        advance = lambda _done: None  # noqa: E731
        if not sys.stdout.isatty():
            advance = stack.enter_context(progress(path.stat().st_size, "Emitting"))
        yield file, advance


def _groups(file: BinaryIO) -> Iterator[tuple[list[bytes], int]]:
    """Batches that go together in a call, and how many bytes have been read by then.

    Whatever has come is taken at once: of a pipe, nothing waits for more. A text that is no JSON a line is read to its
    end first.
    """
    read, held = 0, bytearray()
    is_lines: bool | None = None
    """What the first line says, once it is there."""
    while piece := _some(file):
        read += len(piece)
        held += piece
        if is_lines is False or b"\n" not in piece:
            continue
        *lines, rest = bytes(held).split(b"\n")
        first = next((line for line in lines if line.strip()), None)
        if is_lines is None and first is not None:
            is_lines = _is_batch(first)
        if not is_lines:
            continue
        held = bytearray(rest)
        for group in _in_calls(line for line in lines if line.strip()):
            yield group, read
    if held.strip():
        for group in _in_calls(iter([bytes(held)] if is_lines else _batches_of(bytes(held)))):
            yield group, read


def _some(file: BinaryIO) -> bytes:
    read1 = getattr(file, "read1", file.read)
    piece: bytes = read1(READ_BYTES)
    return piece


def _is_batch(line: bytes) -> bool:
    try:
        return line.lstrip().startswith(b"{") and bool(msgspec.json.decode(line, type=dict[str, Raw]))
    except msgspec.DecodeError:
        return False


def _batches_of(text: bytes) -> list[bytes]:
    """Of one document; a line a batch, since a line is what a call is made of."""
    try:
        held = msgspec.json.decode(text, type=list[Raw] | Raw) if text.lstrip().startswith(b"[") else [Raw(text)]
        documents = [held] if isinstance(held, Raw) else held
        return [msgspec.json.encode(msgspec.json.decode(document)) for document in documents]
    except msgspec.DecodeError as error:
        raise CommandFailed(f"it is neither JSON nor one JSON object a line: {error}.", ExitCode.REFUSED) from error


def _in_calls(batches: Iterator[bytes]) -> Iterator[list[bytes]]:
    group: list[bytes] = []
    size = 0
    for batch in batches:
        if group and (size + len(batch) > CALL_BYTES or len(group) == CALL_BATCHES):
            yield group
            group, size = [], 0
        group.append(batch)
        size += len(batch) + 1
    if group:
        yield group


def _emit(target: Target, batches: list[bytes], tried: Tried, *, as_json: bool, repeat: str) -> None:
    """One call. Raises CommandFailed, saying what is known of its batches and of those before."""
    try:
        answer = request(target, "POST", EMIT, body=b"\n".join(batches) + b"\n", headers=KIND)
    except Unreachable as error:
        if error.was_sent:
            raise CommandFailed(_lost(error.reason, batches, tried, repeat), ExitCode.UNKNOWN) from error
        raise
    if answer.status != 200:
        raise _refused(target, answer, batches, tried, repeat)
    lines = answer.body.splitlines()
    try:
        results = [_decode_answer(line) for line in lines]
    except msgspec.DecodeError:
        results = []
    if len(results) != len(batches):
        # Whoever answers so may have passed it on all the same.
        reason = f"what {target.url} answers is not what Tallywire does"
        raise CommandFailed(_lost(reason, batches, tried, repeat), ExitCode.UNKNOWN)
    for batch, line, result in zip(batches, lines, results, strict=True):
        _count(result, tried)
        if as_json:
            say(line.decode())
        else:
            say(_shown(batch, result))


def _refused(target: Target, answer: Answer, batches: list[bytes], tried: Tried, repeat: str) -> CommandFailed:
    failed = refusal(target, answer)
    if failed.code == ExitCode.UNKNOWN:
        return CommandFailed(_lost(failed.message, batches, tried, repeat), ExitCode.UNKNOWN)
    before = f" {tried.batches} batches had been answered before." if tried.batches else ""
    return CommandFailed(failed.message + before, ExitCode(failed.code))


def _lost(reason: str, batches: list[bytes], tried: Tried, repeat: str) -> str:
    what = "the batch" if len(batches) == 1 else f"each of {len(batches)} batches"
    after = f", after {tried.batches} that were answered" if tried.batches else ""
    remedy = f"Repeat it with {repeat}" if repeat else "Repeat those that have an idempotency_key"
    return f"the answer is lost ({reason}): {what} was counted or not{after}. {remedy}: then it counts once."


def _count(result: EmitAnswer, tried: Tried) -> None:
    match result:
        case Accepted():
            tried.duplicate += result.duplicate
            tried.accepted += not result.duplicate
        case Skipped():
            tried.skipped += 1
        case Rejected():
            tried.rejected += 1
            problem = result.problem
            tried.endings.add(problem_ending("", "", problem.retry, 0).code)


def _shown(batch: bytes, result: EmitAnswer) -> str:
    where = _where(batch)
    match result:
        case Accepted():
            word = click.style("duplicate", fg="yellow") if result.duplicate else click.style("accepted ", fg="green")
            return f"{word}  {where}  {counts(result.summaries)}{_rest(result)}  at {printable(result.position)}"
        case Skipped():
            return f"{click.style('skipped  ', fg='yellow')}  {where}  no successful orders, {result.ignored} ignored"
    problem = result.problem
    errors = () if problem.errors is UNSET else problem.errors
    said = problem_ending(problem.detail, problem.code, problem.retry, problem.status, errors).message
    return f"{click.style('rejected ', fg='red')}  {where}  {said}"


def _rest(result: Accepted) -> str:
    streams = "1 stream" if result.connections == 1 else f"{count(result.connections)} streams"
    said = f"  to {streams}" if result.connections else "  to no stream"
    if result.ignored:
        said += f", {result.ignored} ignored"
    if result.invalid is not UNSET:
        listed = "; ".join(f"{each.path} {each.message}" for each in islice(result.invalid, 3))
        more = "" if len(result.invalid) <= 3 else " …"
        said += click.style(f", {len(result.invalid)} invalid: {printable(listed)}{more}", fg="red")
    return said


def _where(batch: bytes) -> str:
    try:
        known = msgspec.json.decode(batch, type=Batch)
    except msgspec.DecodeError:
        return "batch"
    return f"user {known.user_id} strategy {known.strategy_id}"
