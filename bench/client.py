"""`python -m bench.client`: emits a second of one order-service process, with and without gathering, side by side.

Each way of emitting keeps 64 emits waiting for their answers, from threads or from tasks, against one real server on
another core. Rounds take turns, so that what else the machine does meets all of them alike.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import resource
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx2
from tallywire_client import Accepted, AsyncEmitter, Emitter, EmitterOptions

from bench.kinds import tallywire
from bench.machine import bound_the_run, split_cores
from bench.server import running

AT_ONCE = 64
ROUND_SECONDS = 2.0
RUN_SECONDS = 1800
RESULTS = [
    {"success": True, "order_type": ("LIMIT", "MARKET", "STOP_LIMIT")[number % 3], "event_type": "order_created"}
    for number in range(9)
] + [{"success": False}]
ONE_A_CALL = EmitterOptions(max_call_batches=1, linger_seconds=0)


@dataclass(frozen=True)
class Figure:
    """One round."""

    per_second: float
    cpu_us: float
    """CPU of this process an emit."""


def in_threads(emit: Callable[[int], object]) -> Figure:
    """64 threads, each with one emit at a time."""
    counts = [0] * AT_ONCE
    until = time.perf_counter() + ROUND_SECONDS

    def run(number: int) -> None:
        while time.perf_counter() < until:
            emit(number)
            counts[number] += 1

    return _measured(lambda: _run_threads([threading.Thread(target=run, args=(n,)) for n in range(AT_ONCE)]), counts)


def _run_threads(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _measured(work: Callable[[], None], counts: list[int]) -> Figure:
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    work()
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Figure(sum(counts) / seconds, cpu / sum(counts) * 1e6)


def _batch(number: int) -> dict[str, object]:
    return {"user_id": number + 1, "strategy_id": 1, "batch_results": RESULTS}


def plain_threads(url: str) -> Figure:
    """A call each, on kept connections of one httpx2 client."""
    limits = httpx2.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE)
    with httpx2.Client(limits=limits, trust_env=False) as client:

        def emit(number: int) -> None:
            client.post(f"{url}/internal/emit", json=_batch(number)).raise_for_status().json()

        return in_threads(emit)


def emitter_threads(url: str, options: EmitterOptions) -> Figure:
    """Through an emitter, waiting for each result."""
    with Emitter(url, options=options) as emitter:

        def emit(number: int) -> None:
            result = emitter.emit_order_batch_update(number + 1, 1, RESULTS).result(30)
            if not isinstance(result, Accepted):
                raise TypeError(result)

        return in_threads(emit)


async def _in_tasks(emit: Callable[[int], object]) -> Figure:
    counts = [0] * AT_ONCE
    until = time.perf_counter() + ROUND_SECONDS

    async def run(number: int) -> None:
        while time.perf_counter() < until:
            await emit(number)  # type: ignore[misc]  # each caller below gives an awaitable
            counts[number] += 1

    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    await asyncio.gather(*map(run, range(AT_ONCE)))
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Figure(sum(counts) / seconds, cpu / sum(counts) * 1e6)


async def plain_tasks(url: str) -> Figure:
    """A call each, on kept connections of one httpx2 client."""
    limits = httpx2.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE)
    async with httpx2.AsyncClient(limits=limits, trust_env=False) as client:

        async def emit(number: int) -> None:
            (await client.post(f"{url}/internal/emit", json=_batch(number))).raise_for_status().json()

        return await _in_tasks(emit)


async def emitter_tasks(url: str, options: EmitterOptions) -> Figure:
    """Through an emitter, waiting for each result."""
    async with AsyncEmitter(url, options=options) as emitter:

        async def emit(number: int) -> None:
            result = await emitter.emit_order_batch_update(number + 1, 1, RESULTS).wait(30)
            if not isinstance(result, Accepted):
                raise TypeError(result)

        return await _in_tasks(emit)


GATHERED = EmitterOptions()
WAYS: dict[str, Callable[[str], Figure]] = {
    "threads, httpx2, a call each": plain_threads,
    "threads, emitter, one batch a call": lambda url: emitter_threads(url, ONE_A_CALL),
    "threads, emitter, gathering": lambda url: emitter_threads(url, GATHERED),
    "tasks, httpx2, a call each": lambda url: asyncio.run(plain_tasks(url)),
    "tasks, emitter, one batch a call": lambda url: asyncio.run(emitter_tasks(url, ONE_A_CALL)),
    "tasks, emitter, gathering": lambda url: asyncio.run(emitter_tasks(url, GATHERED)),
}


def main() -> int:
    """Prints a table; ends with 1 when gathering is not four times the better way without."""
    parser = argparse.ArgumentParser(prog="python -m bench.client", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--durability", default="power", choices=["power", "process", "none"])
    asked = parser.parse_args()
    bound_the_run(RUN_SECONDS)
    cores = split_cores()
    os.sched_setaffinity(0, cores.client)
    figures: dict[str, list[Figure]] = {name: [] for name in WAYS}
    with running(tallywire(asked.durability, "tallywire"), cores.server) as server:
        for _ in range(asked.rounds):
            for name, way in WAYS.items():
                figures[name].append(way(f"http://{server.internal}"))
    print(
        f"{asked.rounds} rounds of {ROUND_SECONDS:.0f} s, durability {asked.durability}, {os.cpu_count()} cores, "
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}\n"
    )
    print(f"| {AT_ONCE} at once | emits/s, median (least to most) | CPU of the process an emit |\n|---|---|---|")
    for name, rounds in figures.items():
        speeds = [round_.per_second for round_ in rounds]
        cpu = statistics.median(round_.cpu_us for round_ in rounds)
        spread = f"{min(speeds):,.0f} to {max(speeds):,.0f}"
        print(f"| {name} | {statistics.median(speeds):,.0f} ({spread}) | {cpu:,.0f} µs |")
    worst = min(_ratio(figures, kind) for kind in ("threads", "tasks"))
    return 0 if worst >= 4 else 1


def _ratio(figures: dict[str, list[Figure]], kind: str) -> float:
    """Gathering against the better of the ways without, by their medians."""
    median = {
        name: statistics.median(round_.per_second for round_ in rounds)
        for name, rounds in figures.items()
        if name.startswith(kind)
    }
    gathering = median.pop(f"{kind}, emitter, gathering")
    ratio = gathering / max(median.values())
    print(f"\n{kind}: gathering is {ratio:.1f} times the better of the others")
    return ratio


if __name__ == "__main__":
    sys.exit(main())
