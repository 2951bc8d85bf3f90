"""One server, fresh and alone on its cores, and the client that loads it: what a workload works with."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from bench.dialect import Batch, Bundle, Dialect
from bench.kinds import Contender
from bench.load import LoadError, StreamKey
from bench.machine import Cores
from bench.native import AS_SOON_AS_FREE, NO_KEY, Emit, Emitted, NativeClient, Opened, Subscription
from bench.server import Memory, RunningServer, running

OPENINGS_IN_FLIGHT = 64
IN_FLIGHT = 16
QUIET_CPU_NS = 1_000_000  # less than 1 ms of CPU in a look of QUIET_LOOK_SECONDS: the server is at rest
QUIET_LOOK_SECONDS = 0.1
QUIET_WAIT_SECONDS = 15.0
STABLE_BYTES = 64 * 1024
STABLE_LOOKS = 3
STABLE_LOOK_SECONDS = 0.3
STABLE_WAIT_SECONDS = 15.0

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Due:
    """A batch and when it is to be emitted, in nanoseconds from the start."""

    batch: Batch
    due_ns: int = AS_SOON_AS_FREE


class Session:
    """One round of one workload on one server."""

    def __init__(self, server: RunningServer, client: NativeClient, dialect: Dialect) -> None:
        self.server = server
        self.client = client
        self.dialect = dialect
        self._numbers: dict[StreamKey, int] = {}

    def measured(self, action: Callable[[], Result]) -> tuple[Result, int]:
        """What the action gives, and the server's CPU meanwhile in nanoseconds."""
        before = self.server.cpu_ns()
        result = action()
        return result, self.server.cpu_ns() - before

    def open(self, keys: Sequence[StreamKey], in_flight: int = OPENINGS_IN_FLIGHT) -> tuple[Opened, int]:
        """Opens a stream more for each key; with the server's CPU."""
        self.client.load_streams(self._subscriptions(keys))
        return self.measured(lambda: self.client.open_streams(in_flight, self.dialect.opening_ids))

    def resume(self, keys: Sequence[StreamKey], in_flight: int, missed: int) -> tuple[Opened, int]:
        """Opens streams that were open before and were closed, each with the last id it has read.

        Returns when each has what it missed; LoadError when that is not `missed` batches in all of them.
        """
        self.client.load_streams(self._subscriptions(keys))
        ids = self.dialect.resumed_ids(missed)
        opened, cpu_ns = self.measured(lambda: self.client.open_streams(in_flight, ids, resumes=True))
        expected = len(keys) * (self.dialect.opening_ids + missed)
        if opened.batches != expected:
            raise LoadError(f"resumed streams got {opened.batches} batches and openings instead of {expected}")
        return opened, cpu_ns

    def load(self, dues: Sequence[Due]) -> None:
        """Lays down single emits."""
        requests: dict[Batch, bytes] = {}
        for due in dues:
            if due.batch not in requests:
                requests[due.batch] = self.dialect.emit(due.batch, self.server.internal)
        self.client.load_emits(
            Emit(requests[due.batch], self._number(due.batch.key), due_ns=due.due_ns) for due in dues
        )

    def load_calls(self, keys: Sequence[StreamKey], per_call: int, bundle: Bundle) -> None:
        """Lays down one batch for each key, `per_call` of them in a call, or singly where there are no calls."""
        if bundle is Bundle.SINGLE:
            self.load([Due(Batch(key)) for key in keys])
            return
        calls = [keys[at : at + per_call] for at in range(0, len(keys), per_call)]
        self.client.load_emits(
            Emit(
                self.dialect.call([Batch(key) for key in call], bundle, self.server.internal),
                NO_KEY,
                len(call),
            )
            for call in calls
        )

    def emit_to_each(self, keys: Sequence[StreamKey]) -> Emitted:
        """One batch to each key, the quickest way: for preparing something, not for measuring it."""
        self.load_calls(keys, 300, self.dialect.bundle(Bundle.ARRAY))
        return self.client.emit(4 if self.dialect.bundle(Bundle.ARRAY) is Bundle.ARRAY else IN_FLIGHT)

    def rest(self) -> None:
        """Waits until the server has nothing left to do, for QUIET_WAIT_SECONDS at most."""
        give_up = time.monotonic() + QUIET_WAIT_SECONDS
        while time.monotonic() < give_up:
            _, cpu_ns = self.measured(lambda: self.client.idle(QUIET_LOOK_SECONDS))
            if cpu_ns < QUIET_CPU_NS:
                return

    def settled_memory(self) -> Memory:
        """The server's memory, once STABLE_LOOKS looks lie within STABLE_BYTES."""
        give_up = time.monotonic() + STABLE_WAIT_SECONDS
        looks = [self.server.memory()]
        while time.monotonic() < give_up:
            self.client.idle(STABLE_LOOK_SECONDS)
            looks = [*looks, self.server.memory()][-STABLE_LOOKS:]
            sizes = [look.rss for look in looks]
            if len(sizes) == STABLE_LOOKS and max(sizes) - min(sizes) <= STABLE_BYTES:
                break
        return looks[-1]

    def _number(self, key: StreamKey) -> int:
        return self._numbers.setdefault(key, len(self._numbers))

    def _subscriptions(self, keys: Sequence[StreamKey]) -> Iterator[Subscription]:
        return (Subscription(self._number(key), self.dialect.stream(key, self.server.public)) for key in keys)


@contextmanager
def session(contender: Contender, client_program: Path, cores: Cores, log_pipe: int | None = None) -> Iterator[Session]:
    """A fresh server and its client; both are ended afterwards."""
    with (
        TemporaryDirectory(prefix="tallywire-bench-client-") as scratch,
        running(contender.kind, cores.server, log_pipe) as server,
    ):
        client = NativeClient(
            client_program,
            Path(scratch),
            server.public,
            server.internal,
            contender.dialect.count_name,
            cores.client,
        )
        with client:
            yield Session(server, client, contender.dialect)
