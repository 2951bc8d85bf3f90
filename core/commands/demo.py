"""`tallywire demo`: a server of its own, a day of orders in some minutes, and where to look. It leaves nothing."""

import asyncio
import logging
import random
import selectors
import shlex
import shutil
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, suppress
from http.client import HTTPException
from pathlib import Path
from typing import Protocol

import click
import msgspec
from msgspec import Struct

from core.commands.calls import request, target_of
from core.commands.endings import CommandFailed
from core.commands.orders import DAY_MINUTES, PlannedBatch, day_of_batches, market_time
from core.commands.terminal import say
from core.settings import Settings

BATCHES_PER_MINUTE = 6.0
"""Of the market's time and of a user: with a day in ten minutes about four a second."""

NDJSON = {"Content-Type": "application/x-ndjson"}
MOST_READERS = 8
SLOW_SECONDS = 20.0
"""Between two looks of the slow reader: less than a server takes for a peer that has vanished."""

PATIENCE_SECONDS = 10.0
SMALL_BUFFER_BYTES = 2048
PIECE_BYTES = 65_536

ERASE_LINE = "\r\x1b[2K"


class Serve(Protocol):
    """Serves until a signal; tells both base URLs when it is ready."""

    def __call__(self, settings: Settings, *, on_ready: Callable[[str, str], None]) -> Awaitable[None]: ...


class Market(Struct, frozen=True):
    """Whose orders, how fast, and which day."""

    users: int
    minutes: float
    seed: int


def demo_command(serve: Serve) -> click.Command:
    """The command, with the server that it runs."""

    @click.command("demo")
    @click.option("--users", type=click.IntRange(1, 1000), default=4, show_default=True, help="Users that trade.")
    @click.option(
        "--minutes",
        type=click.FloatRange(0.1, 600),
        default=10.0,
        show_default=True,
        help="How long a trading day takes.",
    )
    @click.option("--seed", type=int, help="The same seed, the same orders. Default: a new day each time.")
    def demo(users: int, minutes: float, seed: int | None) -> None:
        """Run a server with a day of orders, to look at.

        On free ports of this machine and with a journal in memory, both gone at the end. A trading day passes in
        --minutes, much at the open and at the close and little at noon, and then the next one. Ctrl-C ends it.
        """
        market = Market(users, minutes, random.randrange(2**32) if seed is None else seed)
        logging.getLogger().setLevel(logging.ERROR)
        # A journal in memory: however this process is ended, nothing of it can be left on the disk.
        settings = Settings(
            public_listen="127.0.0.1:0", internal_listen="127.0.0.1:0", durability="none", console_emit="on"
        )
        stopping = threading.Event()
        people: list[threading.Thread] = []

        def ready(public: str, internal: str) -> None:
            _welcome(public, internal, market)
            trader = threading.Thread(target=_trade, args=(internal, market, stopping), name="trader", daemon=True)
            reader = threading.Thread(target=_read, args=(public, market, stopping), name="reader", daemon=True)
            for each in (trader, reader):
                people.append(each)
                each.start()

        try:
            asyncio.run(_served(serve, settings, ready))
        finally:
            stopping.set()
            for each in people:
                each.join()
            if sys.stdout.isatty():
                say(f"{ERASE_LINE}The demo has ended; nothing is left of it.")

    return demo


async def _served(serve: Serve, settings: Settings, ready: Callable[[str, str], None]) -> None:
    await serve(settings, on_ready=ready)


def _welcome(public: str, internal: str, market: Market) -> None:
    program = _program()
    users = "1 user" if market.users == 1 else f"{market.users} users"
    minutes = "a minute" if market.minutes == 1 else f"{market.minutes:g} minutes"
    say(f"A trading day of {users} in {minutes}, seed {market.seed}. Ctrl-C ends it.\n")
    for what, how in (
        ("console", f"{internal}/console/"),
        ("a stream", f"curl -N '{public}/stream?user_id=1&strategy_id=*'"),
        ("watch", f"{program} tail --url {internal} --user 1"),
        ("by hour", f"{program} statistics --url {internal} --user 1"),
        ("emit", f"{program} emit --url {internal} --user 1 --strategy 1 --created LIMIT=3"),
    ):
        say(f"  {click.style(f'{what:9}', bold=True)} {how}")
    say()


def _program() -> str:
    """This one, as it can be called again from here."""
    called = Path(sys.argv[0])
    if called.suffix == ".py":
        return shlex.join([sys.executable, str(called)])
    found = shutil.which(called.name)
    if not called.is_file() or (found is not None and called.samefile(found)):
        return "tallywire"
    return shlex.quote(str(called))


def _read(public: str, market: Market, stopping: threading.Event) -> None:
    """A stream for each of the first users, and a second one of user 1 that reads now and then only."""
    with ExitStack() as open_streams, selectors.DefaultSelector() as streams:
        try:
            for user_id in range(1, min(market.users, MOST_READERS) + 1):
                streams.register(open_streams.enter_context(_stream(public, user_id)), selectors.EVENT_READ)
            slow = open_streams.enter_context(_stream(public, 1))
            slow.setblocking(False)
            next_look = time.monotonic() + SLOW_SECONDS
            while streams.get_map() and not stopping.wait(0.1):
                for each, _ in streams.select(0):
                    if isinstance(each.fileobj, socket.socket) and not each.fileobj.recv(PIECE_BYTES):
                        streams.unregister(each.fileobj)
                if time.monotonic() >= next_look:
                    next_look += SLOW_SECONDS
                    with suppress(BlockingIOError):
                        slow.recv(PIECE_BYTES)
        except OSError:
            return  # The server has gone.


def _stream(public: str, user_id: int) -> socket.socket:
    target = target_of(public)
    sock = socket.socket()
    try:
        # Ahead of the connection: what is slow shall be seen to be.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER_BYTES)
        sock.settimeout(PATIENCE_SECONDS)
        sock.connect((target.host, target.port))
        head = f"GET /stream?user_id={user_id}&strategy_id=* HTTP/1.1\r\nHost: {target.host}:{target.port}\r\n\r\n"
        sock.sendall(head.encode())
    except BaseException:
        sock.close()
        raise
    return sock


def _trade(internal: str, market: Market, stopping: threading.Event) -> None:
    """One day after the other, until the server goes."""
    target = target_of(internal)
    emitted = 0
    for due in _days(market):
        delay = due.at - time.monotonic()
        if stopping.wait(max(0.0, delay)):
            return
        try:
            answer = request(target, "POST", "/internal/emit", body=msgspec.json.encode(due.fields()), headers=NDJSON)
        except (CommandFailed, OSError, HTTPException):
            return
        emitted += answer.status == 200
        if sys.stdout.isatty():
            say(f"{ERASE_LINE}  {market_time(due.batch.minute)} on the market, {emitted:,} batches", end="")


class Due(Struct, frozen=True):
    """A batch, and when it is due on this machine's monotonic clock."""

    at: float
    batch: PlannedBatch

    def fields(self) -> dict[str, object]:
        """What is emitted."""
        batch = self.batch
        return {"user_id": batch.user_id, "strategy_id": batch.strategy_id, "batch_results": batch.batch_results}


def _days(market: Market) -> Iterator[Due]:
    seconds_a_minute = market.minutes * 60 / DAY_MINUTES
    start = time.monotonic()
    day = 0
    while True:
        for batch in day_of_batches(market.seed + day, market.users, BATCHES_PER_MINUTE * market.users / 4):
            yield Due(start + (day * DAY_MINUTES + batch.minute) * seconds_a_minute, batch)
        day += 1
