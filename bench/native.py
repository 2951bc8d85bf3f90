"""The load client in C (`bench/floor/client.c`), driven from here by one line for each command.

Python says what is to be done and reads what came of it; nothing of Python runs while it is done.
"""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import msgspec

from bench.load import LoadError
from bench.server import Address

AS_SOON_AS_FREE = 2**64 - 1
NO_KEY = 2**32 - 1
END_SECONDS = 10.0

_open_record = struct.Struct("=II").pack
_emit_record = struct.Struct("=QIII").pack


class Times(msgspec.Struct, frozen=True):
    """How long many things of one kind took."""

    count: int
    p50_ns: int
    p99_ns: int
    p999_ns: int
    slowest_ns: int


class Opened(msgspec.Struct, frozen=True):
    """What opening streams came to; `opened`: from the connect to the event after which each was ready.

    `batches`: carried by all events up to these; one that does not say how many counts as one.
    """

    wall_ns: int
    cpu_ns: int
    batches: int
    opened: Times


class Emitted(msgspec.Struct, frozen=True):
    """What an emit command came to; `latest_send_ns`: how late the client itself was at worst."""

    wall_ns: int
    cpu_ns: int
    calls: int
    frames: int
    batches: int
    stream_bytes: int
    latest_send_ns: int
    latency: Times


class Done(msgspec.Struct, frozen=True):
    """A command that has nothing to tell."""

    wall_ns: int


class Failed(msgspec.Struct, frozen=True):
    """The client has ended, and why."""

    error: str


Reply = TypeVar("Reply", Opened, Emitted, Done)


@dataclass(frozen=True, slots=True)
class Subscription:
    """A stream to open: its key by number, and its request without the last empty line."""

    key: int
    request: bytes


@dataclass(frozen=True, slots=True)
class Emit:
    """A request to send: the number of its key, how many batches it carries, and when it is due.

    `due_ns` counts from the start of the command; AS_SOON_AS_FREE: when a sender is free.
    """

    request: bytes
    key: int = NO_KEY
    batches: int = 1
    due_ns: int = AS_SOON_AS_FREE


class NativeClient:
    """One client process towards one server. A context manager: its end closes all sockets."""

    def __init__(
        self,
        program: Path,
        scratch: Path,
        public: Address,
        internal: Address,
        count_name: str,
        cores: frozenset[int] | None,
    ) -> None:
        self._records = scratch / "records"
        self._process = subprocess.Popen(
            [
                str(program),
                public.host,
                str(public.port),
                internal.host,
                str(internal.port),
                count_name,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        if cores is not None:
            os.sched_setaffinity(self._process.pid, cores)

    def __enter__(self) -> NativeClient:
        """Nothing is opened yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the process, by the end of its input or, when it is in the middle of something, by its pid."""
        if self._process.stdin:
            self._process.stdin.close()
        if kind is not None:
            self._process.kill()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()

    def load_streams(self, subscriptions: Iterable[Subscription]) -> None:
        """Lays down what the next `open_streams` opens."""
        self._records.write_bytes(
            b"".join(_open_record(each.key, len(each.request)) + each.request for each in subscriptions)
        )

    def open_streams(self, in_flight: int, first_ids: int, resumes: bool = False) -> Opened:
        """Opens what was laid down; returns when each stream has read its first `first_ids` ids (0: its first byte).

        Raises LoadError for a refusal, and when streams do not open in time.
        """
        return self._ask(f"open {self._records} {in_flight} {first_ids} {resumes:d}", Opened)

    def load_emits(self, emits: Iterable[Emit]) -> None:
        """Lays down what the next `emit` sends."""
        self._records.write_bytes(
            b"".join(
                _emit_record(each.due_ns, each.key, each.batches, len(each.request)) + each.request for each in emits
            )
        )

    def emit(self, senders: int, paced_senders: int = 0, pause_us: int = 0, is_timed: bool = False) -> Emitted:
        """Sends what was laid down and waits for every frame that the answers owe.

        `senders`: how many calls without a due time are in flight; `paced_senders`: how many with one can be.
        Raises LoadError when a batch is not accepted, when frames do not come, or when too many come.
        """
        return self._ask(f"emit {self._records} {paced_senders} {senders} {pause_us} {is_timed:d}", Emitted)

    def idle(self, seconds: float) -> None:
        """Reads what comes for so long: heartbeats, as a rule."""
        self._ask(f"idle {round(seconds * 1000)}", Done)

    def close_streams(self) -> None:
        """Closes every stream from this side."""
        self._ask("close", Done)

    def _ask(self, command: str, expected: type[Reply]) -> Reply:
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise LoadError("the load client has no pipes")
        try:
            stdin.write(command.encode() + b"\n")
            stdin.flush()
        except BrokenPipeError as error:
            raise LoadError("the load client has ended") from error
        line = stdout.readline()
        if line.startswith(b'{"error"'):
            raise LoadError(msgspec.json.decode(line, type=Failed).error)
        if not line:
            raise LoadError(f"the load client ended in the middle of {command.split()[0]}")
        return msgspec.json.decode(line, type=expected)
