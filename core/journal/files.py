"""What a journal needs of the operating system: one process a file, a file that is known again, bytes that are on disk,
and room kept in reserve. No database in here.
"""

import fcntl
import os
import struct
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from core.journal.base import JournalError

_FS_IOC_GETVERSION = 0x80087601
"""ioctl_iflags(2) on 64-bit Linux: the generation of an inode, which changes when its number is used again."""

_MAX_STORED = 2**63 - 1
"""Largest integer of SQLite; some file systems number their inodes beyond it."""

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_COPY_BYTES = 2**20


RESTORED = ".restored"
"""Behind the name of a journal: one that is whole and waits for its place. While it is there, what has the name is
being taken out of the way, and may have lost its log."""


def refuse_half_restored(journal: Path) -> None:
    """Raises JournalError while a restore of this journal is under way, or was broken off."""
    if journal.with_name(journal.name + RESTORED).exists():
        raise JournalError(
            f"a restore of the journal {journal} was broken off. Run it again: tallywire journal restore BACKUP."
        )


class Lock:
    """Held by the one process that may use a journal; the kernel lets go of it however the process ends.

    A file of its own: locks on a file that SQLite has open would be lost with any descriptor that is closed on it.
    """

    def __init__(self, path: Path, journal: Path) -> None:
        """Raises JournalError, naming the holder."""
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._descriptor, 100, 0).decode("ascii", "replace").strip() or "another process"
            os.close(self._descriptor)
            raise JournalError(
                f"the journal {journal} is in use by {holder}. Stop that process, or choose another with --journal."
            ) from error
        # For people's eyes only: on a full disk it stays empty.
        with suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"process {os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let others have the journal. Called once."""
        os.close(self._descriptor)


class FileIdentity(Struct, frozen=True):
    """Which file this is, however often its name was given to others.

    A copy that takes the place of a deleted file often gets the same inode number; its generation differs. It is 0 on
    file systems that have none.
    """

    inode: int
    generation: int


def identify(path: Path) -> FileIdentity:
    """The identity of a file, which is made when it is not there. Never while SQLite has it open: see `Lock`."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        return FileIdentity(_number(os.fstat(descriptor)), _generation(descriptor))
    finally:
        os.close(descriptor)


def is_there(path: Path, identity: FileIdentity) -> bool:
    """Whether the name still leads to this file. Does not open it."""
    try:
        return _number(os.stat(path)) == identity.inode
    except OSError:
        return False


def _number(status: os.stat_result) -> int:
    return status.st_ino & _MAX_STORED


def _generation(descriptor: int) -> int:
    try:
        (generation,) = struct.unpack("l", fcntl.ioctl(descriptor, _FS_IOC_GETVERSION, bytes(struct.calcsize("l"))))
    except OSError:
        return 0
    return int(generation) & 0xFFFFFFFF


def boot_id() -> str:
    """A name for the time since the machine was started; empty where none is to be had."""
    try:
        return _BOOT_ID.read_text("ascii").strip()
    except OSError:
        return ""


def make_durable(path: Path) -> None:
    """Write what a file holds once more and sync it; nothing to do when it is not there.

    After a failed sync the kernel takes the pages for clean and would say of the next one that it succeeded
    (https://wiki.postgresql.org/wiki/Fsync_Errors), so a sync alone shows nothing about a file that another process
    left. Raises OSError.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        at = 0
        while held := os.pread(descriptor, _COPY_BYTES, at):
            at += os.pwrite(descriptor, held, at)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Make the names of new files in a directory durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Reserve:
    """Room on the disk that is given up when it is full, so that the log can be worked off and rows trimmed.

    It is taken only where there is a quarter more: with nothing beside it the disk would be full again at once.
    """

    def __init__(self, path: Path, size_bytes: int) -> None:
        self._path = path
        self._size_bytes = size_bytes
        self._beside_bytes = size_bytes // 4
        self.is_held = False

    def hold(self) -> bool:
        """Take the room, if it is there; answers whether it is held."""
        if not self.is_held:
            self.is_held = self._fill()
            if not self.is_held:
                self.release()
        return self.is_held

    def release(self) -> None:
        """Give the room back, if the file system lets it go."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
        self.is_held = False

    def _fill(self) -> bool:
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return False
        try:
            _take_blocks(descriptor, self._size_bytes + self._beside_bytes)
            # Where blocks are only given out when they are written back, the lack of room shows here.
            os.fsync(descriptor)
            os.ftruncate(descriptor, self._size_bytes)
        except OSError:
            return False
        finally:
            os.close(descriptor)
        return True


def _take_blocks(descriptor: int, size_bytes: int) -> None:
    """Raises OSError when the disk has too little room."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size_bytes)
        return
    at = os.fstat(descriptor).st_size
    while at < size_bytes:
        at += os.pwrite(descriptor, bytes(min(size_bytes - at, _COPY_BYTES)), at)
