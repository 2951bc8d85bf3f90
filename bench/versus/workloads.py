"""The table of workloads of the side-by-side run."""

from __future__ import annotations

from bench.versus import costs, day, latency, standing
from bench.versus.figures import Workload

WORKLOADS = (
    Workload(
        "fanout",
        lambda s: f"{s.fanout_connections:,} connections on one key, {s.fanout_emits} emits one after the other",
        costs.fanout,
        rounds=5,
    ),
    Workload(
        "singles",
        lambda s: f"{s.keys:,} keys with one connection each, {s.singles:,} single emits, 16 in flight",
        costs.singles,
        rounds=5,
    ),
    Workload(
        "calls",
        lambda s: f"{s.keys:,} keys with one connection each, {s.batches_in_calls:,} batches in calls of many",
        costs.calls,
        rounds=5,
    ),
    Workload("memory", lambda _: "idle connections on one key", standing.memory_one_key, rounds=1),
    Workload("memory-keys", lambda _: "idle connections with a key each", standing.memory_key_each, rounds=1),
    Workload(
        "storm",
        lambda s: f"{s.storm_clients:,} clients with a key each connect at once",
        standing.connect_storm,
        rounds=3,
    ),
    Workload(
        "resume",
        lambda s: f"{s.storm_clients:,} clients with a key each come back at once over {s.storm_missed} missed batches",
        standing.resume_storm,
        rounds=3,
        leaves_out=standing.cannot_resume,
    ),
    Workload(
        "latency",
        lambda s: (
            f"{s.latency_per_second:,} emits a second for {s.latency_seconds} s over {s.latency_keys:,} keys "
            "with one connection each"
        ),
        latency.steady,
        rounds=3,
    ),
    Workload(
        "day",
        lambda s: (
            f"the busiest {s.day_minutes} minutes of a real day at {day.SPEED} times their speed, "
            f"{s.day_listeners} listeners on each of four strategies"
        ),
        day.replay,
        rounds=3,
        needs=day.DAY,
    ),
    Workload(
        "neighbour",
        lambda s: (
            f"a key with {s.neighbour_connections:,} connections emitted to back to back, and one with a single "
            f"connection {s.neighbour_per_second} times a second for {s.neighbour_seconds} s"
        ),
        latency.neighbour,
        rounds=3,
    ),
    Workload("scaling", lambda _: "connections on one key", costs.scaling_connections, rounds=3),
    Workload(
        "scaling-keys",
        lambda s: (
            f"keys that were emitted to; {s.scaling_emits:,} emits to them in no order, and frames to "
            f"{costs.SCALING_LISTENERS:,} connections on another"
        ),
        costs.scaling_keys,
        rounds=3,
    ),
)
