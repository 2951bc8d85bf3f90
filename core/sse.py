"""Event blocks to bytes and back, pure: WHATWG HTML, section 9.2 (server-sent events).

Owns the framing of a stream: event blocks, comment heartbeats and HTTP/1.1 chunks (RFC 9112, section 7.1).
It refuses nothing on reading, as the standard asks, and cannot write what would break a frame: data is one line of
JSON, which never holds a line break, and ids are positions.
"""

import codecs
import re

from msgspec import Struct
from msgspec.json import Encoder

from core.models import (
    ControlEvent,
    FlatOrderBatchCatchUp,
    FlatOrderBatchUpdate,
    OrderBatchCatchUp,
    OrderBatchUpdate,
    Shape,
)

COMMENT_HEARTBEAT = b":\n"
"""One newline only: after a blank line several client libraries deliver an empty event."""

LAST_CHUNK = b"0\r\n\r\n"

_encode = Encoder().encode
_MAX_RETRY_DIGITS = 18
_LINE_END = re.compile(r"\r\n|\n|\r")


def encode_event(event: str, data: bytes, *, event_id: str | None = None, retry_ms: int | None = None) -> bytes:
    """One event block.

    The id stands last: some clients take it when they see the line, and would lose a block cut in the middle.
    """
    retry = b"" if retry_ms is None else b"retry: %d\n" % retry_ms
    last = b"" if event_id is None else b"id: %s\n" % event_id.encode()
    return b"event: %s\n%sdata: %s\n%s\n" % (event.encode(), retry, data, last)


def encode_update(update: OrderBatchUpdate, shape: Shape, event_id: str) -> bytes:
    """The block of an `order_batch_update`."""
    return encode_event("order_batch_update", _encode(_shaped(update, shape)), event_id=event_id)


def encode_catch_up(updates: tuple[OrderBatchUpdate, ...], after: str, shape: Shape, event_id: str) -> bytes:
    """The block of an `order_batch_catch_up`: each update exactly as on its own data line."""
    data: OrderBatchCatchUp | FlatOrderBatchCatchUp = (
        FlatOrderBatchCatchUp(tuple(map(_flat, updates)), after)
        if shape == "flat"
        else OrderBatchCatchUp(updates, after)
    )
    return encode_event("order_batch_catch_up", _encode(data), event_id=event_id)


def encode_control(
    control: ControlEvent, shape: Shape, *, event_id: str | None = None, retry_ms: int | None = None
) -> bytes:
    """The block of a control event: `{"type": ..., "data": ...}`, or the inner object alone when flat."""
    data = _encode(control)
    if shape == "envelope":
        data = b'{"type":"%s","data":%s}' % (control.event.encode(), data)
    return encode_event(control.event, data, event_id=event_id, retry_ms=retry_ms)


def chunk(payload: bytes) -> bytes:
    """`payload` as one chunk of an HTTP/1.1 body. It must not be empty: an empty chunk ends the body."""
    return b"%x\r\n%s\r\n" % (len(payload), payload)


def _shaped(update: OrderBatchUpdate, shape: Shape) -> OrderBatchUpdate | FlatOrderBatchUpdate:
    return _flat(update) if shape == "flat" else update


def _flat(update: OrderBatchUpdate) -> FlatOrderBatchUpdate:
    return FlatOrderBatchUpdate(update.data.summaries, update.data.timestamp, update.stream)


class ServerSentEvent(Struct, frozen=True):
    """An event as a client dispatches it. `last_event_id` is the one in force, from this block or an earlier one."""

    event: str
    data: str
    last_event_id: str


class EventParser:
    """Bytes of a stream to events, as a browser reads them; feed it pieces of any size.

    `last_event_id` is what a client would send if it reconnected now: the id of the last complete block.
    `retry_ms` is the last reconnection time that the stream named; `comments` counts comment lines.
    """

    def __init__(self, last_event_id: str = "") -> None:
        self.last_event_id = last_event_id
        self.retry_ms: int | None = None
        self.comments = 0
        self._block_id = last_event_id
        self._event = ""
        self._data: list[str] = []
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._unfinished = ""
        self._after_cr = False

    def feed(self, data: bytes) -> list[ServerSentEvent]:
        """The events that `data` completes."""
        return [event for line in self._lines(self._decoder.decode(data)) if (event := self._read(line))]

    def _lines(self, text: str) -> list[str]:
        if self._after_cr and text:
            text = text.removeprefix("\n")
            self._after_cr = False
        *lines, self._unfinished = _LINE_END.split(self._unfinished + text)
        self._after_cr = self._after_cr or text.endswith("\r")
        return lines

    def _read(self, line: str) -> ServerSentEvent | None:
        if not line:
            return self._dispatch()
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match field:
            case "":
                self.comments += 1
            case "event":
                self._event = value
            case "data":
                self._data.append(value)
            case "id" if "\0" not in value:
                self._block_id = value
            case "retry" if value.isascii() and value.isdigit() and len(value) <= _MAX_RETRY_DIGITS:
                self.retry_ms = int(value)
        return None

    def _dispatch(self) -> ServerSentEvent | None:
        event, data = self._event or "message", self._data
        self._event, self._data = "", []
        self.last_event_id = self._block_id
        return ServerSentEvent(event, "\n".join(data), self.last_event_id) if data else None
