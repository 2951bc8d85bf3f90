"""A backup of a journal while the server runs, and its way back into place under an epoch of its own.

A backup reads, and never writes or checkpoints: the one connection that does is the server's.
"""

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from core.journal.base import JournalError
from core.journal.files import RESTORED, Lock, identify, sync_directory
from core.journal.sqlite.inspection import Contents, Verdict, check, reading
from core.journal.sqlite.opening import migrate
from core.journal.sqlite.schema import MIGRATIONS
from core.totals import new_epoch

STEP_PAGES = 1024
"""4 MiB between two moves of the bar."""

_MIGRATED = (".migrated", ".migrated-wal", ".migrated-shm")
"""A copy of a copy, only to be looked through."""

Advance = Callable[[int], None]


class Restored(Struct, frozen=True):
    """What is in place now, under which epoch; `replaced`: where the journal is that was there, if there was one."""

    contents: Contents
    epoch: str
    replaced: Path | None


def back_up(path: Path, target: Path, advance: Advance = lambda _done: None, *, replace: bool = False) -> Contents:
    """Copy a journal, as it is at this moment, to a file that is whole by itself, and look through the copy.

    The copy has its name once it is durable and was found in order. One of an older schema stays what it is, so that
    the version that wrote it can go on with it. `advance` is told how far it is, in thousandths.
    Raises JournalError.
    """
    if target.exists() and not replace:
        raise JournalError(f"{target} is there already. Choose another name, or say --replace.")
    if target.exists() and path.exists() and target.samefile(path):
        raise JournalError(f"{target} is the journal itself. Choose another name.")
    unfinished = target.with_name(f"{target.name}.unfinished")
    try:
        _copy_pages(path, unfinished, advance)
        contents = _looked_through(unfinished, unfinished)
        _sync(unfinished)
        unfinished.replace(target)
        sync_directory(target.resolve().parent)
    except (OSError, sqlite3.Error) as error:
        raise JournalError(f"the backup {target} cannot be written: {error}. Nothing has its name.") from error
    finally:
        _remove(unfinished, "", "-journal", *_MIGRATED)
    return contents


def restore(backup: Path, path: Path, advance: Advance = lambda _done: None) -> Restored:
    """Put a backup in the place of the journal, under a new epoch: positions from after the backup are never given out
    again. One of an older schema is migrated on the way. What was there is kept beside it.

    Raises JournalError: also while a process has the journal, and for a backup that is not in order.
    """
    path = path.resolve()
    if not backup.is_file():
        raise JournalError(f"there is no backup {backup}.")
    if path.exists() and backup.samefile(path):
        raise JournalError(f"{backup} is the journal itself. To give it a new epoch: tallywire journal new-epoch.")
    log = backup.with_name(backup.name + "-wal")
    if log.exists() and log.stat().st_size:
        raise JournalError(
            f"beside the backup {backup} lies a log of it, {log.name}: it is no backup, but a copy of a journal. "
            f"Let SQLite join them first: sqlite3 {backup} 'PRAGMA wal_checkpoint(TRUNCATE)'."
        )
    try:
        # Held while anything is moved. Whoever has it now has the journal open.
        lock = Lock(path.with_name(f"{path.name}-lock"), path)
    except OSError as error:
        raise JournalError(
            f"the journal {path} cannot be written: {error.strerror}. Choose another with --journal."
        ) from error
    coming = path.with_name(f"{path.name}.restoring")
    ready = path.with_name(f"{path.name}{RESTORED}")
    try:
        _remove(coming, "", "-wal", "-shm")
        shutil.copyfile(backup, coming)
        os.chmod(coming, 0o600)
        _give_away(path.parent, coming, path.with_name(f"{path.name}-lock"))
        advance(300)
        _move_on(coming)
        contents = _in_order(check(coming, immutable=True), backup)
        advance(800)
        epoch = _begin_epoch(coming)
        # From here on nobody opens what has the name, which would be begun anew, or go on without its log.
        coming.replace(ready)
        sync_directory(path.parent)
        replaced = _set_aside(path)
        ready.replace(path)
        sync_directory(path.parent)
        advance(1000)
    except (OSError, sqlite3.Error) as error:
        raise JournalError(f"the backup {backup} cannot be restored to {path}: {error}.") from error
    finally:
        _remove(coming, "", "-wal", "-shm")
        lock.release()
    return Restored(contents, epoch, replaced)


def _copy_pages(path: Path, target: Path, advance: Advance) -> None:
    _remove(target, "", "-journal")
    # For its owner only, as the journal is.
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    # The transaction that `reading` has begun holds one state for all steps: without it each commit of the server would
    # begin the copy anew.
    with reading(path, takes_older=True) as source, closing(sqlite3.connect(target)) as copy:
        source.execute("SELECT 1 FROM journal").fetchone()
        source.backup(
            copy, pages=STEP_PAGES, progress=lambda _status, left, of: advance((of - left) * 1000 // max(of, 1))
        )


def _looked_through(path: Path, name: Path) -> Contents:
    """Of a file that nobody else has. What is looked through of an older schema is a second copy, migrated."""
    if _schema(path) == len(MIGRATIONS):
        return _in_order(check(path, immutable=True), name)
    migrated = path.with_name(path.name + _MIGRATED[0])
    _remove(path, *_MIGRATED)
    shutil.copyfile(path, migrated)
    _move_on(migrated)
    contents = _in_order(check(migrated, immutable=True), name)
    return msgspec.structs.replace(contents, schema=_schema(path))


def _schema(path: Path) -> int:
    with reading(path, immutable=True, takes_older=True) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        return int(version)


def _move_on(path: Path) -> None:
    """Bring a copy to this version's schema, and leave no log beside it."""
    if _schema(path) == len(MIGRATIONS):
        return
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        migrate(connection)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _in_order(verdict: Verdict, path: Path) -> Contents:
    if verdict.found or verdict.contents is None:
        raise JournalError(
            f"{path} is not in order: {'; '.join(verdict.found[:3])}. Look at it with tallywire journal check."
        )
    return verdict.contents


def _begin_epoch(path: Path) -> str:
    """Before it has its name, so that nobody can open it under the old one. The file keeps its identity when it is
    renamed."""
    epoch, identity = new_epoch(), identify(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(
            "UPDATE journal SET epoch = ?, inode = ?, generation = ?, is_clean = 1",
            (epoch, identity.inode, identity.generation),
        )
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    _sync(path)
    return epoch


def _set_aside(path: Path) -> Path | None:
    """The log goes first: left behind alone it would be taken for that of whatever comes in its place."""
    if not path.exists():
        _remove(path, "-wal", "-shm")
        return None
    number = 1
    while (kept := path.with_name(f"{path.name}.replaced-{number}")).exists():
        number += 1
    log = path.with_name(f"{path.name}-wal")
    if log.exists():
        log.replace(kept.with_name(f"{kept.name}-wal"))
    _remove(path, "-shm")
    path.replace(kept)
    return kept


def _give_away(directory: Path, *files: Path) -> None:
    """What root puts in place belongs to whoever the directory belongs to: the server could not open it otherwise."""
    if os.geteuid() == 0:
        owner = directory.stat()
        for file in files:
            os.chown(file, owner.st_uid, owner.st_gid)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path, *suffixes: str) -> None:
    for suffix in suffixes:
        with suppress(FileNotFoundError):
            path.with_name(path.name + suffix).unlink()
