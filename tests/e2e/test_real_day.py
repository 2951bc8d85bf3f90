"""A whole day of orders goes through the server, and whoever listened, however badly, has counted it exactly."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest

from core.sse import EventParser
from tests.e2e.day import REAL_DAY_COUNTS, DayBatch, OrderEvent, batches, count, day_of_orders
from tests.e2e.tally import Counts, Tally, only, place, summed
from tests.e2e.wire import ChunkedBody, connected, cut, request_bytes
from tests.process import ServerProcess, running_server

USER = 7
DEADLINE_SECONDS = 60
SMALL_BUFFER_BYTES = 4096
LARGE_BUFFER_BYTES = 2**20
MOST_BYTES_TO_A_CUT = 6000
LOCKSTEP_BATCHES = 50
"""Batches of one call when the traffic is measured: little enough that the listener never falls behind."""

Day = tuple[list[OrderEvent], bool]


@pytest.fixture(scope="module")
def day() -> Day:
    return day_of_orders()


def test_every_listener_counts_the_whole_day_exactly(day: Day) -> None:
    events, is_real = day
    counts = count(events)
    happened = Counter(event.event_type for event in events)
    assert _by_kind(counts) == {"created": happened["order_created"], "cancelled": happened["order_cancelled"]}
    if is_real:
        assert _by_kind(counts) == REAL_DAY_COUNTS
    # The stalled ones may stand longer than a client usually can.
    with running_server("--stall-seconds=300") as server:
        asyncio.run(_play(server, events, counts))
        for strategy_id in sorted({strategy_id for strategy_id, _, _ in counts}):
            facts = server.get(f"/internal/keys/{USER}/{strategy_id}")
            stated = summed(strategy_id, facts["totals"])
            assert stated == only(counts, strategy_id)
        assert "Traceback" not in server.log.read_text()


def test_batches_of_ten_save_three_quarters_of_the_traffic(day: Day, capsys: pytest.CaptureFixture[str]) -> None:
    events, _ = day
    counts = count(events)
    single = [DayBatch(event.strategy_id, (event,)) for event in events if count([event])]
    with running_server(f"--send-buffer-bytes={LARGE_BUFFER_BYTES}") as server:
        in_batches = asyncio.run(_measure(server, 8, list(batches(events)), counts))
        one_by_one = asyncio.run(_measure(server, 9, single, counts))
    saved = 1 - in_batches / one_by_one
    with capsys.disabled():
        print(
            f"\ntraffic: {in_batches:,} bytes in batches of ten, "
            f"{one_by_one:,} one event per order: {saved:.1%} less".replace("%", " %")
        )
    assert saved > 0.75


# ---- the order service


class Accepted(NamedTuple):
    """A batch that the server accepted, and its place in the user's sequence."""

    n: int
    position: str
    counts: Counts


class Call(NamedTuple):
    """One call of the order service. `repeats`: it is made twice, as a caller does that missed the answer."""

    kind: str
    batches: list[DayBatch]
    repeats: bool


class OrderService:
    """Emits over one connection and keeps what was accepted."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, user_id: int) -> None:
        self.accepted: list[Accepted] = []
        self._reader = reader
        self._writer = writer
        self._user_id = user_id
        self._keys = 0

    async def emit(self, call: Call) -> None:
        """Emit the call's batches; each must be accepted unless nothing in it counts."""
        keys = [self._key() if call.repeats else None for _ in call.batches]
        fields = [batch.fields(self._user_id, key) for batch, key in zip(call.batches, keys, strict=True)]
        answers = await self._call(call.kind, fields)
        for batch, answer in zip(call.batches, answers, strict=True):
            self._keep(batch, answer)
        if call.repeats:
            _check_repeated(answers, await self._call(call.kind, fields))

    def last(self, *strategies: int) -> int:
        """The place of the last accepted batch of these strategies."""
        return max(each.n for each in self.accepted if only(each.counts, *strategies))

    async def ask(self, path: str) -> Any:
        """GET a JSON object."""
        return json.loads(await self._exchange(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()))

    def _key(self) -> str:
        self._keys += 1
        return f"batch-{self._keys}"

    def _keep(self, batch: DayBatch, answer: Any) -> None:
        counts = batch.counts()
        assert answer["ignored"] == len(batch.events) - counts.total()
        assert answer["status"] == ("accepted" if counts else "skipped")
        if counts:
            assert answer["duplicate"] is False
            self.accepted.append(Accepted(place(answer["position"]), answer["position"], counts))

    async def _call(self, kind: str, fields: Sequence[dict[str, object]]) -> list[Any]:
        if kind == "single":
            return [json.loads(await self._post("application/json", json.dumps(each))) for each in fields]
        if kind == "array":
            answers: list[Any] = json.loads(await self._post("application/json", json.dumps(fields)))
            return answers
        lines = await self._post("application/x-ndjson", "\n".join(map(json.dumps, fields)))
        return [json.loads(line) for line in lines.splitlines()]

    async def _post(self, content_type: str, body: str) -> bytes:
        head = (
            "POST /internal/emit HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return await self._exchange((head + body).encode())

    async def _exchange(self, request: bytes) -> bytes:
        self._writer.write(request)
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        assert head.startswith("HTTP/1.1 200 "), head
        length = next(
            line.partition(":")[2] for line in head.splitlines() if line.lower().startswith("content-length:")
        )
        return await self._reader.readexactly(int(length))


@asynccontextmanager
async def _order_service(server: ServerProcess, user_id: int) -> AsyncIterator[OrderService]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.internal_port)
    try:
        yield OrderService(reader, writer, user_id)
    finally:
        writer.close()
        await writer.wait_closed()


def _calls(day_batches: Sequence[DayBatch], chance: random.Random) -> Iterator[Call]:
    """The day in single calls, arrays and NDJSON, mixed; some are made twice."""
    at = 0
    while at < len(day_batches):
        kind, most = chance.choice((("single", 1), ("single", 1), ("single", 1), ("array", 8), ("ndjson", 20)))
        size = chance.randint(1, most)
        yield Call(kind, list(day_batches[at : at + size]), repeats=chance.random() < 0.1)
        at += size


def _check_repeated(answers: Sequence[Any], again: Sequence[Any]) -> None:
    """The same answers once more, but for who was connected; what was accepted is said to be a duplicate."""
    for answer, repeated in zip(answers, again, strict=True):
        assert repeated["status"] == answer["status"]
        if answer["status"] == "accepted":
            assert repeated["duplicate"] is True
            assert all(repeated[name] == answer[name] for name in ("position", "summaries", "ignored"))


# ---- the listeners


class Listener:
    """One client of the stream. With `chance` it is cut off at random bytes, again and again, and resumes."""

    def __init__(
        self,
        port: int,
        query: str,
        *,
        position: str = "",
        chance: random.Random | None = None,
        receive_buffer_bytes: int | None = None,
    ) -> None:
        self.tally = Tally(position)
        self.received_bytes = 0
        self.cuts = 0
        self._port = port
        self._path = f"/stream?user_id={query}"
        self._chance = chance
        self._receive_buffer_bytes = receive_buffer_bytes
        self._moved = asyncio.Event()
        self._may_read = asyncio.Event()
        self._may_read.set()

    async def listen(self) -> None:
        """Until cancelled: listen, and come back after each cut."""
        while True:
            await self._connect_and_read()
            self.cuts += 1

    def stall(self) -> None:
        """Stop reading, and leave the connection open."""
        self._may_read.clear()

    def go_on(self) -> None:
        """Read again."""
        self._may_read.set()

    async def opened(self) -> None:
        """Until the first event is there."""
        await self._until(lambda: self.tally.opened > 0)

    async def reaches(self, n: int) -> None:
        """Until it has been brought up to this place."""
        await self._until(lambda: bool(self.tally.position) and place(self.tally.position) >= n)

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not condition():
                self._moved.clear()
                await self._moved.wait()

    async def _connect_and_read(self) -> None:
        loop = asyncio.get_running_loop()
        left_bytes = self._chance.randint(1, MOST_BYTES_TO_A_CUT) if self._chance else None
        sock = connected(self._port, self._receive_buffer_bytes)
        try:
            sock.setblocking(False)
            await loop.sock_sendall(sock, request_bytes(self._path, last_event_id=self.tally.position))
            reading = _Reading()
            while left_bytes is None or left_bytes > 0:
                await self._may_read.wait()
                data = await loop.sock_recv(sock, 65536 if left_bytes is None else left_bytes)
                assert data, "the server ended the stream"
                self.received_bytes += len(data)
                left_bytes = left_bytes and left_bytes - len(data)
                for event in reading.feed(data):
                    self.tally.add(event.event, event.data, event.last_event_id)
                    self._moved.set()
        finally:
            cut(sock)


class _Reading:
    """The bytes of one response to events."""

    def __init__(self) -> None:
        self._head = b""
        self._body = ChunkedBody()
        self._parser = EventParser()

    def feed(self, data: bytes) -> list[Any]:
        if b"\r\n\r\n" not in self._head:
            head, end, data = (self._head + data).partition(b"\r\n\r\n")
            self._head = head + end
        return self._parser.feed(self._body.feed(data))


@asynccontextmanager
async def _listening(*listeners: Listener) -> AsyncIterator[None]:
    """The listeners at work; one that fails ends the block with its error."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(listener.listen()) for listener in listeners]
        for listener in listeners:
            await listener.opened()
        yield
        for task in tasks:
            task.cancel()


# ---- the day


async def _play(server: ServerProcess, events: list[OrderEvent], counts: Counts) -> None:
    port, chance = server.public_port, random.Random(621)
    calls = list(_calls(list(batches(events)), chance))
    third = len(calls) // 3
    keeping_up = {
        (strategy_id,): Listener(port, f"{USER}&strategy_id={strategy_id}&totals=1") for strategy_id in (1, 2, 3, 4)
    } | {
        (1, 2, 3, 4): Listener(port, f"{USER}&strategy_id=*&totals=1"),
        (1, 3): Listener(port, f"{USER}&strategy_id=1&strategy_id=3&totals=1"),
    }
    cut_off = {
        (2,): Listener(port, f"{USER}&strategy_id=2", chance=random.Random(1)),
        (2, 4): Listener(port, f"{USER}&strategy_id=2&strategy_id=4", chance=random.Random(2)),
        (1, 2, 3, 4): Listener(port, f"{USER}&strategy_id=*&totals=1", chance=random.Random(3)),
    }
    stalled = {
        (4,): Listener(port, f"{USER}&strategy_id=4&totals=1", receive_buffer_bytes=SMALL_BUFFER_BYTES),
        (1, 2, 3, 4): Listener(port, f"{USER}&strategy_id=*&totals=1", receive_buffer_bytes=SMALL_BUFFER_BYTES),
    }
    expected = [*keeping_up.items(), *cut_off.items(), *stalled.items()]
    # The first position of all, which those who come late resume from.
    async with (
        _order_service(server, USER) as service,
        _listening(*(listener for _, listener in expected)),
    ):
        first_position = keeping_up[1, 3].tally.position
        assert place(first_position) == 0
        for call in calls[:third]:
            await service.emit(call)
        for listener in stalled.values():
            listener.stall()
        for call in calls[third : 2 * third]:
            await service.emit(call)
        middle = service.accepted[-1]
        assert (await service.ask(f"/internal/connections?user_id={USER}"))["blocked"] >= len(stalled)
        for listener in stalled.values():
            listener.go_on()
        for call in calls[2 * third :]:
            await service.emit(call)
        assert sum((each.counts for each in service.accepted), Counts()) == counts
        for strategies, listener in expected:
            await listener.reaches(service.last(*strategies))
            assert listener.tally.counts == only(counts, *strategies)
        for listener in cut_off.values():
            assert listener.cuts > 10
        for listener in stalled.values():
            assert listener.tally.largest_merge > 100, "one frame with everything it missed"
        await _come_late(server, service, first_position, middle, counts)


async def _come_late(
    server: ServerProcess, service: OrderService, first_position: str, middle: Accepted, counts: Counts
) -> None:
    """Resume behind the day: from the very first position and from the middle, of everything and of one strategy."""
    since_the_middle = sum((each.counts for each in service.accepted if each.n > middle.n), Counts())
    port = server.public_port
    expected = [
        (Listener(port, f"{USER}&strategy_id=*&totals=1", position=first_position), (1, 2, 3, 4), counts),
        (Listener(port, f"{USER}&strategy_id=1&totals=1", position=first_position), (1,), counts),
        (Listener(port, f"{USER}&strategy_id=*", position=middle.position), (1, 2, 3, 4), since_the_middle),
        (Listener(port, f"{USER}&strategy_id=3", position=middle.position), (3,), since_the_middle),
    ]
    async with _listening(*(listener for listener, _, _ in expected)):
        for listener, strategies, missed in expected:
            await listener.reaches(service.last(*strategies))
            assert listener.tally.counts == only(missed, *strategies)
            assert listener.tally.updates == len(strategies), "everything missed comes at once, by strategy"


async def _measure(server: ServerProcess, user_id: int, day_batches: list[DayBatch], counts: Counts) -> int:
    """The bytes that a listener of everything receives for the day, headers and framing included."""
    listener = Listener(server.public_port, f"{user_id}&strategy_id=*", receive_buffer_bytes=LARGE_BUFFER_BYTES)
    async with _order_service(server, user_id) as service, _listening(listener):
        for at in range(0, len(day_batches), LOCKSTEP_BATCHES):
            await service.emit(Call("ndjson", day_batches[at : at + LOCKSTEP_BATCHES], repeats=False))
            if service.accepted:
                await listener.reaches(service.accepted[-1].n)
        assert listener.tally.counts == counts
        assert listener.tally.updates == len(service.accepted), "each batch was an event of its own"
        return listener.received_bytes


def _by_kind(counts: Counts) -> Counter[str]:
    kinds: Counter[str] = Counter()
    for (_, _, kind), number in counts.items():
        kinds[kind] += number
    return kinds
