"""From a path to a journal file that may be used: nobody else has it, its log is durable, its schema is ours, and its
epoch is one under which no position can mean two things.
"""

import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Literal

from msgspec import Struct

from core.journal.base import JournalError
from core.journal.files import (
    FileIdentity,
    Lock,
    Reserve,
    boot_id,
    identify,
    make_durable,
    refuse_half_restored,
    sync_directory,
)
from core.journal.sqlite.schema import APPLICATION_ID, LAST_SEQ, MIGRATIONS
from core.totals import new_epoch

Durability = Literal["power", "process"]

RESERVE_BYTES = 16 * 2**20
"""Room set aside for a full disk: several times what the log usually holds when it is worked off, and the steps of
trimming."""

_SYNCHRONOUS: dict[Durability, str] = {"power": "FULL", "process": "NORMAL"}
NO_ROOM = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)
"""A full disk has two names: the second when it is the index of the log (`-shm`) that cannot grow."""

_CACHE_KIB = 32 * 1024
"""Pages in memory: those that a busy journal writes to are not read again for each batch."""

_LOG_BYTES = 16 * 2**20
"""What the log keeps of the disk once it has been worked off: more than a round of single emits writes. A sync of what
is written over takes half the time of one that has to make the file longer. One large transaction may need more."""

_BUSY_SECONDS = 5.0
"""How long the start waits for another program that reads the file."""

_READERS_SECONDS = 0.1
"""How long the log's return to the disk waits for our own readers: they are asked again at the next occasion."""

_OLDEST_SQLITE = (3, 38)
"""The first that always has the JSON functions."""

_log = logging.getLogger("tallywire.journal")


class JournalFile(Struct, frozen=True):
    """An open journal file: the one connection that writes and checkpoints, and what goes with it."""

    path: Path
    identity: FileIdentity
    connection: sqlite3.Connection
    epoch: str
    lock: Lock
    reserve: Reserve

    def close(self) -> None:
        """Let go of everything."""
        self.connection.close()
        self.lock.release()


def open_file(path: Path, durability: Durability, reserve_bytes: int = RESERVE_BYTES) -> JournalFile:
    """Open the journal, or begin a new one. Raises JournalError, naming the file and the fix."""
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        raise JournalError(f"the journal needs SQLite 3.38 or later; this Python has {sqlite3.sqlite_version}.")
    # Lock, log and reserve stand beside the file itself, whatever name it is opened by.
    path = path.resolve()
    if path.exists() and not path.is_file():
        raise JournalError(f"the journal {path} is not a file. Name one with --journal.")
    lock = _locked(path)
    try:
        refuse_half_restored(path)
    except JournalError:
        lock.release()
        raise
    reserve = Reserve(_beside(path, "-reserve"), reserve_bytes)
    try:
        try:
            connection, identity, epoch = _open(path, durability)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode not in NO_ROOM:
                raise
            # Streams can be served from a full disk; only opening the file needs a little room.
            reserve.release()
            connection, identity, epoch = _open(path, durability)
    except (OSError, sqlite3.Error) as error:
        lock.release()
        reason = "its disk is full" if getattr(error, "sqlite_errorcode", None) in NO_ROOM else error
        raise JournalError(
            f"the journal {path} cannot be opened: {reason}. Mend that, or choose another file with --journal."
        ) from error
    except BaseException:
        lock.release()
        raise
    return JournalFile(path, identity, connection, epoch, lock, reserve)


def begin_new_epoch(path: Path) -> tuple[str, str]:
    """Give a journal a new epoch, for whoever restored a backup in place; answers the old and the new one.

    Raises JournalError, also when there is no journal.
    """
    refuse_half_restored(path.resolve())
    if not path.exists():
        raise JournalError(f"there is no journal {path}. Name it with --journal.")
    file = open_file(path, "power")
    epoch = new_epoch()
    try:
        file.connection.execute("UPDATE journal SET epoch = ?, is_clean = 1", (epoch,))
    except sqlite3.Error as error:
        raise JournalError(f"the journal {path} has kept its epoch {file.epoch}: {error}.") from error
    finally:
        file.close()
    return file.epoch, epoch


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _locked(path: Path) -> Lock:
    try:
        return Lock(_beside(path, "-lock"), path)
    except OSError as error:
        raise JournalError(
            f"the journal {path} cannot be opened: {error.strerror}. "
            "Its directory must exist and be writable; choose another with --journal."
        ) from error


def _open(path: Path, durability: Durability) -> tuple[sqlite3.Connection, FileIdentity, str]:
    has_log = _has_log(path)
    connection, identity = _recovered(path)
    try:
        migrate(connection)
        epoch = _begin_life(connection, identity, durability)
        # The file itself must say which one it is: see `_check_log`.
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        (batches,) = connection.execute(LAST_SEQ).fetchone()
        facts = {"journal": str(path), "epoch": epoch, "batches": batches, "was_left_in_order": not has_log}
        _log.info("Journal opened", extra=facts)
        connection.execute(f"PRAGMA synchronous = {_SYNCHRONOUS[durability]}")
        connection.execute(f"PRAGMA busy_timeout = {int(_READERS_SECONDS * 1000)}")
    except BaseException:
        connection.close()
        raise
    return connection, identity, epoch


def _has_log(path: Path) -> bool:
    """A process has ended without a word."""
    log = _beside(path, "-wal")
    return log.exists() and log.stat().st_size > 0


def _check_log(path: Path, identity: FileIdentity) -> None:
    """A log that belongs to another file, one that a backup has replaced, would ruin this one.

    What the file says of itself is read without the log. Where it cannot be read there is nothing to compare.
    """
    uri = f"{path.as_uri()}?mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            known = connection.execute("SELECT inode, generation FROM journal").fetchone()
    except sqlite3.Error:
        return
    if known is not None and FileIdentity(*known) != identity:
        raise JournalError(
            f"beside the journal {path} lies the log of another file ({path.name}-wal). If a backup has been put in "
            f"its place, remove {path.name}-wal and {path.name}-shm and start again. If file and log were copied "
            f"together, let SQLite join them first: sqlite3 {path} 'PRAGMA wal_checkpoint(TRUNCATE)'."
        )


def _recovered(path: Path) -> tuple[sqlite3.Connection, FileIdentity]:
    """Before anything is read the log that a crash left behind is made durable, and moved into the file."""
    make_durable(_beside(path, "-wal"))
    identity = identify(path)
    if _has_log(path):
        _check_log(path, identity)
    connection = sqlite3.connect(path, _BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        # fullfsync: what fsync promises on macOS only with it.
        for setting in (
            "synchronous = FULL",
            "fullfsync = ON",
            "checkpoint_fullfsync = ON",
            "wal_autocheckpoint = 0",
            "temp_store = MEMORY",
            f"cache_size = -{_CACHE_KIB}",
            f"journal_size_limit = {_LOG_BYTES}",
        ):
            connection.execute(f"PRAGMA {setting}")
        _check_owner(connection, path)
        _use_log(connection, path)
        sync_directory(path.parent)
    except BaseException:
        connection.close()
        raise
    return connection, identity


def _use_log(connection: sqlite3.Connection, path: Path) -> None:
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise JournalError(f"the journal {path} is on a file system without shared memory. Use a local disk.")
    (is_busy, *_) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if is_busy:
        raise JournalError(f"the journal {path} is being read by another program. Close it and start again.")


def _check_owner(connection: sqlite3.Connection, path: Path) -> None:
    """Before anything is changed: it is ours, and not newer. Raises JournalError."""
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables and application_id != APPLICATION_ID:
        raise JournalError(f"{path} is a database of another program. Choose another file with --journal.")
    if version > len(MIGRATIONS):
        raise JournalError(
            f"the journal {path} was written by a newer version of Tallywire (schema {version}, this one knows "
            f"{len(MIGRATIONS)}). Run that version, or restore a backup from before the upgrade."
        )


def migrate(connection: sqlite3.Connection) -> None:
    """Bring an older schema forward, each step in a transaction of its own."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    for target in range(version + 1, len(MIGRATIONS) + 1):
        connection.executescript(
            f"BEGIN IMMEDIATE; {MIGRATIONS[target - 1]}; PRAGMA application_id = {APPLICATION_ID}; "
            f"PRAGMA user_version = {target}; COMMIT;"
        )
        if version:
            _log.info("Journal migrated", extra={"schema": target})


def _begin_life(connection: sqlite3.Connection, identity: FileIdentity, durability: Durability) -> str:
    """The epoch of this life, marked as not left in order until it has been: durable before anybody is served."""
    known = connection.execute("SELECT epoch, inode, generation, boot_id, durability, is_clean FROM journal").fetchone()
    boot = boot_id()
    if known is None:
        epoch = new_epoch()
        connection.execute(
            "INSERT INTO journal (only_one, epoch, inode, generation, boot_id, durability, is_clean) "
            "VALUES (1, ?, ?, ?, ?, ?, 0)",
            (epoch, identity.inode, identity.generation, boot, durability),
        )
        return epoch
    epoch, inode, generation, last_boot, last_durability, is_clean = known
    reason = None
    if FileIdentity(inode, generation) != identity:
        reason = "another file than the one remembered: a copy, or a restored backup"
    elif last_durability == "process" and not is_clean and (not boot or boot != last_boot):
        reason = "the machine was restarted before the journal was closed, and durability was process"
    if reason is not None:
        epoch, old = new_epoch(), epoch
        _log.warning("New epoch", extra={"epoch": epoch, "before": old, "reason": reason})
    connection.execute(
        "UPDATE journal SET epoch = ?, inode = ?, generation = ?, boot_id = ?, durability = ?, is_clean = 0",
        (epoch, identity.inode, identity.generation, boot, durability),
    )
    return str(epoch)
