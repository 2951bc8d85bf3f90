"""POST /internal/emit: a batch, or many, from the order service to the hub.

`emit` is the whole route as one function from a request to an answer; the handler around it only moves bytes.
A batch that cannot be read is an answer of its own, never a reason to lose its neighbours.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TypeVar

import msgspec
from msgspec import UNSET, Raw, Struct
from tornado.iostream import StreamClosedError

from core.errors import (
    BodyTooLarge,
    FieldProblem,
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
from handlers.base import BaseHandler, Services

MAX_BATCH_BYTES = 2**20
MAX_NDJSON_BYTES = 8 * 2**20
MAX_RESULTS = 10_000
MAX_BATCHES = 10_000

MAX_UNREAD_BYTES = 64 * 2**20
"""How much of a body that is too large is read and thrown away, so that its sender sees the answer that says so."""

LAZY_BYTES = 64 * 1024
"""From this size on the results of a batch are decoded one by one while they are counted, with pauses: decoding
1 MiB at once would hold the loop for 9 ms."""

CALLER = "local"
"""Whose idempotency keys these are, as long as the internal listener does not ask who calls."""

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


class EmitRequest(Struct, frozen=True):
    """What the route looks at. `content_type` is empty and `idempotency_key` None when the header is absent."""

    content_type: str
    body: bytes
    idempotency_key: str | None
    request_id: str


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


def max_body_bytes(content_type: str) -> int:
    """How large a body of this type may be. Raises UnsupportedMediaType."""
    return MAX_NDJSON_BYTES if _media_type(content_type) == _NDJSON else MAX_BATCH_BYTES


async def emit(hub: Hub, request: EmitRequest) -> EmitResponse:
    """Count, journal and publish what the request carries, and answer.

    Raises the error of a single batch that was refused; of many, each answer says its own. Raises MalformedBody,
    UnsupportedMediaType, TooManyBatches and OutcomeUnknown for the call as a whole.
    """
    media_type = _media_type(request.content_type)
    if media_type == _NDJSON:
        answers = await _emit_many(hub, _lines(request.body), _CODECS[_JSON], request)
        return EmitResponse(_NDJSON, b"".join(answer + b"\n" for answer in answers))
    codec = _CODECS[media_type]
    if _is_many(request.body, media_type):
        answers = await _emit_many(hub, _items(request.body, codec), codec, request)
        return EmitResponse(_JSON, b"[" + b",".join(answers) + b"]")
    return EmitResponse(_JSON, await _emit_one(hub, codec, request))


async def _emit_one(hub: Hub, codec: _Codec, request: EmitRequest) -> bytes:
    call = EmitCall(CALLER)
    label = await _add(hub, call, request.body, codec, request.idempotency_key)
    answers = await hub.commit(call)
    _log_call(answers, [label], request.request_id)
    answer = answers[0]
    if isinstance(answer, TallywireError):
        raise answer
    return _encode(answer)


async def _emit_many(hub: Hub, items: Iterable[bytes | Raw], codec: _Codec, request: EmitRequest) -> list[bytes]:
    if request.idempotency_key is not None:
        raise InvalidIdempotencyKey(
            "The header names one batch; with many, each batch carries its own idempotency_key", "Idempotency-Key"
        )
    call = EmitCall(CALLER)
    labels: list[_Label] = []
    for item in items:
        if len(labels) == MAX_BATCHES:
            raise TooManyBatches(MAX_BATCHES)
        labels.append(await _add(hub, call, item, codec))
        await hub.slices.breathe()
    answers = await hub.commit(call)
    _log_call(answers, labels, request.request_id)
    encoded = []
    for answer, label in zip(answers, labels, strict=True):
        encoded.append(_encode(_wire_answer(answer, label, request.request_id)))
        await hub.slices.breathe()
    return encoded


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


async def _add(
    hub: Hub,
    call: EmitCall,
    encoded: bytes | Raw,
    codec: _Codec,
    header_key: str | None = None,
) -> _Label:
    """Put one batch into the call, or the answer why not; answers whose it is."""
    try:
        batch, results = _read_batch(encoded, codec)
        key = _one_key(batch.idempotency_key, header_key)
    except TallywireError as refusal:
        call.answers.append(refusal)
        return _UNREADABLE
    await hub.emit_order_batch_update(batch.user_id, batch.strategy_id, results, call=call, idempotency_key=key)
    return _Label(batch.user_id, batch.strategy_id, key)


def _one_key(in_batch: str | None, in_header: str | None) -> str | None:
    if in_batch is not None and in_header is not None and in_batch != in_header:
        raise InvalidIdempotencyKey("The header and the batch carry different keys", "$.idempotency_key")
    return in_header if in_batch is None else in_batch


def _read_batch(encoded: bytes | Raw, codec: _Codec) -> tuple[Batch | _LazyBatch, Iterable[BatchResult | FieldProblem]]:
    size_bytes = len(memoryview(encoded))
    if not size_bytes:
        raise MalformedBody("The body is empty.")
    if size_bytes > MAX_BATCH_BYTES:
        raise BodyTooLarge(MAX_BATCH_BYTES, "The batch")
    if isinstance(encoded, bytes) and not encoded.isascii() and codec is _CODECS[_JSON]:
        _check_utf8(encoded)
    if size_bytes < LAZY_BYTES:
        try:
            batch = codec.batch(encoded)
        except (msgspec.DecodeError, ValueError, RecursionError):
            # Read again result by result: one that cannot be read must not take its neighbours with it.
            pass
        else:
            _check_count(batch)
            return batch, batch.batch_results
    lazy = _decoded(codec.lazy_batch, encoded)
    _check_count(lazy)
    return lazy, _each_result(lazy.batch_results, codec)


def _check_count(batch: Batch | _LazyBatch) -> None:
    if batch.strategy_id and len(batch.batch_results) > MAX_RESULTS:
        raise TooManyResults(len(batch.batch_results), MAX_RESULTS)


def _each_result(results: list[Raw], codec: _Codec) -> Iterator[BatchResult | FieldProblem]:
    for result in results:
        try:
            yield codec.result(result)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            message, path = _message_and_path(error)
            yield FieldProblem(path, message)


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
        message, path = _message_and_path(error)
        raise InvalidBatch(path, message) from error
    except RecursionError as error:
        raise MalformedBody("The body is nested too deeply.") from error
    except (msgspec.DecodeError, ValueError) as error:
        raise MalformedBody(f"{error}.") from error


def _message_and_path(error: Exception) -> tuple[str, str]:
    """What a decoder complains about, and where."""
    if isinstance(error, RecursionError):
        return "nested too deeply", "$"
    message, _, path = str(error).partition(" - at `")
    return message, path.removesuffix("`") or "$"


def _wire_answer(answer: Answer, label: _Label, request_id: str) -> EmitAnswer:
    if isinstance(answer, TallywireError):
        return Rejected(problem_of(answer, request_id), label.idempotency_key or UNSET)
    return answer


def _log_call(answers: Sequence[Answer], labels: Sequence[_Label], request_id: str) -> None:
    """The owner's three lines, one set a call; a call of many logs its sums."""
    if not _log.isEnabledFor(logging.INFO):
        return
    sent = summaries = repeated = skipped = 0
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
    fields = _log_fields(labels, answers[0] if answers else None, request_id)
    if sent:
        _log.info(f"Batch aggregation: {summaries} order types", extra=fields)
        _log.info("📦 Batch SSE sent", extra={**fields, "summaries": summaries})
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


class EmitHandler(BaseHandler):
    """Receives the body within its limits, calls `emit`, writes the answer."""

    max_unread_bytes = MAX_UNREAD_BYTES

    def initialize(self, services: Services) -> None:
        super().initialize(services)
        self._intake: Intake | None = None
        self._refusal: TallywireError | None = None
        self._pieces: list[bytes] = []

    def prepare(self) -> None:
        super().prepare()
        if self.request.method != "POST":
            return
        # Refused only when the body has been read: see MAX_UNREAD_BYTES.
        try:
            self._intake = self.services.hub.begin_intake()
            self._limit_bytes = max_body_bytes(self.request.headers.get("Content-Type", ""))
        except TallywireError as refusal:
            self._refusal = refusal

    def data_received(self, chunk: bytes) -> None:
        if self._intake is None or self._refusal is not None:
            return
        try:
            self._intake.hold(len(chunk))
            if self._intake.held_bytes > self._limit_bytes:
                raise BodyTooLarge(self._limit_bytes)
        except TallywireError as refusal:
            self._refusal = refusal
            self._pieces.clear()
        else:
            self._pieces.append(chunk)

    async def post(self) -> None:
        try:
            if self._refusal is not None:
                raise self._refusal
            headers = self.request.headers
            response = await emit(
                self.services.hub,
                EmitRequest(
                    headers.get("Content-Type", ""),
                    b"".join(self._pieces),
                    headers.get("Idempotency-Key"),
                    self.request_id,
                ),
            )
            self.set_header("Content-Type", response.content_type)
            # A shutdown waits until the caller has the answer, not only until there is one.
            with suppress(StreamClosedError):
                await self.finish(response.body)
        finally:
            self._release()

    def on_connection_close(self) -> None:
        super().on_connection_close()
        self._release()

    def _release(self) -> None:
        if self._intake is not None:
            self._intake.release()
