"""Bytes of a stream to event blocks, pure: WHATWG HTML, section 9.2.

Event and id are taken at the empty line, both or neither; a block that was not finished is thrown away.
"""

import codecs
import re
from dataclasses import dataclass

_LINE_END = re.compile(r"\r\n|\n|\r")
_MAX_RETRY_DIGITS = 9


@dataclass(frozen=True, slots=True)
class Block:
    """A complete block. `event_id` and `retry_ms` are None when it has none."""

    event: str
    data: str
    event_id: str | None
    retry_ms: int | None


class BlockParser:
    """Feed it pieces of any size."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._unfinished: list[str] = []
        self._after_cr = False
        self._begin()

    def feed(self, data: bytes) -> list[Block]:
        """The blocks that these bytes complete."""
        return [block for line in self._lines(self._decoder.decode(data)) if (block := self._read(line))]

    def _begin(self) -> None:
        self._event = ""
        self._data: list[str] = []
        self._id: str | None = None
        self._retry_ms: int | None = None

    def _lines(self, text: str) -> list[str]:
        if self._after_cr and text:
            text = text.removeprefix("\n")
            self._after_cr = False
        if "\n" not in text and "\r" not in text:
            self._unfinished.append(text)
            return []
        *lines, rest = _LINE_END.split("".join(self._unfinished) + text)
        self._unfinished = [rest]
        self._after_cr = text.endswith("\r")
        return lines

    def _read(self, line: str) -> Block | None:
        if not line:
            return self._dispatch()
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match field:
            case "event":
                self._event = value
            case "data":
                self._data.append(value)
            case "id" if "\0" not in value:
                self._id = value
            case "retry" if value.isascii() and value.isdigit() and len(value) <= _MAX_RETRY_DIGITS:
                self._retry_ms = int(value)
        return None

    def _dispatch(self) -> Block | None:
        block = Block(self._event or "message", "\n".join(self._data), self._id, self._retry_ms)
        has_something = bool(self._data) or self._id is not None or self._retry_ms is not None
        self._begin()
        return block if has_something else None
