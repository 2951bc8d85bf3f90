"""What only a journal on disk can do: come back, know its file again, refuse a file that is not its own."""

import asyncio
import fcntl
import os
import shutil
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from pathlib import Path
from unittest import mock

import pytest
from click.testing import CliRunner

from core.cli import tallywire
from core.errors import Busy, DiskFull, OutcomeUnknown
from core.journal import files
from core.journal.base import (
    HOUR_MS,
    JournalError,
    JournalFailed,
    JournalLimits,
    Load,
    Recorded,
    RevocationRecord,
    Revoke,
)
from core.journal.sqlite import copies, heads, opening, reader, schema, writer
from core.journal.sqlite.inspection import check
from core.journal.sqlite.opening import Durability, begin_new_epoch, open_file
from core.models import Summary
from core.totals import Row
from tests.contract.journal import DRIVERS, Desk, Driver, Limits, entry, opened, recorded, row_of, types

ON_DISK = next(driver for driver in DRIVERS if driver.name == "sqlite power")
IN_PROCESS = next(driver for driver in DRIVERS if driver.name.startswith("sqlite process"))
JOURNAL = "tallywire.db"
FS_IOC_GETVERSION = 0x80087601
"""ioctl_iflags(2)"""

MOST_COPIES = 1000
"""Until one of them gets the inode number of a file that was deleted: the first does, unless others make files too."""


def in_turn(
    directory: Path,
    *scenarios: Callable[[Desk], Awaitable[None]],
    driver: Driver = ON_DISK,
    limits: Limits | None = None,
    now_ms: int = 1_000,
) -> list[str]:
    """One life of the journal after the other, each left in order; answers their epochs."""
    epochs = []

    async def live(scenario: Callable[[Desk], Awaitable[None]]) -> None:
        async with opened(driver, directory, limits, now_ms) as desk:
            epochs.append(desk.journal.epoch)
            await scenario(desk)

    for scenario in scenarios:
        asyncio.run(live(scenario))
    return epochs


async def nothing(_desk: Desk) -> None:
    """A life without work."""


async def one_batch(desk: Desk) -> None:
    await desk.record(entry())


def sql(path: Path, statement: str) -> list[tuple[object, ...]]:
    """Behind the journal's back, while nobody has it."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return connection.execute(statement).fetchall()


def rest(path: Path) -> JournalFailed | None:
    """What the writer does when nothing waits, to its end; answers whether it failed."""
    file = open_file(path, "power")
    alone = writer.Writer(file, Limits().of_a_journal(), lambda: 0)
    while alone.rest():
        pass
    alone.close()
    if alone.failed:
        file.close()
    return alone.failed


# ---- coming back


def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    async def before(desk: Desk) -> None:
        await desk.record(
            entry(Summary("MARKET", 2, 0), key="a", ignored=4, accepted_ms=HOUR_MS),
            entry(strategy_id=4, accepted_ms=HOUR_MS),
        )

    async def after(desk: Desk) -> None:
        first = Row.before_the_first(7, 3).next(1, HOUR_MS, (Summary("MARKET", 2, 0),))
        load = await desk.load(7)
        assert (load.n, sorted(row.strategy_id for row in load.heads)) == (2, [3, 4])
        assert await desk.row_at(1) == first
        repeated = await desk.call(entry(Summary("MARKET", 2, 0), key="a"))
        assert (recorded(repeated.outcomes[0]).n, recorded(repeated.outcomes[0]).ignored) == (1, 4)
        assert len(await desk.journal.hours([7], None, 1, 2)) == 2
        (row,) = await desk.record(entry(Summary("LIMIT", 0, 1)))
        assert (row.n, row.number, row.totals.summaries) == (3, 2, (Summary("MARKET", 2, 0), Summary("LIMIT", 0, 1)))

    first, second = in_turn(tmp_path, before, after)
    assert first == second


def test_trimming_and_hours_go_on_where_they_stood(tmp_path: Path) -> None:
    async def one_life(desk: Desk) -> None:
        for _ in range(20):
            await desk.record(entry())

    async def check(desk: Desk) -> None:
        (hour,) = await desk.journal.hours([7], None, 0, 1)
        assert hour.summaries == (Summary("LIMIT", 60, 0),)
        assert (await desk.load(7)).n == 60

        async def is_trimmed() -> bool:
            return await desk.row_at(56) is None

        await desk.commit_until(is_trimmed)

    in_turn(tmp_path, one_life, one_life, one_life, check, limits=Limits(max_rows=3))


@pytest.mark.parametrize("count", [1, 4, 5, 32])
def test_the_hours_have_every_order_type_of_a_batch(tmp_path: Path, count: int) -> None:
    async def count_many_types(desk: Desk) -> None:
        await desk.record(entry(*types(0, count)), entry(*types(0, count)))

    async def check(desk: Desk) -> None:
        (hour,) = await desk.journal.hours([7], None, 0, 1)
        assert sorted(hour.summaries, key=lambda summary: int(summary.order_type[1:])) == [
            Summary(one.order_type, 2, 0) for one in types(0, count)
        ]

    in_turn(tmp_path, count_many_types, check)
    rest(tmp_path / JOURNAL)
    assert sql(tmp_path / JOURNAL, "SELECT count(*) FROM recent") == [(0,)]
    in_turn(tmp_path, check)


def test_what_is_kept_does_not_age_while_the_journal_is_closed(tmp_path: Path) -> None:
    limits = Limits(max_age_ms=1_000, idempotency_window_ms=1_000)

    async def begin(desk: Desk) -> None:
        await desk.record(entry(key="a"))

    async def come_back(desk: Desk) -> None:
        await desk.record(entry())
        assert recorded((await desk.call(entry(key="a"))).outcomes[0]).row is None
        assert (await desk.row_at(1)) == Row.before_the_first(7, 3).next(1, 1_000, entry().summaries)

    async def stay(desk: Desk) -> None:
        desk.now_ms += 1_001
        assert row_of((await desk.call(entry(key="a"))).outcomes[0]).n == 4

    in_turn(tmp_path, begin, limits=limits)
    # The clock of another process: it begins anywhere.
    in_turn(tmp_path, come_back, limits=limits, now_ms=77_000_000)
    in_turn(tmp_path, come_back, stay, limits=limits, now_ms=3)


def test_memory_does_not_grow_with_every_user_ever_seen(tmp_path: Path) -> None:
    async def many_users(desk: Desk) -> None:
        for first in range(1, 200, 20):
            await desk.record(*(entry(user_id=user_id) for user_id in range(first, first + 20)))
        writer = desk.journal._writer  # type: ignore[attr-defined]  # of SqliteJournal
        assert len(writer._heads) <= 50
        assert [(await desk.record(entry(user_id=user_id)))[0].n for user_id in (1, 100, 199)] == [2, 2, 2]

    with mock.patch.object(heads, "MOST_HEADS", 50):
        in_turn(tmp_path, many_users)


# ---- epochs


def test_a_journal_left_in_order_keeps_its_epoch_at_every_durability(tmp_path: Path) -> None:
    other_boot = mock.patch.object(opening, "boot_id", return_value="another")
    (first,) = in_turn(tmp_path, one_batch, driver=IN_PROCESS)
    with other_boot:
        assert in_turn(tmp_path, one_batch, driver=IN_PROCESS) == [first]
    assert in_turn(tmp_path, one_batch) == [first]


def abandoned(path: Path, durability: Durability, boot: str) -> str:
    """A life that ends without a word; answers its epoch."""
    with mock.patch.object(opening, "boot_id", return_value=boot):
        file = open_file(path, durability, 0)
        file.close()
    return file.epoch


@pytest.mark.parametrize(
    ("before", "after", "boot", "keeps"),
    [
        ("power", "power", "other", True),
        ("power", "process", "other", True),
        ("process", "process", "same", True),
        ("process", "power", "same", True),
        ("process", "process", "other", False),
        ("process", "power", "other", False),
        ("process", "process", "", False),
    ],
)
@pytest.mark.logs("New epoch")
def test_a_machine_that_stopped_ends_the_epoch_where_the_tail_may_be_lost(
    tmp_path: Path, before: Durability, after: Durability, boot: str, keeps: bool
) -> None:
    path = tmp_path / JOURNAL
    epoch = abandoned(path, before, "same")

    assert (abandoned(path, after, boot) == epoch) is keeps


@pytest.mark.logs("New epoch")
def test_a_life_left_in_order_says_nothing_about_the_next_one(tmp_path: Path) -> None:
    (first,) = in_turn(tmp_path, one_batch, driver=IN_PROCESS)

    assert abandoned(tmp_path / JOURNAL, "process", files.boot_id()) == first
    assert abandoned(tmp_path / JOURNAL, "process", "another") != first


@pytest.mark.logs("New epoch")
def test_a_copy_in_the_place_of_the_file_begins_a_new_epoch(tmp_path: Path) -> None:
    (first,) = in_turn(tmp_path, one_batch)
    # While both are there they have different inodes.
    Path(shutil.copy(tmp_path / JOURNAL, tmp_path / "copy")).replace(tmp_path / JOURNAL)

    assert in_turn(tmp_path, nothing) != [first]


def has_generations(path: Path) -> bool:
    """Asked of the kernel here, without the code that is tested."""
    with path.open("rb") as file:
        try:
            return any(fcntl.ioctl(file, FS_IOC_GETVERSION, bytes(8)))
        except OSError:
            return False


@pytest.mark.logs("New epoch")
def test_a_copy_that_gets_the_inode_number_of_the_deleted_file_begins_a_new_epoch(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    (first,) = in_turn(tmp_path, one_batch)
    number = path.stat().st_ino
    if not has_generations(path):
        pytest.skip("this file system has no generations, so nothing can tell such a copy: docs/guarantees.md says so")
    shutil.copy(path, tmp_path / "backup")
    path.unlink()
    made = (Path(shutil.copy(tmp_path / "backup", tmp_path / f"copy-{index}")) for index in range(MOST_COPIES))
    copy = next((copy for copy in made if copy.stat().st_ino == number), None)
    if copy is None:
        pytest.skip("this file system does not give the number of a deleted file out again, so the case cannot arise")
    copy.rename(path)

    assert in_turn(tmp_path, nothing) != [first]


def test_a_file_that_is_moved_is_the_same_file(tmp_path: Path) -> None:
    (first,) = in_turn(tmp_path, one_batch)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / JOURNAL).rename(tmp_path / "elsewhere" / JOURNAL)

    assert in_turn(tmp_path / "elsewhere", nothing) == [first]


def test_new_epoch_says_which_and_keeps_the_batches(tmp_path: Path) -> None:
    (first,) = in_turn(tmp_path, one_batch)

    said = CliRunner().invoke(tallywire, ["journal", "new-epoch", "--journal", str(tmp_path / JOURNAL)])

    assert said.exit_code == 0
    assert f", before {first}." in said.output

    async def check(desk: Desk) -> None:
        assert (await desk.load(7)).n == 1
        assert desk.journal.epoch in said.output

    assert in_turn(tmp_path, check) != [first]


def test_new_epoch_makes_no_journal_where_there_is_none(tmp_path: Path) -> None:
    said = CliRunner().invoke(tallywire, ["journal", "new-epoch", "--journal", str(tmp_path / JOURNAL)])

    assert said.exit_code == 1
    assert "there is no journal" in said.output
    assert list(tmp_path.iterdir()) == []


# ---- one process


def test_a_second_process_is_refused_and_told_who_has_the_journal(tmp_path: Path) -> None:
    async def try_again(_desk: Desk) -> None:
        with pytest.raises(JournalError, match=rf"in use by process {os.getpid()}\. Stop that process"):
            open_file(tmp_path / JOURNAL, "power", 0)
        with pytest.raises(JournalError, match="in use by"):
            begin_new_epoch(tmp_path / JOURNAL)

    in_turn(tmp_path, try_again, one_batch)


def test_another_name_of_the_file_is_refused_too(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link.db").symlink_to(tmp_path / JOURNAL)

    async def try_again(_desk: Desk) -> None:
        with pytest.raises(JournalError, match="in use by"):
            open_file(tmp_path / "elsewhere" / "link.db", "power", 0)

    in_turn(tmp_path, try_again)


# ---- files that are not to be used


def test_a_newer_schema_is_refused_by_name(tmp_path: Path) -> None:
    in_turn(tmp_path, one_batch)
    sql(tmp_path / JOURNAL, f"PRAGMA user_version = {len(schema.MIGRATIONS) + 1}")

    with pytest.raises(JournalError, match=r"newer version of Tallywire \(schema 4, this one knows 3\)"):
        open_file(tmp_path / JOURNAL, "power", 0)


def test_revocations_outlive_a_restart_until_whatever_they_concern_has_ended(tmp_path: Path) -> None:
    seen: list[Sequence[RevocationRecord]] = []

    def revoke(*records: RevocationRecord) -> Callable[[Desk], Awaitable[None]]:
        async def life(desk: Desk) -> None:
            seen.append(sorted(desk.journal.revocations, key=lambda record: record.revoked_ms))
            for record in records:
                work = Revoke(record)
                desk.submit(work)
                await desk.delivery_of(work)
                assert work.failure is None

        return life

    user, strategy = RevocationRecord(7, 0, 1_000, 5_000), RevocationRecord(0, 3, 2_000, 6_000)
    again, other = RevocationRecord(7, 0, 3_000, 7_000), RevocationRecord(8, 3, 6_500, 9_000)
    in_turn(tmp_path, revoke(user, strategy), revoke(again), revoke(other), revoke())

    assert seen == [[], [user, strategy], [strategy, again], [again, other]]


@pytest.mark.logs("Journal error")
def test_a_revocation_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    async def life(desk: Desk) -> None:
        desk.fails = True
        work = Revoke(RevocationRecord(7, 0, 1_000, 5_000))
        desk.submit(work)
        await desk.delivery_of(work)
        assert isinstance(work.failure, OutcomeUnknown)
        desk.fails = False

    in_turn(tmp_path, life)


def test_an_older_schema_is_migrated_forward_with_its_batches(tmp_path: Path) -> None:
    (epoch,) = in_turn(tmp_path, one_batch)
    step = "ALTER TABLE recent ADD COLUMN colour TEXT; UPDATE recent SET colour = 'red'"

    with mock.patch.object(opening, "MIGRATIONS", (*schema.MIGRATIONS, step)):
        open_file(tmp_path / JOURNAL, "power", 0).close()

    assert sql(tmp_path / JOURNAL, "SELECT colour FROM recent") == [("red",)]
    assert sql(tmp_path / JOURNAL, "PRAGMA user_version") == [(len(schema.MIGRATIONS) + 1,)]
    assert sql(tmp_path / JOURNAL, "SELECT epoch FROM journal") == [(epoch,)]


def test_so_many_questions_wait_for_a_reader_and_no_more(tmp_path: Path) -> None:
    async def crowd(desk: Desk) -> None:
        for _ in range(2):
            answers = await asyncio.gather(
                *(desk.journal.key_record(7, 3) for _ in range(reader.MOST_WAITING + 2)), return_exceptions=True
            )
            assert [type(answer) for answer in answers] == [type(None)] * reader.MOST_WAITING + [Busy] * 2

    in_turn(tmp_path, crowd)


WRITTEN_WITH_SCHEMA_1 = """
INSERT INTO rows VALUES
    (1, 7, 3, 1, 1, 3600000, 50, '[["LIMIT",1,0]]', '[["LIMIT",1,0]]'),
    (2, 7, 4, 2, 1, 3600000, 50, '[["MARKET",2,0]]', '[["MARKET",2,0]]'),
    (3, 7, 3, 3, 2, 3600000, 60, '[["MARKET",0,4],["LIMIT",3,0]]', '[["LIMIT",4,0],["MARKET",0,4]]'),
    (4, 8, 3, 1, 1, 3600000, 60, '[["LIMIT",9,0]]', '[["LIMIT",9,0]]');
INSERT INTO hours VALUES (1, 7, 3, 'LIMIT', 1, 0), (1, 7, 4, 'MARKET', 2, 0);
INSERT INTO hour_ages VALUES (1, 50);
INSERT INTO idempotency VALUES (NULL, 'a', 'orders', 7, 3, 3, 3600000, 60, 5, '[["MARKET",0,4],["LIMIT",3,0]]');
"""
"""Two rows are rolled up, two are not."""


def write_with_schema_1(path: Path) -> None:
    identity = files.identify(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(schema.MIGRATIONS[0])
        connection.executescript(f"PRAGMA application_id = {schema.APPLICATION_ID}; PRAGMA user_version = 1")
        connection.execute(
            "INSERT INTO journal VALUES (1, 'abcdefghjkmnp', ?, ?, 'boot', 'power', 1, 0, 2)",
            (identity.inode, identity.generation),
        )
        connection.executescript(WRITTEN_WITH_SCHEMA_1)


@pytest.mark.logs("Journal migrated")
def test_a_journal_of_schema_1_goes_on_where_it_stood(tmp_path: Path) -> None:
    write_with_schema_1(tmp_path / JOURNAL)
    third = (Summary("MARKET", 0, 4), Summary("LIMIT", 3, 0))
    limit_and_market = (Summary("LIMIT", 4, 0), Summary("MARKET", 0, 4))

    async def go_on(desk: Desk) -> None:
        load = await desk.load(7)
        assert (load.n, sorted((row.strategy_id, row.n) for row in load.heads)) == (3, [(3, 3), (4, 2)])
        assert (await desk.row_at(2)) == Row.before_the_first(7, 3).next(1, HOUR_MS, (Summary("LIMIT", 1, 0),))
        assert [batch.n for batch in await desk.journal.batches(7, 3, 0, 0, 2 * HOUR_MS, 9)] == [1, 3]
        records = await desk.journal.key_records(7, 0, 9)
        assert [(record.oldest.n, record.head.n) for record in records] == [(1, 3), (2, 2)]
        assert [hour.summaries for hour in await desk.journal.hours([7, 8], [3], 1, 2)] == [
            limit_and_market,
            (Summary("LIMIT", 9, 0),),
        ]
        repeated = await desk.call(entry(*third, key="a"))
        assert repeated.outcomes == [Recorded(3, third, 5, None)]
        (row,) = await desk.record(entry(Summary("LIMIT", 1, 0), accepted_ms=HOUR_MS))
        assert (row.n, row.number, row.totals.summaries) == (4, 3, (Summary("LIMIT", 5, 0), Summary("MARKET", 0, 4)))

    async def look(desk: Desk) -> None:
        (hour,) = await desk.journal.hours([7], [3], 1, 2)
        assert hour.summaries == (Summary("LIMIT", 5, 0), Summary("MARKET", 0, 4))
        assert (await desk.row_at(3)) is not None
        assert (await desk.load(7)).n == 4

    epochs = in_turn(tmp_path, go_on, look)
    rest(tmp_path / JOURNAL)
    assert in_turn(tmp_path, look) + epochs == ["abcdefghjkmnp"] * 3
    assert sql(tmp_path / JOURNAL, "SELECT (SELECT count(*) FROM rows), (SELECT count(*) FROM recent)") == [(5, 0)]


@pytest.mark.logs("Journal migrated")
def test_a_backup_of_schema_1_stays_one_and_is_migrated_when_it_is_restored(tmp_path: Path) -> None:
    write_with_schema_1(tmp_path / JOURNAL)
    backup = tmp_path / "backup.db"

    contents = copies.back_up(tmp_path / JOURNAL, backup)
    assert (contents.schema, contents.batches, contents.epoch) == (1, 4, "abcdefghjkmnp")
    assert sql(backup, "PRAGMA user_version") == [(1,)], "the version that wrote it can go on with it"
    assert [path.name for path in tmp_path.glob("backup*")] == ["backup.db"]

    restored = copies.restore(backup, tmp_path / JOURNAL)
    assert (restored.contents.schema, restored.contents.batches) == (len(schema.MIGRATIONS), 4)
    assert sql(backup, "PRAGMA user_version") == [(1,)], "it can be restored again"

    async def look(desk: Desk) -> None:
        assert (await desk.load(7)).n == 3

    assert in_turn(tmp_path, look) == [restored.epoch]


@pytest.mark.parametrize("moves", range(4))
def test_a_restore_that_is_broken_off_leaves_nothing_that_is_taken_for_the_journal(
    moves: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each of the times that it moves something; there is a log, as after a crash."""
    path, backup = tmp_path / JOURNAL, tmp_path / "backup.db"
    in_turn(tmp_path, one_batch)
    copies.back_up(path, backup)
    in_turn(tmp_path, one_batch)
    (tmp_path / f"{JOURNAL}-wal").write_bytes(b"a log")
    move, left = Path.replace, moves

    def replace(source: Path, target: Path) -> Path:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        return move(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            copies.restore(backup, path)

    if moves:
        for use in (begin_new_epoch, lambda path: open_file(path, "power"), check):
            with pytest.raises(JournalError, match=r"was broken off\. Run it again"):
                use(path)
    restored = copies.restore(backup, path)

    async def look(desk: Desk) -> None:
        assert (await desk.load(7)).n == 1

    assert in_turn(tmp_path, look) == [restored.epoch]
    assert [each.name for each in tmp_path.iterdir() if "restor" in each.name] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_root_restores_belongs_to_the_servers_user(tmp_path: Path) -> None:
    in_turn(tmp_path, one_batch)
    copies.back_up(tmp_path / JOURNAL, tmp_path / "backup.db")
    state = tmp_path / "state"
    state.mkdir()
    os.chown(state, 12_345, 12_346)

    copies.restore(tmp_path / "backup.db", state / JOURNAL)

    owners = {(each.stat().st_uid, each.stat().st_gid) for each in state.iterdir()}
    assert owners == {(12_345, 12_346)}
    assert (tmp_path / "backup.db").stat().st_uid == 0


@pytest.mark.logs("Journal migrated")
def test_a_backup_of_schema_1_that_is_not_in_order_is_neither_made_nor_restored(tmp_path: Path) -> None:
    write_with_schema_1(tmp_path / JOURNAL)
    with closing(sqlite3.connect(tmp_path / JOURNAL)) as connection:
        connection.execute("UPDATE rows SET totals = '[[\"LIMIT\",9,0]]' WHERE seq = 3")
        connection.commit()

    with pytest.raises(JournalError, match="is not in order"):
        copies.back_up(tmp_path / JOURNAL, tmp_path / "backup.db")
    with pytest.raises(JournalError, match="is not in order"):
        copies.restore(tmp_path / JOURNAL, tmp_path / "other.db")
    assert list(tmp_path.glob("backup*")) == []
    assert not (tmp_path / "other.db").exists()


def test_a_migration_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    in_turn(tmp_path, one_batch)
    step = "ALTER TABLE rows ADD COLUMN colour TEXT; UPDATE nowhere SET colour = 'red'"

    with (
        mock.patch.object(opening, "MIGRATIONS", (*schema.MIGRATIONS, step)),
        pytest.raises(JournalError, match="nowhere"),
    ):
        open_file(tmp_path / JOURNAL, "power", 0)

    in_turn(tmp_path, one_batch)


def test_a_database_of_another_program_is_refused(tmp_path: Path) -> None:
    sql(tmp_path / JOURNAL, "CREATE TABLE cats (name TEXT)")

    with pytest.raises(JournalError, match="database of another program"):
        open_file(tmp_path / JOURNAL, "power", 0)


def test_what_is_refused_has_not_been_changed(tmp_path: Path) -> None:
    sql(tmp_path / JOURNAL, "CREATE TABLE cats (name TEXT)")
    before = (tmp_path / JOURNAL).read_bytes()
    with pytest.raises(JournalError):
        open_file(tmp_path / JOURNAL, "power", 0)
    assert (tmp_path / JOURNAL).read_bytes() == before


def test_a_damaged_journal_is_refused_with_a_fix_and_let_go_of(tmp_path: Path) -> None:
    in_turn(tmp_path, one_batch)
    sql(tmp_path / JOURNAL, "DROP TABLE hour_ages")

    for _ in range(2):
        with pytest.raises(JournalError, match=r"cannot be used.*Restore a backup"):
            in_turn(tmp_path, nothing)


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_text("Dear diary, " * 1000)

    with pytest.raises(JournalError, match=r"not a database.*--journal"):
        open_file(tmp_path / JOURNAL, "power", 0)
    assert (tmp_path / JOURNAL).read_text() == "Dear diary, " * 1000


def test_a_directory_that_is_not_there_is_named_with_a_fix(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match=r"No such file or directory.*must exist"):
        open_file(tmp_path / "missing" / JOURNAL, "power", 0)


# ---- files


def test_only_the_owner_may_read_the_journal(tmp_path: Path) -> None:
    async def look(desk: Desk) -> None:
        await one_batch(desk)
        assert {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()} == {
            JOURNAL + suffix: "0o600" for suffix in ("", "-wal", "-shm", "-lock", "-reserve")
        }

    in_turn(tmp_path, look)


def test_a_log_that_was_left_behind_is_written_once_more_and_kept(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(os.urandom(3 * 2**20 + 17))
    held = log.read_bytes()

    files.make_durable(log)

    assert log.read_bytes() == held
    files.make_durable(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_a_reserve_is_held_until_it_is_given_up(tmp_path: Path) -> None:
    reserve = files.Reserve(tmp_path / "reserve", 2**20)

    assert reserve.hold()
    assert (tmp_path / "reserve").stat().st_blocks * 512 >= 2**20
    reserve.release()
    assert not (tmp_path / "reserve").exists()
    assert not reserve.is_held


# ---- when something is wrong


@pytest.mark.logs("Transaction failed", "Journal failed", "Users not loaded", "New epoch")
def test_a_fault_of_the_writer_is_told_to_whoever_waits_and_ends_the_process(tmp_path: Path) -> None:
    async def break_it(desk: Desk) -> None:
        await desk.record(entry(), entry(user_id=8))
        desk.journal._writer._heads.forget(8)  # type: ignore[attr-defined]  # of SqliteJournal
        with mock.patch.object(schema, "HEADS", "SELECT '[[null]]' WHERE ? <> ''"):
            load = Load(9)
            first = desk.submit_call(entry(user_id=8))
            desk.submit(load)
            second = desk.submit_call(entry())
            await desk.delivery_of(first, load, second)
        late = await desk.call(entry())
        failures = [first.failure, load.failure, second.failure, late.failure]
        assert [failure.code for failure in failures if failure] == [
            "outcome_unknown",
            "busy",
            "outcome_unknown",
            "outcome_unknown",
        ]
        assert "must be read anew" in desk._complaints.pop()

    async def come_back(desk: Desk) -> None:
        assert [(await desk.load(user_id)).n for user_id in (7, 8)] == [1, 1]

    (tmp_path / "a").mkdir()
    in_turn(tmp_path / "a", break_it)
    # This process has the file until it ends.
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    sql(tmp_path / "b" / JOURNAL, "PRAGMA wal_checkpoint(TRUNCATE)")
    in_turn(tmp_path / "b", come_back)


@pytest.mark.logs("Housekeeping failed", "Journal failed")
def test_a_fault_of_housekeeping_ends_the_process(tmp_path: Path) -> None:
    async def break_it(desk: Desk) -> None:
        with mock.patch.object(writer.Writer, "_due", side_effect=MemoryError):
            await desk.call(entry())
            while not desk._complaints:
                await asyncio.sleep(0)
        assert "MemoryError" in desk._complaints.pop()

    in_turn(tmp_path, break_it)


@pytest.mark.logs("Journal failed")
def test_two_batches_at_one_position_end_the_process(tmp_path: Path) -> None:
    in_turn(tmp_path, one_batch)
    rest(tmp_path / JOURNAL)
    sql(tmp_path / JOURNAL, "INSERT INTO recent SELECT 2, 7, 3, 1, 1, 0, 0, summaries, totals FROM rows")

    assert "contradicts itself" in str(rest(tmp_path / JOURNAL))


@pytest.mark.logs("Journal error")
def test_what_was_rolled_up_stays_rolled_up_when_the_answer_of_the_commit_is_lost(tmp_path: Path) -> None:
    original = writer.Writer._transact

    def commit_and_fail(self: writer.Writer, statements: object) -> None:
        original(self, statements)  # type: ignore[arg-type]  # passed on
        raise sqlite3.OperationalError("the answer is lost")

    async def one_life(desk: Desk) -> None:
        for index in range(100):
            lost = index % 3 == 0
            with mock.patch.object(writer.Writer, "_transact", commit_and_fail if lost else original):
                await desk.record(entry())
        (hour,) = await desk.journal.hours([7], None, 0, 1)
        assert hour.summaries == (Summary("LIMIT", 100, 0),)

    in_turn(tmp_path, one_life, limits=Limits(max_rows=3))


def test_a_repeat_is_answered_while_emits_are_refused(tmp_path: Path) -> None:
    async def repeat(desk: Desk) -> None:
        first = await desk.call(entry(key="a"))
        desk.journal._writer.refusal = DiskFull()  # type: ignore[attr-defined]  # of SqliteJournal
        refused = await desk.call(entry(key="b"))
        again = await desk.call(entry(key="a"))

        assert isinstance(refused.failure, DiskFull)
        assert recorded(again.outcomes[0]) == Recorded(recorded(first.outcomes[0]).n, entry().summaries, 0, None)

    with mock.patch.object(writer.Writer, "_look"):
        in_turn(tmp_path, repeat)


@pytest.mark.logs("Emits are refused")
def test_nothing_is_done_for_ever_when_what_must_stay_is_near_the_limit(tmp_path: Path) -> None:
    limits = JournalLimits(max_rows=1, max_age_ms=10**12, idempotency_window_ms=10**12, max_bytes=2**20)

    async def fill(desk: Desk) -> None:
        user_id = 0
        while desk.journal.refusal is None:
            user_id += 500
            await desk.call(*(entry(user_id=user_id + index) for index in range(500)))
        assert desk.journal.refusal.code == "journal_full"
        refused = await desk.call(entry(user_id=10**6))
        assert refused.failure is not None
        assert refused.failure.code == "journal_full"

    with mock.patch.object(Limits, "of_a_journal", return_value=limits):
        in_turn(tmp_path, fill)
    file = open_file(tmp_path / JOURNAL, "power", 0)
    alone = writer.Writer(file, limits, lambda: 0)
    rounds = 0
    while alone.rest():
        rounds += 1
        assert rounds < 1000
    alone.close()


# ---- limits


def test_a_log_does_not_grow_with_what_is_committed(tmp_path: Path) -> None:
    async def many(desk: Desk) -> None:
        for _ in range(30):
            await desk.record(*[entry()] * 1000)

    in_turn(tmp_path, many)
    sizes: list[int] = []

    async def look(desk: Desk) -> None:
        await many(desk)
        sizes.append((tmp_path / f"{JOURNAL}-wal").stat().st_size)

    in_turn(tmp_path, look)
    assert sizes[0] < 3 * 2**20


def test_rows_go_early_when_they_take_too_much_room_and_emits_go_on(tmp_path: Path) -> None:
    limits = JournalLimits(max_rows=10**6, max_age_ms=10**12, idempotency_window_ms=10**12, max_bytes=2**20)

    async def many(desk: Desk) -> None:
        for _ in range(60):
            (*_, last) = await desk.record(*[entry()] * 500)
        assert last.n == 30_000
        assert await desk.row_at(1) is None
        assert await desk.row_at(30_000) == last
        (hour,) = await desk.journal.hours([7], None, 0, 1)
        assert hour.summaries[0].created == 30_000

    with mock.patch.object(Limits, "of_a_journal", return_value=limits):
        in_turn(tmp_path, many)
    assert (tmp_path / JOURNAL).stat().st_size < 2 * 2**20


def test_keys_and_hours_go_when_they_are_old_enough_and_not_before(tmp_path: Path) -> None:
    limits = JournalLimits(max_rows=10**6, max_age_ms=10**12, idempotency_window_ms=1_000, hours_age_ms=5_000)

    async def grow_old(desk: Desk) -> None:
        await desk.record(*(entry(key=f"old {index}", accepted_ms=HOUR_MS) for index in range(2_500)))
        desk.now_ms += 1_000
        await desk.record(entry(key="young", accepted_ms=2 * HOUR_MS))
        assert len(await desk.journal.batches_of_key("old 7")) == 1

        async def keys_are_purged() -> bool:
            lookups = desk.journal._lookups  # type: ignore[attr-defined]  # of SqliteJournal
            kept: int = await lookups.ask("SELECT count(*) FROM idempotency", {}, int)
            return kept == 1

        async def old_hour_is_purged() -> bool:
            return [hour.hour for hour in await desk.journal.hours([7], None, 1, 3)] == [2]

        desk.now_ms += 1
        await desk.commit_until(keys_are_purged)
        assert len(await desk.journal.batches_of_key("young")) == 1
        assert len(await desk.journal.hours([7], None, 1, 3)) == 2
        # Each of them is as old as what was last counted in it.
        desk.now_ms += 4_000
        await desk.commit_until(old_hour_is_purged)

    with mock.patch.object(Limits, "of_a_journal", return_value=limits):
        in_turn(tmp_path, grow_old)


def test_a_batch_in_flight_when_the_process_was_killed_is_there_or_not_but_never_half(tmp_path: Path) -> None:
    path, log = tmp_path / JOURNAL, tmp_path / f"{JOURNAL}-wal"
    left: list[bytes] = []

    async def copy_while_open(desk: Desk) -> None:
        await desk.record(entry(key="a"))
        left.extend(each.read_bytes() for each in (path, log))

    in_turn(tmp_path, copy_while_open)
    path.write_bytes(left[0])
    log.write_bytes(left[1][:-100])

    file = open_file(path, "power", 0)
    rows = file.connection.execute("SELECT count(*) FROM rows").fetchone()
    keys = file.connection.execute("SELECT count(*) FROM idempotency").fetchone()
    file.close()
    assert rows == keys == (0,)


def killed(directory: Path) -> bytes:
    """Leave the journal as a process does that is killed: one batch in the file, a second one in its log only; answers
    what the file was after the first one."""
    path, log = directory / JOURNAL, directory / f"{JOURNAL}-wal"
    left: list[bytes] = []

    async def copy_while_open(desk: Desk) -> None:
        await one_batch(desk)
        left.extend(each.read_bytes() for each in (path, log))

    in_turn(directory, one_batch)
    backup = path.read_bytes()
    in_turn(directory, copy_while_open)
    path.write_bytes(left[0])
    log.write_bytes(left[1])
    return backup


@pytest.mark.logs("New epoch")
def test_a_backup_in_the_place_of_a_killed_journal_is_not_ruined_by_its_log(tmp_path: Path) -> None:
    backup = killed(tmp_path)
    (tmp_path / "backup").write_bytes(backup)
    (tmp_path / "backup").rename(tmp_path / JOURNAL)

    with pytest.raises(JournalError, match=rf"the log of another file.*remove {JOURNAL}-wal"):
        open_file(tmp_path / JOURNAL, "power", 0)
    assert (tmp_path / JOURNAL).read_bytes() == backup

    async def is_the_backup(desk: Desk) -> None:
        assert (await desk.load(7)).n == 1

    (tmp_path / f"{JOURNAL}-wal").unlink()
    in_turn(tmp_path, is_the_backup)


@pytest.mark.logs("New epoch")
def test_a_killed_journal_copied_with_its_log_can_be_used_as_the_refusal_says(tmp_path: Path) -> None:
    killed(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    for suffix in ("", "-wal"):
        shutil.copy(tmp_path / f"{JOURNAL}{suffix}", tmp_path / "elsewhere")
    copy = tmp_path / "elsewhere" / JOURNAL
    with pytest.raises(JournalError, match=r"copied together.*wal_checkpoint"):
        open_file(copy, "power", 0)

    sql(copy, "PRAGMA wal_checkpoint(TRUNCATE)")

    async def is_whole(desk: Desk) -> None:
        assert (await desk.load(7)).n == 2

    in_turn(tmp_path / "elsewhere", is_whole)


@pytest.mark.parametrize("replace", [False, True], ids=["removed", "replaced"])
@pytest.mark.logs("Journal failed")
def test_a_journal_that_is_taken_away_under_a_running_server_ends_it(tmp_path: Path, replace: bool) -> None:
    async def take_away(desk: Desk) -> None:
        await one_batch(desk)
        (tmp_path / JOURNAL).rename(tmp_path / "away")
        if replace:
            shutil.copy(tmp_path / "away", tmp_path / JOURNAL)
        await desk.call(entry())
        while not desk._complaints:
            await asyncio.sleep(0)
        assert "has been removed or replaced" in desk._complaints.pop()
        assert (await desk.call(entry())).failure is not None

    in_turn(tmp_path, take_away)


def test_a_file_whose_inode_number_is_larger_than_sqlite_holds_is_known_again(tmp_path: Path) -> None:
    async def work(desk: Desk) -> None:
        for _ in range(3):
            await one_batch(desk)

    with mock.patch.object(files, "_MAX_STORED", 1):
        first, second = in_turn(tmp_path, work, work)

    assert first == second


@pytest.mark.logs("Journal busy", "Journal error")
def test_a_shell_that_holds_the_write_lock_makes_emits_wait_and_none_unknown(tmp_path: Path) -> None:
    async def hold(desk: Desk) -> None:
        await one_batch(desk)
        with closing(sqlite3.connect(tmp_path / JOURNAL, isolation_level=None)) as shell:
            shell.execute("BEGIN IMMEDIATE")
            refused = await desk.call(entry())
            shell.execute("ROLLBACK")
        assert refused.failure is not None
        assert refused.failure.code == "busy"
        assert row_of((await desk.call(entry())).outcomes[0]).n == 2

    in_turn(tmp_path, hold)


def test_what_is_no_file_is_refused_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    (tmp_path / JOURNAL).mkdir()
    for path in (tmp_path / JOURNAL, Path("/dev/null")):
        with pytest.raises(JournalError, match="is not a file"):
            open_file(path, "power", 0)
    assert [each.name for each in tmp_path.iterdir()] == [JOURNAL]
