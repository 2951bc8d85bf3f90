"""`python -m tests.torture.restart`: a restart under load with many streams, on sockets that outlive it.

Nothing may be lost, no connection refused, the exit code is 0, and clients come back at the configured rate; the plot
that it draws shows when they did.
"""

import argparse
import asyncio
import http.client
import json
import os
import resource
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path
from socket import create_server, gaierror
from typing import Any

from core.sse import EventParser
from tests.e2e.supervisor import Supervisor
from tests.e2e.tally import Tally
from tests.process import ServerProcess

STREAMS_A_USER = 10
STRATEGY = 3
BATCHES_A_CALL = 20
CALLS_PER_SECOND = 10
LOAD_SECONDS = 3
BACKLOG = 4096
MOST_RATE = 1.25
"""Times the configured rate, in the busiest second: chance bunches a few."""

Act = Callable[[], None]


class Client(asyncio.Protocol):
    """One stream that comes back, as a native EventSource does, and adds up what it gets."""

    def __init__(self, run: "Restart", user_id: int) -> None:
        self._run = run
        self.user_id = user_id
        self.tally = Tally()
        self._transport: asyncio.BaseTransport | None = None
        self._parser = EventParser()
        self._has_head = False
        self.is_open = False

    def connect(self) -> None:
        """Now."""
        asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", self._run.public_port)
        except (OSError, gaierror) as error:
            self._run.refused[type(error).__name__] += 1
            asyncio.get_running_loop().call_later(1, self.connect)

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._parser = EventParser(self.tally.position)
        self._has_head = False
        resume = f"Last-Event-ID: {self.tally.position}\r\n" if self.tally.position else ""
        target = f"/stream?user_id={self.user_id}&strategy_id={STRATEGY}"
        transport.write(f"GET {target} HTTP/1.0\r\nHost: localhost\r\n{resume}\r\n".encode())

    def data_received(self, data: bytes) -> None:
        if not self._has_head:
            head, _, data = data.partition(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                self._run.refused[head[:20].decode("latin-1")] += 1
            self._has_head = True
        for event in self._parser.feed(data):
            if event.event == "stream_open":
                self.is_open = True
                self._run.opened.append(time.monotonic())
            elif event.event == "stream_closing":
                self._run.farewells[json.loads(event.data)["data"]["reason"]] += 1
            self.tally.add(event.event, event.data, event.last_event_id)

    def connection_lost(self, _exc: Exception | None) -> None:
        self.is_open = False
        if not self._run.is_over:
            retry_ms = self._parser.retry_ms or 2000
            asyncio.get_running_loop().call_later(retry_ms / 1000, self.connect)

    def close(self) -> None:
        """For good."""
        if self._transport is not None:
            self._transport.close()


class OrderService(threading.Thread):
    """Emits until it is told to stop, and repeats what it got no answer for."""

    def __init__(self, port: int, users: int) -> None:
        super().__init__(daemon=True)
        self._port = port
        self._users = users
        self._numbers = count()
        self.accepted: Counter[int] = Counter()
        """Batches by user, each with one LIMIT created."""
        self.repeated = 0
        self.stops = threading.Event()

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=20)
        while not self.stops.wait(1 / CALLS_PER_SECOND):
            numbers = [next(self._numbers) for _ in range(BATCHES_A_CALL)]
            result = {"success": True, "order_type": "LIMIT", "event_type": "order_created"}
            batches = [
                {
                    "user_id": number % self._users + 1,
                    "strategy_id": STRATEGY,
                    "batch_results": [result],
                    "idempotency_key": str(number),
                }
                for number in numbers
            ]
            while not self._call(connection, batches):
                self.repeated += 1
                connection.close()
            for number in numbers:
                self.accepted[number % self._users + 1] += 1
        connection.close()

    def _call(self, connection: http.client.HTTPConnection, batches: list[dict[str, object]]) -> bool:
        try:
            connection.request("POST", "/internal/emit", json.dumps(batches), {"Content-Type": "application/json"})
            response = connection.getresponse()
            answers = json.loads(response.read())
        except (OSError, http.client.HTTPException):
            return False
        return response.status == 200 and all(answer["status"] == "accepted" for answer in answers)


class Restart:
    """One run."""

    def __init__(self, streams: int, rate: int, directory: Path) -> None:
        self.users = streams // STREAMS_A_USER
        self.rate = rate
        self.refused: Counter[str] = Counter()
        self.farewells: Counter[str] = Counter()
        self.opened: list[float] = []
        self.is_over = False
        self.public_port = 0
        self.exit_code: int | None = None
        self.drain_seconds = 0.0
        self.down_at = 0.0
        self._flags = (
            f"--journal={directory / 'journal.db'}",
            "--durability=process",
            f"--max-connections={streams + 100}",
            f"--reconnects-per-second={rate}",
        )
        self.clients = [Client(self, user_id) for user_id in range(1, self.users + 1) for _ in range(STREAMS_A_USER)]

    async def run(self) -> OrderService:
        """Open, load, restart, load, look."""
        with (
            create_server(("127.0.0.1", 0), backlog=BACKLOG) as public,
            create_server(("127.0.0.1", 0), backlog=BACKLOG) as internal,
        ):
            supervisor = Supervisor({"public": public, "internal": internal})
            self.public_port = supervisor.port("public")
            service = OrderService(supervisor.port("internal"), self.users)
            with supervisor.started(*self._flags) as first:
                await self._open()
                service.start()
                await asyncio.sleep(LOAD_SECONDS)
                self.opened.clear()
                await self._leave(first)
            with supervisor.started(*self._flags):
                await self._until(lambda: all(client.is_open for client in self.clients), 120)
                await asyncio.sleep(LOAD_SECONDS)
                service.stops.set()
                await asyncio.to_thread(service.join)
                await self._until(lambda: not self.missing(service), 30)
                self.is_over = True
                for client in self.clients:
                    client.close()
        return service

    def missing(self, service: OrderService) -> int:
        """Batches that somebody has not got, or got twice."""
        return sum(abs(service.accepted[client.user_id] - client.tally.counts.total()) for client in self.clients)

    async def _open(self) -> None:
        for first in range(0, len(self.clients), 200):
            for client in self.clients[first : first + 200]:
                client.connect()
            await self._until(lambda: all(each.is_open for each in self.clients[: first + 200]), 60)  # noqa: B023

    async def _leave(self, server: ServerProcess) -> None:
        self.down_at = time.monotonic()
        self.exit_code = await asyncio.to_thread(server.stop)
        self.drain_seconds = time.monotonic() - self.down_at

    async def _until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait for it; the pause only leaves the core to whoever brings it about."""
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.05)


def plot(moments: list[float], rate: int, streams: int, about: str) -> str:
    """When they came back, as SVG: bars of half a second, and a line at the configured rate."""
    bars = Counter(int(moment * 2) for moment in moments)
    end, height, width = max(bars) + 1, 200, 900
    most = max(rate / 2, *bars.values())
    unit = width / end
    drawn = "".join(
        f'<rect x="{60 + at * unit:.1f}" y="{20 + height * (1 - many / most):.1f}" width="{unit - 1:.1f}" '
        f'height="{height * many / most:.1f}" fill="#1f6feb"/>'
        for at, many in sorted(bars.items())
    )
    line = 20 + height * (1 - rate / 2 / most)
    ticks = "".join(
        f'<text x="{60 + second * 2 * unit:.1f}" y="{height + 38}" text-anchor="middle">{second} s</text>'
        for second in range(0, end // 2 + 1, max(1, end // 20))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width + 90}" height="{height + 70}" '
        'font-family="sans-serif" font-size="12">'
        f'<rect width="100%" height="100%" fill="white"/>{drawn}'
        f'<line x1="60" x2="{width + 60}" y1="{line:.1f}" y2="{line:.1f}" stroke="#d97706" stroke-dasharray="6 4"/>'
        f'<text x="{width + 58}" y="{line - 5:.1f}" text-anchor="end" fill="#d97706">{rate:,} a second</text>{ticks}'
        f'<text x="60" y="{height + 60}">{streams:,} streams after SIGTERM at 0 s, by when each was open again, '
        f"in half seconds. {about}</text></svg>\n"
    )


def main() -> int:
    """Ends with 0 when nothing was lost or refused, and nobody came too early."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture.restart", description=__doc__)
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--rate", type=int, default=1000)
    parser.add_argument("--svg", type=Path, help="where the plot goes")
    asked = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory(prefix="tallywire-restart-") as directory:
        run = Restart(asked.streams, asked.rate, Path(directory))
        service = asyncio.run(run.run())
    moments = sorted(moment - run.down_at for moment in run.opened)
    busiest = max(Counter(int(moment) for moment in moments).values())
    missing = run.missing(service)
    print(
        f"{len(run.clients):,} streams, {service.accepted.total():,} batches accepted, {service.repeated} calls "
        "repeated\n"
        f"exit code {run.exit_code} after {run.drain_seconds:.1f} s; farewells {dict(run.farewells)}\n"
        f"came back from {moments[0]:.1f} to {moments[-1]:.1f} s, {busiest:,} in the busiest second "
        f"({run.rate:,} configured)\n"
        f"connections refused: {dict(run.refused) or 'none'}; frames missing or doubled: {missing}"
    )
    if asked.svg is not None:
        about = f"{os.cpu_count()} cores."
        asked.svg.write_text(plot(moments, run.rate, len(run.clients), about), encoding="utf-8")
    is_fine = (
        run.exit_code == 0
        and not missing
        and not run.refused
        and set(run.farewells) == {"draining"}
        and busiest <= run.rate * MOST_RATE
    )
    print("EXACT" if is_fine else "NOT AS PROMISED")
    return 0 if is_fine else 1


if __name__ == "__main__":
    sys.exit(main())
