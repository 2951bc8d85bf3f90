"""The workloads, each from the outside: fan-out, emit, memory, connect, journal, restart.

A workload takes the servers to measure, runs them one next to the other (A B A B, so that a drift of the
machine meets all of them), and gives one Section. It measures; it judges nothing.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from itertools import count, islice
from tempfile import TemporaryDirectory

from bench.load import Call, LoadClient, LoadError, StreamKey, call_of
from bench.report import Row, Section, cost_row, plain_row, rate_row
from bench.server import Memory, RunningServer, ServerKind, running

# Ten results in one order type: a frame of about 260 bytes, near the 240 of the figures in the design.
BATCH_RESULTS = (
    b"["
    + b",".join(
        [b'{"order_type":"LIMIT","event_type":"order_created","success":true}'] * 7
        + [b'{"order_type":"LIMIT","event_type":"order_cancelled","success":true}'] * 3
    )
    + b"]"
)
ONE_RESULT = b'[{"order_type":"LIMIT","event_type":"order_created","success":true}]'
BATCHES_PER_FILL = 10_000
OTHER_USERS = 5_000
FILL_SECONDS = 60
IN_FLIGHT = 16
CALLS_IN_FLIGHT = 8
BATCHES_PER_CALL = 30

QUIET_CPU_NS = 1_000_000  # less than 1 ms of CPU in a look of QUIET_LOOK_SECONDS: the server is at rest
QUIET_LOOK_SECONDS = 0.1
QUIET_WAIT_SECONDS = 10.0
STABLE_BYTES = 32 * 1024
STABLE_LOOKS = 4
STABLE_WAIT_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything; all counts."""

    rounds: int
    fanout_connections: int
    fanout_emits: int
    emit_keys: int
    emit_singles: int
    emit_batches_in_calls: int
    memory_connections: int
    memory_look_seconds: float
    connect_streams: int
    restart_batches: int
    resume_batches: int
    resumes: int


FULL = Sizes(
    rounds=9,
    fanout_connections=1_000,
    fanout_emits=35,
    emit_keys=2_000,
    emit_singles=1_500,
    emit_batches_in_calls=6_000,
    memory_connections=10_000,
    memory_look_seconds=0.75,
    connect_streams=1_000,
    restart_batches=1_000_000,
    resume_batches=100_000,
    resumes=50,
)
QUICK = Sizes(
    rounds=3,
    fanout_connections=1_000,
    fanout_emits=12,
    emit_keys=1_000,
    emit_singles=400,
    emit_batches_in_calls=1_500,
    memory_connections=2_000,
    memory_look_seconds=0.15,
    connect_streams=300,
    restart_batches=20_000,
    resume_batches=5_000,
    resumes=10,
)


@dataclass(frozen=True, slots=True)
class Cost:
    """What one round cost, in nanoseconds: the server's CPU, the client's CPU, and the time on the wall."""

    server_cpu_ns: int
    client_cpu_ns: int
    wall_ns: int
    frames: int
    stream_bytes: int


@dataclass(frozen=True, slots=True)
class Bench:
    """One server and the client that loads it."""

    server: RunningServer
    client: LoadClient

    def measure(self, action: Callable[[], None]) -> Cost:
        """Runs `action` and says what it cost on both sides."""
        frames, stream_bytes = self.client.frames, self.client.stream_bytes
        wall, client_cpu, server_cpu = time.perf_counter_ns(), time.process_time_ns(), self.server.cpu_ns()
        action()
        return Cost(
            self.server.cpu_ns() - server_cpu,
            time.process_time_ns() - client_cpu,
            time.perf_counter_ns() - wall,
            self.client.frames - frames,
            self.client.stream_bytes - stream_bytes,
        )

    def rest(self) -> None:
        """Waits until the server has nothing left to do, for QUIET_WAIT_SECONDS at most."""
        give_up = time.monotonic() + QUIET_WAIT_SECONDS
        while time.monotonic() < give_up:
            before = self.server.cpu_ns()
            self.client.idle(QUIET_LOOK_SECONDS)
            if self.server.cpu_ns() - before < QUIET_CPU_NS:
                return

    def settled_memory(self, look_seconds: float) -> Memory:
        """The server's memory, once STABLE_LOOKS looks, `look_seconds` apart, lie within STABLE_BYTES."""
        give_up = time.monotonic() + STABLE_WAIT_SECONDS
        looks = [self.server.memory()]
        while time.monotonic() < give_up:
            self.client.idle(look_seconds)
            looks = [*looks, self.server.memory()][-STABLE_LOOKS:]
            sizes = [look.rss for look in looks]
            if len(sizes) == STABLE_LOOKS and max(sizes) - min(sizes) <= STABLE_BYTES:
                break
        return looks[-1]

    def call(self, keys: Sequence[StreamKey]) -> Call:
        """An emit of one batch for each key, for this server."""
        return call_of(keys, BATCH_RESULTS, self.server.internal)


Rounds = list[list[Cost]]


def fanout(kinds: Sequence[ServerKind], cores: frozenset[int], sizes: Sizes) -> Section:
    """CPU per frame with many connections on one key; each emit waits until its last frame has come."""
    key = StreamKey(7, 3)

    def emits(bench: Bench) -> Callable[[], None]:
        call = bench.call([key])

        def emit_each() -> None:
            for _ in range(sizes.fanout_emits):
                bench.client.emit([call], in_flight=1)

        return emit_each

    with _benches(kinds, cores) as benches:
        for bench in benches:
            bench.client.open_streams([key] * sizes.fanout_connections)
        rounds = _interleaved(benches, [emits(bench) for bench in benches], sizes.rounds)
        for bench in benches:
            bench.client.reads_in_bursts = False
        woken = _interleaved(benches, [emits(bench) for bench in benches], sizes.rounds)
    frames, emits_each = sizes.fanout_connections * sizes.fanout_emits, sizes.fanout_emits
    return Section(
        "fan-out",
        f"{sizes.fanout_connections:,} connections on one key, {sizes.rounds} rounds of {sizes.fanout_emits} "
        "single emits, each after the last frame of the one before",
        _names(kinds),
        (
            cost_row("server CPU per frame, client reads in bursts", "µs", _per(rounds, frames)),
            cost_row("server CPU per frame, client wakes for each", "µs", _per(woken, frames)),
            plain_row("client CPU per frame", "µs", _client_per(rounds, frames)),
            plain_row("bytes per frame", "B", _each(rounds, lambda c: c.stream_bytes / c.frames)),
            cost_row("emit to last frame", "ms", _each(rounds, lambda c: c.wall_ns / emits_each / 1e6)),
        ),
    )


def emit(kinds: Sequence[ServerKind], cores: frozenset[int], sizes: Sizes) -> Section:
    """CPU per emit and emits per second, one connection per key: single, and in calls of many."""
    keys = [StreamKey(user, 1) for user in range(1, sizes.emit_keys + 1)]
    with _benches(kinds, cores) as benches:
        for bench in benches:
            bench.client.open_streams(keys)
        singles = _emit_rounds(benches, keys, 1, sizes.emit_singles, sizes.rounds)
        bundled = _emit_rounds(benches, keys, BATCHES_PER_CALL, sizes.emit_batches_in_calls, sizes.rounds)
    return Section(
        "emit",
        f"{sizes.emit_keys:,} keys with one connection each, {sizes.rounds} rounds of {sizes.emit_singles:,} single "
        f"emits, {IN_FLIGHT} in flight, and of {sizes.emit_batches_in_calls:,} in calls of {BATCHES_PER_CALL}, "
        f"{CALLS_IN_FLIGHT} in flight",
        _names(kinds),
        (
            *_emit_rows("single", singles, sizes.emit_singles),
            *_emit_rows(f"in calls of {BATCHES_PER_CALL}", bundled, sizes.emit_batches_in_calls),
        ),
    )


def memory(kinds: Sequence[ServerKind], cores: frozenset[int], sizes: Sizes) -> Section:
    """Resident memory per idle connection, in a fresh process each time: a key each, and all on one key."""
    many = sizes.memory_connections
    layouts = {
        "a key each": [StreamKey(user, 1) for user in range(1_001, 1_001 + many)],
        "one key": [StreamKey(1_001, 1)] * many,
    }
    rows: list[Row] = []
    for layout, keys in layouts.items():
        grown = [memory_growth(kind, cores, keys, sizes.memory_look_seconds) for kind in kinds]
        rows += [
            cost_row(f"RSS per connection, {layout}", "KiB", [[g.rss / many / 1024] for g in grown]),
            cost_row(f"anonymous only, {layout}", "KiB", [[g.anonymous / many / 1024] for g in grown]),
        ]
    return Section(
        "memory",
        f"{many:,} idle connections; what the kernel keeps for a socket is not in it",
        _names(kinds),
        tuple(rows),
    )


def connect(kinds: Sequence[ServerKind], cores: frozenset[int], sizes: Sizes) -> Section:
    """New streams: from the connect and the GET to the `stream_open` read, every user new to the server."""
    with _benches(kinds, cores) as benches:
        users = count(1)

        def opens(bench: Bench) -> Callable[[], None]:
            def open_next() -> None:
                bench.client.open_streams(StreamKey(user, 1) for user in islice(users, sizes.connect_streams))

            return open_next

        actions = [opens(bench) for bench in benches]
        rounds = _interleaved(benches, actions, sizes.rounds, after=_close_streams)
    return Section(
        "connect",
        f"{sizes.rounds} rounds of {sizes.connect_streams:,} new streams, one user each",
        _names(kinds),
        (
            cost_row("server CPU per connect", "µs", _per(rounds, sizes.connect_streams)),
            rate_row("connects per second", "1/s", _per_second(rounds, sizes.connect_streams)),
            plain_row("client CPU per connect", "µs", _client_per(rounds, sizes.connect_streams)),
        ),
    )


def journal(kinds: Sequence[ServerKind], cores: frozenset[int], sizes: Sizes) -> Section:
    """What durability costs: the same emits as in `emit`, on every journal that there is."""
    section = emit(kinds, cores, sizes)
    return Section("journal", section.what, section.servers, section.rows)


def restart(kinds: Sequence[ServerKind], cores: frozenset[int], sizes: Sizes) -> Section:
    """A journal that is full of batches: the start of the server on it, and a resume over a long absence."""
    (kind,) = kinds
    with TemporaryDirectory(prefix="tallywire-bench-") as scratch:
        durable = ServerKind(kind.name, tuple(each.replace("{scratch}", scratch) for each in kind.arguments))
        with running(durable, cores) as server:
            _fill(server, sizes.restart_batches)
        starts: list[float] = []
        resumes: list[float] = []
        for _ in range(sizes.rounds):
            started = time.perf_counter()
            with running(durable, cores) as server:
                starts.append(time.perf_counter() - started)
                resumes += _resume(server, sizes)
    return Section(
        "restart",
        f"{sizes.restart_batches:,} batches in the journal, every second one of one key; {sizes.rounds} starts, "
        f"{sizes.resumes} resumes each over {sizes.resume_batches:,} missed batches of it, from the GET to the end of "
        "its one frame",
        _names(kinds),
        (
            plain_row("from the start of the process to ready", "s", [starts]),
            plain_row("resume", "ms", [[seconds * 1e3 for seconds in resumes]]),
        ),
    )


def _fill(server: RunningServer, batches: int) -> None:
    """Every second batch is of user 7, the others of thousands."""
    with closing(HTTPConnection(server.internal.host, server.internal.port, timeout=FILL_SECONDS)) as connection:
        for start in range(0, batches, BATCHES_PER_FILL):
            users = (
                7 if at % 2 else 1_000 + at % OTHER_USERS for at in range(start, min(batches, start + BATCHES_PER_FILL))
            )
            body = b"\n".join(
                b'{"user_id":%d,"strategy_id":3,"batch_results":%b}' % (user, ONE_RESULT) for user in users
            )
            connection.request("POST", "/internal/emit", body, {"Content-Type": "application/x-ndjson"})
            response = connection.getresponse()
            if response.status != 200 or b'"rejected"' in response.read():
                raise LoadError(f"a call was answered {response.status}")


def _resume(server: RunningServer, sizes: Sizes) -> Iterator[float]:
    """Seconds of each resume; LoadError when what was missed does not come as one frame."""
    with closing(HTTPConnection(server.internal.host, server.internal.port, timeout=FILL_SECONDS)) as connection:
        connection.request("GET", "/internal/keys/7/3")
        head = json.loads(connection.getresponse().read())["head"]
    epoch, _, n = head.rpartition("-")
    for _ in range(sizes.resumes):
        with socket.create_connection((server.public.host, server.public.port)) as stream:
            started = time.perf_counter()
            request = f"GET /stream?user_id=7&strategy_id=3 HTTP/1.1\r\nHost: {server.public}\r\nLast-Event-ID: "
            stream.sendall(f"{request}{epoch}-{int(n) - sizes.resume_batches}\r\n\r\n".encode())
            received = b""
            while f"id: {head}\n\n".encode() not in received:
                received += stream.recv(65536)
            yield time.perf_counter() - started
        if received.count(b"order_batch_update\n") != 1 or b'"batches":%d}' % sizes.resume_batches not in received:
            raise LoadError(f"not one frame: {received[-600:]!r}")


@contextmanager
def _benches(kinds: Sequence[ServerKind], cores: frozenset[int]) -> Iterator[list[Bench]]:
    """All servers up at once, a client for each; only one of them is loaded at a time."""
    with ExitStack() as stack:
        servers = [stack.enter_context(running(kind, cores)) for kind in kinds]
        clients = [stack.enter_context(LoadClient(server.public, server.internal)) for server in servers]
        yield [Bench(server, client) for server, client in zip(servers, clients, strict=True)]


def _interleaved(
    benches: Sequence[Bench],
    actions: Sequence[Callable[[], None]],
    rounds: int,
    after: Callable[[Bench], None] = Bench.rest,
) -> Rounds:
    """Costs by server and round; a first round of each is not measured, it warms caches and code."""
    costs: Rounds = [[] for _ in benches]
    for round_ in range(-1, rounds):
        for bench, action, kept in zip(benches, actions, costs, strict=True):
            cost = bench.measure(action)
            if round_ >= 0:
                kept.append(cost)
            after(bench)
    return costs


def _close_streams(bench: Bench) -> None:
    bench.client.close_streams()
    bench.rest()


def _emit_rounds(
    benches: Sequence[Bench], keys: Sequence[StreamKey], per_call: int, batches: int, rounds: int
) -> Rounds:
    """Rounds of `batches` batches over the keys in turn, `per_call` of them in each call."""
    in_flight = IN_FLIGHT if per_call == 1 else CALLS_IN_FLIGHT

    def emits(bench: Bench) -> Callable[[], None]:
        turn = [keys[i % len(keys)] for i in range(batches)]
        calls = [bench.call(turn[at : at + per_call]) for at in range(0, batches, per_call)]
        return lambda: bench.client.emit(calls, in_flight)

    return _interleaved(benches, [emits(bench) for bench in benches], rounds)


def _emit_rows(title: str, rounds: Rounds, batches: int) -> tuple[Row, ...]:
    return (
        cost_row(f"{title}: server CPU per emit", "µs", _per(rounds, batches)),
        rate_row(f"{title}: emits per second", "1/s", _per_second(rounds, batches)),
        plain_row(f"{title}: client CPU per emit", "µs", _client_per(rounds, batches)),
    )


def memory_growth(
    kind: ServerKind,
    cores: frozenset[int],
    keys: Sequence[StreamKey],
    look_seconds: float,
) -> Memory:
    """Memory with the connections minus memory before, in bytes; a few streams and emits went before both."""
    with _benches([kind], cores) as (bench,):
        warm = [StreamKey(user, 1) for user in range(1, 101)]
        bench.client.open_streams(warm)
        bench.client.emit([bench.call([key]) for key in warm], IN_FLIGHT)
        bench.client.close_streams()
        before = bench.settled_memory(look_seconds)
        bench.client.open_streams(keys)
        after = bench.settled_memory(look_seconds)
    return Memory(after.rss - before.rss, after.pss - before.pss, after.anonymous - before.anonymous)


def _per(rounds: Rounds, many: int) -> list[list[float]]:
    """The server's CPU per piece of work, in microseconds."""
    return _each(rounds, lambda cost: cost.server_cpu_ns / many / 1e3)


def _client_per(rounds: Rounds, many: int) -> list[list[float]]:
    """The client's CPU per piece of work, in microseconds."""
    return _each(rounds, lambda cost: cost.client_cpu_ns / many / 1e3)


def _per_second(rounds: Rounds, many: int) -> list[list[float]]:
    return _each(rounds, lambda cost: many / cost.wall_ns * 1e9)


def _each(rounds: Rounds, figure: Callable[[Cost], float]) -> list[list[float]]:
    return [[figure(cost) for cost in costs] for costs in rounds]


def _names(kinds: Sequence[ServerKind]) -> tuple[str, ...]:
    return tuple(kind.name for kind in kinds)
