"""An emitter in front of servers that behave in every way there is: orders are never endangered."""

import asyncio
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
import tallywire_client
from fakes import Behaviour, absent_url, accept_all, answer, fake_server, in_turn, problem
from tallywire_client import (
    Accepted,
    AsyncEmitter,
    Emitter,
    EmitterOptions,
    OutboxOptions,
    Rejected,
    Unknown,
    _engine,
    configure,
    emit_order_batch_update,
    from_environment,
    stream,
)
from tallywire_client._encoding import encode_batch
from tallywire_client._engine import MOST_ADOPTED
from tallywire_client.outbox import Outbox
from tallywire_client.results import Result

RESULTS = [{"success": True, "order_type": "LIMIT", "event_type": "order_created"}]
QUICK = EmitterOptions(
    call_timeout_seconds=0.2, connect_timeout_seconds=0.2, first_backoff_seconds=0.001, max_backoff_seconds=0.01
)
AT_ONCE_SECONDS = 2.0
"""Far more than an emit takes on a machine that is busy, and far less than it would wait for anything."""


def keys_of(body: bytes) -> list[str]:
    return [json.loads(line)["idempotency_key"] for line in body.split(b"\n")]


def hang(_connection: socket.socket, _body: bytes) -> None:
    """Says nothing; the client has to give up."""


def drip(connection: socket.socket, _body: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(1000):
        connection.sendall(b" ")
        time.sleep(0.01)


def flood(connection: socket.socket, _body: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
    while True:
        connection.sendall(b" " * 2**20)


def cut(connection: socket.socket, _body: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
    connection.shutdown(socket.SHUT_RDWR)


def garbage(connection: socket.socket, _body: bytes) -> None:
    connection.sendall(os.urandom(500))
    connection.shutdown(socket.SHUT_RDWR)


DISTURBED: dict[str, Behaviour] = {
    "hangs": hang,
    "drips": drip,
    "floods": flood,
    "cuts": cut,
    "garbage": garbage,
    "500": lambda connection, _: answer(connection, 500, b"<h1>oops</h1>"),
    "502": lambda connection, _: answer(connection, 502, b""),
    "internal_error": problem(500, "internal_error", "same key"),
    "outcome_unknown": problem(503, "outcome_unknown", "same key"),
    "busy": problem(503, "busy", "later"),
    "draining": problem(503, "draining", "later"),
    "disk_full": problem(503, "disk_full", "later"),
    "200 garbage": lambda connection, _: answer(connection, 200, b"hello"),
    "too few answers": lambda connection, _: answer(connection, 200, b""),
    "too many answers": lambda connection, _: answer(connection, 200, b'{"status":"skipped"}\n' * 9),
}


@pytest.mark.parametrize("how", DISTURBED)
def test_a_server_that_is_disturbed_costs_no_batch_and_no_time(how: str) -> None:
    """The same key goes out until there is an answer."""
    with (
        fake_server(in_turn(DISTURBED[how], DISTURBED[how], accept_all)) as server,
        Emitter(server.url, options=QUICK) as emitter,
    ):
        started = time.monotonic()
        handle = emitter.emit_order_batch_update(7, 3, RESULTS)
        assert time.monotonic() - started < AT_ONCE_SECONDS
        assert isinstance(handle.result(20), Accepted)
        assert server.bodies[0] == server.bodies[1] == server.bodies[2]
        assert emitter.statistics().repeated_calls == 2


def test_what_was_never_taken_is_known_not_to_have_arrived() -> None:
    # Once refused it waits for longer than the test takes: no call is under way when the emitter is closed.
    patient = replace(QUICK, first_backoff_seconds=10_000, max_backoff_seconds=10_000)
    emitter = Emitter(absent_url(), options=patient)
    handles = [emitter.emit_order_batch_update(7, 3, RESULTS) for _ in range(100)]
    deadline = time.monotonic() + 20
    while not emitter.statistics().repeated_calls:
        assert time.monotonic() < deadline, "the first call is refused"
        handles[0].result(0.01)
    emitter.close(0.3)

    assert {type(handle.result(0)) for handle in handles} == {Rejected}


@pytest.mark.parametrize("how", [*DISTURBED, "absent"])
def test_a_server_that_stays_disturbed_never_raises_and_holds_nobody_up(how: str) -> None:
    with fake_server(DISTURBED.get(how, hang)) as server:
        emitter = Emitter(absent_url() if how == "absent" else server.url, options=QUICK)
        started = time.monotonic()
        handles = [emitter.emit_order_batch_update(7, 3, RESULTS) for _ in range(100)]
        assert time.monotonic() - started < AT_ONCE_SECONDS
        so_far = handles[0].result(0.3)
        assert isinstance(so_far, Unknown)
        assert not so_far.is_final
        started = time.monotonic()
        emitter.close(0.3)
        assert time.monotonic() - started < AT_ONCE_SECONDS
        results = [handle.result(0) for handle in handles]
        for result in results:
            assert isinstance(result, Unknown | Rejected)
            assert not isinstance(result, Unknown) or result.is_final
        late = emitter.emit_order_batch_update(7, 3, RESULTS).result(0)
        assert isinstance(late, Rejected)
        assert late.problem.code == "closed"


def test_retry_after_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    def pause(_work: object, seconds: float) -> bool:
        waits.append(seconds)
        return True

    behave = in_turn(problem(503, "busy", "later", "Retry-After: 7\r\n"), accept_all)
    with fake_server(behave) as server, Emitter(server.url, options=QUICK) as emitter:
        monkeypatch.setattr(emitter._engine, "_pause", pause)
        assert isinstance(emitter.emit_order_batch_update(7, 3, RESULTS).result(20), Accepted)

    assert len(waits) == 1
    assert 7.0 <= waits[0] < 7.1


def test_a_refusal_of_the_key_is_told_at_once() -> None:
    with fake_server(problem(401, "unauthorized", "no")) as server, Emitter(server.url, key="k") as emitter:
        result = emitter.emit_order_batch_update(7, 3, RESULTS).result(20)

    assert isinstance(result, Rejected)
    assert result.problem.code == "unauthorized"
    assert b"authorization: bearer k" in server.heads[0].lower()


def test_a_key_that_changed_in_its_file_is_used_at_once(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("old\n")

    def behave(connection: socket.socket, body: bytes) -> None:
        (accept_all if b"Bearer new" in server.heads[-1] else problem(401, "unauthorized", "no"))(connection, body)

    with fake_server(behave) as server, Emitter(server.url, key_file=file) as emitter:
        file.write_text("new\n")
        assert isinstance(emitter.emit_order_batch_update(7, 3, RESULTS).result(20), Accepted)


def test_keys_show_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with fake_server(problem(401, "unauthorized", "no")) as server, Emitter(server.url, key="sesame") as emitter:
        emitter.emit_order_batch_update(7, 3, RESULTS).result(20)
        shown = [repr(emitter), repr(vars(emitter)), repr(emitter._engine._secret), caplog.text]

    assert b"sesame" in server.heads[0]
    assert not [each for each in shown if "sesame" in each]
    with pytest.raises(ValueError, match="does not stand in the address"):
        Emitter("http://user:sesame@127.0.0.1")


def test_a_whole_refusal_takes_only_the_batch_that_caused_it() -> None:
    def behave(connection: socket.socket, body: bytes) -> None:
        is_bad = b'"bad"' in body
        (problem(400, "malformed_body", "no") if is_bad else accept_all)(connection, body)

    options = EmitterOptions(linger_seconds=0.2)
    with fake_server(behave) as server, Emitter(server.url, options=options) as emitter:
        handles = [emitter.emit_order_batch_update(7, 3, RESULTS, idempotency_key=key) for key in ("a", "bad", "c")]
        kinds = [type(handle.result(20)) for handle in handles]

    assert kinds == [Accepted, Rejected, Accepted]
    assert [keys_of(body) for body in server.bodies] == [["a", "bad", "c"], ["a"], ["bad"], ["c"]]


def test_what_comes_together_goes_in_one_call() -> None:
    with fake_server() as server, Emitter(server.url, options=EmitterOptions(linger_seconds=0.2)) as emitter:
        handles = [emitter.emit_order_batch_update(7, 3, RESULTS) for _ in range(50)]
        assert all(isinstance(handle.result(20), Accepted) for handle in handles)

    assert len(server.bodies) == 1
    assert len(set(keys_of(server.bodies[0]))) == 50


def test_order_is_that_of_the_emits_over_failures() -> None:
    """Whatever fails in between, nothing that was handed over later is accepted earlier."""
    accepted: list[str] = []

    def accept(connection: socket.socket, body: bytes) -> None:
        accepted.extend(keys_of(body))
        accept_all(connection, body)

    behave = in_turn(accept, DISTURBED["busy"], accept, DISTURBED["cuts"], DISTURBED["garbage"], accept)
    options = EmitterOptions(max_call_batches=7, first_backoff_seconds=0.001, linger_seconds=0)
    with fake_server(behave) as server, Emitter(server.url, options=options) as emitter:
        keys = [f"k-{number}" for number in range(100)]
        handles = [emitter.emit_order_batch_update(7, 3, RESULTS, idempotency_key=key) for key in keys]
        assert all(isinstance(handle.result(20), Accepted) for handle in handles)

    assert accepted == keys


def test_a_full_queue_refuses_and_says_so_a_few_times(caplog: pytest.LogCaptureFixture) -> None:
    options = EmitterOptions(max_queue_batches=10, call_timeout_seconds=0.2)
    emitter = Emitter(absent_url(), options=options)
    handles = [emitter.emit_order_batch_update(7, 3, RESULTS) for _ in range(1000)]
    refused = [handle.result(0) for handle in handles[10:]]

    assert all(isinstance(result, Rejected) and result.problem.code == "queue_full" for result in refused)
    assert emitter.statistics().rejected == 990
    assert emitter.statistics().waiting == 10
    emitter.close(0)
    told = [record for record in caplog.records if "queue_full" in record.getMessage()]
    assert [record.__dict__["times"] for record in told] == [1, 989]


def said_of(caplog: pytest.LogCaptureFixture, sentence: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith(sentence)]


def answered(*answers: dict[str, object]) -> Behaviour:
    """One answer for each call, the last one for all that follow."""
    lines = [json.dumps(each).encode() + b"\n" for each in answers]
    return in_turn(*(lambda connection, _, line=line: answer(connection, 200, line) for line in lines))


def rejected(code: str) -> dict[str, object]:
    return {"status": "rejected", "problem": {"code": code, "detail": f"why {code}", "status": 422, "retry": "no"}}


def test_results_that_do_not_count_are_told_to_callers_who_look_at_no_handle(caplog: pytest.LogCaptureFixture) -> None:
    invalid = [{"path": "$.batch_results[0].order_type", "message": "no order type"}]
    accepted = {"status": "accepted", "position": "e-1", "summaries": [], "connections": 0, "ignored": 0}
    behave = answered({**accepted, "duplicate": False, "invalid": invalid})
    with fake_server(behave) as server, Emitter(server.url, options=QUICK) as emitter:
        assert isinstance(emitter.emit_order_batch_update(7, 3, RESULTS, idempotency_key="run-1").result(20), Accepted)

    told = (
        "Results not counted, the others of their batch were: run-1 1, as $.batch_results[0].order_type: no order type"
    )
    assert said_of(caplog, "Results") == [told]


def test_refusals_for_different_reasons_are_each_told_and_the_rest_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    codes = ["strategy_id_missing", "idempotency_conflict", "idempotency_conflict", "idempotency_conflict"]
    with fake_server(answered(*map(rejected, codes))) as server, Emitter(server.url, options=QUICK) as emitter:
        for number in range(len(codes)):
            key = f"run-{number}"
            emitter.emit_order_batch_update(7, 3, RESULTS, idempotency_key=key).result(20)

    assert said_of(caplog, "Batch") == [
        "Batch refused, not counted: run-0 strategy_id_missing: why strategy_id_missing",
        "Batch refused, not counted: run-1 idempotency_conflict: why idempotency_conflict",
        "Batch refused, not counted (2 times): run-3 idempotency_conflict: why idempotency_conflict",
    ]


def test_a_batch_that_may_have_been_counted_is_not_called_refused(caplog: pytest.LogCaptureFixture) -> None:
    with fake_server(hang) as server:
        emitter = Emitter(server.url, options=QUICK)
        emitter.emit_order_batch_update(7, 3, RESULTS, idempotency_key="run-1")
        server.wait_for_bodies(1)
        emitter.close(0)

    (said,) = said_of(caplog, "Batch")
    assert said.startswith("Batch given up, unknown whether counted: run-1 ")


def test_what_stays_in_the_outbox_at_the_end_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    emitter = Emitter(absent_url(), options=QUICK, outbox=tmp_path)
    for _ in range(3):
        emitter.emit_order_batch_update(7, 3, RESULTS)
    emitter.close(0)
    emitter.close(0)

    assert said_of(caplog, "Batches") == ["Batches stay in the outbox: 3, which the next process that uses it sends"]


def test_the_bytes_of_the_queue_are_bounded_too() -> None:
    emitter = Emitter(absent_url(), options=EmitterOptions(max_queue_bytes=10_000))
    for _ in range(1000):
        emitter.emit_order_batch_update(7, 3, RESULTS * 10)
    statistics = emitter.statistics()
    emitter.close(0)

    assert 0 < statistics.waiting_bytes <= 10_000


def test_mistakes_of_the_caller_are_told_by_the_handle() -> None:
    with fake_server() as server, Emitter(server.url) as emitter:
        nothing: list[dict[str, object]] = None  # type: ignore[assignment]  # the mistake
        assert _code(emitter.emit_order_batch_update(7, 3, nothing).result(20)) == "not_encodable"
        huge = [{**RESULTS[0], "order_type": "X" * 2**20}]
        assert _code(emitter.emit_order_batch_update(7, 3, huge).result(20)) == "body_too_large"

        def results() -> object:
            yield RESULTS[0]
            raise RuntimeError("the caller's own")

        broken: list[dict[str, object]] = results()  # type: ignore[assignment]
        assert _code(emitter.emit_order_batch_update(7, 3, broken).result(20)) == "client_fault"
    assert server.bodies == []


def _code(result: Result) -> str:
    assert isinstance(result, Rejected)
    return result.problem.code


def test_what_may_have_arrived_is_not_sent_again_beyond_the_window(tmp_path: Path) -> None:
    clock = [1000.0]
    told: list[tuple[str, Result]] = []
    outbox = OutboxOptions(tmp_path)
    with fake_server(DISTURBED["outcome_unknown"]) as server:
        emitter = Emitter(server.url, outbox=outbox, options=QUICK, on_failure=lambda *what: told.append(what))
        emitter._engine._clock = lambda: clock[0]
        handle = emitter.emit_order_batch_update(7, 3, RESULTS, idempotency_key="mine")
        server.wait_for_bodies(2)
        clock[0] += 24 * 3600 - 0.1
        result = handle.result(20)
        assert isinstance(result, Unknown)
        assert result.is_final
        calls = len(server.bodies)
        server.behave = accept_all
        assert isinstance(emitter.emit_order_batch_update(7, 3, RESULTS).result(20), Accepted)
        assert len(server.bodies) == calls + 1
        emitter.close()
        assert [json.loads(batch)["idempotency_key"] for batch, _ in told] == ["mine"]
        assert [reported.idempotency_key for reported in emitter.outbox_report()] == ["mine"]


def test_what_never_left_may_wait_for_longer_than_the_window() -> None:
    clock = [1000.0]
    with fake_server(DISTURBED["busy"]) as server, Emitter(server.url, options=QUICK) as emitter:
        emitter._engine._clock = lambda: clock[0]
        handle = emitter.emit_order_batch_update(7, 3, RESULTS)
        server.wait_for_bodies(2)
        clock[0] += 48 * 3600
        server.behave = accept_all
        assert isinstance(handle.result(20), Accepted)


def test_an_outbox_takes_what_memory_has_no_room_for_and_keeps_the_order(tmp_path: Path) -> None:
    accepted: list[str] = []

    def accept(connection: socket.socket, body: bytes) -> None:
        accepted.extend(keys_of(body))
        accept_all(connection, body)

    options = EmitterOptions(max_queue_batches=10, max_call_batches=7, first_backoff_seconds=0.001)
    keys = [f"k-{number}" for number in range(500)]
    with fake_server(DISTURBED["busy"]) as server, Emitter(server.url, outbox=tmp_path, options=options) as emitter:
        handles = [emitter.emit_order_batch_update(7, 3, RESULTS, idempotency_key=key) for key in keys]
        statistics = emitter.statistics()
        assert statistics.waiting == 10
        assert statistics.on_disk == 500
        server.behave = accept
        assert all(isinstance(handle.result(20), Accepted) for handle in handles)
        more = emitter.emit_order_batch_update(7, 3, RESULTS, idempotency_key="after")
        assert isinstance(more.result(20), Accepted)
    assert accepted == [*keys, "after"]
    assert list(tmp_path.iterdir()) == [], "what is settled leaves nothing behind"


def test_what_is_left_at_the_end_is_sent_by_the_next_process(tmp_path: Path) -> None:
    with fake_server(DISTURBED["busy"]) as server:
        first = Emitter(server.url, outbox=tmp_path, options=QUICK)
        handles = [first.emit_order_batch_update(7, 3, RESULTS) for _ in range(20)]
        first.close(0.05)
        assert all(isinstance(handle.result(0), Unknown) for handle in handles)
        server.behave = accept_all
        before = len(server.bodies)
        second = Emitter(server.url, outbox=tmp_path, options=QUICK)
        server.wait_for_bodies(before + 1)
        second.close()
        sent = [key for body in server.bodies[before:] for key in keys_of(body)]
    assert sent == [handle.idempotency_key for handle in handles]
    assert list(tmp_path.iterdir()) == []


def test_an_outbox_on_the_disk_itself_makes_each_emit_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    outbox = OutboxOptions(tmp_path, durability="power")
    with fake_server(DISTURBED["busy"]) as server:
        emitter = Emitter(server.url, outbox=outbox, options=QUICK)
        before = len(synced)
        emitter.emit_order_batch_update(7, 3, RESULTS)
        assert len(synced) > before
        emitter.close(0)


def test_what_nobody_will_send_is_told_when_it_is_given_up() -> None:
    told: list[tuple[str, Result]] = []
    emitter = Emitter(absent_url(), options=QUICK, on_failure=lambda *what: told.append(what))
    handles = [emitter.emit_order_batch_update(7, 3, RESULTS) for _ in range(5)]
    emitter.close(0.05)
    emitter.close(0.05)

    assert [result for _, result in told] == [handle.result(0) for handle in handles]


def test_who_asks_again_and_again_leaves_nothing_behind() -> None:
    with fake_server(hang) as server:
        emitter = Emitter(server.url, options=QUICK)
        handle = emitter.emit_order_batch_update(7, 3, RESULTS)
        for _ in range(10):
            handle.result(0.001)
            asyncio.run(handle.wait(0.001))
        assert handle._callbacks == []
        assert handle._loop_waiters == []
        emitter.close(0)


def test_what_many_processes_left_is_sent_by_one_few_at_a_time(tmp_path: Path) -> None:
    options = OutboxOptions(tmp_path)
    with fake_server() as server:
        for number in range(12):
            left = Outbox.create(options, server.url)
            left.append(encode_batch(7, 3, RESULTS, f"k-{number}"), 1000.0)
            left.abandon()
        with Emitter(server.url, outbox=options) as emitter:
            server.wait_for_bodies(12)
            held = len(emitter._engine._work.adopted)
        sent = {key for body in server.bodies for key in keys_of(body)}
    assert sent == {f"k-{number}" for number in range(12)}
    assert held <= MOST_ADOPTED
    assert list(tmp_path.iterdir()) == []


def test_with_an_outbox_a_refused_key_loses_nothing(tmp_path: Path) -> None:
    with (
        fake_server(problem(403, "forbidden", "no")) as server,
        Emitter(server.url, outbox=tmp_path, options=QUICK) as emitter,
    ):
        handle = emitter.emit_order_batch_update(7, 3, RESULTS)
        server.wait_for_bodies(2)
        assert "forbidden" in emitter.last_problem
        server.behave = accept_all
        assert isinstance(handle.result(20), Accepted)


def test_an_outbox_that_cannot_be_written_leaves_emitting_alone(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with fake_server() as server, Emitter(server.url, outbox=file / "below") as emitter:
        assert isinstance(emitter.emit_order_batch_update(7, 3, RESULTS).result(20), Accepted)


def test_an_outbox_that_could_not_be_made_is_made_as_soon_as_it_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_engine, "SCAN_SECONDS", 0.01)
    file = tmp_path / "file"
    file.touch()
    with fake_server() as server, Emitter(server.url, outbox=file / "below", options=QUICK) as emitter:
        assert isinstance(emitter.emit_order_batch_update(7, 3, RESULTS).result(20), Accepted)
        file.unlink()
        deadline = time.monotonic() + 20
        while emitter._engine._work.outbox is None and time.monotonic() < deadline:
            assert isinstance(emitter.emit_order_batch_update(7, 3, RESULTS).result(20), Accepted)
        server.behave = hang
        handle = emitter.emit_order_batch_update(7, 3, RESULTS)
        # What was answered before is settled a moment later, and this one not before it is answered.
        while emitter.statistics().on_disk != 1 and time.monotonic() < deadline:
            handle.result(0.001)
        assert emitter.statistics().on_disk == 1
        server.behave = accept_all


@pytest.fixture
def stuck_disk(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """A sync of the emitter's thread sets the first, and goes on with the second."""
    stuck, go_on = threading.Event(), threading.Event()

    def sync(_file: int) -> None:
        if threading.current_thread().name == "tallywire-emitter":
            stuck.set()
            go_on.wait(20)

    monkeypatch.setattr(os, "fdatasync", sync)
    return stuck, go_on


def test_nobody_waits_while_an_attempt_is_noted_on_the_disk(
    tmp_path: Path, stuck_disk: tuple[threading.Event, threading.Event]
) -> None:
    stuck, go_on = stuck_disk
    outbox = OutboxOptions(tmp_path, durability="power")
    # The emit's own sync is over by the time of the attempt, and does not cover it.
    options = EmitterOptions(linger_seconds=0.5)
    with fake_server() as server, Emitter(server.url, outbox=outbox, options=options) as emitter:
        handle = emitter.emit_order_batch_update(7, 3, RESULTS)
        assert stuck.wait(20)
        asks = threading.Thread(target=emitter.statistics)
        asks.start()
        asks.join(AT_ONCE_SECONDS)
        has_waited, sent = asks.is_alive(), list(server.bodies)
        go_on.set()
        assert not has_waited
        assert sent == [], "an attempt is on the disk before it is made"
        assert isinstance(handle.result(20), Accepted)


def test_what_is_about_to_leave_is_not_said_to_have_never_been_sent(
    tmp_path: Path, stuck_disk: tuple[threading.Event, threading.Event]
) -> None:
    stuck, go_on = stuck_disk
    outbox = OutboxOptions(tmp_path, durability="power", max_bytes=32_000)
    with fake_server() as server:
        emitter = Emitter(server.url, outbox=outbox, options=EmitterOptions(linger_seconds=0.5))
        kept = emitter.emit_order_batch_update(7, 3, RESULTS * 400)
        in_memory = emitter.emit_order_batch_update(7, 3, RESULTS * 400)
        assert emitter.statistics().on_disk == 1
        assert stuck.wait(20)
        emitter.close(0.01)
        go_on.set()
        server.wait_for_bodies(1)

    for handle in (kept, in_memory):
        assert isinstance(handle.result(0), Unknown), "it may still be counted"


def test_emits_from_many_threads_all_get_their_own_answer() -> None:
    with fake_server() as server, Emitter(server.url) as emitter:
        results: list[Result] = []

        def emit() -> None:
            results.extend(emitter.emit_order_batch_update(7, 3, RESULTS).result(20) for _ in range(20))

        threads = [threading.Thread(target=emit) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert len({result.idempotency_key for result in results if isinstance(result, Accepted)}) == 400


def test_tasks_wait_without_holding_up_their_loop() -> None:
    async def main(url: str) -> tuple[Result, Result, list[Result]]:
        async with AsyncEmitter(url, options=QUICK) as emitter:
            handle = emitter.emit_order_batch_update(7, 3, RESULTS)
            so_far = await handle.wait(0.05)
            cancelled = asyncio.ensure_future(handle.wait())
            await asyncio.sleep(0)
            cancelled.cancel()
            server.behave = accept_all
            many = await asyncio.gather(*(emitter.emit_order_batch_update(7, 3, RESULTS).wait(20) for _ in range(50)))
            return so_far, await handle, many

    with fake_server(DISTURBED["busy"]) as server:
        so_far, result, many = asyncio.run(main(server.url))

    assert isinstance(so_far, Unknown)
    assert isinstance(result, Accepted)
    assert all(isinstance(each, Accepted) for each in many)


def test_a_loop_that_ended_meanwhile_disturbs_nobody() -> None:
    with fake_server(DISTURBED["busy"]) as server, Emitter(server.url, options=QUICK) as emitter:
        handle = emitter.emit_order_batch_update(7, 3, RESULTS)

        async def give_up() -> None:
            waiting = asyncio.ensure_future(handle.wait(20))
            await asyncio.sleep(0.01)
            waiting.cancel()

        asyncio.run(give_up())
        server.behave = accept_all
        assert isinstance(handle.result(20), Accepted)


def test_the_function_uses_what_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    configure(None)
    monkeypatch.delenv("TALLYWIRE_URL", raising=False)
    assert _code(emit_order_batch_update(7, 3, RESULTS).result(0)) == "not_configured"
    (tmp_path / "key").write_text("from-file\n")
    with fake_server() as server:
        monkeypatch.setenv("TALLYWIRE_URL", server.url)
        monkeypatch.setenv("TALLYWIRE_KEY_FILE", str(tmp_path / "key"))
        assert isinstance(emit_order_batch_update(7, 3, RESULTS, idempotency_key="x").result(20), Accepted)
        assert b"Bearer from-file" in server.heads[0]
        assert keys_of(server.bodies[0]) == ["x"]
        configure(None)


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8081", "ftp://x", "http://", "unix:", "http://x:99999", "http://x:port", "http://x?y=z"]
)
def test_an_address_that_is_none_is_told_at_once(url: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Emitter(url)
    with pytest.raises(ValueError, match=r"."):
        from_environment({"TALLYWIRE_URL": url})


def test_options_that_cannot_be_right_are_told_at_once() -> None:
    with pytest.raises(ValueError, match="max_call_batches"):
        EmitterOptions(max_call_batches=0)


def test_a_fault_of_ours_loses_one_call_and_not_the_emitter(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_server() as server, Emitter(server.url, options=QUICK) as emitter:
        real: Callable[..., object] = emitter._engine._post
        faults = [ZeroDivisionError()]

        def post(*arguments: object) -> object:
            if faults:
                raise faults.pop()
            return real(*arguments)

        monkeypatch.setattr(emitter._engine, "_post", post)
        result = emitter.emit_order_batch_update(7, 3, RESULTS).result(20)
        assert isinstance(result, Unknown)
        assert result.is_final
        assert isinstance(emitter.emit_order_batch_update(7, 3, RESULTS).result(20), Accepted)


def fail() -> None:
    raise RuntimeError("a callback with a mistake")


@pytest.mark.parametrize("callback", [fail, sys.exit])
def test_a_callback_that_raises_takes_nothing_from_its_neighbours(callback: Callable[[], object]) -> None:
    options = EmitterOptions(linger_seconds=0.2)
    with fake_server() as server, Emitter(server.url, options=options) as emitter:
        first = emitter.emit_order_batch_update(7, 3, RESULTS)
        first.add_done_callback(callback)
        second = emitter.emit_order_batch_update(7, 3, RESULTS)
        assert isinstance(second.result(20), Accepted)
        assert emitter.statistics().unknown == 0
        assert emitter.statistics().waiting == 0


def test_a_listener_to_failures_that_ends_the_thread_does_not_end_it() -> None:
    with (
        fake_server(in_turn(problem(401, "unauthorized", "no"), accept_all)) as server,
        Emitter(server.url, options=QUICK, on_failure=lambda _batch, _result: sys.exit()) as emitter,
    ):
        assert isinstance(emitter.emit_order_batch_update(7, 3, RESULTS).result(20), Rejected)
        assert isinstance(emitter.emit_order_batch_update(7, 3, RESULTS).result(20), Accepted)
        assert emitter.statistics().waiting == 0


def test_a_key_with_a_line_end_is_used_without_it(caplog: pytest.LogCaptureFixture) -> None:
    with fake_server() as server, Emitter(server.url, key="geheim-123\n", options=QUICK) as emitter:
        assert isinstance(emitter.emit_order_batch_update(7, 3, RESULTS).result(20), Accepted)
        assert b"Authorization: Bearer geheim-123\r\n" in server.heads[0]
    assert "geheim" not in caplog.text


@pytest.mark.parametrize("key", ["geheim\n123", "geheim 123", "geheim-\u20ac", "geheim-\0"])
def test_a_key_that_no_header_can_hold_is_told_at_once_and_not_repeated(key: str, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(key)
    for given in ({"key": key}, {"key_file": file}):
        with pytest.raises(ValueError, match="printable ASCII") as raised:
            Emitter("http://127.0.0.1:8081", **given)
        assert "geheim" not in str(raised.value)
    with pytest.raises(ValueError, match="printable ASCII"):
        next(iter(stream("http://127.0.0.1:8080", token=key)))


@pytest.mark.parametrize("status", [401, 413])
def test_a_refusal_behind_an_attempt_without_an_answer_leaves_it_unknown(status: int) -> None:
    """The first attempt may have been counted: to call that certainly not counted would have it emitted twice."""
    with (
        fake_server(in_turn(hang, problem(status, "whatever", "no"))) as server,
        Emitter(server.url, options=QUICK) as emitter,
    ):
        result = emitter.emit_order_batch_update(7, 3, RESULTS).result(20)
        assert isinstance(result, Unknown)
        assert result.is_final
        assert str(status) in result.reason
        assert len(server.bodies) == 2


def test_keys_that_are_no_text_stay_apart() -> None:
    """Two runs under one key would count once."""
    first, second = uuid4(), uuid4()
    with fake_server() as server, Emitter(server.url, options=QUICK) as emitter:
        for key in (first, second, 4711):
            handle = emitter.emit_order_batch_update(7, 3, RESULTS, idempotency_key=key)  # type: ignore[arg-type]
            assert isinstance(handle.result(20), Accepted)
            assert handle.idempotency_key == str(key)
        assert [keys_of(body) for body in server.bodies] == [[str(first)], [str(second)], ["4711"]]
        refused = emitter.emit_order_batch_update(7, 3, RESULTS, idempotency_key=object())  # type: ignore[arg-type]
        assert _code(refused.result(0)) == "not_encodable"


def test_an_outbox_that_is_removed_underneath_loses_what_was_in_it_and_nothing_after(tmp_path: Path) -> None:
    is_up = threading.Event()

    def behave(connection: socket.socket, body: bytes) -> None:
        accept_all(connection, body) if is_up.is_set() else answer(connection, 503, b"")

    options = replace(QUICK, max_queue_batches=2)
    with fake_server(behave) as server, Emitter(server.url, outbox=tmp_path / "outbox", options=options) as emitter:
        handles = [emitter.emit_order_batch_update(7, 3, RESULTS) for _ in range(10)]
        shutil.rmtree(tmp_path / "outbox")
        is_up.set()
        in_memory, on_disk = handles[:2], handles[2:]
        assert all(isinstance(handle.result(20), Accepted) for handle in in_memory)
        for handle in on_disk:
            result = handle.result(20)
            assert isinstance(result, Unknown)
            assert result.is_final
        for _ in range(5):
            assert isinstance(emitter.emit_order_batch_update(7, 3, RESULTS).result(20), Accepted)


def test_an_outbox_that_became_something_else_does_not_make_close_raise(tmp_path: Path) -> None:
    with fake_server() as server, Emitter(server.url, outbox=tmp_path / "outbox", options=QUICK) as emitter:
        assert isinstance(emitter.emit_order_batch_update(7, 3, RESULTS).result(20), Accepted)
        shutil.rmtree(tmp_path / "outbox")
        (tmp_path / "outbox").write_text("a file")


def test_for_ever_is_a_time_to_wait() -> None:
    with fake_server() as server:
        emitter = Emitter(server.url, options=QUICK)
        assert isinstance(emitter.emit_order_batch_update(7, 3, RESULTS).result(float("inf")), Accepted)
        emitter.close(float("inf"))


@pytest.mark.parametrize("url", ["ftp://name:geheim@127.0.0.1", "name:geheim@127.0.0.1:8081"])
def test_a_password_in_an_address_is_not_repeated(url: str) -> None:
    with pytest.raises(ValueError, match="does not stand in the address") as raised:
        Emitter(url)
    assert "geheim" not in str(raised.value)


INTERRUPTED = """
import faulthandler, logging, signal, sys
from tallywire_client import Emitter, Rejected

faulthandler.dump_traceback_later(20, exit=True)
logging.disable(logging.CRITICAL)
emitter = Emitter("http://127.0.0.1:9")
depth = 0

def emit(*_):
    global depth
    depth += 1
    if depth < 3:
        assert isinstance(emitter.emit_order_batch_update(7, 3, None).result(0), Rejected)

class Interrupting(dict):
    def get(self, *arguments):
        signal.raise_signal(signal.SIGUSR1)
        return super().get(*arguments)

signal.signal(signal.SIGUSR1, emit)
emitter._engine._work.complaints._said_at = Interrupting()
emit()
assert depth == 3, depth
"""


def test_a_signal_handler_that_emits_does_not_wait_for_its_own_thread() -> None:
    """While this thread says that a batch was refused."""
    # This package, whatever else is installed.
    here = os.environ | {"PYTHONPATH": str(Path(tallywire_client.__file__).parents[1])}
    run = subprocess.run([sys.executable, "-c", INTERRUPTED], timeout=60, check=False, capture_output=True, env=here)
    assert run.returncode == 0, run.stderr.decode()
