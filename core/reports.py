"""What an operator asks: connections, stream keys, batches. Reads, never changes."""

import asyncio
from collections.abc import Iterable
from heapq import nlargest

from msgspec import UNSET, Struct

from core.errors import InvalidQuery
from core.hub import MAX_IDEMPOTENCY_KEY, Hub, is_usable
from core.journal.base import BatchRecord, KeyRecord
from core.logs import dropped_lines
from core.models import (
    MAX_ID,
    BatchesReport,
    BatchFacts,
    ConnectionFacts,
    ConnectionsReport,
    KeyFacts,
    KeysReport,
    LimitFacts,
    LogFacts,
    LoopFacts,
    iso_timestamp,
)
from core.subscriber import State, Subscriber
from core.totals import Position

SLOWEST_LISTED = 20

KEYS_LISTED = 200
"""Stream keys of one answer; the next ones are asked for with `after`. With 32 order types each that is 400 KiB."""

BATCHES_LISTED = 1000
"""Batches of one answer; the next ones are asked for with `after`."""


def connections(hub: Hub, user_id: int | None, wanted_connections: int) -> ConnectionsReport:
    """Who is connected, of one user or of all; the slowest 20 first. 10,000 connections take about 10 ms.

    `wanted_connections`: what the settings say; the hub knows what there is room for.
    """
    everyone: Iterable[Subscriber] = hub.registry.subscribers if user_id is None else hub.registry.of_user(user_id)
    behind = {subscriber: subscriber.behind_batches() for subscriber in everyone}
    slowest = nlargest(SLOWEST_LISTED, behind, key=lambda each: (behind[each], each.unsent_bytes))
    now = hub.clock()
    return ConnectionsReport(
        connections=len(behind),
        lagging=sum(1 for batches in behind.values() if batches),
        blocked=sum(subscriber.state is State.BLOCKED for subscriber in behind),
        slowest=tuple(_facts(subscriber, behind[subscriber], now) for subscriber in slowest),
        closed=dict(hub.closed),
        refused=dict(hub.refused),
        accepts_delayed=hub.accepts.delayed,
        loop=LoopFacts(_ms(hub.lag.recent_max_seconds), _ms(hub.lag.max_seconds), len(asyncio.all_tasks())),
        log=LogFacts(dropped_lines()),
        limits=LimitFacts(hub.limits.max_connections, wanted_connections),
    )


async def key_facts(hub: Hub, user_id: int, strategy_id: int) -> KeyFacts:
    """What is known of a stream key, zero and null for one that nothing was ever accepted for."""
    record = await hub.journal.key_record(user_id, strategy_id)
    if record is None:
        return KeyFacts(user_id, strategy_id, connections=_listeners(hub, user_id, strategy_id))
    return _key(hub, record)


async def keys_of_user(hub: Hub, user_id: int, after_strategy: int) -> KeysReport:
    """The stream keys of a user behind a strategy, 0 for all, 200 at most. Raises Busy."""
    found = await hub.journal.key_records(user_id, after_strategy, KEYS_LISTED + 1)
    keys = tuple(_key(hub, record) for record in found[:KEYS_LISTED])
    return KeysReport(user_id, keys, len(found) > KEYS_LISTED)


class BatchesQuestion(Struct, frozen=True):
    """The batches of a stream key accepted in [from, to), Unix ms, behind the position `after`."""

    user_id: int
    strategy_id: int
    from_ms: int | None
    to_ms: int | None
    after: str | None


async def batches(hub: Hub, question: BatchesQuestion) -> BatchesReport:
    """The kept batches that were asked for, 1,000 at most. Raises InvalidQuery and Busy."""
    after_n = _place(hub, question.after) if question.after else 0
    found = await hub.journal.batches(
        question.user_id,
        question.strategy_id,
        after_n,
        question.from_ms or 0,
        MAX_ID if question.to_ms is None else question.to_ms,
        BATCHES_LISTED + 1,
    )
    return BatchesReport(tuple(_batch(hub, each) for each in found[:BATCHES_LISTED]), len(found) > BATCHES_LISTED)


async def batches_of_key(hub: Hub, key: str) -> BatchesReport:
    """What was accepted under an idempotency key, nothing when nothing was within the window.

    Raises InvalidQuery for a key that no batch can have, and Busy.
    """
    if not is_usable(key):
        raise InvalidQuery("idempotency_key", f"is 1 to {MAX_IDEMPOTENCY_KEY} printable ASCII characters")
    found = await hub.journal.batches_of_key(key)
    return BatchesReport(tuple(_batch(hub, each) for each in found), has_more=False)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _place(hub: Hub, after: str) -> int:
    try:
        position = Position.parse(after)
    except ValueError as error:
        raise InvalidQuery("after", "is not a position") from error
    if position.epoch != hub.journal.epoch:
        raise InvalidQuery("after", "is a position of another epoch")
    return position.n


def _key(hub: Hub, record: KeyRecord) -> KeyFacts:
    head = record.head
    return KeyFacts(
        head.user_id,
        head.strategy_id,
        totals=head.totals.summaries,
        batches=head.number,
        head=str(Position(hub.journal.epoch, head.n)),
        oldest_kept=str(Position(hub.journal.epoch, record.oldest.n)),
        last_accepted=iso_timestamp(head.accepted_ms),
        connections=_listeners(hub, head.user_id, head.strategy_id),
    )


def _listeners(hub: Hub, user_id: int, strategy_id: int) -> int:
    user = hub.registry.user(user_id)
    return user.count_listeners(strategy_id) if user else 0


def _batch(hub: Hub, record: BatchRecord) -> BatchFacts:
    return BatchFacts(
        record.user_id,
        record.strategy_id,
        str(Position(hub.journal.epoch, record.n)),
        iso_timestamp(record.accepted_ms),
        record.summaries,
        UNSET if record.ignored is None else record.ignored,
        UNSET if record.idempotency is None else record.idempotency.caller,
        UNSET if record.idempotency is None else record.idempotency.key,
    )


def _facts(subscriber: Subscriber, behind_batches: int, now: float) -> ConnectionFacts:
    return ConnectionFacts(
        user_id=subscriber.user_id,
        strategies=subscriber.strategies(),
        state=subscriber.state.value,
        position=subscriber.position,
        behind_batches=behind_batches,
        unsent_bytes=subscriber.unsent_bytes,
        age_seconds=round(now - subscriber.opened_at, 3),
        peer=subscriber.peer(),
    )
