"""Folders of outboxes: what is handed over stays until it is settled, whatever happens to the process."""

import os
from contextlib import suppress
from pathlib import Path

import pytest
from tallywire_client import outbox as module
from tallywire_client._records import Moment
from tallywire_client.outbox import (
    NotAvailableError,
    Outbox,
    OutboxFullError,
    OutboxOptions,
    abandoned,
    read_report,
    report,
)

AT = Moment(1000.0, 50.0, "boot-1")
TARGET = "http://127.0.0.1:8081"


def line(number: int) -> bytes:
    return b'{"user_id":7,"strategy_id":3,"idempotency_key":"k-%d","batch_results":[]}' % number


def batches(outbox: Outbox) -> list[bytes]:
    found: list[bytes] = []
    while some := outbox.read(3, 10_000):
        found += [handed.line for handed in some]
    return found


def killed(outbox: Outbox) -> Path:
    """As the kernel does it: descriptors are closed, and nothing else happens."""
    outbox.abandon()
    return outbox.folder


def test_what_a_killed_process_was_handed_is_adopted_and_read_in_order(tmp_path: Path) -> None:
    options = OutboxOptions(tmp_path)
    mine = Outbox.create(options, TARGET)
    for number in range(1, 8):
        mine.append(line(number), 1000.0)
    mine.attempt(4, AT)
    mine.settle(2)
    folder = killed(mine)

    assert abandoned(options, TARGET, set()) == [folder]
    adopted = Outbox.adopt(folder, options)
    assert batches(adopted) == [line(number) for number in range(3, 8)]
    assert adopted.first_attempt(4) == AT
    assert adopted.first_attempt(5) is None
    adopted.settle(7)
    adopted.close()
    assert abandoned(options, TARGET, set()) == []


def test_a_living_process_keeps_its_folder(tmp_path: Path) -> None:
    options = OutboxOptions(tmp_path)
    mine = Outbox.create(options, TARGET)

    with pytest.raises(NotAvailableError):
        Outbox.adopt(mine.folder, options)
    mine.close()
    with pytest.raises(NotAvailableError):
        Outbox.adopt(mine.folder, options)


def test_a_folder_for_another_server_is_left_alone(tmp_path: Path) -> None:
    options = OutboxOptions(tmp_path)
    killed(Outbox.create(options, TARGET))

    assert abandoned(options, "http://127.0.0.1:9999", set()) == []


def test_a_file_torn_at_any_byte_loses_nothing_before_that(tmp_path: Path) -> None:
    options = OutboxOptions(tmp_path)
    mine = Outbox.create(options, TARGET)
    ends = []
    for number in range(1, 5):
        mine.append(line(number), 1000.0)
        ends.append(mine.size_bytes)
    mine.attempt(4, AT)
    mine.settle(1)
    folder = killed(mine)
    (segment,) = folder.glob("*.log")
    content = segment.read_bytes()
    for cut in range(len(content) + 1):
        for file in folder.glob("*.log"):
            file.unlink()
        segment.write_bytes(content[:cut])
        adopted = Outbox.adopt(folder, options)
        whole = sum(end <= cut for end in ends)
        settled = 1 if cut == len(content) else 0
        assert batches(adopted) == [line(number) for number in range(1 + settled, whole + 1)], cut
        # And it can be written on, behind whatever is torn.
        adopted.append(line(99), 1000.0)
        killed(adopted)
        again = Outbox.adopt(folder, options)
        assert batches(again)[-1] == line(99), cut
        killed(again)


def test_an_adopter_that_is_killed_leaves_what_it_had_not_settled(tmp_path: Path) -> None:
    options = OutboxOptions(tmp_path)
    mine = Outbox.create(options, TARGET)
    for number in range(1, 5):
        mine.append(line(number), 1000.0)
    first = Outbox.adopt(killed(mine), options)
    first.attempt(2, AT)
    first.settle(2)
    second = Outbox.adopt(killed(first), options)

    assert batches(second) == [line(3), line(4)]
    killed(second)


def test_a_folder_whose_batches_are_gone_is_removed(tmp_path: Path) -> None:
    """An adopter was killed when it had removed the segments of what was settled, and not yet the folder."""
    options = OutboxOptions(tmp_path)
    mine = Outbox.create(options, TARGET)
    mine.append(line(1), 1000.0)
    first = Outbox.adopt(killed(mine), options)
    first.attempt(1, AT)
    first.settle(1)
    second = Outbox.adopt(killed(first), options)

    assert batches(second) == []
    assert second.unsettled == 0
    second.close()
    assert list(tmp_path.iterdir()) == []


def test_who_only_looks_in_leaves_no_file_behind(tmp_path: Path) -> None:
    options = OutboxOptions(tmp_path)
    mine = Outbox.create(options, TARGET)
    mine.append(line(1), 1000.0)
    folder = killed(mine)
    before = sorted(folder.iterdir())
    for _ in range(3):
        adopted = Outbox.adopt(folder, options)
        assert batches(adopted) == [line(1)]
        killed(adopted)

    assert sorted(folder.iterdir()) == before


def test_an_attempt_that_did_not_arrive_counts_for_nothing(tmp_path: Path) -> None:
    options = OutboxOptions(tmp_path)
    mine = Outbox.create(options, TARGET)
    mine.append(line(1), 1000.0)
    mine.attempt(1, AT)
    mine.revoke(1)
    adopted = Outbox.adopt(killed(mine), options)

    assert adopted.first_attempt(1) is None
    killed(adopted)


def test_segments_go_with_their_last_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEGMENT_BYTES", 400)
    monkeypatch.setattr(module, "EMPTY_SEGMENT_BYTES", 300)
    options = OutboxOptions(tmp_path)
    mine = Outbox.create(options, TARGET)
    for number in range(1, 31):
        mine.append(line(number), 1000.0)
    assert len(list(mine.folder.glob("*.log"))) > 5
    mine.settle(20)
    left = Outbox.adopt(killed(mine), options)
    assert batches(left) == [line(number) for number in range(21, 31)]
    left.settle(30)
    assert left.size_bytes < 400
    left.close()
    assert list(tmp_path.iterdir()) == []


def test_a_full_folder_takes_no_more_and_keeps_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEGMENT_BYTES", 400)
    options = OutboxOptions(tmp_path, max_bytes=1500)
    mine = Outbox.create(options, TARGET)
    taken = 0
    with suppress(OutboxFullError):
        for number in range(100):
            mine.append(line(number), 1000.0)
            taken += 1

    assert 0 < taken < 100
    used = sum(file.stat().st_size for file in mine.folder.glob("*.log"))
    assert 0 < used <= 1500
    assert batches(mine) == [line(number) for number in range(taken)]
    mine.settle(mine.last_seq)
    mine.append(line(1), 1000.0)
    killed(mine)


def test_a_write_that_fails_halfway_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = OutboxOptions(tmp_path)
    mine = Outbox.create(options, TARGET)
    mine.append(line(1), 1000.0)
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:20]))
        with pytest.raises(OutboxFullError):
            mine.append(line(2), 1000.0)
    mine.append(line(3), 1000.0)

    assert batches(mine) == [line(1), line(3)]
    killed(mine)


def test_a_power_cut_is_survived_by_what_was_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    real = os.fdatasync

    def fdatasync(descriptor: int) -> None:
        synced.append(descriptor)
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    mine = Outbox.create(OutboxOptions(tmp_path, "power"), TARGET)
    mine.append(line(1), 1000.0)
    mine.append(line(2), 1000.0)
    mine.sync()
    mine.sync()

    assert len(synced) == 1, "what is on the disk is not synced twice"
    mine.attempt(2, AT)
    mine.sync()
    assert len(synced) == 2, "an attempt is something new to be synced"
    killed(mine)


def test_the_report_tells_what_was_not_sent_again(tmp_path: Path) -> None:
    options = OutboxOptions(tmp_path)
    report(options, line(5), 1234.0)
    with (tmp_path / "unknown.jsonl").open("a") as file:
        file.write('{"torn')

    (reported,) = read_report(options)
    assert (reported.idempotency_key, reported.user_id, reported.strategy_id) == ("k-5", 7, 3)
    assert reported.reported_at == 1234.0
    assert read_report(OutboxOptions(tmp_path / "nowhere")) == []


def test_files_that_another_process_removes_meanwhile_cost_no_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a file looks that has gone between its listing and the look at its size."""
    monkeypatch.setattr(module, "SEGMENT_BYTES", 300)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "00000001.log").symlink_to(tmp_path / "gone")
    outbox = Outbox.create(OutboxOptions(tmp_path), TARGET)
    for number in range(1, 20):
        outbox.append(line(number), 1000.0)
    assert batches(outbox) == [line(number) for number in range(1, 20)]
    outbox.abandon()


def test_a_disk_without_locks_is_told_and_nothing_is_left_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError("no locks here")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(OSError, match="no locks here"):
        Outbox.create(OutboxOptions(tmp_path), TARGET)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_read_is_let_go_of(tmp_path: Path) -> None:
    options = OutboxOptions(tmp_path)
    folder = killed(Outbox.create(options, TARGET))
    (folder / "00000002.log").mkdir()
    for _ in range(2):
        with pytest.raises(IsADirectoryError):
            Outbox.adopt(folder, options)
    (folder / "00000002.log").rmdir()
    Outbox.adopt(folder, options).close()
