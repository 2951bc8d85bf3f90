"""What an operator asks about the running server: connections and stream keys. Reads, never changes."""

from collections.abc import Iterable
from heapq import nlargest

from msgspec.structs import replace

from core.hub import Hub
from core.models import ConnectionFacts, ConnectionsReport, KeyFacts, iso_timestamp
from core.subscriber import State, Subscriber
from core.totals import Position

SLOWEST_LISTED = 20


def connections(hub: Hub, user_id: int | None) -> ConnectionsReport:
    """Who is connected, of one user or of all; the slowest 20 first. 10,000 connections take about 10 ms."""
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
    )


async def key_facts(hub: Hub, user_id: int, strategy_id: int) -> KeyFacts:
    """What is known of a stream key, zero and null for one that nothing was ever accepted for."""
    record = await hub.journal.key_record(user_id, strategy_id)
    user = hub.registry.user(user_id)
    facts = KeyFacts(user_id, strategy_id, connections=user.count_listeners(strategy_id) if user else 0)
    if record is None:
        return facts
    return replace(
        facts,
        totals=record.head.totals.summaries,
        batches=record.head.number,
        head=str(Position(hub.journal.epoch, record.head.n)),
        oldest_kept=str(Position(hub.journal.epoch, record.oldest.n)),
        last_accepted=iso_timestamp(record.head.accepted_ms),
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
