"""Batches on disk, for when the server is away or this process is killed: a bounded outbox.

Each process has a folder of its own in the outbox's, held by a lock that the kernel lets go of when the process ends,
however it ends. In it are segments, append-only files of `_records`. A folder whose lock can be had belongs to nobody
any more: whoever takes the lock sends what is in it.

What is settled is always a prefix, since an emitter sends in order: one number tells it, and a segment whose last batch
is settled is removed as a whole.
"""

import hashlib
import json
import logging
import os
import secrets
import shutil
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Literal

from tallywire_client._records import (
    VERSION,
    Attempted,
    Begun,
    Handed,
    Moment,
    Revoked,
    Settled,
    decode_all,
    encode,
)

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows has no such locks
    fcntl = None  # type: ignore[assignment]

Durability = Literal["process", "power"]

SEGMENT_BYTES = 4 * 2**20
"""A file is about so large; it is also about what is read at once."""

EMPTY_SEGMENT_BYTES = 256 * 1024
"""A segment with nothing left to send in it is left behind once it is larger."""

CREATE_TRIES = 5
"""Folders that are begun: somebody may take a new one for an abandoned one, but not again and again."""

MAX_REPORT_BYTES = 2**20

_REPORT = "unknown.jsonl"
_LOCK = "lock"

_log = logging.getLogger("tallywire_client")


class OutboxFullError(Exception):
    """The folder is as large as it may become, or the disk did not take the batch."""


class NotAvailableError(Exception):
    """The folder belongs to a living process, or is gone."""


@dataclass(frozen=True, slots=True)
class OutboxOptions:
    """Where an outbox is, and what it may cost.

    `durability`: `process` survives the end of the process, however it ends, and costs microseconds an emit; `power`
    also a power cut, and an emit waits for the disk. `max_bytes`: of the whole folder, all processes together; each of
    them but the first may go beyond it by a segment, 4 MiB.
    """

    folder: str | os.PathLike[str]
    durability: Durability = "process"
    max_bytes: int = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Reported:
    """A batch that was not sent again, since the server may have forgotten its key: perhaps counted, perhaps not."""

    idempotency_key: str
    user_id: int
    strategy_id: int
    reported_at: float
    batch: str


def now() -> Moment:
    """On every clock that an outbox knows."""
    return Moment(time.time(), uptime(), _BOOT)


def uptime() -> float:
    """Seconds on a clock that nobody sets and that goes on while the machine sleeps, where there is one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


_BOOT = _boot_id()


@dataclass(slots=True)
class _Segment:
    number: int
    path: Path
    size: int = 0
    last_seq: int = 0
    """The newest batch in it, or before it when it has none."""


class Outbox:
    """The folder of one process, being written. Not safe for threads but for `sync`: its owner has a lock."""

    def __init__(self, folder: Path, lock: int, options: OutboxOptions) -> None:
        self.folder = folder
        self.last_seq = 0
        self.settled_seq = 0
        self._options = options
        self._segment_bytes = min(SEGMENT_BYTES, options.max_bytes // 4)
        self._lock = lock
        self._segments: deque[_Segment] = deque()
        self._attempts: deque[Attempted] = deque()
        self._file = -1
        self._written = 0
        self._synced = 0
        self._sync_lock = Lock()
        self._read_from = (0, 0)
        """Segment and place of what `read` has not given yet."""
        self._last_place = (0, 0)

    @classmethod
    def create(cls, options: OutboxOptions, target: str) -> "Outbox":
        """A new folder for this process. `target`: the server that its batches are for. Raises OSError."""
        root = Path(options.folder)
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        reason = ""
        for _ in range(CREATE_TRIES):
            folder = root / f"{_mark(target)}-{os.getpid()}-{secrets.token_hex(4)}"
            folder.mkdir(mode=0o700)
            try:
                outbox = cls(folder, _locked(folder), options)
            except NotAvailableError as error:
                reason = str(error)
                # Where there are no locks, or no more descriptors: nothing is left behind by trying.
                shutil.rmtree(folder, ignore_errors=True)
                continue
            with _given_up_on_failure(outbox):
                outbox._roll()
            return outbox
        raise OSError(f"no folder could be locked: {reason}")

    @classmethod
    def adopt(cls, folder: Path, options: OutboxOptions) -> "Outbox":
        """What a process has left behind, to be sent. Raises NotAvailableError, and OSError."""
        outbox = cls(folder, _locked(folder), options)
        with _given_up_on_failure(outbox):
            outbox._load()
        return outbox

    @property
    def size_bytes(self) -> int:
        """Of its segments."""
        return sum(segment.size for segment in self._segments)

    @property
    def unsettled(self) -> int:
        """Batches that are still to be sent."""
        return self.last_seq - self.settled_seq

    def append(self, line: bytes, wall: float) -> int:
        """Keep a batch; answers its number. Raises OutboxFullError."""
        seq = self.last_seq + 1
        record = encode(Handed(seq, wall, line))
        if self._segments[-1].size + len(record) > self._segment_bytes:
            self._make_room()
        self._write(record)
        current = self._segments[-1]
        place = (current.number, current.size - len(record))
        self._last_place = place
        self.last_seq = current.last_seq = seq
        return seq

    def attempt(self, upto: int, at: Moment) -> None:
        """Note, before it is sent, that batches may arrive from now on; a `sync` makes it outlast a power cut.

        Raises OutboxFullError when it stands in memory only: whoever adopts this folder would take them for never sent.
        """
        if self._attempts and self._attempts[-1].upto >= upto:
            return
        self._attempts.append(Attempted(upto, at))
        self._write(encode(Attempted(upto, at)))

    def revoke(self, upto: int) -> None:
        """Note that the last attempt, if it was the first one of what it tells of, did not arrive."""
        if self._attempts and self._attempts[-1].upto == upto:
            # Not noted: as if it had arrived, which is the safe side.
            with suppress(OutboxFullError):
                self._write(encode(Revoked(upto)))
            self._attempts.pop()

    def settle(self, upto: int) -> None:
        """Batches up to this one are done with, and their segments go."""
        if upto <= self.settled_seq:
            return
        self.settled_seq = upto
        # Not noted: some are sent again, and count once.
        with suppress(OutboxFullError):
            self._write(encode(Settled(upto)))
        while self._attempts and self._attempts[0].upto <= upto:
            self._attempts.popleft()
        if self.settled_seq == self.last_seq and self._file >= 0 and self._segments[-1].size > EMPTY_SEGMENT_BYTES:
            with suppress(OSError):
                self._roll()
        while len(self._segments) > 1 and self._segments[0].last_seq <= upto:
            with suppress(OSError):
                self._segments[0].path.unlink()
            self._segments.popleft()

    def first_attempt(self, seq: int) -> Moment | None:
        """Since when the batch may have arrived."""
        return next((attempt.at for attempt in self._attempts if attempt.upto >= seq), None)

    def sync(self) -> None:
        """Everything appended so far is on the disk; what many threads wait for is done once. Raises OSError."""
        written = self._written
        with self._sync_lock:
            if self._synced >= written or self._file < 0:
                return
            reached = self._written
            getattr(os, "fdatasync", os.fsync)(self._file)
            self._synced = reached

    def read_from_last(self) -> None:
        """Let `read` begin with the batch that was appended last."""
        self._read_from = self._last_place

    def read(self, most: int, most_bytes: int) -> list[Handed]:
        """The next batches from disk, at least one unless there is none."""
        found: list[Handed] = []
        size = 0
        for handed, place in self._unread():
            if found and (len(found) == most or size + len(handed.line) > most_bytes):
                break
            found.append(handed)
            size += len(handed.line)
            self._read_from = place
        return found

    def close(self) -> None:
        """Let go of the folder; it is removed when nothing is left in it to send."""
        if self._lock < 0:
            return
        if self.unsettled == 0:
            # The lock goes last: until then nobody else takes the folder for one to be adopted.
            for segment in self._segments:
                with suppress(OSError):
                    segment.path.unlink()
            shutil.rmtree(self.folder, ignore_errors=True)
        self.abandon()

    def abandon(self) -> None:
        """In a forked child: the folder is the parent's, which goes on to hold its lock."""
        for descriptor in (self._file, self._lock):
            if descriptor >= 0:
                with suppress(OSError):
                    os.close(descriptor)
        self._file = self._lock = -1

    def _unread(self) -> Iterator[tuple[Handed, tuple[int, int]]]:
        number, place = self._read_from
        for segment in list(self._segments):
            if segment.number < number:
                continue
            start = place if segment.number == number else 0
            for record, end in decode_all(_content(segment.path, start)):
                if isinstance(record, Handed) and record.seq > self.settled_seq:
                    yield record, (segment.number, start + end)

    def _write(self, record: bytes) -> None:
        """Append to the newest segment, wholly or not at all."""
        if self._file < 0:
            # Adopted, and only now to be written: whoever looks in again and again leaves no file each time. Never on
            # in the old one, whose last line may be torn.
            self._roll_or_be_full()
        segment = self._segments[-1]
        try:
            written = os.write(self._file, record)
            if written < len(record):
                raise OSError(f"{written} of {len(record)} bytes were written")  # noqa: TRY301
        except OSError as error:
            # A piece of a record would take the next one with it.
            with suppress(OSError):
                os.ftruncate(self._file, segment.size)
            raise OutboxFullError(str(error)) from error
        segment.size += written
        self._written += written

    def _make_room(self) -> None:
        used = _used_bytes(self._options.folder)
        if used + self._segment_bytes > self._options.max_bytes:
            raise OutboxFullError(f"the outbox holds {used} bytes, the limit is {self._options.max_bytes}")
        self._roll_or_be_full()

    def _roll_or_be_full(self) -> None:
        try:
            self._roll()
        except OSError as error:
            raise OutboxFullError(str(error)) from error

    def _roll(self) -> None:
        """Begin a new segment. Raises OSError; then the last one goes on."""
        number = self._segments[-1].number + 1 if self._segments else 1
        path = self.folder / f"{number:08}.log"
        begun = encode(Begun(VERSION, _BOOT))
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            if os.write(file, begun) < len(begun):
                raise OSError("the disk is full")  # noqa: TRY301
            if self._options.durability == "power":
                self.sync()
                _sync_folder(self.folder)
        except OSError:
            os.close(file)
            path.unlink(missing_ok=True)
            raise
        with self._sync_lock:
            if self._file >= 0:
                os.close(self._file)
            self._file = file
            self._synced = self._written
        self._segments.append(_Segment(number, path, len(begun), self.last_seq))

    def _load(self) -> None:
        """Read what is there; only what this folder says is taken for settled, whatever else is missing."""
        for path in sorted(self.folder.glob("[0-9]*.log")):
            segment = _Segment(int(path.stem), path, last_seq=self.last_seq)
            content = _content(path)
            segment.size = len(content)
            for record, _end in decode_all(content):
                self._take(record)
            segment.last_seq = self.last_seq
            self._segments.append(segment)
        while self._attempts and self._attempts[0].upto <= self.settled_seq:
            self._attempts.popleft()

    def _take(self, record: object) -> None:
        match record:
            case Handed(seq):
                self.last_seq = max(self.last_seq, seq)
            case Attempted():
                self._attempts.append(record)
            case Revoked(upto) if self._attempts and self._attempts[-1].upto == upto:
                self._attempts.pop()
            case Settled(upto):
                self.settled_seq = max(self.settled_seq, upto)
                # The segments that held them may be gone.
                self.last_seq = max(self.last_seq, upto)


def abandoned(options: OutboxOptions, target: str, held: set[Path]) -> list[Path]:
    """Folders for the same server, but those that are `held`; whether their processes live, their locks tell."""
    try:
        found = sorted(Path(options.folder).glob(f"{_mark(target)}-*"))
    except OSError:
        return []
    return [folder for folder in found if folder not in held]


def report(options: OutboxOptions, handed: bytes, at: float) -> None:
    """Write down a batch that is not sent again. Beyond a mebibyte it only stands in the log."""
    path = Path(options.folder) / _REPORT
    line = json.dumps({"reported_at": at, "batch": handed.decode()}).encode() + b"\n"
    try:
        with path.open("ab") as file:
            if file.tell() + len(line) <= MAX_REPORT_BYTES:
                file.write(line)
    except OSError as error:
        _log.warning("Outbox report not written", extra={"error": str(error)})


def read_report(options: OutboxOptions) -> list[Reported]:
    """Every batch of this outbox that was not sent again, by any process. Empty the file once they are dealt with."""
    try:
        lines = (Path(options.folder) / _REPORT).read_bytes().splitlines()
    except OSError:
        return []
    reported = []
    for line in lines:
        try:
            fields = json.loads(line)
            batch = json.loads(fields["batch"])
            reported.append(
                Reported(
                    batch["idempotency_key"],
                    batch["user_id"],
                    batch["strategy_id"],
                    fields["reported_at"],
                    fields["batch"],
                )
            )
        except (ValueError, TypeError, KeyError):  # A torn line.
            continue
    return reported


@contextmanager
def _given_up_on_failure(outbox: Outbox) -> Iterator[None]:
    """A folder that cannot be used is left to others; its lock would be held for as long as this process lives."""
    try:
        yield
    except BaseException:
        outbox.abandon()
        raise


def _mark(target: str) -> str:
    return hashlib.sha256(target.encode()).hexdigest()[:12]


def _locked(folder: Path) -> int:
    """The lock of a folder. Raises NotAvailableError."""
    if fcntl is None:
        raise NotAvailableError("this platform has no locks that end with their process")
    path = folder / _LOCK
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise NotAvailableError(str(error)) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Somebody may have removed the folder between the two.
        if os.fstat(lock).st_ino != path.stat().st_ino:
            raise OSError("the folder is another one")  # noqa: TRY301
    except OSError as error:
        os.close(lock)
        raise NotAvailableError(str(error)) from error
    return lock


def _used_bytes(root: str | os.PathLike[str]) -> int:
    """Of all processes, which remove files and folders meanwhile: what has gone takes no room."""
    return sum(_size(file) for folder in _listed(root) for file in _listed(folder) if file.suffix == ".log")


def _listed(folder: str | os.PathLike[str]) -> list[Path]:
    try:
        return list(Path(folder).iterdir())
    except OSError:
        return []


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _content(path: Path, start: int = 0) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
