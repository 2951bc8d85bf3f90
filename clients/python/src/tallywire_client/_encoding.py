"""A batch to the line that is sent. Only what the server looks at leaves this process: what an order service attaches
to its results for itself is neither encoded nor shown to anybody.

What cannot be encoded within a result makes this one result invalid, which the server reports: its neighbours are
orders that were executed, and count.
"""

import json
import operator
from collections.abc import Iterable, Mapping
from enum import Enum
from functools import lru_cache
from typing import SupportsIndex
from uuid import UUID

MAX_BATCH_BYTES = 2**20
"""The server's limit for one batch."""

_FIELDS = ("success", "order_type", "event_type")
_COUNTS_NOTHING = '{"success":false}'


class NotEncodableError(Exception):
    """There is no batch in what was handed over."""


def encode_batch(user_id: object, strategy_id: object, batch_results: object, idempotency_key: str) -> bytes:
    """One line of NDJSON, without its end. Raises NotEncodableError when `batch_results` is nothing to go through."""
    if isinstance(batch_results, (str, bytes, Mapping)) or not isinstance(batch_results, Iterable):
        raise NotEncodableError(f"batch_results is {type(batch_results).__name__}, not a list of results")
    results = ",".join([_encode_or_stand_in(result) for result in batch_results])
    return (
        f'{{"user_id":{_encode_id(user_id)},"strategy_id":{_encode_id(strategy_id)},'
        f'"idempotency_key":{_encode(idempotency_key)},"batch_results":[{results}]}}'
    ).encode("ascii")


def text_of(idempotency_key: object) -> str:
    """A key as text. Raises NotEncodableError for what has no text of its own: a stand-in would be the same for every
    such key, and all but the first batch would be taken for its repetitions."""
    if isinstance(idempotency_key, str | int | UUID):
        # Of an enum that is text the value, not the name.
        return str.__str__(idempotency_key) if isinstance(idempotency_key, str) else str(idempotency_key)
    raise NotEncodableError(f"idempotency_key is {type(idempotency_key).__name__}, not text")


def key_of(line: bytes) -> str:
    """The idempotency key of a line that `encode_batch` made."""
    key = json.loads(line)["idempotency_key"]
    return key if isinstance(key, str) else ""


def _encode_id(value: object) -> str:
    return str(value) if type(value) is int else _encode(value)


def _encode_or_stand_in(result: object) -> str:
    try:
        return _encode_result(result)
    except Exception:  # Of a class of the caller's, which may do anything.
        return json.dumps(_stand_in(result))


def _encode_result(result: object) -> str:
    if not isinstance(result, Mapping):
        return _encode(_stand_in(result))
    success = result.get("success")
    if success is False or success is None:
        return _COUNTS_NOTHING
    order_type, event_type = result.get("order_type"), result.get("event_type")
    if success is True and type(order_type) is str and type(event_type) is str:
        return _encode_success(order_type, event_type)
    return _encode({name: result[name] for name in _FIELDS if name in result})


@lru_cache(4096)
def _encode_success(order_type: str, event_type: str) -> str:
    return _encode({"success": True, "order_type": order_type, "event_type": event_type})


def _encode(value: object) -> str:
    try:
        text = json.dumps(value, separators=(",", ":"), allow_nan=False, default=_plain)
        if "\\ud" in text:
            # Half a character can be escaped, and not be read: the server would refuse the whole batch.
            json.dumps(value, default=_plain, ensure_ascii=False).encode()
    except (ValueError, TypeError, RecursionError):  # Not a number, keys that are none, a circle, half a character.
        return json.dumps(_stand_in(value))
    return text


def _plain(value: object) -> object:
    """What JSON has for a value of a library: enums by their value, numbers of numpy as numbers."""
    if isinstance(value, Enum):
        return value.value
    if type(value).__name__ in ("bool_", "bool"):
        return bool(value)
    return operator.index(value) if isinstance(value, SupportsIndex) else _stand_in(value)


def _stand_in(value: object) -> str:
    return f"<{type(value).__name__}>"
