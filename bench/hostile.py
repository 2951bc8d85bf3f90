"""`python -m bench.hostile`: what clients that misbehave do to the others. Ratios, and the memory that they take.

For each kind: a server, and a steady load whose p99 is taken in turns without and with such clients, ROUNDS times. The
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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from bench import report
from bench.dialect import TALLYWIRE
from bench.floor import compiled
from bench.kinds import Contender, tallywire
from bench.machine import Cores, raise_descriptor_limit, split_cores
from bench.rude import KINDS
from bench.server import ROOT, RunningServer
from bench.versus.costs import keys_from
from bench.versus.latency import SENDERS, paced
from bench.versus.session import Session, session

ROUNDS = 5
KEYS = 200
PER_SECOND = 500
SECONDS = 3
SETTLE_SECONDS = 1.0
MOST_RATIO = 1.5
MOST_MIB = 16
"""That a crowd of 200 may take: 64 KiB each, and what the allocator keeps."""


@contextmanager
def _rude(kind: str, server: RunningServer, cores: Cores) -> Iterator[None]:
    """Clients of a kind, for a while."""
    command = [sys.executable, "-m", "bench.rude", kind, str(server.public), str(server.internal)]
    process = subprocess.Popen(command, cwd=ROOT)
    os.sched_setaffinity(process.pid, cores.client)
    time.sleep(SETTLE_SECONDS)
    try:
        yield
        if process.poll() is not None:
            raise RuntimeError(f"{kind} ended with {process.returncode}")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


def _p99_ms(one: Session) -> float:
    one.load(paced(keys_from(1, KEYS), PER_SECOND, SECONDS))
    return one.client.emit(0, SENDERS, is_timed=True).latency.p99_ns / 1e6


def _measure(kind: str, one: Session, cores: Cores) -> tuple[list[float], list[float], list[float], float]:
    """p99 without and with them, in ms, the ratios, and the memory in MiB that they took at most."""
    one.open(keys_from(1, KEYS))
    one.rest()
    _p99_ms(one)
    before = one.server.memory().anonymous
    without, with_them, most = [], [], before
    for _ in range(ROUNDS):
        without.append(_p99_ms(one))
        with _rude(kind, one.server, cores):
            with_them.append(_p99_ms(one))
            most = max(most, one.server.memory().anonymous)
        one.rest()
    ratios = [rude / quiet for rude, quiet in zip(with_them, without, strict=True)]
    return without, with_them, ratios, (most - before) / 2**20


def main() -> int:
    """Ends with 0 when nobody is disturbed beyond MOST_RATIO and MOST_MIB."""
    names = [kind.__name__ for kind in KINDS]
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
        for kind in asked.only.split(","):
            contender = Contender(tallywire("process", "tallywire"), TALLYWIRE)
            with session(contender, client, cores) as one:
                without, with_them, ratios, mib = _measure(kind, one, cores)
            ratio = statistics.median(ratios)
            is_fine = ratio <= MOST_RATIO and mib <= MOST_MIB
            is_undisturbed &= is_fine
            print(
                f"{kind:26}without {report.Spread.of(without)!s:22}with {report.Spread.of(with_them)!s:22}"
                f"ratio {report.Spread.of(ratios)!s:20}{mib:6.1f} MiB  {'ok' if is_fine else 'DISTURBED'}",
                flush=True,
            )
    return 0 if is_undisturbed else 1


if __name__ == "__main__":
    sys.exit(main())
