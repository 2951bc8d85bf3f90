"""What a monitoring system scrapes: names, types and what they mean, from integers that others keep. Reads only.

Connections are looked at shard by shard, each in one step of the loop, so that what is counted of its streams and what
is pending for them are of one moment.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import get_args

from msgspec import Struct, structs
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from core.counters import Distribution
from core.errors import ERRORS, Busy
from core.hub import Hub, StreamLimit
from core.logs import dropped_lines
from core.models import ResetReason
from core.process import process_facts
from core.registry import Shard
from core.subscriber import CloseReason, State

PREFIX = "tallywire_"

REFUSALS = (*get_args(StreamLimit), Busy.code)
STARTS = ("new", "resumed", "reset")


class Standing:
    """How streams stand, those of each shard at one moment.

    Whatever was owed to a connection has been delivered, was abandoned when it closed, or is pending; and what is
    pending is known from its marks alone, so that it can contradict what was counted on the way.
    """

    __slots__ = (
        "abandoned",
        "blocked",
        "connections",
        "delivered",
        "lagging",
        "now_ms",
        "oldest_ms",
        "owed",
        "pending",
    )

    def __init__(self, now_ms: int) -> None:
        self.now_ms = self.oldest_ms = now_ms
        self.connections = self.lagging = self.blocked = 0
        self.owed = self.delivered = self.abandoned = self.pending = 0

    def look_at(self, shard: Shard) -> None:
        """Add its streams. One step of the loop: a microsecond or two a stream."""
        self.connections += len(shard.subscribers)
        self.owed += shard.counters.counts_owed
        self.delivered += shard.counters.counts_delivered
        self.abandoned += shard.counters.counts_abandoned
        is_blocked = State.BLOCKED
        for subscriber in shard.subscribers:
            if subscriber.state is is_blocked:
                self.blocked += 1
            counts = subscriber.pending_counts()
            if counts:
                self.lagging += 1
                self.pending += counts
                since_ms = subscriber.unsent_since_ms()
                if since_ms is not None and since_ms < self.oldest_ms:
                    self.oldest_ms = since_ms

    @property
    def unaccounted(self) -> int:
        """Zero, or a mistake of the server: counts that got lost (above), or that were sent twice (below)."""
        return self.owed - self.delivered - self.abandoned - self.pending

    @property
    def oldest_unsent_seconds(self) -> float:
        """How long the oldest batch that is pending has been waiting, at least."""
        return (self.now_ms - self.oldest_ms) / 1000


class Build(Struct, frozen=True):
    """Which server this is."""

    version: str
    http: str
    durability: str
    fan_out: str
    """`c` or `python`: what writes a frame to many streams."""


class Snapshot(Struct, frozen=True):
    """Everything at one moment, to be written in whatever format is asked for."""

    families: tuple[Metric, ...]

    def collect(self) -> Iterable[Metric]:
        """See `prometheus_client.registry.Collector`."""
        return self.families


async def snapshot(hub: Hub, build: Build, tasks: int) -> Snapshot:
    """All metrics, in steps of a millisecond as long as no user has a large part of all streams."""
    standing = Standing(hub.now_ms())
    for shard in hub.registry.shards:
        standing.look_at(shard)
        await hub.slices.breathe()
    return Snapshot(
        (
            InfoMetricFamily(
                PREFIX + "build",
                "Which server this is.",
                structs.asdict(build),
            ),
            *_of_emits(hub),
            *_of_frames(hub),
            *_of_counts(standing),
            *_of_streams(hub, standing),
            *_of_loop(hub, tasks),
            *_of_journal(hub),
            *_of_answers(hub),
            *_of_process(),
        )
    )


def standing_now(hub: Hub) -> Standing:
    """How all streams stand, in one step."""
    standing = Standing(hub.now_ms())
    for shard in hub.registry.shards:
        standing.look_at(shard)
    return standing


def _of_emits(hub: Hub) -> Iterator[Metric]:
    counters = hub.counters
    yield _counters(
        "emits",
        "Batches of emits by what became of them. A call that is refused as a whole before its batches are read is "
        "only in answers_refused.",
        "outcome",
        {
            "accepted": counters.accepted,
            "duplicate": counters.duplicates,
            "skipped": counters.skipped,
            "rejected": counters.rejected,
        },
    )
    yield _counter("emit_calls", "Calls of POST /internal/emit whose body has arrived.", counters.emit_calls)
    yield _gauge("emits_held_bytes", "Bytes of emits that arrive or wait for their commit.", hub.held_bytes)


def _of_frames(hub: Hub) -> Iterator[Metric]:
    streams = [shard.counters for shard in hub.registry.shards]
    yield _counters(
        "frames",
        "Frames written to streams by event; control is any other event, heartbeats included.",
        "event",
        {
            "order_batch_update": sum([each.updates for each in streams]),
            "order_batch_catch_up": sum([each.catch_ups for each in streams]),
            "control": sum([each.controls for each in streams]),
        },
    )
    yield _counter("sent_bytes", "Bytes of these frames.", sum([each.sent_bytes for each in streams]))
    yield _counter(
        "batches_merged",
        "Batches delivered in a frame that carries several.",
        sum([each.batches_merged for each in streams]),
    )


def _of_counts(standing: Standing) -> Iterator[Metric]:
    yield _counter("counts_owed", "Orders that streams were to be told, once for each stream.", standing.owed)
    yield _counter("counts_delivered", "Of these, those whose frame has left to its last byte.", standing.delivered)
    yield _counter(
        "counts_abandoned", "Of these, those that were pending when their stream ended; it resumes.", standing.abandoned
    )
    yield _gauge("counts_pending", "Of these, those not sent yet, by what each stream was last told.", standing.pending)
    yield _gauge(
        "counts_unaccounted",
        "Owed less delivered, abandoned and pending: must be 0 at all times.",
        standing.unaccounted,
    )


def _of_streams(hub: Hub, standing: Standing) -> Iterator[Metric]:
    counters, users = hub.counters, hub.registry.users
    yield _gauge("connections", "Open streams.", standing.connections)
    yield _gauge("max_connections", "Open streams at most.", hub.limits.max_connections)
    yield _gauge("connections_lagging", "Streams that have not been sent everything.", standing.lagging)
    yield _gauge("connections_blocked", "Streams whose client reads nothing now.", standing.blocked)
    yield _gauge(
        "oldest_unsent_seconds",
        "How long the oldest batch that a stream has not been sent has been waiting, at least.",
        standing.oldest_unsent_seconds,
    )
    yield _counters(
        "streams_opened",
        "Streams by how they began.",
        "start",
        {**dict.fromkeys(STARTS, 0), **counters.streams_opened},
    )
    yield _counters(
        "stream_resets",
        "Streams that began with stream_reset, by reason.",
        "reason",
        {**dict.fromkeys(get_args(ResetReason), 0), **counters.resets},
    )
    yield _counters(
        "streams_closed",
        "Streams that have ended, by reason.",
        "reason",
        {**dict.fromkeys(get_args(CloseReason), 0), **hub.closed},
    )
    yield _counters(
        "streams_refused",
        "Streams that were refused for load, by the limit.",
        "reason",
        {**dict.fromkeys(REFUSALS, 0), **hub.refused},
    )
    yield _counter("accepts_delayed", "How often clients had to wait to be accepted.", hub.accepts.delayed)
    yield _gauge("users", "Users with an open stream.", len(users))
    yield _gauge(
        "stream_keys", "Stream keys in memory: all those of these users.", sum([len(user.keys) for user in users])
    )


def _of_loop(hub: Hub, tasks: int) -> Iterator[Metric]:
    yield _gauge(
        "loop_lag_seconds", "How late the loop was at most in the last ten seconds.", hub.lag.recent_max_seconds
    )
    yield _gauge("loop_lag_max_seconds", "How late the loop was at most since the start.", hub.lag.max_seconds)
    yield _gauge("tasks", "Tasks on the loop.", tasks)


def _of_journal(hub: Hub) -> Iterator[Metric]:
    journal = hub.journal
    yield _histogram("journal_commit_seconds", "How long a commit took.", journal.figures.commit_seconds)
    yield _histogram("journal_commit_batches", "Batches that shared a commit.", journal.figures.commit_batches)
    yield _gauge(
        "journal_size_bytes", "Bytes in use in the journal, as keep_bytes limits them.", journal.figures.used_bytes
    )
    yield _gauge("journal_max_bytes", "The most they may be.", journal.figures.max_bytes)
    yield _gauge("journal_waiting", "Calls, loads and deletions that wait for the journal.", journal.waiting)
    yield _gauge("journal_accepting", "1 while emits are accepted, 0 while they are refused.", journal.refusal is None)


def _of_answers(hub: Hub) -> Iterator[Metric]:
    yield _counters(
        "answers_refused",
        "Requests that were answered with a problem, by its code; streams refused for load among them.",
        "code",
        {**{error.code: 0 for error in ERRORS}, **hub.counters.answers_refused},
    )
    yield _counter("log_lines_dropped", "Log lines that nobody read in time.", dropped_lines())


def _of_process() -> Iterator[Metric]:
    """By the names that every process uses."""
    facts = process_facts()
    if facts is None:
        return
    yield CounterMetricFamily("process_cpu_seconds", "CPU time, user and system.", facts.cpu_seconds)
    yield GaugeMetricFamily("process_resident_memory_bytes", "Resident memory.", facts.resident_bytes)
    yield GaugeMetricFamily("process_virtual_memory_bytes", "Virtual memory.", facts.virtual_bytes)
    yield GaugeMetricFamily("process_start_time_seconds", "Unix time of the start.", facts.start_seconds)
    yield GaugeMetricFamily("process_open_fds", "Open descriptors.", facts.open_descriptors)
    yield GaugeMetricFamily("process_max_fds", "Open descriptors at most.", facts.max_descriptors)


def _counter(name: str, meaning: str, value: float) -> Metric:
    return CounterMetricFamily(PREFIX + name, meaning, value)


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, meaning, value)


def _counters(name: str, meaning: str, label: str, values: Mapping[str, int]) -> Metric:
    """Every value that the label can have is there from the start: so the first one is seen as an increase."""
    family = CounterMetricFamily(PREFIX + name, meaning, labels=[label])
    for value, number in values.items():
        family.add_metric([value], number)
    return family


def _histogram(name: str, meaning: str, distribution: Distribution) -> Metric:
    up_to, buckets = 0, []
    for bound, number in zip((*distribution.bounds, "+Inf"), tuple(distribution.counts), strict=True):
        up_to += number
        buckets.append((str(bound), up_to))
    return HistogramMetricFamily(PREFIX + name, meaning, buckets, distribution.total)
