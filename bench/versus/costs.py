"""CPU: of a frame, of an emit, of an emit in a call, and how each grows with connections and with keys."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from bench.dialect import Batch, Bundle
from bench.load import StreamKey
from bench.native import Emitted
from bench.versus.figures import Figure, Scale, client_share, micros
from bench.versus.session import IN_FLIGHT, Due, Session

ONE = StreamKey(7, 3)
BURST_PAUSE_US = 300
PER_CALL_IN_FLIGHT = {30: 8, 300: 4}
SCALING_LISTENERS = 1_000


def keys_from(first: int, many: int) -> list[StreamKey]:
    """So many users with one strategy each."""
    return [StreamKey(user, 1) for user in range(first, first + many)]


def _emit_one_by_one(session: Session, emits: int, pause_us: int) -> list[Emitted]:
    """Each after the last frame of the one before."""
    return [session.client.emit(1, pause_us=pause_us) for _ in range(emits)]


def _frame_cost(session: Session, name: str, emits: int, pause_us: int) -> Iterator[Figure]:
    """CPU per frame on the key ONE, after a warm-up."""
    session.load([Due(Batch(ONE))])
    _emit_one_by_one(session, max(2, emits // 4), pause_us)
    emitted, cpu_ns = session.measured(lambda: _emit_one_by_one(session, emits, pause_us))
    yield micros(f"server CPU per frame, {name}", cpu_ns, sum(each.batches for each in emitted))
    yield Figure(f"emit to last frame, {name}", "ms", sum(each.wall_ns for each in emitted) / emits / 1e6)
    frames = sum(each.frames for each in emitted)
    yield Figure(f"client CPU per frame, {name}", "µs", sum(e.cpu_ns for e in emitted) / frames / 1e3, "plain")
    yield client_share(name, emitted)
    yield Figure(f"bytes per frame, {name}", "B", sum(each.stream_bytes for each in emitted) / frames, "plain")


def fanout(session: Session, scale: Scale) -> list[Figure]:
    """CPU per frame with many connections on one key."""
    session.open([ONE] * scale.fanout_connections)
    session.rest()
    return [
        *_frame_cost(session, "client reads in bursts", scale.fanout_emits, BURST_PAUSE_US),
        *_frame_cost(session, "client wakes for each", scale.fanout_emits, 0),
    ]


def _singles(session: Session, keys: Sequence[StreamKey], many: int) -> tuple[Emitted, int]:
    session.load([Due(Batch(keys[at % len(keys)])) for at in range(many // 4)])
    session.client.emit(IN_FLIGHT)
    session.load([Due(Batch(keys[at % len(keys)])) for at in range(many)])
    return session.measured(lambda: session.client.emit(IN_FLIGHT))


def singles(session: Session, scale: Scale) -> list[Figure]:
    """CPU per single emit, one connection per key."""
    keys = keys_from(1, scale.keys)
    session.open(keys)
    session.rest()
    emitted, cpu_ns = _singles(session, keys, scale.singles)
    return [
        micros("server CPU per emit", cpu_ns, scale.singles),
        Figure("emits per second", "1/s", scale.singles / emitted.wall_ns * 1e9, "rate"),
        client_share("singles", [emitted]),
    ]


def calls(session: Session, scale: Scale) -> list[Figure]:
    """CPU per emit in calls of many; a server without such calls is given the next best that it takes."""
    keys = keys_from(1, scale.keys)
    session.open(keys)
    session.rest()
    figures: list[Figure] = []
    for per_call in PER_CALL_IN_FLIGHT:
        for wanted in (Bundle.NDJSON, Bundle.ARRAY):
            figures += _bundled(session, keys, per_call, wanted, scale)
    return figures


def _bundled(
    session: Session, keys: Sequence[StreamKey], per_call: int, wanted: Bundle, scale: Scale
) -> Iterator[Figure]:
    bundle = session.dialect.bundle(wanted)
    name = f"calls of {per_call}, {wanted.value}"
    note = "" if bundle is wanted else bundle.value
    many = scale.singles if bundle is Bundle.SINGLE else scale.batches_in_calls
    in_flight = IN_FLIGHT if bundle is Bundle.SINGLE else PER_CALL_IN_FLIGHT[per_call]
    turn = [keys[at % len(keys)] for at in range(many)]
    session.load_calls(turn[: many // 4], per_call, bundle)
    session.client.emit(in_flight)
    session.load_calls(turn, per_call, bundle)
    emitted, cpu_ns = session.measured(lambda: session.client.emit(in_flight))
    yield micros(f"server CPU per emit, {name}", cpu_ns, many, note)
    yield Figure(f"emits per second, {name}", "1/s", many / emitted.wall_ns * 1e9, "rate", note)


def scaling_connections(session: Session, scale: Scale) -> list[Figure]:
    """CPU per frame as connections on one key grow."""
    figures: list[Figure] = []
    opened = 0
    for connections in scale.scaling_connections:
        session.open([ONE] * (connections - opened))
        opened = connections
        session.rest()
        emits = max(2, scale.scaling_frames // connections)
        figures += _frame_cost(session, f"{connections:,} connections", emits, 0)
    return figures


def scaling_keys(session: Session, scale: Scale) -> list[Figure]:
    """CPU per emit and per frame as the keys that were ever emitted to grow.

    The emits go to known keys in no order; the frames to SCALING_LISTENERS connections on one more key.
    """
    session.open([ONE] * SCALING_LISTENERS)
    figures: list[Figure] = []
    known: list[StreamKey] = []
    for many in scale.scaling_keys:
        fresh = keys_from(1_000 + len(known), many - len(known))
        session.emit_to_each(fresh)
        known += fresh
        session.rest()
        some = random.Random(many).choices(known, k=scale.scaling_emits)
        _, cpu_ns = _singles(session, some, scale.scaling_emits)
        figures.append(micros(f"server CPU per emit, {many:,} keys", cpu_ns, scale.scaling_emits))
        emits = max(2, scale.scaling_frames // SCALING_LISTENERS)
        figures.append(next(_frame_cost(session, f"{many:,} keys", emits, 0)))
    return figures
