"""`python -m tests.torture.client_kills`: the Python client emits while the server, or the client itself, is killed.

Under a living client the server is killed and started again; afterwards every batch that was handed over is counted
exactly once, each thread's in its order, and the handles say so. Under a living server (now and then a killed one) the
client is killed, with an outbox; afterwards everything that it was handed before its end is counted exactly once.
"""

import argparse
import contextlib
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tallywire_client import Accepted, Emitter, EmitterOptions, Handle
from tallywire_client._replies import Again, Answered, Reply
from tallywire_client._target import EmitConnection

from tests.e2e.tally import Counts, counted, place, summed
from tests.process import ROOT, ServerProcess, free_port, running_server, wait_until

CLIENT_SOURCE = ROOT / "clients" / "python" / "src"
THREADS = 4
USERS = (1, 2, 3)
STRATEGIES = (1, 2)
ORDER_TYPES = ("LIMIT", "MARKET", "STOP_LIMIT")
PAUSE_SECONDS = 0.03
"""Between two emits of a thread at most: servers are away for most of the time, and have to make up for it."""
LIFE_SECONDS = 0.3
"""A server is killed after so long at most."""
ANSWER_SECONDS = 60

OPTIONS = EmitterOptions(
    call_timeout_seconds=2.0,
    first_backoff_seconds=0.005,
    max_backoff_seconds=0.1,
    max_call_batches=20,
    # Few: with an outbox most of what comes while the server is away goes to disk and back.
    max_queue_batches=50,
)
ROOMY = EmitterOptions(
    call_timeout_seconds=2.0, first_backoff_seconds=0.005, max_backoff_seconds=0.1, max_queue_batches=10**6
)
"""Everything fits into memory, however long the servers take to start."""


@dataclass
class Report:
    """What came of a run. Nothing in `faults`: everything was exact."""

    kills: int = 0
    emitted: int = 0
    duplicates: int = 0
    repeated_calls: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)

    def expect(self, holds: bool, fault: str) -> None:
        """Note a fault unless it holds."""
        if not holds:
            self.faults.append(fault)


@dataclass(frozen=True)
class _Emitted:
    user_id: int
    strategy_id: int
    counts: Counts
    handle: Handle


class _Caller:
    """A thread of an order service that emits until it is told to stop."""

    def __init__(self, emitter: Emitter, seed: int) -> None:
        self.emitted: list[_Emitted] = []
        self._emitter = emitter
        self._dice = random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._dice.random() * PAUSE_SECONDS):
            user_id, strategy_id = self._dice.choice(USERS), self._dice.choice(STRATEGIES)
            results: list[dict[str, object]] = [
                {
                    "success": True,
                    "order_type": self._dice.choice(ORDER_TYPES),
                    "event_type": self._dice.choice(("order_created", "order_cancelled")),
                }
                for _ in range(self._dice.randint(1, 5))
            ]
            handle = self._emitter.emit_order_batch_update(user_id, strategy_id, results)
            self.emitted.append(_Emitted(user_id, strategy_id, counted(strategy_id, results), handle))


def kill_servers(directory: Path, kills: int, seed: int, *, outbox: bool) -> Report:
    """Kill the server so often under four threads that emit through one client."""
    report, dice, began = Report(), random.Random(seed), time.monotonic()
    port = free_port()
    folder = directory / "outbox" if outbox else None
    emitter = Emitter(f"http://127.0.0.1:{port}", outbox=folder, options=OPTIONS if outbox else ROOMY)
    callers = [_Caller(emitter, seed + number) for number in range(THREADS)]
    try:
        for _ in range(kills):
            with _server(directory, port) as server:
                time.sleep(dice.random() * LIFE_SECONDS)
                server.process.kill()
                report.kills += 1
    finally:
        for caller in callers:
            caller.stop()
    with _server(directory, port) as server:
        _judge_handles(report, callers)
        _judge_totals(report, callers, server)
        statistics = emitter.statistics()
        emitter.close()
    report.duplicates, report.repeated_calls = statistics.duplicates, statistics.repeated_calls
    report.seconds = time.monotonic() - began
    report.expect(folder is None or not any(folder.iterdir()), "something is left in the outbox")
    return report


def _judge_handles(report: Report, callers: list[_Caller]) -> None:
    for caller in callers:
        last: Counter[int] = Counter()
        for emitted in caller.emitted:
            report.emitted += 1
            result = emitted.handle.result(ANSWER_SECONDS)
            if not isinstance(result, Accepted):
                report.faults.append(f"not accepted: {result}")
                continue
            summaries = [
                {"order_type": s.order_type, "created": s.created, "cancelled": s.cancelled} for s in result.summaries
            ]
            report.expect(summed(emitted.strategy_id, summaries) == emitted.counts, f"other counts: {result}")
            n = place(result.position)
            report.expect(n > last[emitted.user_id], f"out of order: {result}")
            last[emitted.user_id] = n


def _judge_totals(report: Report, callers: list[_Caller], server: ServerProcess) -> None:
    expected: dict[tuple[int, int], Counts] = {(user, strategy): Counter() for user in USERS for strategy in STRATEGIES}
    for caller in callers:
        for emitted in caller.emitted:
            expected[emitted.user_id, emitted.strategy_id].update(emitted.counts)
    for (user, strategy), counts in expected.items():
        totals = summed(strategy, server.get(f"/internal/keys/{user}/{strategy}")["totals"]) if counts else Counter()
        report.expect(totals == counts, f"user {user} strategy {strategy}: {totals} and not {counts}")


@contextmanager
def _server(directory: Path, port: int) -> Iterator[ServerProcess]:
    with running_server(f"--journal={directory / 'tallywire.db'}", internal_port=port) as server:
        yield server


ORDER_SERVICE = """
import sys, time
from tallywire_client import Emitter, EmitterOptions

url, folder, life = sys.argv[1:]
options = EmitterOptions(
    call_timeout_seconds=2, first_backoff_seconds=0.005, max_backoff_seconds=0.1, max_call_batches=20,
    max_queue_batches=50,
)
emitter = Emitter(url, outbox=folder, options=options)
for number in range(100_000):
    key = f"{life}-{number}"
    results = [{"success": True, "order_type": "LIMIT", "event_type": "order_created"}] * (1 + number % 3)
    print(key, len(results), flush=True)
    emitter.emit_order_batch_update(7, 3, results, idempotency_key=key)
    print(key, "handed", flush=True)
    time.sleep(0.001)
"""


def kill_clients(directory: Path, kills: int, seed: int) -> Report:
    """Kill so many clients, one after the other, that share an outbox; the last one sends what is left."""
    report, dice, began = Report(), random.Random(seed), time.monotonic()
    port, folder = free_port(), directory / "outbox"
    url = f"http://127.0.0.1:{port}"
    sizes: dict[str, int] = {}
    handed: set[str] = set()
    for life in range(kills):
        # Now and then there is no server, or one that is killed too.
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(_server(directory, port)) if dice.random() < 0.7 else None
            lines = _life(directory, url, folder, life, dice, server)
        report.kills += 1
        for line in lines:
            key, what = line.split()
            if what == "handed":
                handed.add(key)
            else:
                sizes[key] = int(what)
    with _server(directory, port) as server:
        emitter = Emitter(url, outbox=folder, options=OPTIONS)
        wait_until(lambda: not [each for each in folder.iterdir() if each != _own(emitter)], "the outbox is empty", 60)
        emitter.close()
        _judge_keys(report, server, sizes, handed)
    report.seconds = time.monotonic() - began
    return report


def _own(emitter: Emitter) -> Path | None:
    outbox = emitter._engine._work.outbox
    return None if outbox is None else outbox.folder


def _life(
    directory: Path, url: str, folder: Path, life: int, dice: random.Random, server: ServerProcess | None
) -> list[str]:
    """Run a client and kill it; answers the whole lines that it printed."""
    output = directory / f"life-{life}"
    command = [sys.executable, "-c", ORDER_SERVICE, url, str(folder), f"life-{life}"]
    environment = os.environ | {"PYTHONPATH": str(CLIENT_SOURCE)}
    with output.open("wb") as stdout:
        process = subprocess.Popen(command, stdout=stdout, stderr=subprocess.DEVNULL, env=environment)
    try:
        wait_until(lambda: output.stat().st_size > 0, "the client emits")
        time.sleep(dice.random() * LIFE_SECONDS)
        if server is not None and dice.random() < 0.5:
            server.process.kill()
            time.sleep(dice.random() * LIFE_SECONDS / 3)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    content = output.read_text()
    return content[: content.rfind("\n") + 1].splitlines()


def _judge_keys(report: Report, server: ServerProcess, sizes: dict[str, int], handed: set[str]) -> None:
    report.emitted = len(handed)
    there = {key for key in sizes if server.get(f"/internal/batches?idempotency_key={key}")["batches"]}
    missing = sorted(handed - there)
    report.expect(not missing, f"{len(missing)} were handed over and not counted: {missing[:10]}")
    totals = summed(3, server.get("/internal/keys/7/3")["totals"]) if there else Counter()
    expected = sum(sizes[key] for key in there)
    report.expect(totals.total() == expected, f"{totals} are counted, and not {expected}")


# ---- mistakes, planted to see that they are found


def _with_new_keys(post: Callable[..., Reply]) -> Callable[..., Reply]:
    def wrong(self: object, body: bytes, keys: list[str], seconds: float) -> Reply:
        def fresh(_: "re.Match[bytes]") -> bytes:
            return b'"idempotency_key":"%s"' % uuid.uuid4().hex.encode()

        return post(self, re.sub(rb'"idempotency_key":"[^"]*"', fresh, body), keys, seconds)

    return wrong


def _giving_up(post: Callable[..., Reply]) -> Callable[..., Reply]:
    def wrong(self: object, body: bytes, keys: list[str], seconds: float) -> Reply:
        reply = post(self, body, keys, seconds)
        if isinstance(reply, Again):
            return Answered([Accepted("e-1", (), 0, False, 0, (), key) for key in keys])
        return reply

    return wrong


MISTAKES: dict[str, Callable[[Callable[..., Reply]], Callable[..., Reply]]] = {
    "new-keys": _with_new_keys,
    "giving-up": _giving_up,
}


@contextmanager
def planted(mistake: str) -> Iterator[None]:
    """A client of this process with a mistake; with none of that name it is as it should be."""
    real = EmitConnection.post
    if mistake:
        EmitConnection.post = MISTAKES[mistake](real)  # type: ignore[method-assign]
    try:
        yield
    finally:
        EmitConnection.post = real  # type: ignore[method-assign]


def main() -> int:
    """Ends with 0 when everything was exact."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture.client_kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--mistake", default="", choices=["", *MISTAKES])
    parser.add_argument("--only", default="", help="a part of the name of the runs")
    asked = parser.parse_args()
    logging.getLogger("tallywire_client").setLevel(logging.CRITICAL)
    print(f"{asked.kills} kills each, seed {asked.seed}", flush=True)
    runs: dict[str, Callable[[Path], Report]] = {
        "server killed, no outbox": lambda folder: kill_servers(folder, asked.kills, asked.seed, outbox=False),
        "server killed, outbox": lambda folder: kill_servers(folder, asked.kills, asked.seed, outbox=True),
        "client killed, outbox": lambda folder: kill_clients(folder, asked.kills, asked.seed),
    }
    faults = 0
    for name, run in runs.items():
        if asked.only not in name:
            continue
        with tempfile.TemporaryDirectory(prefix="tallywire-client-") as directory, planted(asked.mistake):
            report = run(Path(directory))
        faults += len(report.faults)
        print(
            f"{name}: {report.kills} kills, {report.emitted} batches handed over, {report.repeated_calls} calls "
            f"repeated, {report.duplicates} duplicates, {report.seconds:.0f} s: "
            f"{'exact' if not report.faults else json.dumps(report.faults[:5], default=str)}",
            flush=True,
        )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
