"""`python -m tests.torture.churn`: clients of every kind come and go, and nothing of them may stay.

At the end of the warm-up and at the end of the run everybody leaves, and the server is looked at from outside: open
streams, descriptors, threads and resident memory must be what they were, the memory within MOST_GROWTH.
"""

import argparse
import asyncio
import json
import os
import random
import socket
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from msgspec import Struct

from tests.process import ServerProcess, running_server, wait_until
from tests.tokens import SECRET, claims, token

CLIENTS = 100
"""At work at any time."""

USERS = 500
STRATEGIES = 4
MOST_GROWTH = 0.05
WARM_UP = 0.6
"""Part of the run, with emits without a pause: the journal's cache of pages, 32 MiB, fills with what is written."""

PAUSE_SECONDS = 0.05
"""Between two calls of 20 batches afterwards."""

DEADLINE_SECONDS = 30

Kind = Callable[["Churn"], Awaitable[None]]


class Look(Struct, frozen=True):
    """A server without clients, from outside. `resident_kib`: its anonymous memory."""

    streams: int
    descriptors: dict[str, int]
    threads: int
    tasks: int
    resident_kib: int


class Churn:
    """One run against one server."""

    def __init__(self, server: ServerProcess, clients: int, seed: int) -> None:
        self.server = server
        self.clients = clients
        self.random = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.positions: dict[int, str] = {}

    async def run(self, until: float, pause_seconds: float) -> None:
        """Clients of every kind, until then (monotonic seconds), and an order service that pauses so long between two
        calls; returns when the last has left."""
        await asyncio.gather(self._emit(until, pause_seconds), *(self._come_and_go(until) for _ in range(self.clients)))

    async def _come_and_go(self, until: float) -> None:
        while time.monotonic() < until:
            kind = self.random.choice(KINDS)
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                async with asyncio.timeout(DEADLINE_SECONDS):
                    await kind(self)
            self.done[kind.__name__] += 1

    async def _emit(self, until: float, pause_seconds: float) -> None:
        """An order service, a call at a time."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.internal_port)
        while time.monotonic() < until:
            batches = [
                {
                    "user_id": self.random.randint(1, USERS),
                    "strategy_id": self.random.randint(1, STRATEGIES),
                    "idempotency_key": f"{self.random.getrandbits(64):x}",
                    "batch_results": [{"success": True, "order_type": "LIMIT", "event_type": "order_created"}] * 3,
                }
                for _ in range(20)
            ]
            body = json.dumps(batches).encode()
            head = f"POST /internal/emit HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
            writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
            head_bytes = await reader.readuntil(b"\r\n\r\n")
            length = int(head_bytes.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            for batch, answer in zip(batches, json.loads(await reader.readexactly(length)), strict=True):
                self.positions[int(str(batch["user_id"]))] = answer["position"]
            self.done["batches"] += len(batches)
            await asyncio.sleep(pause_seconds)
        writer.close()

    def token(self, user_id: int) -> str:
        """A sound one."""
        return token(claims(time.time(), sub=str(user_id), strategies="*"))

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """To the public listener."""
        return await asyncio.open_connection("127.0.0.1", self.server.public_port)

    async def open(self, *, position: bool = False) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A stream, its first event read."""
        user_id = self.random.randint(1, USERS)
        reader, writer = await self.connect()
        strategy = self.random.choice(["*", "1", "2&strategy_id=3"])
        headers = f"Host: localhost\r\nAuthorization: Bearer {self.token(user_id)}\r\n"
        if position and user_id in self.positions:
            headers += f"Last-Event-ID: {self.positions[user_id]}\r\n"
        writer.write(f"GET /stream?strategy_id={strategy} HTTP/1.1\r\n{headers}\r\n".encode())
        await reader.readuntil(b"\nid: ")
        return reader, writer


async def reads_and_closes(churn: Churn) -> None:
    """As a page that is left."""
    reader, writer = await churn.open(position=True)
    with suppress(TimeoutError):
        async with asyncio.timeout(churn.random.random()):
            await reader.readuntil(b"order_batch_update")
    writer.close()


async def is_reset(churn: Churn) -> None:
    """As a machine that vanishes and comes back."""
    _reader, writer = await churn.open(position=True)
    sock: socket.socket = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.close()


async def closes_half(churn: Churn) -> None:
    """Sends its FIN, and reads what comes to its end."""
    reader, writer = await churn.open()
    writer.write_eof()
    await reader.read()
    writer.close()


async def sends_behind_its_request(churn: Churn) -> None:
    """What no reader of a stream does."""
    reader, writer = await churn.open()
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    await reader.read()
    writer.close()


async def does_not_read(churn: Churn) -> None:
    """For a while; then it is gone."""
    _reader, writer = await churn.open()
    await asyncio.sleep(churn.random.random() * 2)
    writer.transport.abort()


async def has_no_token(churn: Churn) -> None:
    """Or a wrong one."""
    reader, writer = await churn.connect()
    made_up = churn.token(7)[: churn.random.randint(0, 100)]
    request = f"GET /stream?strategy_id=1 HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {made_up}\r\n\r\n"
    writer.write(request.encode())
    await reader.readuntil(b"unauthorized")
    writer.close()


async def takes_a_ticket(churn: Churn) -> None:
    """And opens a stream with it, or does not."""
    reader, writer = await churn.connect()
    headers = f"Host: localhost\r\nAuthorization: Bearer {churn.token(churn.random.randint(1, USERS))}\r\n\r\n"
    writer.write(f"POST /stream/ticket HTTP/1.1\r\nContent-Length: 0\r\n{headers}".encode())
    await reader.readuntil(b'"ticket":"')
    ticket = (await reader.readuntil(b'"'))[:-1].decode()
    if churn.random.random() < 0.5:
        await reader.readuntil(b"}")
        writer.write(f"GET /stream?strategy_id=*&ticket={ticket} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        await reader.readuntil(b"\nid: ")
    writer.close()


async def speaks_no_http(churn: Churn) -> None:
    """As a scanner."""
    reader, writer = await churn.connect()
    writer.write(bytes(churn.random.getrandbits(8) for _ in range(100)) + b"\r\n\r\n")
    await reader.read()
    writer.close()


async def asks_for_half_of_something(churn: Churn) -> None:
    """And leaves."""
    _reader, writer = await churn.connect()
    writer.write(b"GET /stream?strategy_id=1 HTTP/1.1\r\nHost: local")
    await asyncio.sleep(churn.random.random() / 10)
    writer.close()


async def asks_for_totals(churn: Churn) -> None:
    """Several times on one connection."""
    reader, writer = await churn.connect()
    for _ in range(3):
        headers = f"Host: localhost\r\nAuthorization: Bearer {churn.token(churn.random.randint(1, USERS))}\r\n\r\n"
        writer.write(f"GET /totals?strategy_id=* HTTP/1.1\r\n{headers}".encode())
        await reader.readuntil(b'"totals":')
        await reader.readuntil(b"}")
    writer.close()


KINDS: tuple[Kind, ...] = (
    reads_and_closes,
    reads_and_closes,
    is_reset,
    closes_half,
    sends_behind_its_request,
    does_not_read,
    has_no_token,
    takes_a_ticket,
    speaks_no_http,
    asks_for_half_of_something,
    asks_for_totals,
)


def look(server: ServerProcess) -> Look:
    """At a server whose clients have left."""
    pid = server.process.pid
    server.wait_for_connections(0)
    # Whoever sent half of a request, or none, is waited for ten seconds.
    wait_until(lambda: not _connections(server.public_port, server.internal_port), "the end of the last connection", 30)
    # Before the next question, which comes on a connection of its own.
    descriptors, status = _descriptors(pid), Path(f"/proc/{pid}/status").read_text()
    report = server.get("/internal/connections")
    return Look(
        int(report["connections"]),
        descriptors,
        len(os.listdir(f"/proc/{pid}/task")),
        int(report["loop"]["tasks"]),
        int(status.partition("RssAnon:")[2].split()[0]),
    )


def _descriptors(pid: int) -> dict[str, int]:
    """How many of each kind; files by their names."""
    targets = [os.readlink(f"/proc/{pid}/fd/{each}") for each in os.listdir(f"/proc/{pid}/fd")]
    return dict(Counter(Path(target).name.partition(":")[0] for target in targets))


def _connections(*ports: int) -> int:
    """TCP connections of these ports that our side has not closed: `/proc/net/tcp`, see proc_net_tcp(5)."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(int(fields[1].partition(":")[2], 16) in ports and fields[3] in ("01", "08") for fields in lines)


def churn(seconds: float, clients: int, seed: int, *flags: str) -> tuple[Look, Look, Counter[str]]:
    """The server after the warm-up and at the end, and what was done meanwhile."""
    with tempfile.TemporaryDirectory(prefix="tallywire-churn-") as directory:
        secret = Path(directory) / "secret"
        secret.write_bytes(SECRET)
        settings = ("--auth=jwt", f"--jwt-keys=HS256={secret}", "--keep-rows=2000", *flags)
        with running_server("--durability=process", *settings) as server:
            run = Churn(server, clients, seed)
            begun = time.monotonic()
            asyncio.run(run.run(begun + seconds * WARM_UP, 0))
            # Opens the log at its first use, and the first may be at the turn of the hour.
            server.get("/internal/statistics/hourly?user_id=1")
            before = look(server)
            asyncio.run(run.run(begun + seconds, PAUSE_SECONDS))
            after = look(server)
            with server.log.open() as log:
                unexpected = Counter(json.loads(line)["message"] for line in log if '"level":"info"' not in line)
            if unexpected:
                raise AssertionError(f"the log says {unexpected}")
            return before, after, run.done


def is_steady(before: Look, after: Look) -> bool:
    """Nothing has stayed."""
    return (
        after.streams == before.streams == 0
        and after.descriptors == before.descriptors
        and after.threads <= before.threads
        and after.tasks <= before.tasks
        and after.resident_kib <= before.resident_kib * (1 + MOST_GROWTH)
    )


def main() -> int:
    """Ends with 0 when nothing has stayed."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture.churn", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--clients", type=int, default=CLIENTS, help="at work at any time")
    asked: Any = parser.parse_args()
    print(f"{asked.seconds:.0f} s of churn, {asked.clients} clients at work, seed {asked.seed}", flush=True)
    before, after, done = churn(asked.seconds, asked.clients, asked.seed)
    for what, times in sorted(done.items()):
        print(f"{what:30}{times:>10}")
    print(f"after the warm-up  {before}\nat the end         {after}")
    print("STEADY" if is_steady(before, after) else "SOMETHING HAS STAYED")
    return 0 if is_steady(before, after) else 1


if __name__ == "__main__":
    sys.exit(main())
