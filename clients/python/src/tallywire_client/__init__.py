"""Tallywire for Python programs: emit order batches without endangering orders, read streams with exact counts."""

from tallywire_client._engine import EmitterOptions, EmitterStatistics
from tallywire_client.emitter import AsyncEmitter, Emitter, configure, emit_order_batch_update, from_environment
from tallywire_client.events import (
    CatchUp,
    Closing,
    Event,
    Expiring,
    HourlySummary,
    Opened,
    Reset,
    Update,
)
from tallywire_client.handle import Handle
from tallywire_client.outbox import OutboxOptions, Reported
from tallywire_client.results import (
    Accepted,
    FieldProblem,
    Problem,
    Rejected,
    Result,
    Skipped,
    Summary,
    Unknown,
)
from tallywire_client.stream import Stream, StreamRefusedError, stream

__all__ = [
    "Accepted",
    "AsyncEmitter",
    "CatchUp",
    "Closing",
    "Emitter",
    "EmitterOptions",
    "EmitterStatistics",
    "Event",
    "Expiring",
    "FieldProblem",
    "Handle",
    "HourlySummary",
    "Opened",
    "OutboxOptions",
    "Problem",
    "Rejected",
    "Reported",
    "Reset",
    "Result",
    "Skipped",
    "Stream",
    "StreamRefusedError",
    "Summary",
    "Unknown",
    "Update",
    "configure",
    "emit_order_batch_update",
    "from_environment",
    "stream",
]
