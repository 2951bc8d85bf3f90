"""How long from the moment an emit is due to the frame read: at a steady pace, and beside a busy neighbour.

Emits are sent when they are due, whatever became of those before (open loop), and latency counts from that moment.
"""

from __future__ import annotations

from bench.dialect import Batch
from bench.load import StreamKey
from bench.native import Emitted
from bench.versus.costs import ONE, keys_from
from bench.versus.figures import Figure, Scale, client_share, latencies, micros
from bench.versus.session import Due, Session

SENDERS = 64
"""Kept-alive connections for emits that are due; with all of them busy, what is due waits, and that counts."""

WARM_SECONDS = 2
SECOND_NS = 1_000_000_000
NEIGHBOUR = StreamKey(8, 3)


def paced(keys: list[StreamKey], per_second: int, seconds: int) -> list[Due]:
    """Emits to the keys in turn, evenly spread."""
    return [Due(Batch(keys[at % len(keys)]), at * SECOND_NS // per_second) for at in range(per_second * seconds)]


def steady(session: Session, scale: Scale) -> list[Figure]:
    """Latency at a steady pace over many keys with one connection each."""
    keys = keys_from(1, scale.latency_keys)
    session.open(keys)
    session.rest()
    session.load(paced(keys, scale.latency_per_second, WARM_SECONDS))
    session.client.emit(0, SENDERS)
    session.load(paced(keys, scale.latency_per_second, scale.latency_seconds))
    emitted, cpu_ns = session.measured(lambda: session.client.emit(0, SENDERS, is_timed=True))
    return [
        *latencies("due to read", emitted.latency),
        micros("server CPU per emit", cpu_ns, emitted.calls),
        *about_the_client(emitted),
    ]


def neighbour(session: Session, scale: Scale) -> list[Figure]:
    """Latency of a quiet key while another with many connections is emitted to back to back."""
    session.open([ONE] * scale.neighbour_connections + [NEIGHBOUR])
    session.rest()
    quiet = paced([NEIGHBOUR], scale.neighbour_per_second, scale.neighbour_seconds)
    session.load([Due(Batch(ONE)), *quiet])
    emitted, _ = session.measured(lambda: session.client.emit(1, SENDERS, is_timed=True))
    return [
        *latencies("due to read, the quiet key", emitted.latency, has_thousands=False),
        Figure("batches delivered per second", "1/s", emitted.batches / emitted.wall_ns * 1e9, "rate"),
        Figure("batches per frame", "", emitted.batches / emitted.frames, "plain"),
        *about_the_client(emitted),
    ]


def about_the_client(emitted: Emitted) -> list[Figure]:
    """Whether the client could keep the pace."""
    return [
        Figure("latest send by the client", "ms", emitted.latest_send_ns / 1e6, "plain"),
        client_share("whole run", [emitted]),
    ]
