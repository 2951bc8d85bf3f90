"""A disk that is full, and a journal that may not grow: emits are refused, streams go on, and nothing is forgotten."""

import errno
import json
import os
import random
import signal
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from tests.e2e.failing_calls import SYNCS, failing, need_strace
from tests.e2e.mounts import mount, need_mounts, unmount
from tests.e2e.orders import KEYS, UNAVAILABLE, Batch, Client, Ledger, calling, following, totals
from tests.e2e.tally import Counts, Tally, place
from tests.e2e.wire import StreamSocket
from tests.process import ServerProcess, running_server, wait_until

DISK_MIB = 40
"""The reserve's 16, and some to work with."""

SMALL_JOURNAL = 2**20
MOST_BYTES = 3 * SMALL_JOURNAL
"""Trimming looks at two rows for each one that comes in; where it finds none to remove, as many again have come in."""

BLOCK_BYTES = 4096
STREAMS = 50
SOME_BATCHES = 60
FILLING_USER = 3
ENDS_SECONDS = 20
RECOVERS_SECONDS = 10

CREATED = {"order_type": "LIMIT", "event_type": "order_created", "success": True}


class Disk:
    """A small file system, and a file that takes what is left of it."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.journal = place / "tallywire.db"
        self._filler = place / "filler"

    def fill(self) -> None:
        """Until nothing more fits."""
        with self._filler.open("ab", buffering=0) as filler:
            for size in (2**20, BLOCK_BYTES):
                while self._grows(filler.fileno(), size):
                    pass

    def give_back(self, blocks: int) -> None:
        """Nearly full."""
        os.truncate(self._filler, self._filler.stat().st_size - blocks * BLOCK_BYTES)

    def clear(self) -> None:
        """There is room again."""
        self._filler.unlink(missing_ok=True)

    @staticmethod
    def _grows(descriptor: int, size: int) -> bool:
        try:
            return os.write(descriptor, bytes(size)) > 0
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return False


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    place = tmp_path / "disk"
    place.mkdir()
    need_mounts(place)
    mount("-t", "tmpfs", "-o", f"size={DISK_MIB}m", "none", str(place))
    try:
        yield Disk(place)
    finally:
        unmount(str(place))


# ---- the disk is full


@pytest.mark.parametrize("is_reserve_taken", [False, True], ids=["reserve-left", "reserve-taken"])
def test_a_full_disk_refuses_emits_serves_streams_and_recovers_by_itself(disk: Disk, is_reserve_taken: bool) -> None:
    ledger, clients = Ledger(), [Client(1, 1, 2), Client(2, 1)]
    with _running(disk.journal) as server, following(server, clients, server.stop):
        _emit_some(server, ledger)
        _fill(server, disk, ledger, is_reserve_taken=is_reserve_taken)
        _check_full_disk(server, ledger, clients)
        disk.clear()
        _check_recovery(server, ledger, clients)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_on_a_full_disk_serves_streams(disk: Disk, number: signal.Signals) -> None:
    ledger, clients = Ledger(), [Client(1, 1, 2), Client(2, 1)]
    with _running(disk.journal) as server, following(server, clients, lambda: server.stop(number)):
        _emit_some(server, ledger)
        _fill(server, disk, ledger, is_reserve_taken=True)
    with _running(disk.journal) as server, following(server, clients, server.stop):
        _check_full_disk(server, ledger, clients)
        disk.clear()
        _check_recovery(server, ledger, clients)


def test_a_disk_that_was_filled_while_the_server_was_away_is_opened_with_the_reserve(disk: Disk) -> None:
    ledger, clients = Ledger(), [Client(1, 1, 2), Client(2, 1)]
    with _running(disk.journal) as server, following(server, clients, server.stop):
        _emit_some(server, ledger)
    disk.fill()
    with _running(disk.journal) as server, following(server, clients, server.stop):
        disk.fill()
        _check_full_disk(server, ledger, clients)
        disk.clear()
        _check_recovery(server, ledger, clients)


def test_a_start_without_any_room_is_refused_and_says_so(disk: Disk) -> None:
    disk.fill()
    for blocks in (0, 4):
        disk.give_back(blocks)
        with pytest.raises(AssertionError, match=f"journal {disk.journal} cannot be opened: its disk is full"):
            _running(disk.journal).__enter__()


def test_rows_that_are_due_are_trimmed_while_the_disk_is_full(disk: Disk) -> None:
    with _running(disk.journal) as server:
        for _ in range(9):
            server.post("/internal/emit", [_batch(1, 1)] * 1000)
        assert server.stop() == 0
    with _running(disk.journal, "--keep-rows=100") as server:
        _fill(server, disk, Ledger(), is_reserve_taken=False)
        wait_until(lambda: place(server.get("/internal/keys/1/1")["oldest_kept"]) >= 8900, "old rows are trimmed")
        assert "Emits are refused" in server.log.read_text()


# ---- the journal is full


@pytest.mark.parametrize("of_what", ["stream-keys", "idempotency-keys"])
def test_a_full_journal_refuses_emits_and_serves_streams_until_it_may_grow(tmp_path: Path, of_what: str) -> None:
    journal = tmp_path / "tallywire.db"
    ledger, clients = Ledger(), [Client(1, 1, 2), Client(2, 1)]
    with _running(journal, f"--keep-bytes={SMALL_JOURNAL}") as server, following(server, clients, server.stop):
        _emit_some(server, ledger)
        _fill_journal(server, has_keys=of_what == "idempotency-keys")
        _check_refusals(server, ledger, "journal_full")
        _check_streams(server, clients, trimmed={1, 2})
        assert journal.stat().st_size < MOST_BYTES
    with _running(journal, f"--keep-bytes={8 * SMALL_JOURNAL}") as server, following(server, clients, server.stop):
        _check_retries(server, ledger, clients)


def test_a_full_journal_takes_emits_again_when_a_user_has_been_deleted(tmp_path: Path) -> None:
    ledger, clients = Ledger(), [Client(1, 1, 2), Client(2, 1)]
    with (
        _running(tmp_path / "tallywire.db", f"--keep-bytes={SMALL_JOURNAL}") as server,
        following(server, clients, server.stop),
    ):
        _emit_some(server, ledger)
        _fill_journal(server, has_keys=False)
        _check_refusals(server, ledger, "journal_full")
        request = Request(f"{server.internal}/internal/users/{FILLING_USER}", method="DELETE")
        with urlopen(request, timeout=ENDS_SECONDS) as answer:
            assert json.load(answer)["rows"] > 1000
        wait_until(lambda: _readiness(server, "?for=emit")[0] == 200, "emits are taken again", RECOVERS_SECONDS)
        _check_retries(server, ledger, clients)


def test_a_busy_stream_key_stays_within_the_bytes_allowed_and_old_positions_are_told(tmp_path: Path) -> None:
    journal = tmp_path / "tallywire.db"
    with _running(journal, f"--keep-bytes={SMALL_JOURNAL}") as server:
        first = server.post("/internal/emit", _batch(1, 1))["position"]
        for _ in range(30):
            assert {answer["status"] for answer in server.post("/internal/emit", [_batch(1, 1)] * 1000)} == {"accepted"}
            assert journal.stat().st_size < MOST_BYTES
        late = Client(1, 1)
        late.tally.position = first
        with following(server, [late], server.stop):
            assert late.reset["reason"] == "trimmed"
            server.post("/internal/emit", _batch(1, 1))
            late.catch_up(server)
            assert late.tally.counts == {(1, "LIMIT", "created"): 30_002}


# ---- a sync fails


def test_a_failed_sync_is_told_to_fifty_streams_and_the_next_server_recovers(tmp_path: Path) -> None:
    need_strace()
    journal = tmp_path / "tallywire.db"
    ledger, clients = Ledger(), [Client(*KEYS[number % len(KEYS)]) for number in range(STREAMS)]
    with _running(journal) as server, following(server, clients, server.process.kill):
        _emit_some(server, ledger)
        for client in clients:
            client.catch_up(server)
        with failing(server, SYNCS, journal, 1, tmp_path / "strace"), calling(server, ledger, [1], only_keyed=True):
            assert server.process.wait(ENDS_SECONDS) == 1
    assert [client.closing for client in clients] == ["draining"] * STREAMS
    with _running(journal) as server, following(server, clients, server.stop):
        ledger.check(server)
        _check_retries(server, ledger, clients)


# ---- helpers


@contextmanager
def _running(journal: Path, *arguments: str) -> Iterator[ServerProcess]:
    settings = ("--heartbeat-seconds=0.5", f"--max-streams-per-user={STREAMS}")
    with running_server(f"--journal={journal}", *settings, *arguments) as server:
        yield server
        assert "Traceback" not in server.log.read_text()


def _batch(user_id: int, strategy_id: int, key: str | None = None) -> dict[str, object]:
    return Batch(user_id, strategy_id, (CREATED,), key).fields()


def _emit_some(server: ServerProcess, ledger: Ledger) -> None:
    with calling(server, ledger, [1, 2], only_keyed=True):
        wait_until(lambda: len(ledger.acknowledged) > SOME_BATCHES, "some batches")


def _fill(server: ServerProcess, disk: Disk, ledger: Ledger, *, is_reserve_taken: bool) -> None:
    """Whatever room the server had in its files is used up, too."""
    dice = random.Random(7)

    def is_refused() -> bool:
        disk.fill()
        ledger.doubt([ledger.batch(dice, is_keyed=True)])
        # Twice: after the first time the server gives up its reserve and finds some room within its own log.
        if all(_refusal(server, ledger.unanswered[-1].fields()) for _ in range(2)):
            return True
        ledger.retry(server)
        return False

    wait_until(is_refused, "the disk is full")
    if is_reserve_taken:
        disk.fill()


def _fill_journal(server: ServerProcess, *, has_keys: bool) -> None:
    """The newest row of each stream key stays, and so does each idempotency key."""
    numbers = count(1)

    def is_refused() -> bool:
        filling = islice(numbers, 500)
        if has_keys:
            batches = [_batch(FILLING_USER, 1, f"filling-{number}") for number in filling]
        else:
            batches = [_batch(FILLING_USER, number) for number in filling]
        return _refusal(server, batches) is not None

    wait_until(is_refused, "the journal is full")


def _refusal(server: ServerProcess, body: object) -> str | None:
    """The code under which an emit is refused for now; None when it is taken."""
    try:
        server.post("/internal/emit", body)
    except HTTPError as error:
        if error.code != UNAVAILABLE or int(error.headers["Retry-After"]) < 1:
            raise
        return str(json.load(error)["code"])
    return None


def _readiness(server: ServerProcess, query: str = "") -> tuple[int, str]:
    try:
        return 200, server.get(f"/healthz/ready{query}")["status"]
    except HTTPError as error:
        return error.code, json.load(error)["status"]


def _check_refusals(server: ServerProcess, ledger: Ledger, code: str) -> None:
    """Emits are refused, one and many, and leave nothing behind; the server is ready for streams only."""
    dice = random.Random(8)
    batches = [ledger.batch(dice, is_keyed=True) for _ in range(3)]
    ledger.doubt(batches)
    for body in (batches[0].fields(), [batch.fields() for batch in batches]):
        assert _refusal(server, body) == code
    for batch in batches:
        assert server.get(f"/internal/batches?idempotency_key={batch.key}") == {"batches": [], "has_more": False}
    assert _readiness(server) == (200, "ok")
    assert _readiness(server, "?for=emit") == (UNAVAILABLE, code)


def _check_streams(server: ServerProcess, clients: list[Client], trimmed: Collection[int] = ()) -> None:
    """Heartbeats go on; a stream begins, another resumes from the first position, and those that are open are whole."""
    with StreamSocket(server.public_port, "user_id=1&strategy_id=1&heartbeat=event") as stream:
        stream.read_until(lambda stream: [event.event for event in stream.events].count("stream_heartbeat") >= 2)
        assert stream.events[0].event == "stream_open"
        epoch = stream.events[0].last_event_id.partition("-")[0]
    for client in clients:
        client.catch_up(server)
        assert client.reset is None
        late = Client(client.user_id, *client.strategies)
        late.tally = Tally(f"{epoch}-0")
        late.follow(server)
        late.catch_up(server)
        assert (late.reset is not None) == (client.user_id in trimmed)
        late.hang_up()


def _check_full_disk(server: ServerProcess, ledger: Ledger, clients: list[Client]) -> None:
    _check_refusals(server, ledger, "disk_full")
    _check_streams(server, clients)
    assert set(ledger.check(server)) == set(ledger.acknowledged), "nothing of a refused batch is counted"


def _check_recovery(server: ServerProcess, ledger: Ledger, clients: list[Client]) -> None:
    wait_until(lambda: _readiness(server, "?for=emit")[0] == 200, "emits are taken again", RECOVERS_SECONDS)
    _check_retries(server, ledger, clients)
    ledger.check(server)


def _check_retries(server: ServerProcess, ledger: Ledger, clients: list[Client]) -> None:
    """What was refused is emitted again and counts once; nobody was reset."""
    expected = sum((batch.counts() for batch in ledger.unanswered if batch.user_id == 1), Counts())
    before = totals(server, 1, 1) + totals(server, 1, 2)
    ledger.retry(server)
    assert totals(server, 1, 1) + totals(server, 1, 2) == before + expected
    for client in clients:
        client.catch_up(server)
        assert client.reset is None
