"""`python -m bench.scrape`: what a scrape costs the loop, with many streams of a user and a stream key each.

CPU of the loop's thread for one `GET /metrics`, beside that of a health check asked in the same way: first with
everything sent, then with every stream behind, which a coalescing window holds open meanwhile.
"""

from __future__ import annotations

import argparse
import http.client
import statistics
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from bench import report
from bench.dialect import TALLYWIRE
from bench.floor import compiled
from bench.kinds import Contender, tallywire
from bench.machine import raise_descriptor_limit, split_cores
from bench.server import RunningServer
from bench.versus.costs import keys_from
from bench.versus.session import Session, session

STREAMS = 10_000
SCRAPES = 30
WINDOW_SECONDS = 60
"""In which streams are left behind on purpose: longer than the scrapes take."""


def _loop_ns(server: RunningServer) -> int:
    """CPU time of the thread with the loop: see proc_pid_schedstat in the kernel's sched-stats.rst."""
    return int(Path(f"/proc/{server.pid}/task/{server.pid}/schedstat").read_text().split()[0])


def _costs(server: RunningServer, path: str) -> Iterator[float]:
    """Milliseconds of the loop for each of SCRAPES answers."""
    connection = http.client.HTTPConnection(server.internal.host, server.internal.port, timeout=30)
    for _ in range(SCRAPES):
        before = _loop_ns(server)
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        if answer.status != http.client.OK:
            raise RuntimeError(f"{path} answers {answer.status}")
        yield (_loop_ns(server) - before) / 1e6
    connection.close()


def _print_costs(name: str, one: Session) -> None:
    for path in ("/metrics", "/healthz/live"):
        costs = list(_costs(one.server, path))
        spread = f"{statistics.median(costs):.2f} ({min(costs):.2f} - {max(costs):.2f})"
        print(f"{name:20}{path:16}{spread:>28} ms of the loop", flush=True)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(prog="python -m bench.scrape", description=__doc__)
    parser.add_argument("--streams", type=int, default=STREAMS)
    asked = parser.parse_args()
    cores = split_cores()
    raise_descriptor_limit(2 * asked.streams)
    print(report.machine(cores.server, cores.client))
    print(f"{asked.streams:,} streams of as many users and stream keys, {SCRAPES} scrapes: median (lowest - highest)")
    keys = keys_from(1, asked.streams)
    kind = tallywire("none", "tallywire", ("--log-level=warning", f"--coalesce-ms={WINDOW_SECONDS * 1000}"))
    with TemporaryDirectory(prefix="tallywire-bench-") as directory:
        client = compiled("client", Path(directory))
        with session(Contender(kind, TALLYWIRE), client, cores) as one:
            one.open(keys)
            one.rest()
            _print_costs("everything sent", one)
            _leave_behind(one, asked.streams)
            _print_costs("every stream behind", one)


def _leave_behind(one: Session, streams: int) -> None:
    """One batch for each, which stays with the server until its window is over."""
    connection = http.client.HTTPConnection(one.server.internal.host, one.server.internal.port, timeout=60)
    result = '{"success":true,"order_type":"LIMIT","event_type":"order_created"}'
    lines = [f'{{"user_id":{user},"strategy_id":1,"batch_results":[{result}]}}' for user in range(1, streams + 1)]
    for at in range(0, streams, 5_000):
        connection.request(
            "POST", "/internal/emit", "\n".join(lines[at : at + 5_000]), {"Content-Type": "application/x-ndjson"}
        )
        if connection.getresponse().read().count(b'"accepted"') != len(lines[at : at + 5_000]):
            raise RuntimeError("not every batch was accepted")
    connection.close()


if __name__ == "__main__":
    main()
