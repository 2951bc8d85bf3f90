"""What connections cost that do nothing, and what it costs when all of them come at once."""

from __future__ import annotations

from collections.abc import Iterator

from bench.kinds import Contender
from bench.load import StreamKey
from bench.native import Opened
from bench.versus.costs import ONE, keys_from
from bench.versus.figures import Figure, Scale, micros
from bench.versus.session import Session

WARM_STREAMS = 100


def memory_one_key(session: Session, scale: Scale) -> list[Figure]:
    """Resident memory per idle connection, all on one key."""
    return list(_grown(session, [ONE] * scale.memory_steps[-1], scale))


def memory_key_each(session: Session, scale: Scale) -> list[Figure]:
    """Resident memory per idle connection, each with a user and a key of its own."""
    return list(_grown(session, keys_from(1_001, scale.memory_steps[-1]), scale))


def _grown(session: Session, keys: list[StreamKey], scale: Scale) -> Iterator[Figure]:
    """What the memory is above that of the server before, after some streams and emits that are gone."""
    warm = keys_from(1, WARM_STREAMS)
    session.open(warm)
    session.emit_to_each(warm)
    session.client.close_streams()
    session.rest()
    before = session.settled_memory()
    opened = 0
    for connections in scale.memory_steps:
        session.open(keys[opened:connections])
        opened = connections
        after = session.settled_memory()
        name = f"{connections:,} connections"
        yield Figure(f"RSS per connection, {name}", "KiB", (after.rss - before.rss) / connections / 1024)
    yield Figure("RSS before", "MiB", before.rss / 2**20, "plain")


def connect_storm(session: Session, scale: Scale) -> list[Figure]:
    """Everybody connects at once, each with a key of its own."""
    keys = keys_from(1, scale.storm_clients)
    opened, cpu_ns = session.open(keys, in_flight=len(keys))
    return _storm("connect", opened, cpu_ns)


def resume_storm(session: Session, scale: Scale) -> list[Figure]:
    """Everybody comes back at once with the last id read, and has missed something."""
    keys = keys_from(1, scale.storm_clients)
    session.open(keys)
    session.emit_to_each(keys)
    session.client.close_streams()
    session.rest()
    for _ in range(scale.storm_missed):
        session.emit_to_each(keys)
    session.rest()
    opened, cpu_ns = session.resume(keys, len(keys), scale.storm_missed)
    return _storm("resume", opened, cpu_ns)


def _storm(what: str, opened: Opened, cpu_ns: int) -> list[Figure]:
    return [
        micros(f"server CPU per {what}", cpu_ns, opened.opened.count),
        Figure("until the last one has its first event", "ms", opened.wall_ns / 1e6),
        Figure(f"connect to first event of a {what}, p50", "ms", opened.opened.p50_ns / 1e6),
        Figure(f"connect to first event of a {what}, slowest", "ms", opened.opened.slowest_ns / 1e6),
        Figure("client's share of its core", "%", 100 * opened.cpu_ns / opened.wall_ns, "plain"),
    ]


def cannot_resume(contender: Contender) -> str | None:
    """Why a server has no resume to measure."""
    return None if contender.dialect.keeps_batches else "keeps nothing to resume from"
