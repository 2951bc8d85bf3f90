"""Callers that emit and clients that read, on one loop, over raw sockets; both write down all that they see.

The ledger holds each call before it is made and what came of it; each client's log every complete event it received.
Nothing here judges: that is the checker's.
"""

import asyncio
import json
import random
import socket
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from core.sse import EventParser
from tests.e2e.wire import ChunkedBody, cut, request_bytes

USERS = (1, 2, 3)
STRATEGIES = (1, 2, 3)
ORDER_TYPES = ("LIMIT", "MARKET", "STOP_LIMIT", "STOP_MARKET")

DIGIT_BASE = 5
"""Each batch is told from every other by its counts: its number, as eight digits to this base, two an order type."""
SCATTER = 123_457
"""A number prime to the base: numbers that follow each other look nothing alike."""

ANSWER_SECONDS = 10
AGAIN_SECONDS = 0.02
"""Before the next attempt when nobody listens."""

SMALL_BUFFER_BYTES = 4096


class Batch(NamedTuple):
    """One batch of an order service. `key` is empty when it has none."""

    batch: int
    user_id: int
    strategy_id: int
    key: str


def counts_of(batch: int) -> list[tuple[str, int, int]]:
    """What the batch of this number counts."""
    digits = batch * SCATTER % DIGIT_BASE ** (2 * len(ORDER_TYPES))
    counts = []
    for order_type in ORDER_TYPES:
        digits, created = divmod(digits, DIGIT_BASE)
        digits, cancelled = divmod(digits, DIGIT_BASE)
        if created or cancelled:
            counts.append((order_type, created, cancelled))
    return counts


def results_of(batch: int, chance: random.Random) -> list[dict[str, object]]:
    """Results that count so much, shuffled, among some that count nothing."""
    results: list[dict[str, object]] = []
    for order_type, created, cancelled in counts_of(batch):
        for event_type, count in (("order_created", created), ("order_cancelled", cancelled)):
            results += [{"success": True, "order_type": order_type, "event_type": event_type}] * count
    if chance.random() < 0.5:
        results += [{"success": False, "error": "insufficient margin"}]
        results += [{"success": True, "order_type": "LIMIT", "event_type": "order_amended"}]
    if chance.random() < 0.1:
        results += [{"success": True, "order_type": "limit order", "event_type": "order_created"}]
    chance.shuffle(results)
    return results


class Lines:
    """A file of JSON lines, each written out before anything else happens."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w")

    def write(self, **fields: object) -> None:
        """Add a line."""
        self._file.write(json.dumps(fields) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Nothing more."""
        self._file.close()


class Load:
    """Callers and clients of one run. `rounds` moves `life` on before it starts a server.

    `rows_a_life`: most batches that are sent to one server, so that none of them is trimmed before it has been seen.
    """

    def __init__(self, directory: Path, public_port: int, internal_port: int, seed: int, rows_a_life: int) -> None:
        self.directory = directory
        self.public_port = public_port
        self.internal_port = internal_port
        self.chance = random.Random(seed)
        self.life = 0
        self.is_settling = False
        self.has_ended = False
        self.ledger = Lines(directory / "ledger.jsonl")
        self.clients: list[Client] = []
        self._callers = [Caller(self, number) for number in range(4)]
        self._rows_a_life = rows_a_life
        self._sent_in_life = 0
        self._calls = 0
        self._batches = 0
        self._calling: list[asyncio.Task[None]] = []
        self._reading: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to emit and to read."""
        for user_id in USERS:
            self._add_client(user_id, "*", totals=True)
            self._add_client(user_id, "*", pace="slow")
            self._add_client(user_id, [1, 2], leaves=True)
            self._add_client(user_id, [2, 3], totals=True, pace="stalls")
            for strategy_id in STRATEGIES:
                self._add_client(user_id, [strategy_id], totals=strategy_id == 1)
                self._add_client(user_id, [strategy_id], leaves=True)
            self._add_client(user_id, [3], pace="stalls", totals=True, leaves=True)
            self._add_client(user_id, [1], forgets=True, leaves=True)
        self._calling = [asyncio.create_task(caller.run()) for caller in self._callers]

    def _add_client(
        self,
        user_id: int,
        strategies: str | list[int],
        *,
        totals: bool = False,
        pace: str = "reads",
        leaves: bool = False,
        forgets: bool = False,
    ) -> None:
        name = f"client-{len(self.clients):02}"
        client = Client(self, name, user_id, strategies, totals=totals, pace=pace, leaves=leaves, forgets=forgets)
        self.clients.append(client)
        self._reading.append(asyncio.create_task(client.run()))

    def begin_life(self) -> None:
        """The next server is about to start."""
        self.life += 1
        self._sent_in_life = 0

    @property
    def is_spent(self) -> bool:
        """This life has had all that it gets."""
        return self._sent_in_life + 1 > self._rows_a_life

    def take(self, batches: int) -> bool:
        """Whether so many more may be sent to this server."""
        if self._sent_in_life + batches > self._rows_a_life:
            return False
        self._sent_in_life += batches
        return True

    def next_call(self) -> int:
        """The number of a new call."""
        self._calls += 1
        return self._calls

    def new_batch(self, chance: random.Random, *, keyed: bool) -> Batch:
        """One that has never been sent."""
        self._batches += 1
        number = self._batches
        return Batch(number, chance.choice(USERS), chance.choice(STRATEGIES), f"order-{number}" if keyed else "")

    async def settle(self, seconds: float) -> str:
        """No new batches: everything with a key gets its answer, and every client all there is.

        Answers what is missing after so many seconds, or nothing.
        """
        self.is_settling = True
        missing = "answers of batches with a key"
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.gather(*self._calling)
                missing = "an answer to the last batches"
                last = await Caller(self, len(self._callers)).last_batches()
                while late := [client.name for client in self.clients if not client.has_reached(last)]:
                    missing = f"events for {', '.join(late)}"
                    await asyncio.sleep(AGAIN_SECONDS)
                missing = ""
        return missing

    async def end(self) -> None:
        """Nobody does anything any more."""
        self.has_ended = True
        tasks = [*self._calling, *self._reading]
        for task in self._calling:
            task.cancel()
        with suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_SECONDS):
                await asyncio.gather(*tasks, return_exceptions=True)
        for task in tasks:
            if task.done() and not task.cancelled():
                task.result()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.ledger.close()


class Caller:
    """One order service: it makes one call after the other, and repeats what has a key until it is answered."""

    def __init__(self, load: Load, number: int) -> None:
        self._load = load
        self._chance = random.Random(f"{load.chance.random()} {number}")
        self._unanswered: list[Batch] = []
        self._answered: list[Batch] = []
        self._connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def run(self) -> None:
        """Until the load settles and nothing with a key is unanswered."""
        try:
            while not self._load.is_settling:
                await self._send(self._compose())
                await asyncio.sleep(self._chance.random() * 0.02)
            while self._unanswered:
                await self._send(self._unanswered[:1])
        finally:
            self._disconnect()

    async def last_batches(self) -> dict[tuple[int, int], int]:
        """Emit one more batch for each stream key; answers at which n they stand."""
        places = {}
        for user_id in USERS:
            for strategy_id in STRATEGIES:
                batch = self._load.new_batch(self._chance, keyed=True)
                batch = batch._replace(user_id=user_id, strategy_id=strategy_id)
                while (position := await self._send([batch])) is None:
                    pass
                places[user_id, strategy_id] = int(position.rpartition("-")[2])
        self._disconnect()
        return places

    def _compose(self) -> list[Batch]:
        again, self._unanswered = self._unanswered[:8], self._unanswered[8:]
        count = self._chance.choice([1, 1, 2, 4, 8])
        batches = [self._load.new_batch(self._chance, keyed=self._chance.random() < 0.6) for _ in range(count)]
        if self._answered and self._chance.random() < 0.2:
            batches.append(self._chance.choice(self._answered))
        batches = [*again, *batches]
        if self._chance.random() < 0.05:
            # Twice in one call: without a key that would be two batches, with one it is one.
            batches += [batch for batch in batches[:1] if batch.key]
        self._chance.shuffle(batches)
        self._unanswered += again
        return batches

    async def _send(self, batches: list[Batch]) -> str | None:
        """Make one call; answers the position of its last batch, None when nobody can tell."""
        if not await self._connect():
            await asyncio.sleep(AGAIN_SECONDS)
            return None
        while not self._load.take(len(batches)):
            await asyncio.sleep(AGAIN_SECONDS)
        call = self._load.next_call()
        request = self._request(batches)
        self._load.ledger.write(
            call=call,
            life=self._load.life,
            batches=[(*batch, counts_of(batch.batch)) for batch in batches],
        )
        outcome, status, answers = await self._exchange(request)
        self._load.ledger.write(call=call, life=self._load.life, outcome=outcome, status=status, answers=answers)
        return self._note(batches, answers)

    def _note(self, batches: list[Batch], answers: list[dict[str, object]]) -> str | None:
        accepted = {n for n, answer in enumerate(answers) if answer.get("status") == "accepted"}
        for n, batch in enumerate(batches):
            if not batch.key:
                continue
            if n in accepted:
                self._answered = [*self._answered[-20:], batch]
                self._unanswered = [waiting for waiting in self._unanswered if waiting != batch]
            elif batch not in self._unanswered:
                self._unanswered.append(batch)
        return str(answers[-1]["position"]) if len(batches) - 1 in accepted else None

    def _request(self, batches: list[Batch]) -> bytes:
        bodies: list[dict[str, object]] = [
            {
                "user_id": batch.user_id,
                "strategy_id": batch.strategy_id,
                "batch_results": results_of(batch.batch, self._chance),
                **({"idempotency_key": batch.key} if batch.key else {}),
            }
            for batch in batches
        ]
        headers = ["POST /internal/emit HTTP/1.1", "Host: 127.0.0.1"]
        if len(batches) == 1 and self._chance.random() < 0.7:
            if key := bodies[0].pop("idempotency_key", None):
                headers.append(f"Idempotency-Key: {key}")
            content_type, body = "application/json", json.dumps(bodies[0])
        elif self._chance.random() < 0.5:
            content_type, body = "application/json", json.dumps(bodies)
        else:
            content_type, body = "application/x-ndjson", "".join(json.dumps(fields) + "\n" for fields in bodies)
        headers += [f"Content-Type: {content_type}", f"Content-Length: {len(body)}"]
        return "".join(f"{line}\r\n" for line in [*headers, ""]).encode() + body.encode()

    async def _connect(self) -> bool:
        if self._connection is None:
            with suppress(OSError):
                self._connection = await asyncio.open_connection("127.0.0.1", self._load.internal_port)
        return self._connection is not None

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection[1].transport.abort()
            self._connection = None

    async def _exchange(self, request: bytes) -> tuple[str, int, list[dict[str, object]]]:
        """`answered`; `no answer`: nobody knows; `torn`: the server cannot have had the whole of it."""
        assert self._connection is not None
        reader, writer = self._connection
        whim = 1.0 if self._load.is_settling else self._chance.random()
        try:
            if whim < 0.02:
                writer.write(request[:-1])
                self._disconnect()
                return "torn", 0, []
            writer.write(request)
            if whim < 0.05:
                await writer.drain()
                await asyncio.sleep(self._chance.random() * 0.005)
                self._disconnect()
                return "no answer", 0, []
            async with asyncio.timeout(ANSWER_SECONDS):
                status, content_type, body = await _response(reader)
        except (OSError, EOFError, TimeoutError):
            self._disconnect()
            return "no answer", 0, []
        lines = body.splitlines() if "ndjson" in content_type else [body]
        decoded = [json.loads(line) for line in lines]
        answers = decoded[0] if isinstance(decoded[0], list) else decoded
        return "answered", status, answers


async def _response(reader: asyncio.StreamReader) -> tuple[int, str, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    status, _, fields = head.partition("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in fields.strip().splitlines())
    body = await reader.readexactly(int(headers["content-length"]))
    return int(status.split(" ")[1]), headers["content-type"], body


class Client:
    """One reader of a stream, which comes back with the id of the last complete block, as a browser does.

    `pace`: `reads` at once, `slow` a little at a time, `stalls` now and then; `leaves` at random; `forgets` its
    position when it leaves, and starts anew.
    """

    def __init__(
        self,
        load: Load,
        name: str,
        user_id: int,
        strategies: str | list[int],
        *,
        totals: bool,
        pace: str,
        leaves: bool,
        forgets: bool,
    ) -> None:
        self.name = name
        self._load = load
        self._chance = random.Random(f"{load.chance.random()} {name}")
        self._user_id = user_id
        self._strategies = strategies
        self._pace = pace
        self._leaves = leaves
        self._forgets = forgets
        self._position = ""
        self._connections = 0
        self._log = Lines(load.directory / f"{name}.jsonl")
        self._log.write(client=name, user_id=user_id, strategies=strategies)
        chosen = [strategies] if isinstance(strategies, str) else strategies
        query = "&".join([f"user_id={user_id}", *(f"strategy_id={one}" for one in chosen)])
        self._path = f"/stream?{query}{'&totals=1' if totals else ''}"

    def has_reached(self, last: dict[tuple[int, int], int]) -> bool:
        """It has been told of these places, as far as they are its own."""
        followed = STRATEGIES if isinstance(self._strategies, str) else self._strategies
        owed = max(last[self._user_id, strategy_id] for strategy_id in followed)
        return bool(self._position) and int(self._position.rpartition("-")[2]) >= owed

    async def run(self) -> None:
        """Read, and come back, until the load ends."""
        try:
            while not self._load.has_ended:
                sock = socket.socket()
                sock.setblocking(False)
                if self._pace != "reads":
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER_BYTES)
                try:
                    await self._read_stream(sock)
                except OSError:
                    sock.close()
                await asyncio.sleep(AGAIN_SECONDS)
        finally:
            self._log.close()

    async def _read_stream(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        life = self._load.life
        await loop.sock_connect(sock, ("127.0.0.1", self._load.public_port))
        await loop.sock_sendall(sock, request_bytes(self._path, last_event_id=self._position))
        head, _, rest = (await _head(sock)).partition(b"\r\n\r\n")
        if not head:
            sock.close()
            return
        self._connections += 1
        self._log.write(
            connection=self._connections,
            lives=[life, self._load.life],
            status=int(head.split(b" ")[1]),
            last_event_id=self._position,
        )
        await self._read_body(sock, rest)

    async def _read_body(self, sock: socket.socket, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        chunked, parser = ChunkedBody(), EventParser(self._position)
        events_left = self._chance.randrange(5, 150)
        while True:
            if data:
                events = parser.feed(chunked.feed(data))
                for event in events:
                    self._log.write(event=event.event, id=event.last_event_id, data=event.data)
                self._position = parser.last_event_id
                events_left -= len(events)
            if self._leaves and events_left <= 0 and not self._load.is_settling:
                self._leave(sock)
                return
            await self._pause()
            data = await loop.sock_recv(sock, 256 if self._pace == "slow" else 65536)
            if not data:
                sock.close()
                return

    def _leave(self, sock: socket.socket) -> None:
        if self._forgets:
            self._position = ""
        if self._chance.random() < 0.5:
            cut(sock)
        else:
            sock.close()

    async def _pause(self) -> None:
        if self._load.is_settling:
            return
        if self._pace == "slow":
            await asyncio.sleep(0.03)
        if self._pace == "stalls" and self._chance.random() < 0.1:
            await asyncio.sleep(0.2 + self._chance.random() * 0.6)


async def _head(sock: socket.socket) -> bytes:
    """The head of an answer and what came with it; nothing when the connection ended before."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = await asyncio.get_running_loop().sock_recv(sock, 65536)
        if not more:
            return b""
        data += more
    return data
