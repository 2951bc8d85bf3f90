"""The Nth sync or write of the journal fails: nothing undurable was ever shown, nothing counts twice after a retry."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.e2e.failing_calls import SYNCS, Fault, failing, need_strace
from tests.e2e.orders import Client, Ledger, calling, following
from tests.process import ServerProcess, broken, running_server, wait_until

FAILING_CALLS = [int(n) for n in os.environ.get("TALLYWIRE_FAILING_CALLS", "1,2,5").split(",")]
"""Which calls fail, one in each life of a server; a thorough run takes the first 30."""

SYNCS_OF_THE_FILE = Fault("fdatasync,fsync", "EIO", files=("",))
WRITES = {
    "write": Fault("pwrite64", "EIO"),
    "write-without-room": Fault("pwrite64", "ENOSPC"),
    "write-of-the-file": Fault("pwrite64", "EIO", files=("",)),
    "write-of-the-file-without-room": Fault("pwrite64", "ENOSPC", files=("",)),
}
"""Those of the file alone are made when the log is worked off."""

ENDS_SECONDS = 20
BATCHES_AFTER_THE_FAULT = 30


class World:
    """Callers with keys and clients, on one server after the other."""

    def __init__(self, directory: Path) -> None:
        need_strace()
        self.journal = directory / "tallywire.db"
        self.record = directory / "strace"
        self.ledger = Ledger()
        self.clients = [Client(1, 1, 2), Client(2, 1)]
        self._seeds = iter(range(1, 1_000_000))

    def arguments(self) -> list[str]:
        """What puts a server on the journal."""
        return [f"--journal={self.journal}"]

    def live_until_the_fault(self, server: ServerProcess, fault: Fault, n: int, *, then_goes_on: bool) -> None:
        """Two callers are busy until the Nth call has failed; then the server ends, or goes on for a while."""
        self.record.unlink(missing_ok=True)
        with (
            failing(server, fault, self.journal, n, self.record) as failed,
            calling(
                server, self.ledger, [next(self._seeds), next(self._seeds)], only_keyed=True, insists=then_goes_on
            ) as callers,
        ):
            wait_until(lambda: failed.has_failed or all(caller.ended.is_set() for caller in callers), "the call fails")
            if then_goes_on:
                self.wait_for(BATCHES_AFTER_THE_FAULT)
            else:
                assert server.process.wait(ENDS_SECONDS) == 1, "a server that cannot trust its journal ends"
        assert failed.has_failed

    def wait_for(self, batches: int) -> None:
        """Until so many more have been acknowledged."""
        enough = len(self.ledger.acknowledged) + batches
        wait_until(lambda: len(self.ledger.acknowledged) >= enough, f"{batches} more batches")

    def check(self, server: ServerProcess) -> None:
        """All that was acknowledged or shown is in the journal; what is in doubt is sent again, and nobody is reset."""
        recorded = self.ledger.check(server)
        for client in self.clients:
            client.check(recorded)
        self.ledger.retry(server)
        recorded = self.ledger.check(server)
        for client in self.clients:
            if not client.is_following:
                client.follow(server)
            client.catch_up(server)
            client.check(recorded)
            assert client.reset is None

    def restart_and_check(self) -> None:
        """The next server, whose disk is fine, and which is killed in the end."""
        with running_server(*self.arguments()) as server:
            try:
                self.check(server)
            finally:
                server.stop(signal.SIGKILL)
                for client in self.clients:
                    client.leave()


@pytest.mark.parametrize(
    ("fault", "failing_calls"),
    [(SYNCS, FAILING_CALLS), (SYNCS_OF_THE_FILE, [1, 2])],
    ids=["sync", "sync-of-the-file"],
)
def test_a_failed_sync_ends_the_server_and_nothing_undurable_was_shown(
    tmp_path: Path, fault: Fault, failing_calls: Sequence[int]
) -> None:
    world = World(tmp_path)
    for n in failing_calls:
        with running_server(*world.arguments()) as server:
            with following(server, world.clients, server.process.kill):
                world.live_until_the_fault(server, fault, n, then_goes_on=False)
            _check_farewell(server, world.clients)
        world.restart_and_check()
    assert set(world.ledger.refused) <= {"outcome_unknown", "draining"}


@pytest.mark.parametrize("fault", WRITES.values(), ids=WRITES)
def test_a_failed_write_is_answered_and_the_server_goes_on(tmp_path: Path, fault: Fault) -> None:
    world = World(tmp_path)
    for n in FAILING_CALLS:
        with running_server(*world.arguments()) as server, following(server, world.clients, server.process.kill):
            world.live_until_the_fault(server, fault, n, then_goes_on=True)
            world.check(server)
            _check_errors(server, fault)
        world.restart_and_check()
    refused = set(world.ledger.refused)
    assert refused <= {"disk_full" if fault.error == "ENOSPC" else "outcome_unknown"}
    assert refused or "-wal" not in fault.files, "a commit has failed"


@pytest.mark.parametrize("fault", [SYNCS, WRITES["write"], WRITES["write-without-room"]], ids=["sync", "write", "room"])
def test_a_build_that_takes_a_failed_commit_for_a_good_one_is_seen(tmp_path: Path, fault: Fault) -> None:
    careless = broken(
        "import sqlite3\n"
        "from contextlib import suppress\n"
        "from core.journal.sqlite.writer import Writer\n"
        "accept = Writer.accept\n"
        "def accept_anything(self, statements):\n"
        "    with suppress(sqlite3.Error):\n"
        "        accept(self, statements)\n"
        "Writer.accept = accept_anything"
    )
    world = World(tmp_path)
    with (
        running_server(*world.arguments(), program=careless) as server,
        following(server, world.clients, server.process.kill),
    ):
        world.live_until_the_fault(server, fault, 2, then_goes_on=True)
    with pytest.raises(AssertionError, match="acknowledged batches are missing"):
        world.restart_and_check()


@pytest.mark.parametrize("fault", [SYNCS, WRITES["write"], WRITES["write-without-room"]], ids=["sync", "write", "room"])
def test_a_start_that_cannot_sync_or_write_is_refused_with_the_journal_named(tmp_path: Path, fault: Fault) -> None:
    world = World(tmp_path)
    refusals = 0
    for n in FAILING_CALLS:
        # Each start has a log to recover.
        with (
            running_server(*world.arguments()) as server,
            following(server, world.clients, server.process.kill),
            calling(server, world.ledger, [n], only_keyed=True),
        ):
            world.wait_for(10)
        refusals += _start_fails(world, fault, n)
        world.restart_and_check()
    assert refusals or fault.error == "ENOSPC", "the reserve helps a start that finds no room"


def _start_fails(world: World, fault: Fault, n: int) -> bool:
    """A start whose Nth call fails; answers whether it was refused. A later N may not be reached."""
    world.record.unlink(missing_ok=True)
    tracer = fault.tracer(world.journal, n, world.record)
    try:
        with running_server(*world.arguments(), command_prefix=[*tracer, "--daemonize"]) as server:
            # Nothing is emitted to it: the count begins anew in the writer's thread.
            server.stop(signal.SIGKILL)
            return False
    except AssertionError as error:
        said = str(error)
        if not said.startswith("the server did not become ready"):
            raise
    assert "(INJECTED)" in world.record.read_text()
    assert "Traceback" not in said, said
    assert str(world.journal) in said
    return True


def _check_farewell(server: ServerProcess, clients: Sequence[Client]) -> None:
    (failure,) = [line for line in server.log_lines() if line["message"] == "Journal failed"]
    assert failure["level"] == "critical"
    assert "Traceback" not in server.log.read_text()
    assert [client.closing for client in clients] == ["draining"] * len(clients)


def _check_errors(server: ServerProcess, fault: Fault) -> None:
    text = server.log.read_text()
    assert "Traceback" not in text
    messages = {line["message"] for line in server.log_lines() if line["level"] in ("error", "critical")}
    expected = {"Emits are refused"} if fault.error == "ENOSPC" else {"Journal error", "Commit failed"}
    assert messages, "the fault is told"
    assert messages <= expected | {"Request refused"}
