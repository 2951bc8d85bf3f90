"""POST /internal/emit: a batch, or many, from the order service to the hub.

`emit` is the whole route as one function from a request to an answer, `Reception` the way of its body there; what an
HTTP front puts around them only moves bytes.
A batch that cannot be read is an answer of its own, never a reason to lose its neighbours.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import chain, islice
from typing import TypeVar

import msgspec
from msgspec import UNSET, Raw, Struct
from tornado.iostream import StreamClosedError

from core.aggregation import Aggregation, unreadable
from core.counters import Counters
from core.errors import (
    BodyTooLarge,
    FieldProblem,
    InternalError,
    InvalidBatch,
    InvalidIdempotencyKey,
    MalformedBody,
    TallywireError,
    TooManyBatches,
    TooManyResults,
    UnsupportedMediaType,
)
from core.hub import Answer, EmitCall, Hub, Intake
from core.models import (
    Accepted,
    Batch,
    BatchResult,
    EmitAnswer,
    Rejected,
    Skipped,
    StrategyIdOrNone,
    UserId,
    problem_of,
)
from handlers.base import BaseHandler, message_and_path

MAX_BATCH_BYTES = 2**20
MAX_NDJSON_BYTES = 8 * 2**20
MAX_RESULTS = 10_000
MAX_BATCHES = 10_000

MAX_UNREAD_BYTES = 64 * 2**20
"""How much of a body that is too large is read and thrown away, so that its sender sees the answer that says so."""

SHORT_BYTES = 64 * 1024
"""What is shorter, a call or a batch of it, is decoded at once: that takes half a millisecond, 1 MiB would take 9."""

ITEMS_AT_ONCE = 100
"""Batches of a call that are read at once: a millisecond, or two when each must be refused."""

COUNT_PORTION = 64
"""Results read one by one between two looks at the clock: about 0.2 ms, when none of them can be read."""

ANSWERS_AT_ONCE = 500
"""Answers of a call encoded without a pause: about a millisecond."""

_JSON, _NDJSON, _MSGPACK = "application/json", "application/x-ndjson", "application/msgpack"
_MEDIA_TYPES = {
    _JSON: _JSON,
    _NDJSON: _NDJSON,
    "application/ndjson": _NDJSON,
    "application/jsonl": _NDJSON,
    _MSGPACK: _MSGPACK,
    "application/x-msgpack": _MSGPACK,
    "application/vnd.msgpack": _MSGPACK,
}

_MSGPACK_ARRAYS = {*(bytes([first]) for first in range(0x90, 0xA0)), b"\xdc", b"\xdd"}

_T = TypeVar("_T")

_log = logging.getLogger("tallywire.emit")
_encode = msgspec.json.Encoder().encode


class _LazyBatch(Struct, frozen=True):
    """A `Batch` whose results are still encoded."""

    user_id: UserId
    batch_results: list[Raw]
    strategy_id: StrategyIdOrNone = None
    idempotency_key: str | None = None


class _Codec(Struct, frozen=True):
    """How one encoding reads a batch: at once, or with its results left for later."""

    batch: Callable[[bytes | Raw], Batch]
    lazy_batch: Callable[[bytes | Raw], _LazyBatch]
    result: Callable[[bytes | Raw], BatchResult]
    many: Callable[[bytes | Raw], list[Raw]]


def _codec(decoder: type[msgspec.json.Decoder] | type[msgspec.msgpack.Decoder]) -> _Codec:  # type: ignore[type-arg]
    return _Codec(
        decoder(Batch).decode,
        decoder(_LazyBatch).decode,
        decoder(BatchResult).decode,
        decoder(list[Raw]).decode,
    )


_CODECS = {_JSON: _codec(msgspec.json.Decoder), _MSGPACK: _codec(msgspec.msgpack.Decoder)}
_CODECS[_NDJSON] = _CODECS[_JSON]


class EmitRequest(Struct, frozen=True):
    """What the route looks at. `content_type` is empty and `idempotency_key` None when the header is absent."""

    content_type: str
    body: bytes
    idempotency_key: str | None
    request_id: str
    caller: str
    """Whose idempotency keys these are."""


class _Label(Struct, frozen=True, gc=False):
    """Whose a batch is, for its answer and the log."""

    user_id: int | None = None
    strategy_id: int | None = None
    idempotency_key: str | None = None


_UNREADABLE = _Label()


class EmitResponse(Struct, frozen=True):
    """A 200. Refusals of a whole call are raised instead."""

    content_type: str
    body: bytes


Respond = Callable[[EmitResponse | TallywireError], None]


def max_body_bytes(content_type: str) -> int:
    """How large a body of this type may be. Raises UnsupportedMediaType."""
    return MAX_NDJSON_BYTES if _media_type(content_type) == _NDJSON else MAX_BATCH_BYTES


def emit(hub: Hub, request: EmitRequest, respond: Respond) -> None:
    """Count, journal and publish what the request carries; `respond` is called once with the answer.

    It gets the error of a single batch that was refused; of many, each answer says its own. It gets MalformedBody,
    UnsupportedMediaType, TooManyBatches, Unavailable and InternalError for the call as a whole.

    What is short is read in this step of the loop, anything else in slices with pauses between them. That spares most
    emits a task, and gives up at most a millisecond or two of the loop.
    """
    try:
        _Call(hub, request, respond).begin()
    except TallywireError as refusal:
        respond(refusal)


class _Call(EmitCall):
    """One request on its way through the hub: its batches, whose they are, and to whom the answer goes."""

    __slots__ = ("_codec", "_hub", "_is_many", "_labels", "_media_type", "_request", "_respond", "_task")

    def __init__(self, hub: Hub, request: EmitRequest, respond: Respond) -> None:
        super().__init__(request.caller)
        self._hub = hub
        self._request = request
        self._respond = respond
        self._media_type = _media_type(request.content_type)
        self._codec = _CODECS[self._media_type]
        self._is_many = self._media_type == _NDJSON or _is_many(request.body, self._media_type)
        self._labels: list[_Label] = []
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Take in every batch, then commit; at once or in slices. Raises what refuses the whole call."""
        items = self._items()
        if len(self._request.body) >= SHORT_BYTES or self._has_many_items(items):
            self._go_on(self._read_in_slices(items))
            return
        rest = iter(items)
        for item in rest:
            if not self._add_whole(item):
                self._go_on(self._read_in_slices(chain([item], rest)))
                return
        self._hub.commit(self)

    def resolved(self) -> None:
        """See `EmitCall`."""
        _count(self._hub.counters, self.answers, self.error)
        if self.error is not None:
            self._respond(self.error)
            return
        _log_call(self.answers, self._labels, self._request.request_id)
        if self._is_many:
            if len(self.answers) > ANSWERS_AT_ONCE:
                self._go_on(self._answer_in_slices())
            else:
                self._respond_with([self._encoded(*each) for each in zip(self.answers, self._labels, strict=True)])
            return
        (answer,) = self.answers
        self._respond(answer if isinstance(answer, TallywireError) else EmitResponse(_JSON, _encode(answer)))

    def _items(self) -> Iterable[bytes | Raw]:
        """The batches, still encoded. Raises what refuses the whole call."""
        request = self._request
        if not self._is_many:
            return (request.body,)
        if request.idempotency_key is not None:
            raise InvalidIdempotencyKey(
                "The header names one batch; with many, each batch carries its own idempotency_key", "Idempotency-Key"
            )
        if self._media_type == _NDJSON:
            return _lines(request.body)
        items = _items(request.body, self._codec)
        if len(items) > MAX_BATCHES:
            raise TooManyBatches(MAX_BATCHES)
        return items

    def _has_many_items(self, items: Iterable[bytes | Raw]) -> bool:
        """Each costs something even when there is nothing in it."""
        if not self._is_many:
            return False
        count = len(items) if isinstance(items, list) else self._request.body.count(b"\n")
        return count > ITEMS_AT_ONCE

    def _add_whole(self, item: bytes | Raw) -> bool:
        """Put one batch into the call, or the answer why not. False when it must be read result by result, since one
        that cannot be read must not take its neighbours with it: that takes its time."""
        codec = self._codec
        try:
            _check_bytes(item, codec)
            try:
                batch = codec.batch(item)
            except (msgspec.DecodeError, ValueError, RecursionError):
                return False
            self._add(batch, batch.batch_results)
        except TallywireError as refusal:
            self._refuse(refusal)
        return True

    def _add(self, batch: Batch | _LazyBatch, results: Iterable[BatchResult] | Aggregation) -> None:
        _check_count(batch)
        key = _one_key(batch.idempotency_key, self._request.idempotency_key)
        self._labels.append(_Label(batch.user_id, batch.strategy_id, key))
        self._hub.emit_order_batch_update(batch.user_id, batch.strategy_id, results, call=self, idempotency_key=key)

    def _refuse(self, refusal: TallywireError) -> None:
        self.answers.append(refusal)
        self._labels.append(_UNREADABLE)

    def _go_on(self, work: Coroutine[None, None, None]) -> None:
        """Go on in slices. Whatever goes wrong is answered."""

        async def answered() -> None:
            try:
                await work
            except TallywireError as refusal:
                self._respond(refusal)
            except Exception:
                _log.exception("Emit failed", extra={"request_id": self._request.request_id})
                self._respond(InternalError())
            finally:
                self._task = None

        self._task = asyncio.get_running_loop().create_task(answered())

    async def _read_in_slices(self, items: Iterable[bytes | Raw]) -> None:
        """Take in every batch, with pauses; then commit."""
        for item in items:
            if len(self._labels) == MAX_BATCHES:
                raise TooManyBatches(MAX_BATCHES)
            if len(memoryview(item)) >= SHORT_BYTES or not self._add_whole(item):
                await self._add_in_slices(item)
            await self._hub.slices.breathe()
        self._hub.commit(self)

    async def _add_in_slices(self, item: bytes | Raw) -> None:
        """As `_add_whole`, but its results are decoded one by one while they are counted, with pauses."""
        try:
            _check_bytes(item, self._codec)
            batch = _decoded(self._codec.lazy_batch, item)
            _check_count(batch)
            counted = Aggregation()
            # Without a strategy nothing is counted, whatever the results are.
            rest = _each_result(batch.batch_results if batch.strategy_id else [], self._codec)
            while portion := list(islice(rest, COUNT_PORTION)):
                counted.add(portion)
                await self._hub.slices.breathe()
            self._add(batch, counted)
        except TallywireError as refusal:
            self._refuse(refusal)

    async def _answer_in_slices(self) -> None:
        encoded = []
        for each in zip(self.answers, self._labels, strict=True):
            encoded.append(self._encoded(*each))
            await self._hub.slices.breathe()
        self._respond_with(encoded)

    def _encoded(self, answer: Answer, label: _Label) -> bytes:
        return _encode(_wire_answer(answer, label, self._request.request_id))

    def _respond_with(self, answers: list[bytes]) -> None:
        if self._media_type == _NDJSON:
            self._respond(EmitResponse(_NDJSON, b"".join(answer + b"\n" for answer in answers)))
        else:
            self._respond(EmitResponse(_JSON, b"[" + b",".join(answers) + b"]"))


@lru_cache(64)
def _media_type(content_type: str) -> str:
    essence = content_type.partition(";")[0].strip().lower()
    try:
        return _MEDIA_TYPES[essence]
    except KeyError:
        raise UnsupportedMediaType(content_type, (_JSON, _NDJSON, _MSGPACK)) from None


def _is_many(body: bytes, media_type: str) -> bool:
    if media_type == _MSGPACK:
        return body[:1] in _MSGPACK_ARRAYS
    return body.lstrip(b" \t\r\n")[:1] == b"["


def _lines(body: bytes) -> Iterator[bytes]:
    # Blank lines are free, so they must be few: 8 MiB of them would be 8 million.
    if body.count(b"\n") > 2 * MAX_BATCHES:
        raise TooManyBatches(MAX_BATCHES)
    start = 0
    while start < len(body):
        end = body.find(b"\n", start)
        end = len(body) if end < 0 else end
        line = body[start:end]
        if line.strip():
            yield line
        start = end + 1


def _items(body: bytes, codec: _Codec) -> list[Raw]:
    if codec is _CODECS[_JSON] and not body.isascii():
        _check_utf8(body)
    return _decoded(codec.many, body)


def _one_key(in_batch: str | None, in_header: str | None) -> str | None:
    if in_batch is not None and in_header is not None and in_batch != in_header:
        raise InvalidIdempotencyKey("The header and the batch carry different keys", "$.idempotency_key")
    return in_header if in_batch is None else in_batch


def _check_bytes(encoded: bytes | Raw, codec: _Codec) -> None:
    size_bytes = len(encoded) if isinstance(encoded, bytes) else len(memoryview(encoded))
    if not size_bytes:
        raise MalformedBody("The body is empty.")
    if size_bytes > MAX_BATCH_BYTES:
        raise BodyTooLarge(MAX_BATCH_BYTES, "The batch")
    if isinstance(encoded, bytes) and not encoded.isascii() and codec is _CODECS[_JSON]:
        _check_utf8(encoded)


def _check_count(batch: Batch | _LazyBatch) -> None:
    if batch.strategy_id and len(batch.batch_results) > MAX_RESULTS:
        raise TooManyResults(len(batch.batch_results), MAX_RESULTS)


def _each_result(results: list[Raw], codec: _Codec) -> Iterator[BatchResult]:
    for result in results:
        try:
            yield codec.result(result)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            message, path = message_and_path(error)
            yield unreadable(FieldProblem(path, message))


def _check_utf8(body: bytes) -> None:
    """RFC 8259, section 8.1. msgspec skips fields that it does not know without reading them."""
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise MalformedBody(f"The body is not UTF-8: {error.reason} at byte {error.start}.") from error


def _decoded(decode: Callable[[bytes | Raw], _T], encoded: bytes | Raw) -> _T:
    try:
        return decode(encoded)
    except msgspec.ValidationError as error:
        message, path = message_and_path(error)
        raise InvalidBatch(path, message) from error
    except RecursionError as error:
        raise MalformedBody("The body is nested too deeply.") from error
    except (msgspec.DecodeError, ValueError) as error:
        raise MalformedBody(f"{error}.") from error


def _wire_answer(answer: Answer, label: _Label, request_id: str) -> EmitAnswer:
    if isinstance(answer, TallywireError):
        return Rejected(problem_of(answer, request_id), label.idempotency_key or UNSET)
    return answer


def _count(counters: Counters, answers: Sequence[Answer], error: TallywireError | None) -> None:
    """What became of the batches of a call; with an error none of them is accepted, as far as we know."""
    if error is not None:
        counters.rejected += len(answers)
        return
    for answer in answers:
        if isinstance(answer, Accepted):
            if answer.duplicate:
                counters.duplicates += 1
            else:
                counters.accepted += 1
        elif isinstance(answer, Skipped):
            counters.skipped += 1
        else:
            counters.rejected += 1


def _log_call(answers: Sequence[Answer], labels: Sequence[_Label], request_id: str) -> None:
    """The owner's three lines, one set a call; a call of many logs its sums."""
    if not _log.isEnabledFor(logging.INFO):
        return
    sent = summaries = invalid = repeated = skipped = 0
    refused: Counter[str] = Counter()
    for answer in answers:
        if isinstance(answer, TallywireError):
            refused[answer.code] += 1
        elif isinstance(answer, Skipped):
            skipped += 1
        elif answer.duplicate:
            repeated += 1
        else:
            sent += 1
            summaries += len(answer.summaries)
            invalid += len(answer.invalid or ())
    fields = _log_fields(labels, answers[0] if answers else None, request_id)
    if sent:
        _log.info(f"Batch aggregation: {summaries} order types", extra=fields)
        _log.info("📦 Batch SSE sent", extra={**fields, "summaries": summaries, "invalid": invalid})
    if skipped:
        _log.info("No successful orders - batch SSE skipped", extra=fields)
    if repeated:
        _log.info("Batch repeated - nothing sent", extra={**fields, "repeated": repeated})
    for code, batches in refused.items():
        _log.info("Batch refused", extra={**fields, "code": code, "refused": batches})


def _log_fields(labels: Sequence[_Label], first: Answer | None, request_id: str) -> dict[str, object]:
    if len(labels) != 1:
        return {"request_id": request_id, "batches": len(labels)}
    return {
        "user_id": labels[0].user_id,
        "strategy_id": labels[0].strategy_id,
        "position": first.position if isinstance(first, Accepted) else None,
        "request_id": request_id,
    }


class Reception:
    """The body of one emit on its way in, within its limits, and then its answer: what each HTTP front feeds.

    A body that is refused is still read, and thrown away, so that its sender sees the answer that says so. A shutdown
    waits for it until `release`. `caller`: whose idempotency keys these are.
    """

    __slots__ = ("_body", "_caller", "_hub", "_intake", "_limit_bytes", "_refusal", "content_type")

    def __init__(self, hub: Hub, content_type: str, caller: str) -> None:
        self._hub = hub
        self.content_type = content_type
        self._caller = caller
        self._intake: Intake | None = None
        self._refusal: TallywireError | None = None
        self._limit_bytes = 0
        self._body: bytes | bytearray = b""
        """Bytes as long as it came in one piece, as nearly every body does. Never a list: one of single bytes would be
        eight times as large as what is held is counted."""
        try:
            self._intake = hub.begin_intake()
            self._limit_bytes = max_body_bytes(content_type)
        except TallywireError as refusal:
            self._refusal = refusal

    def receive(self, chunk: bytes) -> None:
        """Some more of the body."""
        if self._intake is None or self._refusal is not None:
            return
        try:
            self._intake.hold(len(chunk))
            if self._intake.held_bytes > self._limit_bytes:
                raise BodyTooLarge(self._limit_bytes)
        except TallywireError as refusal:
            self._refusal = refusal
            self._body = b""
        else:
            if not self._body:
                self._body = chunk
                return
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += chunk

    def emit(self, idempotency_key: str | None, request_id: str, respond: Respond) -> None:
        """The body is complete: see `emit`."""
        self._hub.counters.emit_calls += 1
        if self._refusal is not None:
            respond(self._refusal)
            return
        body, self._body = self._body, b""
        request = EmitRequest(self.content_type, bytes(body), idempotency_key, request_id, self._caller)
        emit(self._hub, request, respond)

    def release(self) -> None:
        """The answer has been written, or nobody waits for it; harmless the second time."""
        if self._intake is not None:
            self._intake.release()


class EmitHandler(BaseHandler):
    """Receives the body, calls `emit`, writes the answer."""

    max_unread_bytes = MAX_UNREAD_BYTES
    role = "emit"
    _reception: Reception | None = None

    def admit(self, caller: str) -> None:
        if self.request.method == "POST":
            self._reception = Reception(self.services.hub, self.request.headers.get("Content-Type", ""), caller)

    def data_received(self, chunk: bytes) -> None:
        if self._reception is not None:
            self._reception.receive(chunk)

    async def post(self) -> None:
        try:
            response = await self._response()
            self.set_header("Content-Type", response.content_type)
            # A shutdown waits until the caller has the answer, not only until there is one.
            with suppress(StreamClosedError):
                await self.finish(response.body)
        finally:
            self._release()

    def on_connection_close(self) -> None:
        super().on_connection_close()
        self._release()

    async def _response(self) -> EmitResponse:
        """Raises the TallywireError that is the answer."""
        answered: asyncio.Future[EmitResponse] = asyncio.get_running_loop().create_future()

        def respond(answer: EmitResponse | TallywireError) -> None:
            if answered.done():
                return
            if isinstance(answer, TallywireError):
                answered.set_exception(answer)
            else:
                answered.set_result(answer)

        if self._reception is None:
            raise AssertionError("admit() makes one for each POST")
        self._reception.emit(self.request.headers.get("Idempotency-Key"), self.request_id, respond)
        return await answered

    def _release(self) -> None:
        if self._reception is not None:
            self._reception.release()
