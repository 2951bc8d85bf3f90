"""What a front makes of some bytes on a connection of their own."""

import asyncio
import json
from collections.abc import Sequence

from tests.http.strictness import Outcome, in_plain_words, why_worse
from tests.http.wire import Wire, read_answers, request

MOST_PIECES = 2000


class Turns:
    """Counts the turns of the loop, those that others on it get, from `begin` to `end`."""

    def __init__(self) -> None:
        self.count = 0
        self._next: asyncio.Handle | None = None

    def begin(self) -> None:
        """From here on, or anew."""
        self.end()
        self.count = 0
        self._next = asyncio.get_running_loop().call_soon(self._turn)

    def end(self) -> None:
        """Up to here; harmless without `begin`."""
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def _turn(self) -> None:
        self.count += 1
        self._next = asyncio.get_running_loop().call_soon(self._turn)


async def outcome_of(port: int, pieces: Sequence[bytes]) -> Outcome:
    """Send the pieces, wait until nothing more is said, and leave."""
    async with await Wire.open(port) as wire:
        await wire.send(*pieces)
        await wire.settle()
        is_closed = wire.has_ended
        wire.half_close()
        await wire.settle()
        received, is_hanging = wire.received, not wire.has_ended
    is_head = b"".join(pieces).lstrip(b"\r\n").startswith(b"HEAD ")
    answers = read_answers(received, are_to_head=[0] if is_head else [])
    return Outcome(tuple(answer for answer in answers if answer.status >= 200), is_closed, is_hanging)


async def judge(sent: bytes, front: Outcome, oracle_port: int) -> str | None:
    """What is wrong with what a front made of these bytes; None when it answered as the oracle or more strictly."""
    oracle = await outcome_of(oracle_port, [sent])
    wrong = why_worse(sent, oracle, front)
    plain = in_plain_words(sent)
    if wrong is None or (plain != sent and why_worse(plain, await outcome_of(oracle_port, [plain]), front) is None):
        return None
    return f"{wrong}: {front}, and the oracle: {oracle}"


async def counted(port: int) -> int:
    """How many batches of the stream key that BATCH names were counted, asked on an internal listener."""
    async with await Wire.open(port) as wire:
        await wire.send(request("/internal/keys/7/3"))
        batches: int = json.loads((await wire.answer()).body)["batches"]
        return batches


def in_pieces(sent: bytes) -> list[bytes]:
    """Byte by byte, or in MOST_PIECES when there are more bytes."""
    size = -(-len(sent) // MOST_PIECES)
    return [sent[at : at + size] for at in range(0, len(sent), size)]
