"""The Python client against the real server: kills, forks, unix sockets, keys, and streams that add up."""

import asyncio
import logging
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from tallywire_client import (
    Accepted,
    CatchUp,
    Closing,
    Emitter,
    Event,
    Opened,
    Rejected,
    Reset,
    Skipped,
    StreamRefusedError,
    Summary,
    Update,
    stream,
)
from tallywire_client import _follower as follower

from tests.e2e.proxy import CuttingProxy
from tests.process import ROOT, ServerProcess, free_port, running_server, wait_until
from tests.torture.client_kills import CLIENT_SOURCE, MISTAKES, kill_clients, kill_servers, planted

SEED = 11
RESULTS = [{"success": True, "order_type": "LIMIT", "event_type": "order_created"}]


@pytest.fixture(autouse=True)
def client_log() -> Iterator[None]:
    """The client warns of what these tests do to it."""
    log = logging.getLogger("tallywire_client")
    log.setLevel(logging.CRITICAL)
    yield
    log.setLevel(logging.NOTSET)


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    with running_server("--durability=none") as running:
        yield running


# ---- emitting


@pytest.mark.parametrize("outbox", [False, True], ids=["no outbox", "outbox"])
def test_a_server_that_is_killed_again_and_again_loses_and_doubles_nothing(tmp_path: Path, outbox: bool) -> None:
    report = kill_servers(tmp_path, 5, SEED, outbox=outbox)

    assert report.faults == []
    assert report.emitted > 100
    assert report.repeated_calls > 0


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_client_with_a_mistake_is_found_out(tmp_path: Path, mistake: str) -> None:
    with planted(mistake):
        for kills in range(3, 30, 9):
            directory = tmp_path / str(kills)
            directory.mkdir()
            if kill_servers(directory, kills, SEED + kills, outbox=False).faults:
                return
    raise AssertionError(f"{mistake} went unnoticed")


def test_what_a_killed_client_was_handed_is_counted_once(tmp_path: Path) -> None:
    report = kill_clients(tmp_path, 5, SEED)

    assert report.faults == []
    assert report.emitted > 20


def test_answers_are_those_of_the_server(server: ServerProcess) -> None:
    with Emitter(server.internal) as emitter:
        accepted = emitter.emit_order_batch_update(7, 3, RESULTS * 2, idempotency_key="run-1").result(20)
        again = emitter.emit_order_batch_update(7, 3, RESULTS * 2, idempotency_key="run-1").result(20)
        other = emitter.emit_order_batch_update(7, 3, RESULTS, idempotency_key="run-1").result(20)
        skipped = emitter.emit_order_batch_update(7, 3, [{"success": False}]).result(20)
        missing = emitter.emit_order_batch_update(7, 0, RESULTS).result(20)

    assert isinstance(accepted, Accepted)
    assert accepted.summaries == (Summary("LIMIT", 2, 0),)
    assert isinstance(again, Accepted)
    assert (again.position, again.duplicate) == (accepted.position, True)
    assert isinstance(other, Rejected)
    assert other.problem.code == "idempotency_conflict"
    assert isinstance(skipped, Skipped)
    assert isinstance(missing, Rejected)
    assert missing.problem.code == "strategy_id_missing"


def test_a_unix_socket_and_a_key_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "internal.sock"
    made = subprocess.run(
        [sys.executable, str(ROOT / "server.py"), "internal-key", "orders", "--role", "emit"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    secret, line = re.findall(r"^  (.+)$", made.stdout, re.M)
    (tmp_path / "keys").write_text(line + "\n")
    (tmp_path / "key").write_text(secret + "\n")
    arguments = (f"--internal-listen=unix:{path}", "--internal-auth=keys", f"--internal-keys={tmp_path / 'keys'}")
    with running_server(*arguments), Emitter(f"unix:{path}", key_file=tmp_path / "key") as emitter:
        assert isinstance(emitter.emit_order_batch_update(7, 3, RESULTS).result(20), Accepted)
        with Emitter(f"unix:{path}", key="another") as stranger:
            refused = stranger.emit_order_batch_update(7, 3, RESULTS).result(20)
    assert isinstance(refused, Rejected)
    assert refused.problem.code == "unauthorized"


FORKS = """
import json, multiprocessing, os, sys
from tallywire_client import Accepted, Emitter, EmitterOptions, Unknown

url, outbox = sys.argv[1], sys.argv[2] or None
RESULTS = [{"success": True, "order_type": "LIMIT", "event_type": "order_created"}]
emitter = Emitter(url, outbox=outbox, options=EmitterOptions(linger_seconds=0.3))

def emit(strategy_id, count):
    return [emitter.emit_order_batch_update(7, strategy_id, RESULTS) for _ in range(count)]

def child_of_multiprocessing():
    emit(3, 50)  # and no word of closing: its end sends what waits

assert isinstance(emit(1, 1)[0].result(20), Accepted)  # there is a thread and a connection now
handles = emit(1, 100)                                 # these wait for the linger while this process forks
child = os.fork()
if child == 0:
    inherited = [handle.result(0) for handle in handles]
    own = [handle.result(20) for handle in emit(2, 50)]
    is_right = all(isinstance(each, Unknown) and each.is_final for each in inherited)
    is_right &= all(isinstance(each, Accepted) and not each.duplicate for each in own)
    emitter.close()
    os._exit(0 if is_right else 1)
process = multiprocessing.get_context("fork").Process(target=child_of_multiprocessing)
process.start()
results = [handle.result(20) for handle in handles]
assert all(isinstance(each, Accepted) and not each.duplicate for each in results), results[:3]
assert os.waitpid(child, 0)[1] == 0, "the child"
process.join(20)
assert process.exitcode == 0, process.exitcode
"""


@pytest.mark.parametrize("outbox", [False, True], ids=["no outbox", "outbox"])
def test_a_fork_takes_nothing_along_and_sends_nothing_twice(
    server: ServerProcess, tmp_path: Path, outbox: bool
) -> None:
    ran = run_client(FORKS, server.internal, str(tmp_path / "outbox") if outbox else "")

    assert ran.returncode == 0, ran.stderr
    created = [server.get(f"/internal/keys/7/{strategy}")["totals"][0]["created"] for strategy in (1, 2, 3)]
    assert created == [101, 50, 50]
    assert not [line for line in server.log_lines() if line["message"] == "Batch repeated - nothing sent"]
    assert not outbox or list((tmp_path / "outbox").iterdir()) == []


AT_EXIT = """
import sys
from tallywire_client import Emitter, EmitterOptions
emitter = Emitter(sys.argv[1], options=EmitterOptions(linger_seconds=5))
for _ in range(100):
    emitter.emit_order_batch_update(7, 1, [{"success": True, "order_type": "LIMIT", "event_type": "order_created"}])
"""


def test_the_end_of_a_program_sends_what_waits(server: ServerProcess) -> None:
    ran = run_client(AT_EXIT, server.internal)

    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    assert server.get("/internal/keys/7/1")["totals"][0]["created"] == 100


ABSENT = AT_EXIT.replace("linger_seconds=5", "exit_seconds=0.2")


def test_the_end_of_a_program_does_not_wait_for_a_server_that_is_not_there() -> None:
    ran = run_client(ABSENT, f"http://127.0.0.1:{free_port()}")

    assert ran.returncode == 0, ran.stderr


def run_client(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A program that has the client, and nothing else of this repository."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TALLYWIRE_")}
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environment | {"PYTHONPATH": str(CLIENT_SOURCE)},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_package_imports_nothing_of_the_server() -> None:
    names = "core, handlers, tornado, msgspec"
    program = f"import sys, tallywire_client; print([each for each in '{names}'.split(', ') if each in sys.modules])"

    assert run_client(program).stdout.strip() == "[]"


# ---- reading


class Reader:
    """A stream being read in a thread, adding up by itself."""

    def __init__(self, url: str, *, user_id: int = 7, last_event_id: str = "", is_async: bool = False) -> None:
        self.stream = stream(url, user_id=user_id, strategies="*", last_event_id=last_event_id)
        self.events: list[Event] = []
        self.sums: Counter[tuple[int, str, str]] = Counter()
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._read_async if is_async else self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for event in self.stream:
            self._take(event)
            if self._enough.is_set():
                return

    def _read_async(self) -> None:
        async def read() -> None:
            async for event in self.stream:
                self._take(event)
                if self._enough.is_set():
                    return

        asyncio.run(read())

    def _take(self, event: Event) -> None:
        match event:
            case Opened(resumed=False) | Reset():
                self.sums = Counter()
                for strategy_id, summaries in event.totals.items():
                    self._add(strategy_id, summaries)
            case Update():
                self._add(event.strategy_id, event.summaries)
            case CatchUp():
                for update in event.updates:
                    self._add(update.strategy_id, update.summaries)
        self.events.append(event)

    def _add(self, strategy_id: int, summaries: tuple[Summary, ...]) -> None:
        for summary in summaries:
            self.sums[strategy_id, summary.order_type, "created"] += summary.created

    def wait_for(self, sums: dict[tuple[int, str, str], int]) -> None:
        wait_until(lambda: +self.sums == Counter(sums), f"sums of {sums}")
        stated = {
            (strategy_id, summary.order_type, "created"): summary.created
            for strategy_id, summaries in self.stream.totals.items()
            for summary in summaries
        }
        assert stated == sums, "its own totals are the same"

    def of(self, kind: type[Event]) -> list[Event]:
        return [event for event in list(self.events) if isinstance(event, kind)]

    def leave(self, server: ServerProcess) -> None:
        self._enough.set()
        server.emit(7, 99, *RESULTS)
        self._thread.join(20)
        assert not self._thread.is_alive()


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def is_async(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def test_a_reader_survives_cuts_and_kills_and_adds_up(
    tmp_path: Path, is_async: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "MAX_WAIT_SECONDS", 0.05)
    port, public = free_port(), free_port()
    journal = f"--journal={tmp_path / 'tallywire.db'}"
    with running_server(journal, internal_port=port, public_port=public) as server:
        reader = Reader(server.public, is_async=is_async)
        wait_until(lambda: bool(reader.of(Opened)), "the stream is open")
        for strategy in (3, 4, 3):
            server.emit(7, strategy, *RESULTS)
        reader.wait_for({(3, "LIMIT", "created"): 2, (4, "LIMIT", "created"): 1})
        server.process.kill()
        server.process.wait()
    for life in (1, 2):
        with running_server(journal, internal_port=port, public_port=0) as hidden:
            for strategy in (3, 4):
                hidden.emit(7, strategy, *RESULTS)
        with running_server(journal, internal_port=port, public_port=public) as server:
            reader.wait_for({(3, "LIMIT", "created"): 2 + life, (4, "LIMIT", "created"): 1 + life})
            if life == 1:
                server.stop()
            else:
                reader.leave(server)
    opened = reader.of(Opened)
    assert [event.resumed for event in opened if isinstance(event, Opened)][:1] == [False]
    assert all(event.resumed for event in opened[1:] if isinstance(event, Opened))
    assert len(reader.of(CatchUp)) == 2
    assert reader.of(Closing)
    assert reader.stream.misfits == 0


@pytest.mark.parametrize("where", [rb"event: order_batch_up", rb'"summaries":\[\{"or', rb"\nid: [a-z0-9]{13}-"])
def test_a_frame_that_is_cut_is_read_once(
    server: ServerProcess, where: bytes, is_async: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "MAX_WAIT_SECONDS", 0.05)
    with CuttingProxy(server.public_port) as proxy:
        reader = Reader(proxy.base, is_async=is_async)
        wait_until(lambda: bool(reader.of(Opened)), "the stream is open")
        for number in range(1, 4):
            proxy.cut_behind(where)
            server.emit(7, 3, *RESULTS)
            assert proxy.is_cut.wait(20)
            proxy.restore()
            reader.wait_for({(3, "LIMIT", "created"): number})
        reader.leave(server)
    assert len(reader.of(Opened)) > 3


def test_a_position_of_another_journal_resets_the_totals(server: ServerProcess, is_async: bool) -> None:
    server.emit(7, 3, *RESULTS)
    reader = Reader(server.public, last_event_id="1k7q2m9x4v0ce-5", is_async=is_async)
    reader.wait_for({(3, "LIMIT", "created"): 1})
    reader.leave(server)

    (reset,) = reader.of(Reset)
    assert isinstance(reset, Reset)
    assert reset.reason == "epoch"


def test_a_stream_that_ends_for_good_ends_the_loop(server: ServerProcess, is_async: bool) -> None:
    reader = Reader(server.public, is_async=is_async)
    wait_until(lambda: bool(reader.of(Opened)), "the stream is open")
    server.post("/internal/revoke", {"user_id": 7})
    reader._thread.join(20)

    assert not reader._thread.is_alive()
    assert reader.events[-1] == Closing("revoked", reconnect=False)


def test_what_is_refused_for_good_is_raised(server: ServerProcess) -> None:
    with pytest.raises(StreamRefusedError) as refused:
        next(iter(stream(server.public, user_id=0)))

    assert refused.value.problem.code == "invalid_query"


def test_a_silent_server_is_left(is_async: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped, not killed: its connections stay open and nothing comes any more."""
    monkeypatch.setattr(follower, "MAX_WAIT_SECONDS", 0.05)
    monkeypatch.setattr(follower, "SILENT_HEARTBEATS", 0.5)
    with running_server("--durability=none", "--heartbeat-seconds=1") as server:
        monkeypatch.setattr(follower, "DEFAULT_HEARTBEAT_SECONDS", 1)
        reader = Reader(server.public, is_async=is_async)
        wait_until(lambda: len(reader.of(Opened)) > 2, "it has come back twice")
        reader.leave(server)


# ---- what the README says


README = (ROOT / "clients" / "python" / "README.md").read_text()
FRONT_PAGE = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.M | re.S)


def test_every_block_of_the_readme_runs(server: ServerProcess, tmp_path: Path) -> None:
    assert len(BLOCKS) > 4
    for block in BLOCKS:
        program = block.replace("http://127.0.0.1:8081", server.internal).replace(
            "http://127.0.0.1:8080", server.public
        )
        program = program.replace("/var/lib/orders/outbox", str(tmp_path / "outbox"))
        ran = run_client(f"import os\nos.environ['TALLYWIRE_URL'] = {server.internal!r}\n{program}")
        assert ran.returncode == 0, f"{program}\n{ran.stderr}"


def test_the_block_of_the_front_page_is_counted(server: ServerProcess) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```$", FRONT_PAGE, re.M | re.S)
    (url,) = re.findall(r"^export TALLYWIRE_URL=(\S+)", FRONT_PAGE, re.M)
    assert url == "http://127.0.0.1:8081"
    ran = run_client(f"import os\nos.environ['TALLYWIRE_URL'] = {server.internal!r}\n{block}")

    assert (ran.returncode, ran.stderr) == (0, "")
    assert server.get("/internal/keys/7/3")["totals"] == [{"order_type": "LIMIT", "created": 1, "cancelled": 0}]
