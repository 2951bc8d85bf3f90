"""The real hub, journal and subscribers without any I/O: the test decides when anything happens.

`World` holds the server's side and an independent account of what was accepted; `Client` is a frontend that counts,
keeps its position, and compares itself with that account at every event.
"""

import asyncio
import json
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Any

from core.errors import OutcomeUnknown, TallywireError
from core.hub import Answer, EmitCall, Hub, HubLimits, Wanted
from core.journal.base import Deletion, Deliver, Entry, JournalFailed, JournalLimits, Recorded, Work
from core.journal.memory import CommitFailed, MemoryJournal
from core.models import BatchResult, Summary
from core.principal import Principal
from core.sse import EventParser, ServerSentEvent
from core.subscriber import ConnectionLost, State, StreamOptions, Subscriber
from core.totals import Position, Row

Counts = dict[tuple[str, str], int]
"""(order type, created or cancelled) to a number above zero."""


def counts_of(summaries: Collection[Summary] | Collection[dict[str, Any]]) -> Counter[tuple[str, str]]:
    """Summaries, as structs or as decoded JSON, as counts."""
    counts: Counter[tuple[str, str]] = Counter()
    for summary in summaries:
        fields = summary if isinstance(summary, dict) else vars_of(summary)
        for what in ("created", "cancelled"):
            counts[fields["order_type"], what] += fields[what]
    return +counts


def vars_of(summary: Summary) -> dict[str, Any]:
    return {"order_type": summary.order_type, "created": summary.created, "cancelled": summary.cancelled}


def result(order_type: str = "LIMIT", event_type: str = "order_created") -> BatchResult:
    """A result that counts."""
    return BatchResult(True, order_type, event_type)


def _orders_in(data: dict[str, Any]) -> int:
    """Counted by a frame of any shape, by its data line."""
    if "updates" in data:
        return sum(map(_orders_in, data["updates"]))
    if "stream" not in data:
        return 0
    return sum(counts_of(data.get("data", data)["summaries"]).values())


class Schedule:
    """Functions to be called when the test says so."""

    def __init__(self) -> None:
        self.due: deque[Callable[[], None]] = deque()

    def add(self, function: Callable[[], None]) -> None:
        self.due.append(function)

    def run_one(self) -> None:
        if self.due:
            self.due.popleft()()

    def run_all(self) -> None:
        while self.due:
            self.due.popleft()()


class HesitantJournal(MemoryJournal):
    """The memory journal with commits that fail and reads that wait, on demand."""

    fails = False
    reads_wait = False

    def __init__(self, schedule: Schedule, max_rows: int) -> None:
        limits = JournalLimits(max_rows=max_rows, max_age_ms=10**12, idempotency_window_ms=10**12)
        super().__init__(schedule.add, limits)
        self.waiting_reads: list[asyncio.Future[None]] = []

    def persist(self, accepted: Sequence[tuple[Row, Entry]]) -> None:
        if self.fails:
            raise CommitFailed

    async def rows_at(self, user_id: int, n: int, strategies: Collection[int]) -> dict[int, Row | None]:
        if self.reads_wait:
            gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.waiting_reads.append(gate)
            await gate
        return await super().rows_at(user_id, n, strategies)


class FakeConnection(Subscriber):
    """A connection whose kernel takes what the test lets it take."""

    def __init__(self, user_id: int, options: StreamOptions) -> None:
        super().__init__(user_id, options)
        self.sent = bytearray()
        self.room: int | None = None
        """Bytes that the kernel still takes; None: any number."""
        self.is_gone = False
        self.is_watched = False
        self.is_released = False
        self._parser = EventParser()
        self._parsed_bytes = self._counts = 0

    def counts_sent(self) -> int:
        """Orders in the frames that the kernel has taken to their last byte, as a client reads them."""
        for event in self._parser.feed(bytes(self.sent[self._parsed_bytes :])):
            self._counts += _orders_in(json.loads(event.data))
        self._parsed_bytes = len(self.sent)
        return self._counts

    def transmit(self, data: bytes | memoryview) -> int:
        if self.is_gone:
            raise ConnectionLost("reset")
        taken = len(data) if self.room is None else min(self.room, len(data))
        if self.room is not None:
            self.room -= taken
        self.sent += data[:taken]
        return taken

    def watch_writable(self, wanted: bool) -> None:
        self.is_watched = wanted

    def release(self) -> None:
        assert not self.is_released
        self.is_released = True

    def peer(self) -> str:
        return "test"

    def let_in(self, room: int | None) -> None:
        """Make room in the kernel, and say so as the loop would."""
        self.room = room
        if self.is_watched and not self.is_released and room != 0:
            self.continue_sending()


class Call(EmitCall):
    """A call that can be waited for."""

    def __init__(self, caller: str) -> None:
        super().__init__(caller)
        self.is_resolved = asyncio.Event()

    def resolved(self) -> None:
        self.is_resolved.set()


class World:
    """One server. `accepted` is the independent account: (user, strategy) to [(n, counts)], in order of delivery."""

    def __init__(
        self,
        *,
        max_rows: int = 1000,
        coalesce_ms: int = 0,
        max_age_seconds: float = 0,
        max_connections: int = 1000,
    ) -> None:
        self.loop = asyncio.new_event_loop()
        self.commits, self.steps = Schedule(), Schedule()
        self.timers: list[Callable[[], None]] = []
        self.journal = HesitantJournal(self.commits, max_rows)
        self.now = 0.0
        self.seconds_a_look = 0.0
        """How far the clock moves whenever the hub looks at it."""
        self.now_ms = 1_000
        self.accepted: dict[tuple[int, int], list[tuple[int, Counter[tuple[str, str]]]]] = defaultdict(list)
        self.heads: Counter[int] = Counter()
        self.deleted: dict[int, list[int]] = defaultdict(list)
        """The places at which a user was deleted: what was counted before is not counted behind them."""
        self.hub = Hub(
            self.journal,
            HubLimits(
                15,
                1000,
                coalesce_ms,
                max_connections=max_connections,
                max_age_seconds=max_age_seconds,
                grant_seconds=3600,
            ),
            call_soon=self.steps.add,
            call_later=lambda _seconds, function: self.timers.append(function),
            spawn=self._spawn,
            clock=self._clock,
            now_ms=lambda: self.now_ms,
        )
        start = self.journal.start
        self.journal.start = lambda deliver, fail: start(self._recording(deliver), fail)  # type: ignore[method-assign]
        self.hub.start(self._fail)
        self.tasks: list[asyncio.Task[Any]] = []
        self.connections: list[FakeConnection] = []

    # Time.

    def spin(self) -> None:
        """Let every task run until it waits for something that the test decides."""

        async def turns() -> None:
            for _ in range(5):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turns())

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self.loop.create_task(coroutine)
        self.tasks.append(task)
        return task

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Begin something and go as far as it goes."""
        task = self.loop.create_task(coroutine)
        self.tasks.append(task)
        self.spin()
        return task

    def run_timers(self) -> None:
        """Everything that was to be called later is called now: heartbeats, windows."""
        timers, self.timers = self.timers, []
        for timer in timers:
            timer()
        self.spin()

    def commit(self, *, fails: bool = False) -> None:
        """Let the journal work off what it was given."""
        self.journal.fails = fails
        self.commits.run_all()
        self.journal.fails = False
        self.spin()

    def release_reads(self) -> None:
        for gate in self.journal.waiting_reads:
            gate.set_result(None)
        self.journal.waiting_reads.clear()
        self.spin()

    def settle(self) -> None:
        """Until nothing is left to do but time."""
        self.journal.reads_wait = False
        for _ in range(4):
            self.release_reads()
            self.commit()
            self.steps.run_all()
            self.run_timers()
            self.steps.run_all()
        assert not self.steps.due
        assert not self.commits.due

    def close(self) -> None:
        """Nothing may be left running, and nothing may have failed unseen."""
        for task in self.tasks:
            task.cancel()
        self.spin()
        failures = [task.exception() for task in self.tasks if not task.cancelled()]
        self.loop.close()
        for failure in failures:
            if failure is not None and not isinstance(failure, OutcomeUnknown):
                raise failure

    # Use.

    def emit(
        self, *batches: tuple[int, int, Sequence[BatchResult]], keys: Sequence[str | None] = ()
    ) -> asyncio.Task[list[Answer]]:
        """One call with these (user, strategy, results)."""

        async def call_it() -> list[Answer]:
            call = Call("test")
            for index, (user_id, strategy_id, results) in enumerate(batches):
                key = keys[index] if index < len(keys) else None
                self.hub.emit_order_batch_update(user_id, strategy_id, results, call=call, idempotency_key=key)
            self.hub.commit(call)
            await call.is_resolved.wait()
            if call.error is not None:
                raise call.error
            return call.answers

        return self.start(call_it())

    def open(
        self,
        connection: "FakeConnection",
        strategies: tuple[int, ...] | None,
        last_event_id: str | None,
        principal: Principal | None = None,
    ) -> list[TallywireError]:
        """Open a stream on a connection, unless it has ended by then; answers what it is refused with."""
        refusals: list[TallywireError] = []
        self.connections.append(connection)

        def connect() -> FakeConnection | None:
            return None if connection.has_ended else connection

        self.hub.open(Wanted(connection.user_id, strategies, last_event_id, principal), connect, refusals.append)
        self.spin()
        return refusals

    def emit_now(self, user_id: int, strategy_id: int, *results: BatchResult) -> Answer:
        """Emit one batch and let it be committed and published."""
        task = self.emit((user_id, strategy_id, results or (result(),)))
        self.commit()
        self.steps.run_all()
        self.spin()
        return task.result()[0]

    def totals_at(self, user_id: int, strategy_id: int, n: int) -> Counter[tuple[str, str]]:
        """What had been accepted for the key up to n, by the independent account."""
        total: Counter[tuple[str, str]] = Counter()
        floor = max((at for at in self.deleted[user_id] if at <= n), default=0)
        for at, counts in self.accepted[user_id, strategy_id]:
            if floor < at <= n:
                total += counts
        return total

    def strategies_of(self, user_id: int) -> list[int]:
        return [strategy_id for user, strategy_id in self.accepted if user == user_id]

    def _clock(self) -> float:
        self.now += self.seconds_a_look
        return self.now

    @staticmethod
    def _fail(failed: JournalFailed) -> None:
        raise failed

    def _recording(self, deliver: Deliver) -> Deliver:
        def record(finished: Sequence[Work]) -> None:
            for work in finished:
                if isinstance(work, EmitCall):
                    self._account(work)
                elif isinstance(work, Deletion) and work.n:
                    # A place that no batch has.
                    self.heads[work.user_id] = work.n
                    self.deleted[work.user_id].append(work.n)
            deliver(finished)

        return record

    def _account(self, call: EmitCall) -> None:
        for entry, outcome in zip(call.entries, call.outcomes, strict=False):
            if isinstance(outcome, Recorded) and outcome.row is not None:
                self.heads[entry.user_id] += 1
                assert outcome.n == self.heads[entry.user_id], "n is dense, in the order of delivery"
                self.accepted[entry.user_id, entry.strategy_id].append((outcome.n, counts_of(entry.summaries)))


class Client:
    """A frontend of one user. Whatever it is told, its sums must equal what was accepted up to its position."""

    def __init__(self, world: World, user_id: int, strategies: tuple[int, ...] | None, options: StreamOptions) -> None:
        self.world = world
        self.user_id = user_id
        self.strategies = strategies
        self.options = options
        self.connection: FakeConnection | None = None
        self.sums: dict[int, Counter[tuple[str, str]]] = defaultdict(Counter)
        self.position = ""
        self.events: list[str] = []
        self._parser = EventParser()
        self._read = 0

    def connect(self, last_event_id: str | None = None) -> None:
        """Open a stream; what was not read of the one before is lost."""
        self.connection = connection = FakeConnection(self.user_id, self.options)
        self._parser = EventParser()
        self._read = 0
        self._expects_first = True

        self.world.open(connection, self.strategies, last_event_id)

    def reconnect(self) -> None:
        self.connect(self.position or None)

    def twin(self) -> "Client":
        """Another frontend that was told the same and goes on from there."""
        other = Client(self.world, self.user_id, self.strategies, self.options)
        other.position = self.position
        other.sums.update({strategy_id: Counter(sums) for strategy_id, sums in self.sums.items()})
        other.reconnect()
        return other

    @property
    def is_open(self) -> bool:
        return self.connection is not None and self.connection.state is not State.CLOSED

    @property
    def unread_bytes(self) -> int:
        return 0 if self.connection is None else len(self.connection.sent) - self._read

    def read(self, count: int | None = None) -> None:
        """Take some of the bytes that have arrived, or all of them."""
        assert self.connection is not None
        end = len(self.connection.sent) if count is None else min(self._read + count, len(self.connection.sent))
        for event in self._parser.feed(bytes(self.connection.sent[self._read : end])):
            self._see(event)
        self._read = end

    def cut(self) -> None:
        """The connection breaks; what has not been read never arrives."""
        assert self.connection is not None
        self.connection.is_gone = True
        self.connection.close("client_closed")

    def check_is_complete(self) -> None:
        """Nothing accepted for its keys is missing."""
        head = self.world.heads[self.user_id]
        for strategy_id in self._keys():
            assert self.sums[strategy_id] == self.world.totals_at(self.user_id, strategy_id, head)

    def _keys(self) -> Collection[int]:
        return self.world.strategies_of(self.user_id) if self.strategies is None else self.strategies

    def _see(self, event: ServerSentEvent) -> None:
        data = json.loads(event.data)
        self.events.append(event.event)
        if self.options.shape == "envelope":
            assert data["type"] == event.event
            data = data.get("data", data) if event.event != "order_batch_update" else data
        if self._expects_first and event.event == "stream_closing":
            # It was told to go before it had begun: its position is what it was.
            return
        assert self._expects_first == (event.event in ("stream_open", "stream_reset"))
        self._expects_first = False
        match event.event:
            case "stream_open":
                self._opened(event, data)
            case "stream_reset":
                self.sums.clear()
                for totals in data["totals"]:
                    self.sums[totals["strategy_id"]] = counts_of(totals["summaries"])
            case "order_batch_update":
                self._add(data)
            case "order_batch_catch_up":
                assert data["after"] == self.position
                for update in data["updates"]:
                    self._add(update)
            case "stream_heartbeat":
                assert data["position"] == self.position
            case _:
                assert event.event in ("stream_closing", "order_hourly_summary")
        self.position = event.last_event_id
        self._check_sums()

    def _opened(self, event: ServerSentEvent, data: dict[str, Any]) -> None:
        assert data["position"] == event.last_event_id
        if data["resumed"]:
            assert event.last_event_id == self.position, "a resume starts at the client's own position"
            return
        start = Position.parse(event.last_event_id).n
        self.sums.clear()
        for strategy_id in self._keys():
            self.sums[strategy_id] = self.world.totals_at(self.user_id, strategy_id, start)

    def _add(self, data: dict[str, Any]) -> None:
        stream = data["stream"]
        body = data["data"] if self.options.shape == "envelope" else data
        assert stream["after"] == self.position
        assert body["summaries"]
        assert stream["batches"] >= 1
        sums = self.sums[stream["strategy_id"]]
        sums.update(counts_of(body["summaries"]))
        if self.options.with_totals:
            assert counts_of(stream["totals"]) == sums

    def _check_sums(self) -> None:
        n = Position.parse(self.position).n
        for strategy_id in self._keys():
            expected = self.world.totals_at(self.user_id, strategy_id, n)
            assert self.sums[strategy_id] == expected, f"strategy {strategy_id} at {self.position}"
