"""`python -m bench.quick`: a few ratios of costs, against those recorded; 1 when one is a quarter worse.

Ratios only, each of two things measured next to each other in one run: times drift with the machine, and with
whatever else it does. What is compared is CPU (and memory), never time on the wall. A ratio that seems worse is
measured again, up to MEASUREMENTS times, and the best counts: noise makes one measurement bad, a slower server all.

It needs no peer that is not a dependency anyway, and no load client but Python's.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from bench.floor import compiled, compiler
from bench.kinds import PLAIN, tallywire
from bench.load import LoadClient, LoadError, StreamKey
from bench.machine import Cores, EndedEarly, bound_the_run, raise_descriptor_limit, split_cores
from bench.server import ROOT, ServerError, ServerKind, running
from bench.workloads import BATCHES_PER_CALL, CALLS_IN_FLIGHT, IN_FLIGHT, Bench, memory_growth

RUN_SECONDS = 300
DESCRIPTORS = 12_000
RECORDED = ROOT / "bench" / "recorded.json"
WORSE = 1.25
MEASUREMENTS = 3
ROUNDS = 7

FEW = StreamKey(1, 1)
FEW_STREAMS = 1_000
MANY = StreamKey(2, 1)
MANY_STREAMS = 4_000
FRAMES = 12_000
SINGLES = [StreamKey(user, 1) for user in range(1_000, 1_400)]
BUNDLED = [StreamKey(user, 1) for user in range(1_000, 2_500)]
CONNECTS = 200
IDLE_STREAMS = [StreamKey(user, 1) for user in range(1_000, 5_000)]
LOOK_SECONDS = 0.2

Probe = Callable[[], float]
"""Does something and gives what a piece of it cost the server."""


class Recorded(msgspec.Struct, frozen=True):
    """A ratio on the day it was recorded."""

    name: str
    ratio: float


@dataclass(frozen=True, slots=True)
class Ratio:
    """Two costs, the first through the second: less is better. One round for what hardly varies."""

    name: str
    above: Probe
    below: Probe
    rounds: int = ROUNDS

    def measured(self) -> float:
        """The median of the rounds' ratios."""
        if self.rounds > 1:  # the first warms caches and code, and does not count
            self.above()
            self.below()
        return statistics.median(self.above() / self.below() for _ in range(self.rounds))


def main() -> int:
    """Measures, prints and judges; 1 if a ratio is worse or a server spoilt the run."""
    parser = argparse.ArgumentParser(prog="python -m bench.quick", description="Ratios, against those recorded.")
    parser.add_argument("--record", action="store_true", help=f"rewrite {RECORDED.relative_to(ROOT)}")
    is_recording = bool(parser.parse_args().record)
    before = _read()
    bound_the_run(RUN_SECONDS)
    try:
        raise_descriptor_limit(DESCRIPTORS)
        measured = _measure([] if is_recording else before)
    except (EndedEarly, LoadError, ServerError, OSError, subprocess.TimeoutExpired) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    if is_recording:
        _write(before, measured)
        return 0
    worse = [each.name for each in measured if _is_worse(each.ratio, _recorded(before, each.name))]
    for name in worse:
        print(f"bench: more than {WORSE - 1:.0%} worse than recorded: {name}", file=sys.stderr)
    return 1 if worse else 0


def _measure(before: list[Recorded]) -> list[Recorded]:
    cores = split_cores()
    os.sched_setaffinity(0, cores.client)
    with TemporaryDirectory(prefix="tallywire-bench-") as directory, _ratios(cores, Path(directory)) as ratios:
        return [_judged(ratio, _recorded(before, ratio.name)) for ratio in ratios]


def _judged(ratio: Ratio, recorded: float | None) -> Recorded:
    """Measures, again while it seems worse, and prints the best."""
    best = ratio.measured()
    for _ in range(MEASUREMENTS - 1):
        if _is_worse(best, recorded):
            best = min(best, ratio.measured())
    against = "not recorded" if recorded is None else f"recorded {recorded:.3f}"
    verdict = "" if recorded is None else "  worse" if _is_worse(best, recorded) else "  ok"
    print(f"{ratio.name:<72} {best:6.3f}   {against}{verdict}", flush=True)
    return Recorded(ratio.name, best)


@contextmanager
def _ratios(cores: Cores, directory: Path) -> Iterator[list[Ratio]]:
    """The ratios, of servers that run meanwhile."""
    quiet, durable = tallywire("none", "none"), tallywire("power", "power")
    with _bench(quiet, cores) as none, _bench(durable, cores) as power, _bench(PLAIN, cores) as plain:
        for bench in (none, plain):
            bench.client.open_streams([FEW] * FEW_STREAMS)
        none.client.open_streams([MANY] * MANY_STREAMS)
        ratios = [
            Ratio("frame, 1,000 connections: Tallywire : plain Tornado", _frames(none), _frames(plain)),
            Ratio("frame, Tallywire: 4,000 : 1,000 connections", _frames(none, MANY, MANY_STREAMS), _frames(none)),
            Ratio("single emit: Tallywire : plain Tornado", _emits(none), _emits(plain)),
            Ratio("emit, Tallywire: in calls of 30 : single", _calls(none), _emits(none)),
            Ratio("emit in calls of 30, Tallywire: power : none", _calls(power), _calls(none)),
            Ratio("connect: Tallywire : plain Tornado", _connects(none), _connects(plain)),
            Ratio(
                "memory of an idle connection: Tallywire : plain Tornado",
                _memory(quiet, cores),
                _memory(PLAIN, cores),
                rounds=1,
            ),
        ]
        if compiler() is None:
            print("frame, 1,000 connections: Tallywire : floor   skipped: no C compiler")
            yield ratios
            return
        with _bench(ServerKind("floor", (), compiled("server", directory)), cores) as floor:
            floor.client.open_streams([FEW] * FEW_STREAMS)
            yield [Ratio("frame, 1,000 connections: Tallywire : floor", _frames(none), _frames(floor)), *ratios]


@contextmanager
def _bench(kind: ServerKind, cores: Cores) -> Iterator[Bench]:
    with running(kind, cores.server) as server, LoadClient(server.public, server.internal) as client:
        yield Bench(server, client)


def _frames(bench: Bench, key: StreamKey = FEW, streams: int = FEW_STREAMS) -> Probe:
    """CPU a frame; each emit waits for the last frame of the one before."""
    call = bench.call([key])

    def emit_each() -> None:
        for _ in range(FRAMES // streams):
            bench.client.emit([call], in_flight=1)

    return lambda: bench.measure(emit_each).server_cpu_ns / FRAMES


def _emits(bench: Bench) -> Probe:
    """CPU an emit to keys without connections."""
    calls = [bench.call([key]) for key in SINGLES]
    return lambda: bench.measure(lambda: bench.client.emit(calls, IN_FLIGHT)).server_cpu_ns / len(SINGLES)


def _calls(bench: Bench) -> Probe:
    """CPU an emit of a call of many."""
    calls = [bench.call(BUNDLED[at : at + BATCHES_PER_CALL]) for at in range(0, len(BUNDLED), BATCHES_PER_CALL)]
    return lambda: bench.measure(lambda: bench.client.emit(calls, CALLS_IN_FLIGHT)).server_cpu_ns / len(BUNDLED)


def _connects(bench: Bench) -> Probe:
    """CPU a new stream, each of a user who is new to the server."""
    users = count(10_000)

    def connect() -> float:
        with LoadClient(bench.server.public, bench.server.internal) as client:
            keys = [StreamKey(user, 1) for user in islice(users, CONNECTS)]
            cost = Bench(bench.server, client).measure(lambda: client.open_streams(keys))
        bench.rest()
        return cost.server_cpu_ns / CONNECTS

    return connect


def _memory(kind: ServerKind, cores: Cores) -> Probe:
    """Resident memory that an idle connection adds to a fresh server, a key each."""
    return lambda: memory_growth(kind, cores.server, IDLE_STREAMS, LOOK_SECONDS).rss / len(IDLE_STREAMS)


def _recorded(before: Iterable[Recorded], name: str) -> float | None:
    return next((each.ratio for each in before if each.name == name), None)


def _is_worse(ratio: float, recorded: float | None) -> bool:
    return recorded is not None and ratio > WORSE * recorded


def _read() -> list[Recorded]:
    if not RECORDED.exists():
        return []
    return msgspec.json.decode(RECORDED.read_bytes(), type=list[Recorded])


def _write(before: list[Recorded], measured: list[Recorded]) -> None:
    """Writes what was measured; what could not be measured here keeps its old ratio."""
    kept = [each for each in before if _recorded(measured, each.name) is None]
    rounded = [Recorded(each.name, round(each.ratio, 3)) for each in measured]
    RECORDED.write_bytes(msgspec.json.format(msgspec.json.encode([*rounded, *kept]), indent=2) + b"\n")


if __name__ == "__main__":
    sys.exit(main())
