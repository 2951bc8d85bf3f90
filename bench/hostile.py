"""`python -m bench.hostile`: what clients that misbehave, and other faults, do to the others. Ratios, and memory.

For each kind: a server, and a steady load whose p99 is taken in turns without and with the fault, ROUNDS times. The
ratio is that of two neighbours in time, and its median counts.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from bench import report
from bench.dialect import TALLYWIRE
from bench.floor import compiled
from bench.kinds import Contender, tallywire
from bench.machine import Cores, raise_descriptor_limit, split_cores
from bench.rude import KINDS
from bench.server import ROOT
from bench.versus.costs import keys_from
from bench.versus.latency import SENDERS, paced
from bench.versus.session import Session, session

ROUNDS = 5
KEYS = 200
PER_SECOND = 500
SECONDS = 3
SETTLE_SECONDS = 1.0
FROZEN_SECONDS = 1.0
MOST_RATIO = 1.5
MOST_MIB = 16
"""That a crowd of 200 may take: 64 KiB each, and what the allocator keeps."""

LOGGED: tuple[str, ...] = ()
"""Flags of a server that logs as it does by default."""

Fault = Callable[[Session], AbstractContextManager[None]]


@contextmanager
def _rude(kind: str, one: Session) -> Iterator[None]:
    """Clients of a kind, for a while, on the core of the load.

    They run when the load has nothing to do there: what is measured is the server, not a quarrel of its clients.
    """
    command = [sys.executable, "-m", "bench.rude", kind, str(one.server.public), str(one.server.internal)]
    process = subprocess.Popen(command, cwd=ROOT)
    os.sched_setaffinity(process.pid, split_cores().client)
    os.sched_setscheduler(process.pid, os.SCHED_IDLE, os.sched_param(0))
    time.sleep(SETTLE_SECONDS)
    try:
        yield
        if process.poll() is not None:
            raise RuntimeError(f"{kind} ended with {process.returncode}")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


@contextmanager
def _frozen_server(one: Session) -> Iterator[None]:
    """The server has stood still, and goes on."""
    with _stopped(one.server.pid):
        time.sleep(FROZEN_SECONDS)
    yield


@contextmanager
def _stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def _log_reader() -> Iterator[tuple[int, int]]:
    """A program that reads a server's log: the end to write into, and its pid."""
    reading, writing = os.pipe()
    reader = subprocess.Popen(["cat"], stdin=reading, stdout=subprocess.DEVNULL)
    os.close(reading)
    os.sched_setaffinity(reader.pid, split_cores().client)
    try:
        yield writing, reader.pid
    finally:
        os.close(writing)
        reader.wait(10)


def _p99_ms(one: Session) -> float:
    one.load(paced(keys_from(1, KEYS), PER_SECOND, SECONDS))
    return one.client.emit(0, SENDERS, is_timed=True).latency.p99_ns / 1e6


def _measure(one: Session, fault: Fault) -> tuple[list[float], list[float], list[float], float]:
    """p99 without and with it, in ms, the ratios, and the memory in MiB that it took at most."""
    one.open(keys_from(1, KEYS))
    one.rest()
    _p99_ms(one)
    before = one.server.memory().anonymous
    without, with_it, most = [], [], before
    for _ in range(ROUNDS):
        without.append(_p99_ms(one))
        with fault(one):
            with_it.append(_p99_ms(one))
            most = max(most, one.server.memory().anonymous)
        one.rest()
    ratios = [faulty / quiet for faulty, quiet in zip(with_it, without, strict=True)]
    return without, with_it, ratios, (most - before) / 2**20


@contextmanager
def _faulty(name: str, client: Path, cores: Cores) -> Iterator[tuple[Session, Fault]]:
    """A server under load, and what to do to it."""
    if name != "blocked_log":
        with session(Contender(tallywire("process", "tallywire"), TALLYWIRE), client, cores) as one:
            yield one, _frozen_server if name == "frozen_server" else partial(_rude, name)
        return
    contender = Contender(tallywire("process", "tallywire", LOGGED), TALLYWIRE)
    with _log_reader() as (log_pipe, reader), session(contender, client, cores, log_pipe) as one:
        yield one, lambda _: _stopped(reader)


def main() -> int:
    """Ends with 0 when nobody is disturbed beyond MOST_RATIO and MOST_MIB."""
    names = [*(kind.__name__ for kind in KINDS), "frozen_server", "blocked_log"]
    parser = argparse.ArgumentParser(prog="python -m bench.hostile", description=__doc__)
    parser.add_argument("--only", default=",".join(names), help=f"some of {', '.join(names)}")
    asked = parser.parse_args()
    cores = split_cores()
    raise_descriptor_limit(4096)
    print(report.machine(cores.server, cores.client))
    print(f"{PER_SECOND} emits a second over {KEYS} keys for {SECONDS} s, {ROUNDS} rounds; p99 in ms")
    is_undisturbed = True
    with TemporaryDirectory(prefix="tallywire-bench-") as directory:
        client = compiled("client", Path(directory))
        for name in asked.only.split(","):
            with _faulty(name, client, cores) as (one, fault):
                without, with_it, ratios, mib = _measure(one, fault)
            ratio = statistics.median(ratios)
            is_fine = ratio <= MOST_RATIO and mib <= MOST_MIB
            is_undisturbed &= is_fine
            print(
                f"{name:26}without {report.Spread.of(without)!s:22}with {report.Spread.of(with_it)!s:22}"
                f"ratio {report.Spread.of(ratios)!s:20}{mib:6.1f} MiB  {'ok' if is_fine else 'DISTURBED'}",
                flush=True,
            )
    return 0 if is_undisturbed else 1


if __name__ == "__main__":
    sys.exit(main())
