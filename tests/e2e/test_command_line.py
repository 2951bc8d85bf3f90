"""The commands as people and scripts use them: real processes, a real server, a real terminal, real proxies."""

import json
import os
import re
import shlex
import signal
import socket
import sqlite3
import stat
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jsonschema
import jwt
import pytest
import requests

from core.access import key_of
from core.commands.endings import ExitCode
from core.journal.sqlite import schema
from tests.e2e.commands import Ended, command, on_terminal, run, running
from tests.e2e.programs import installed
from tests.e2e.shipped import FRONTS, self_signed
from tests.process import ServerProcess, free_port, running_server, server_environment, wait_until
from tests.tokens import SECRET, private_key, private_pem, public_pem

KEY = "Vb7-key-of-the-order-service-that-nobody-may-see"
CREATED = {"success": True, "order_type": "LIMIT", "event_type": "order_created"}
CANCELLED = {"success": True, "order_type": "STOP_LIMIT", "event_type": "order_cancelled"}


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running_server("--durability=none", "--heartbeat-seconds=0.5") as started:
        yield started


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "tallywire.db"


def batch(user_id: int, strategy_id: int = 3, **fields: object) -> str:
    return json.dumps({"user_id": user_id, "strategy_id": strategy_id, "batch_results": [CREATED], **fields})


# ---- emit


def test_a_batch_from_options_is_counted_and_its_answer_can_be_read(server: ServerProcess) -> None:
    said = run(
        *("emit", "--url", server.internal, "--user", "11", "--strategy", "3"),
        *("--created", "LIMIT=3", "--created", "MARKET", "--cancelled", "STOP_LIMIT=2"),
    )

    assert (said.code, said.err) == (0, "")
    assert re.fullmatch(
        r"accepted   user 11 strategy 3  LIMIT 3 created, MARKET 1 created, STOP_LIMIT 2 cancelled  to no stream  "
        r"at \w{13}-1\n",
        said.out,
    )
    totals = server.get("/internal/keys/11/3")["totals"]
    assert {each["order_type"]: (each["created"], each["cancelled"]) for each in totals} == {
        "LIMIT": (3, 0),
        "MARKET": (1, 0),
        "STOP_LIMIT": (0, 2),
    }


def test_a_batch_that_is_repeated_with_its_key_counts_once(server: ServerProcess) -> None:
    arguments = ("emit", "--url", server.internal, "--user", "12", "--strategy", "3", "--created", "LIMIT", "--json")

    first, again = (run(*arguments, "--idempotency-key", "a key").objects()[0] for _ in range(2))
    other = run(*arguments).objects()[0]

    assert (first["duplicate"], again["duplicate"], other["duplicate"]) == (False, True, False)
    assert again["position"] == first["position"] != other["position"]


@pytest.mark.parametrize(
    "given",
    [
        f"{batch(13)}\n{batch(13)}\n\n{batch(13)}",
        f"[{batch(13)}, {batch(13)},\n {batch(13)}]",
        json.dumps([json.loads(batch(13))] * 3, indent=2),
    ],
    ids=["lines", "an array", "an array in many lines"],
)
def test_batches_of_a_file_in_any_form_are_emitted_in_order(server: ServerProcess, tmp_path: Path, given: str) -> None:
    file = tmp_path / "batches"
    file.write_text(given)
    before = server.get("/internal/keys/13/3")["batches"]

    from_file = run("emit", str(file), "--url", server.internal, "--json")
    from_pipe = run("emit", "-", "--url", server.internal, given=given)

    assert [each["status"] for each in from_file.objects()] == ["accepted"] * 3
    assert from_pipe.err == "3 batches: 3 accepted, 0 duplicate, 0 skipped, 0 rejected\n"
    assert server.get("/internal/keys/13/3")["batches"] == before + 6


def test_one_document_of_one_batch_over_many_lines_is_one_batch(server: ServerProcess) -> None:
    said = run("emit", "-", "--url", server.internal, "--json", given=json.dumps(json.loads(batch(14)), indent=2))

    assert [each["status"] for each in said.objects()] == ["accepted"]


def test_batches_of_a_pipe_leave_as_they_come(server: ServerProcess) -> None:
    with running("emit", "-", "--url", server.internal) as emitting:
        assert emitting.process.stdin is not None
        for _ in range(3):
            emitting.process.stdin.write(batch(15).encode() + b"\n")
            emitting.process.stdin.flush()

            assert emitting.line().startswith("accepted   user 15 strategy 3  LIMIT 1 created")


def test_more_batches_than_a_call_takes_are_many_calls(server: ServerProcess) -> None:
    said = run("emit", "-", "--url", server.internal, "--json", given=f"{batch(16)}\n" * 2500)

    assert len(said.objects()) == 2500
    assert server.get("/internal/keys/16/3")["batches"] == 2500


def test_a_bad_batch_among_good_ones_is_shown_and_is_the_exit_code(server: ServerProcess) -> None:
    skipped = json.dumps({"user_id": 17, "strategy_id": 3, "batch_results": [{"success": False}]})
    said = run("emit", "-", "--url", server.internal, given=f"{batch(17)}\n{batch(17, 0)}\n{skipped}\n")

    assert said.code == ExitCode.REFUSED
    words = [line.split()[0] for line in said.out.splitlines()]
    assert words == ["accepted", "rejected", "skipped"]
    assert "(422 strategy_id_missing)" in said.out
    assert said.err == "3 batches: 1 accepted, 0 duplicate, 1 skipped, 1 rejected\n"


def test_results_that_cannot_count_are_named_beside_what_counted(server: ServerProcess) -> None:
    lines = json.dumps({"user_id": 18, "strategy_id": 3, "batch_results": [CREATED, {**CREATED, "order_type": "?"}]})
    said = run("emit", "-", "--url", server.internal, given=lines)

    assert said.code == 0
    assert "LIMIT 1 created" in said.out
    assert "1 invalid: $.batch_results[1].order_type" in said.out


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["emit"], "name a FILE"),
        (["emit", "--user", "7", "--strategy", "3"], "--created"),
        (["emit", "--user", "7", "--strategy", "3", "--created", "limit=3"], "'limit=3' is not TYPE=N"),
        (["emit", "--user", "7", "--strategy", "3", "--created", "LIMIT=10001"], "1 to 10000"),
        (["emit", "--user", "7", "--strategy", "3", "--created", "LIMIT=99999999999"], "is not TYPE=N"),
        (["emit", "-", "--user", "7"], "leave the options of a single one out"),
        (["emit", "--url", "http://me:secret@127.0.0.1", "-"], "a URL holds no key"),
        (["emit", "--url", "ftp://127.0.0.1", "-"], "is no address of a server"),
        (["tail"], "Name the --user"),
        (["tail", "--user", "7", "--token-file", "x"], "add --public"),
        (["statistics", "--user", "7", "--hours", "3", "--from", "2026-01-31T14:00Z"], "--hours is up to now"),
        (["doctor", "http://127.0.0.1:1", "--emit", "3"], "name --user and --internal"),
        (["token", "--user", "7"], "there is no secret"),
        (["nothing"], "No such command"),
    ],
)
def test_a_command_line_that_cannot_be_used_says_what_to_write(arguments: list[str], word: str) -> None:
    said = run(*arguments)

    assert said.code == ExitCode.USAGE
    assert word in said.err
    assert said.out == ""


# ---- tail


def test_tail_shows_each_batch_with_its_totals_and_ends_in_order() -> None:
    with (
        running_server("--durability=none") as server,
        on_terminal("tail", "--url", server.internal, "--user", "7") as seen,
    ):
        seen.wait_for("time (UTC)")
        server.emit(7, 3, *[CREATED] * 5, *[CANCELLED] * 2)
        server.emit(7, 4, *[CREATED] * 1200)
        seen.wait_for("2 batches seen here")

        assert seen.press_ctrl_c() == ExitCode.INTERRUPTED
        screen = [line for line in seen.screen() if line]

    assert screen[0] == f"{server.internal}: user 7, every strategy. Ctrl-C ends it."
    assert screen[1].split() == [
        "time",
        "(UTC)",
        "strategy",
        "type",
        "created",
        "cancelled",
        "all",
        "created",
        "all",
        "cancelled",
    ]
    assert screen[2].split()[1:] == ["3", "LIMIT", "5", "·", "5", "0"]
    assert screen[3].split() == ["STOP_LIMIT", "·", "2", "0", "2"]
    assert screen[4].split()[1:] == ["4", "LIMIT", "1,200", "·", "1,200", "0"]
    assert screen[5:] == ["total  1,205 created  2 cancelled  in 2 strategies;  2 batches seen here"]
    assert {len(line) for line in screen[2:5]} == {len(screen[2])}, "columns are aligned"


def test_tail_resumes_over_a_restart_and_marks_what_was_merged(journal: Path) -> None:
    port = free_port()
    with ExitStack() as stack:
        with running_server(f"--journal={journal}", "--retry-ms=50", internal_port=port) as server:
            tail = stack.enter_context(running("tail", "--url", server.internal, "--user", "7"))
            tail.lines_until("time (UTC)")
            server.emit(7, 3, CREATED)
            assert tail.line().split()[1:] == ["3", "LIMIT", "1", "·", "1", "0"]
            assert server.stop() == 0
        with running_server(f"--journal={journal}", internal_port=free_port()) as elsewhere:
            for _ in range(3):
                elsewhere.emit(7, 3, CREATED)
        with running_server(f"--journal={journal}", internal_port=port):
            merged = tail.line()
            ended = tail.interrupt()

    assert merged.split()[1:] == ["3", "LIMIT", "3", "·", "4", "0", "3", "batches", "merged"]
    assert "draining" in ended.err
    assert "Resumed at" in ended.err
    assert ended.out == "total  4 created  0 cancelled  in 1 strategy;  4 batches seen here\n"
    assert ended.code == ExitCode.INTERRUPTED


def test_tail_says_when_continuity_cannot_be_shown(server: ServerProcess) -> None:
    server.emit(21, 3, CREATED)
    position = "0" * 13 + "-1"
    with running("tail", "--url", server.internal, "--user", "21", "--from", position) as tail:
        assert tail.line() == ("-- reset (epoch): continuity cannot be shown; the totals are now those of the server")
        tail.lines_until("time (UTC)")
        server.emit(21, 3, CREATED)

        assert tail.line().split()[-2:] == ["2", "0"]


def test_tail_as_json_is_one_object_a_line_that_a_program_can_sum(server: ServerProcess) -> None:
    with running("tail", "--url", server.internal, "--user", "22", "--strategy", "3", "--count", "2", "--json") as tail:
        opened = json.loads(tail.line())
        for _ in range(2):
            server.emit(22, 3, CREATED)
        rest, err = tail.process.communicate(timeout=60)

    assert opened["event"] == "stream_open"
    assert opened["id"] == opened["data"]["data"]["position"]
    events = [json.loads(line) for line in rest.decode().splitlines()]
    assert {tuple(each) for each in events} == {("event", "id", "data")}
    assert [each["event"] for each in events if each["event"] != "stream_heartbeat"] == ["order_batch_update"] * 2
    assert tail.process.returncode == 0
    assert b"Error" not in err


def test_tail_ends_when_the_server_ends_the_stream_for_good(server: ServerProcess) -> None:
    with running("tail", "--url", server.internal, "--user", "23", "--strategy", "3") as tail:
        tail.lines_until("time (UTC)")
        server.post("/internal/revoke", {"user_id": 23, "strategy_id": 3, "reason": "strategy_deleted"})
        _out, err = tail.process.communicate(timeout=60)

    assert tail.process.returncode == ExitCode.REFUSED
    assert b"Error: the server has ended the stream for good: strategy_deleted." in err


def test_tail_works_on_the_public_listener_with_a_token_that_is_shown_nowhere(tmp_path: Path) -> None:
    secret, token = tmp_path / "secret", tmp_path / "token"
    secret.write_bytes(SECRET)
    made = run("token", "--user", "7", "--strategy", "3", "--secret-file", str(secret))
    token.write_text(made.out)
    with running_server("--durability=none", "--auth=jwt", f"--jwt-keys=HS256={secret}") as server:
        options = ("--public", "--url", server.public, "--token-file", str(token))
        with running("tail", *options, "--count", "1") as tail:
            tail.lines_until("time (UTC)")
            assert made.out.strip() not in Path(f"/proc/{tail.process.pid}/cmdline").read_text()
            server.emit(7, 3, CREATED)
            assert tail.line().split()[1:] == ["3", "LIMIT", "1", "·", "1", "0"]
            assert tail.process.wait(60) == 0
        hours = run("statistics", *options)
        without = run("tail", "--public", "--url", server.public, "--user", "7")
        with_a_variable = run("statistics", *options[:3], "--json", environment={"TALLYWIRE_TOKEN": made.out})

    assert "User 7, from" in hours.out
    assert len(with_a_variable.objects()) == 1
    assert (without.code, "401 unauthorized" in without.err, "--token-file" in without.err) == (4, True, True)


# ---- statistics


def test_statistics_are_a_table_that_adds_up(server: ServerProcess) -> None:
    server.emit(31, 3, *[CREATED] * 1505, *[CANCELLED] * 2)
    server.emit(31, 12, CREATED)

    said = run("statistics", "--url", server.internal, "--user", "31")
    head, columns, *rows, total = said.out.splitlines()

    assert re.fullmatch(r"User 31, from \d{4}-\d\d-\d\d \d\d:00 to \d{4}-\d\d-\d\d \d\d:00, UTC", head)
    assert columns.split() == ["hour", "(UTC)", "strategy", "type", "created", "cancelled"]
    assert [row.split()[-3:] for row in rows] == [
        ["LIMIT", "1,505", "·"],
        ["STOP_LIMIT", "·", "2"],
        ["LIMIT", "1", "·"],
    ]
    assert total.split() == ["total", "1,506", "2"]
    assert {len(line) for line in (columns, *rows, total)} == {len(columns)}, "columns are aligned"


def test_statistics_as_json_are_one_object_a_line(server: ServerProcess) -> None:
    server.emit(32, 3, CREATED)
    server.emit(32, 4, CREATED)

    every = run("statistics", "--url", server.internal, "--user", "32", "--hours", "1", "--json").objects()
    one = run("statistics", "--url", server.internal, "--user", "32", "--strategy", "4", "--json").objects()

    assert [each["strategy_id"] for each in every] == [3, 4]
    assert [each["strategy_id"] for each in one] == [4]
    assert run("statistics", "--url", server.internal, "--user", "33").out.endswith("Nothing was counted.\n")


# ---- how commands end


def unreachable() -> Ended:
    return run("statistics", "--user", "7", "--url", f"http://127.0.0.1:{free_port()}")


def test_each_exit_code_is_what_a_script_sees(server: ServerProcess, tmp_path: Path) -> None:
    seen: dict[int, str] = {}
    bad = tmp_path / "bad.toml"
    bad.write_text("retry_ms = 0")
    for ended in (
        run("statistics", "--user", "7", "--url", server.internal),
        run("journal", "check", "--journal", str(tmp_path / "none.db")),
        run("statistics"),
        unreachable(),
        run("statistics", "--user", "7", "--from", "never", "--url", server.internal),
        run("config", "check", "--config", str(bad)),
    ):
        seen[ended.code] = ended.err
        assert len(ended.err.splitlines()) <= 4
    with answering(503, {"code": "busy", "detail": "Too much.", "retry": "later"}) as url:
        busy = run("emit", "--user", "7", "--strategy", "3", "--created", "LIMIT", "--url", url)
    with answering(503, {"code": "outcome_unknown", "detail": "Who knows?", "retry": "same key"}) as url:
        unknown = run("emit", "--user", "7", "--strategy", "3", "--created", "LIMIT", "--url", url)
    with running("tail", "--user", "7", "--url", server.internal) as tail:
        tail.lines_until("time (UTC)")
        interrupted = tail.interrupt()
    seen |= {ended.code: ended.err for ended in (busy, unknown, interrupted)}
    gone = left_alone("config", "show")
    seen[gone] = ""

    assert set(seen) == set(ExitCode)
    assert re.search(r"Repeat it with --idempotency-key \w{32}: then it counts once", seen[ExitCode.UNKNOWN])
    assert "Connection refused" in seen[ExitCode.UNREACHABLE]


def test_a_lost_answer_is_told_with_the_key_to_repeat_it_by() -> None:
    with hanging_up() as url:
        said = run("emit", "--user", "7", "--strategy", "3", "--created", "LIMIT", "--url", url)
        of_a_file = run("emit", "-", "--url", url, given=f"{batch(7)}\n" * 3)

    assert said.code == of_a_file.code == ExitCode.UNKNOWN
    assert re.search(r"Repeat it with --idempotency-key \w{32}", said.err)
    assert "each of 3 batches was counted or not" in of_a_file.err


@pytest.mark.parametrize("line", ["config show", "config show --json", "config schema", "--help", "tail --help"])
def test_a_reader_that_leaves_is_not_complained_about(line: str) -> None:
    assert left_alone(*line.split()) == ExitCode.READER_GONE


def test_tail_whose_reader_leaves_ends_quietly(server: ServerProcess) -> None:
    with running("tail", "--user", "41", "--url", server.internal) as tail:
        tail.lines_until("time (UTC)")
        assert tail.process.stdout is not None
        tail.process.stdout.close()
        server.emit(41, 3, CREATED)
        assert tail.process.wait(60) == ExitCode.READER_GONE
        assert tail.process.stderr is not None
        assert b"rror" not in tail.process.stderr.read()
        tail.process.stdout = None


def left_alone(*arguments: str) -> int:
    """Run a command whose output nobody reads; answers its exit code."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended = subprocess.run(
            command(*arguments),
            stdout=writing,
            stderr=subprocess.PIPE,
            env=server_environment(),
            timeout=60,
            check=False,
        )
    finally:
        os.close(writing)
    assert ended.stderr == b""
    return ended.returncode


@contextmanager
def answering(status: int, problem: dict[str, object]) -> Iterator[str]:
    """A server that answers everything like this."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = json.dumps(problem).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/problem+json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Silence."""

    with serving(Handler) as url:
        yield url


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


CONTRADICTION = b"""retry: 10
event: stream_open
data: {"type":"stream_open","data":{"position":"e-1","resumed":false,"heartbeat_seconds":15,"totals":[]}}
id: e-1

event: order_batch_update
data: {"type":"order_batch_update","data":{"summaries":[],"timestamp":"2026-11-25T12:00:00.000Z"},\
"stream":{"strategy_id":3,"after":"e-5","batches":1}}
id: e-6

"""


def test_tail_opens_streams_that_cannot_be_believed_in_no_hurry_and_keeps_its_output_clean() -> None:
    """Something in front drops a part of each stream."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            self.wfile.write(CONTRADICTION)

        def log_message(self, format: str, *args: object) -> None:
            """Silence."""

    with serving(Handler) as url, running("tail", "--json", "--user", "1", "--url", url) as tail:
        assert [json.loads(tail.line())["event"] for _ in range(3)] == ["stream_open"] * 3
        ended = tail.interrupt()
    assert ended.code == 130
    assert "a frame begins at e-5" in ended.err
    assert ended.err.count("back in 0.0 s") >= 2


def test_an_answer_of_something_else_is_no_traceback() -> None:
    """`answering` says 200 to everything, in one line that is no answer to a batch."""
    with answering(200, {"hello": "world"}) as url:
        ended = run("emit", "--user", "1", "--strategy", "1", "--created", "LIMIT", "--url", url)
    assert ended.code == 6
    assert "not what Tallywire does" in ended.err
    assert "--idempotency-key" in ended.err


@contextmanager
def hanging_up() -> Iterator[str]:
    """A server that reads a request and says nothing to it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)

        thread = threading.Thread(target=hang_up)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            thread.join()


# ---- colours, keys, sockets


def test_colours_are_for_terminals_and_for_none_where_no_color_is_set(server: ServerProcess) -> None:
    arguments = ("statistics", "--url", server.internal, "--user", "31")
    with on_terminal(*arguments) as coloured, on_terminal(*arguments, environment={"NO_COLOR": "1"}) as plain:
        assert coloured.wait() == plain.wait() == 0

    assert b"\x1b[" in coloured.raw
    assert b"\x1b[" not in plain.raw
    assert "\x1b[" not in run(*arguments).out


def test_a_key_comes_from_a_file_or_the_environment_and_goes_nowhere_else(tmp_path: Path) -> None:
    keys, key, other = tmp_path / "keys", tmp_path / "key", tmp_path / "other"
    keys.write_text(key_of("orders", ["emit", "read"], KEY).line + "\n")
    key.write_text(KEY + "\n")
    other.write_text("another-key-of-nobody")
    with running_server("--durability=none", "--internal-auth=keys", f"--internal-keys={keys}") as server:
        url = ("--url", server.internal)
        emitted = run("emit", *url, "--user", "7", "--strategy", "3", "--created", "LIMIT", "--key-file", str(key))
        by_variable = run("statistics", *url, "--user", "7", environment={"TALLYWIRE_KEY": KEY})
        without = run("statistics", *url, "--user", "7")
        wrong = run("statistics", *url, "--user", "7", "--key-file", str(other))
        two_lines = run("statistics", *url, "--user", "7", "--key-file", str(keys))
        unreachable = run("statistics", "--url", "http://127.0.0.1:1", "--user", "7", "--key-file", str(key))

    assert (emitted.code, by_variable.code, without.code, wrong.code, two_lines.code) == (0, 0, 4, 4, 2)
    assert "--key-file" in without.err
    said = [each.out + each.err for each in (emitted, by_variable, without, wrong, two_lines, unreachable)]
    assert [text for text in said if KEY in text or "another-key" in text or "orders emit" in text] == []


def test_the_internal_listener_on_a_unix_socket_is_called_by_its_path() -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = f"unix:{directory}/internal.sock"
        process = subprocess.Popen(
            command("serve", "--durability=none", "--public-listen=127.0.0.1:0", f"--internal-listen={path}"),
            env=server_environment(),
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_until(lambda: Path(directory, "internal.sock").exists(), "the socket")
            named = run("emit", "--url", path, "--user", "7", "--strategy", "3", "--created", "LIMIT")
            found = run("statistics", "--user", "7", "--json", environment={"TALLYWIRE_INTERNAL_LISTEN": path})
        finally:
            process.terminate()
            process.wait(60)

    assert (named.code, len(found.objects())) == (0, 1)


def test_version_and_completion_know_the_commands() -> None:
    completed = run(
        environment={"_TALLYWIRE_COMPLETE": "bash_complete", "COMP_WORDS": "tallywire journal ", "COMP_CWORD": "2"}
    )

    assert re.fullmatch(r"tallywire, version \S+\n", run("--version").out)
    assert completed.out.split() == [f"plain,{name}" for name in ("backup", "check", "export", "new-epoch", "restore")]
    assert "_tallywire_completion" in run(environment={"_TALLYWIRE_COMPLETE": "bash_source"}).out


# ---- token


@pytest.mark.parametrize("algorithm", ["HS256", "RS256", "ES256", "EdDSA"])
def test_a_token_opens_what_it_names(algorithm: str, tmp_path: Path) -> None:
    held, shown = tmp_path / "held", tmp_path / "shown"
    held.write_bytes(SECRET if algorithm == "HS256" else private_pem(private_key(algorithm)))
    shown.write_bytes(SECRET if algorithm == "HS256" else public_pem(private_key(algorithm)))
    named = {
        "TALLYWIRE_JWT_AUDIENCE": "streams",
        "TALLYWIRE_JWT_ISSUER": "https://login",
        "TALLYWIRE_JWT_USER_CLAIM": "uid",
    }
    flags = ("--jwt-audience=streams", "--jwt-issuer=https://login", "--jwt-user-claim=uid")
    with running_server("--durability=none", "--auth=jwt", f"--jwt-keys={algorithm}={shown}", *flags) as server:
        made = run("token", "--user", "7", "--strategy", "3", "--secret-file", str(held), environment=named)
        found = run("statistics", "--public", "--url", server.public, environment={"TALLYWIRE_TOKEN": made.out})

    assert (made.code, made.err, found.code) == (0, "", 0)
    claims = jwt.decode(made.out.strip(), options={"verify_signature": False})
    assert claims["exp"] - claims["iat"] == 3600
    assert claims["strategies"] == [3]


def test_what_is_no_secret_is_refused_and_not_repeated(tmp_path: Path) -> None:
    weak = tmp_path / "weak"
    weak.write_text("hunter2")
    refused = run("token", "--user", "7", "--secret-file", str(weak))
    in_variable = run("token", "--user", "7", environment={"TALLYWIRE_JWT_SECRET": "hunter2"})
    public = tmp_path / "public"
    public.write_bytes(public_pem(private_key("RS256")))

    assert refused.code == in_variable.code == run("token", "--user", "7", "--secret-file", str(public)).code == 1
    assert "at least 32 bytes" in refused.err
    assert "hunter2" not in refused.err + in_variable.err
    assert (
        run("token", "--user", "7", "--expires", "2d", environment={"TALLYWIRE_JWT_SECRET": SECRET.decode()}).code == 2
    )


# ---- config


def test_config_check_names_every_bad_setting_and_the_fix(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('retry_ms = 0\nhearbeat_seconds = 5\nshape = "round"\n')

    said = run("config", "check", "--config", str(file), "--keep-rows", "x", environment={"TALLYWIRE_HTTP": "carrier"})

    assert said.code == ExitCode.FOUND
    lines = said.out.splitlines()
    assert [line.split()[0] for line in lines] == ["wrong"] * 5
    for name in ("retry_ms", "hearbeat_seconds", "shape", "TALLYWIRE_HTTP", "--keep-rows"):
        assert sum(name in line for line in lines) == 1


@pytest.mark.parametrize(
    ("arguments", "fix"),
    [
        (["--internal-auth", "keys"], "--internal-keys"),
        (["--public-listen", "0.0.0.0:80"], "--auth=jwt"),
        (["--internal-listen", "here"], "127.0.0.1:8080"),
        (["--auth", "jwt"], "jwt"),
        (["--config", "/nowhere.toml"], "No such file"),
    ],
)
def test_config_check_finds_what_only_a_start_would(arguments: list[str], fix: str) -> None:
    said = run("config", "check", *arguments)

    assert said.code == ExitCode.FOUND
    assert fix in said.out


def test_config_check_names_each_of_what_only_a_start_would_find() -> None:
    said = run("config", "check", "--public-listen", "0.0.0.0:80", "--internal-listen", "0.0.0.0:81", "--auth", "none")

    assert [line.split()[1] for line in said.out.splitlines()] == ["public_listen", "internal_listen"]


def test_a_text_file_is_called_no_journal(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("to do\n" * 1000)
    noted = run("journal", "check", str(tmp_path / "notes.txt"))
    missing = run("journal", "check", str(tmp_path / "nothing"))

    assert (noted.code, "is no journal of Tallywire" in noted.err) == (1, True)
    assert (missing.code, "--journal" in missing.err) == (1, False)


def test_config_check_is_content_with_what_a_server_starts_with_and_wonders_about_other_variables() -> None:
    said = run("config", "check", environment={"TALLYWIRE_RETRY_MSS": "5"})

    assert said.code == 0
    assert "TALLYWIRE_RETRY_MSS in the environment is no setting" in said.err


def test_config_show_says_where_each_value_comes_from_and_hides_passwords(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('retry_ms = 5\nlog_level = "debug"\n')
    environment = {"TALLYWIRE_RETRY_MS": "6", "TALLYWIRE_JWT_JWKS_URL": "https://me:hunter2@login.example.com/keys"}
    arguments = ("config", "show", "--config", str(file), "--shape", "flat")

    said = run(*arguments, environment=environment)
    shown = {
        each["name"]: (each["value"], each["source"])
        for each in run(*arguments, "--json", environment=environment).objects()
    }

    assert shown["retry_ms"] == (6, "environment")
    assert shown["log_level"] == ("debug", "file")
    assert shown["shape"] == ("flat", "flag")
    assert shown["durability"] == ("power", "default")
    assert re.search(r"^retry_ms +6 +environment$", said.out, re.M)
    assert "hunter2" not in said.out
    assert shown["jwt_jwks_url"][0] == "https://***@login.example.com/keys"


def test_config_schema_accepts_what_a_server_accepts_and_nothing_else() -> None:
    schema = json.loads(run("config", "schema").out)
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)

    assert validator.is_valid({"retry_ms": 5, "cors_origins": ["https://a"], "shape": "flat"})
    assert not validator.is_valid({"retry_ms": 0})
    assert not validator.is_valid({"retry_mss": 5})


# ---- journal


def emitted(journal: Path, users: int = 3, rounds: int = 40) -> ExitStack:
    """A server on this journal with batches in it, and how to end it."""
    stack = ExitStack()
    server = stack.enter_context(running_server(f"--journal={journal}", f"--internal-listen=127.0.0.1:{free_port()}"))
    lines = [
        {
            "user_id": user,
            "strategy_id": 1 + at % 3,
            "batch_results": [CREATED, CANCELLED],
            "idempotency_key": f"{user}-{at}",
        }
        for at in range(rounds)
        for user in range(1, users + 1)
    ]
    server.post("/internal/emit", lines)
    wait_until(lambda: is_rolled_up(journal), "the hours")
    stack.callback(server.stop)
    return stack


def is_rolled_up(journal: Path) -> bool:
    with closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True)) as connection:
        (waiting,) = connection.execute("SELECT count(*) FROM recent").fetchone()
        return bool(waiting == 0)


def test_a_backup_of_a_running_server_is_whole_and_comes_back_under_a_new_epoch(journal: Path, tmp_path: Path) -> None:
    backup = tmp_path / "backup.db"
    with emitted(journal):
        made = run("journal", "backup", str(backup), "--journal", str(journal))
        again = run("journal", "backup", str(backup), "--journal", str(journal))
        replaced = run("journal", "backup", str(backup), "--journal", str(journal), "--replace")
        beside = run("journal", "check", "--journal", str(journal))
        refused = run("journal", "restore", str(backup), "--journal", str(journal))
    checked = run("journal", "check", str(backup))
    files = sorted(path.name for path in tmp_path.iterdir())

    assert (made.code, again.code, replaced.code, beside.code, checked.code) == (0, 1, 0, 0, 0), beside.out
    assert "is there already" in again.err
    assert refused.code == 1
    assert re.search(r"in use by process \d+\. Stop that process", refused.err)
    assert re.search(r"batches +120\b", checked.out)
    assert [name for name in files if name.startswith("backup")] == ["backup.db"], "the copy is one file"
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600


def test_a_restored_journal_has_what_the_backup_had_and_resets_who_comes_back(journal: Path, tmp_path: Path) -> None:
    backup = tmp_path / "backup.db"
    with running_server(f"--journal={journal}") as server:
        server.emit(7, 3, CREATED)
        assert run("journal", "backup", str(backup), "--journal", str(journal)).code == 0
        lost = server.emit(7, 3, CREATED)["position"]
        # Killed: its log stays behind, and must not be taken for that of the backup.
        server.stop(signal.SIGKILL)
    assert journal.with_name("tallywire.db-wal").stat().st_size > 0

    restored = run("journal", "restore", str(backup), "--journal", str(journal))

    assert restored.code == 0, restored.err
    assert not journal.with_name("tallywire.db-wal").exists()
    assert stat.S_IMODE(journal.stat().st_mode) == 0o600
    epoch = re.search(r"New epoch (\w{13}), before (\w{13})\.", restored.out)
    assert epoch is not None
    assert epoch[2] == lost[:13]
    with running_server(f"--journal={journal}") as server:
        assert server.get("/internal/keys/7/3")["totals"] == [{"order_type": "LIMIT", "created": 1, "cancelled": 0}]
        assert server.emit(7, 3, CREATED)["position"] == f"{epoch[1]}-2", "the epoch that was told, and no other"
        with running("tail", "--url", server.internal, "--user", "7", "--from", lost) as tail:
            assert "reset (epoch)" in tail.line()
    # What was there is kept, with its log: nothing of it is gone.
    with closing(sqlite3.connect(tmp_path / "tallywire.db.replaced-1")) as kept:
        (rows,) = kept.execute("SELECT (SELECT count(*) FROM rows) + (SELECT count(*) FROM recent)").fetchone()
    assert rows == 2


@pytest.mark.parametrize("what", ["another program's", "cut", "changed", "a copy with its log", "missing", "empty"])
def test_what_is_no_sound_backup_is_not_restored(what: str, journal: Path, tmp_path: Path) -> None:
    backup = tmp_path / "backup.db"
    with emitted(journal):
        assert run("journal", "backup", str(backup), "--journal", str(journal)).code == 0
    before = journal.read_bytes()
    match what:
        case "another program's":
            backup.unlink()
            with closing(sqlite3.connect(backup)) as other:
                other.execute("CREATE TABLE t (a)")
        case "cut":
            backup.write_bytes(backup.read_bytes()[:20_000])
        case "changed":
            with closing(sqlite3.connect(backup)) as connection:
                connection.execute("UPDATE recent SET totals = '[[\"LIMIT\",1,0]]' WHERE n = 20")
                connection.execute("UPDATE rows SET totals = '[[\"LIMIT\",1,0]]' WHERE n = 20")
                connection.commit()
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        case "a copy with its log":
            backup.with_name("backup.db-wal").write_bytes(b"x" * 100)
        case "missing":
            backup.unlink()
        case "empty":
            backup.write_bytes(b"")

    said = run("journal", "restore", str(backup), "--journal", str(journal))

    assert said.code == 1
    assert len(said.err.splitlines()) == 1
    assert journal.read_bytes() == before
    assert run("journal", "check", "--journal", str(journal)).code == 0


def test_a_backup_from_before_an_upgrade_is_named_by_check_and_migrated_by_restore(
    journal: Path, tmp_path: Path
) -> None:
    backup = tmp_path / "backup.db"
    with closing(sqlite3.connect(backup)) as connection:
        connection.executescript(schema.MIGRATIONS[0])
        connection.executescript(f"PRAGMA application_id = {schema.APPLICATION_ID}; PRAGMA user_version = 1")
        connection.execute("INSERT INTO journal VALUES (1, 'abcdefghjkmnp', 1, 1, 'boot', 'power', 1, 0, 0)")
        connection.execute(
            "INSERT INTO rows VALUES (1, 7, 3, 1, 1, 1700000000000, 1, '[[\"LIMIT\",2,0]]', '[[\"LIMIT\",2,0]]')"
        )
        connection.commit()
    before = backup.read_bytes()

    checked = run("journal", "check", str(backup))
    assert checked.code == 1
    assert "a backup when it is restored" in checked.err
    restored = run("journal", "restore", str(backup), "--journal", str(journal))

    assert restored.code == 0, restored.err
    assert backup.read_bytes() == before
    assert run("journal", "check", "--journal", str(journal)).code == 0
    with running_server("--journal", str(journal)) as server:
        assert server.get("/internal/keys/7/3")["totals"] == [{"order_type": "LIMIT", "created": 2, "cancelled": 0}]


DAMAGE = {
    "a row is gone": ("DELETE FROM {rows} WHERE user_id = 2 AND n = 20", "1 are missing"),
    "a place is given twice": ("UPDATE {rows} SET n = 19 WHERE user_id = 2 AND n = 20", "comes behind n 19"),
    "a count is changed": (
        """UPDATE {rows} SET summaries = '[["LIMIT",9,0]]' WHERE user_id = 2 AND n = 20""",
        "its totals",
    ),
    "totals are changed": (
        """UPDATE {rows} SET totals = '[["LIMIT",1,0]]' WHERE user_id = 2 AND n = 20""",
        "its totals",
    ),
    "an hour counts too little": ("UPDATE hours SET created = created - 1 WHERE user_id = 2", "hour"),
    "an hour counts too much": ("UPDATE hours SET created = created + 1 WHERE user_id = 2", "do not add up"),
    "an hour is gone": ("DELETE FROM hours WHERE user_id = 2", "hour"),
    "a record of no batch": ("UPDATE idempotency SET n = 999 WHERE user_id = 2 AND n = 20", "n 999"),
    "no JSON": ("UPDATE {rows} SET totals = 'x' WHERE user_id = 2 AND n = 20", "cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_check_finds_whatever_cannot_be(damage: str, journal: Path) -> None:
    with emitted(journal):
        pass
    statement, word = DAMAGE[damage]
    with closing(sqlite3.connect(journal)) as connection:
        connection.executescript("DROP INDEX rows_by_key; DROP INDEX recent_by_key")
        for table in ("rows", "recent"):
            connection.execute(statement.format(rows=table))
        connection.commit()

    said = run("journal", "check", "--journal", str(journal), "--quick")
    as_json = run("journal", "check", "--journal", str(journal), "--quick", "--json")

    assert said.code == as_json.code == ExitCode.FOUND
    assert word in said.out
    assert as_json.objects()[0]["found"]


def test_check_finds_a_page_that_is_ruined(journal: Path) -> None:
    with emitted(journal):
        pass
    whole = bytearray(journal.read_bytes())
    whole[-4096 * 3 : -4096 * 2] = b"\xff" * 4096
    journal.write_bytes(whole)

    assert run("journal", "check", "--journal", str(journal)).code == ExitCode.FOUND


def test_check_is_content_with_a_journal_that_was_trimmed_deleted_from_and_killed(journal: Path) -> None:
    with running_server(f"--journal={journal}", "--keep-rows=50") as server:
        for at in range(30):
            lines = [{"user_id": user, "strategy_id": 1 + at % 3, "batch_results": [CREATED]} for user in (1, 2, 3)]
            server.post("/internal/emit", lines * 5)
        requests.delete(f"{server.internal}/internal/users/2", timeout=20).raise_for_status()
        server.post("/internal/emit", [{"user_id": 2, "strategy_id": 1, "batch_results": [CREATED]}] * 20)
        beside = run("journal", "check", "--journal", str(journal))
        server.stop(signal.SIGKILL)

    after = run("journal", "check", "--journal", str(journal))

    assert (beside.code, after.code) == (0, 0), beside.out + after.out


def test_an_export_is_what_was_emitted_in_order_and_can_be_narrowed(journal: Path) -> None:
    with emitted(journal, users=2, rounds=10):
        every = run("journal", "export", "--journal", str(journal)).objects()
        narrowed = run("journal", "export", "--journal", str(journal), "--user", "2", "--strategy", "3").objects()
        later = run("journal", "export", "--journal", str(journal), "--from", "2999-01-01T00:00Z")
        wrong = run("journal", "export", "--journal", str(journal), "--from", "soon")

    assert len(every) == 20
    assert [each["position"].rpartition("-")[2] for each in every if each["user_id"] == 1] == [
        str(n) for n in range(1, 11)
    ]
    assert {(each["user_id"], each["strategy_id"]) for each in narrowed} == {(2, 3)}
    assert narrowed == [each for each in every if each["user_id"] == 2 and each["strategy_id"] == 3]
    assert every[0]["summaries"] == [
        {"order_type": "LIMIT", "created": 1, "cancelled": 0},
        {"order_type": "STOP_LIMIT", "created": 0, "cancelled": 1},
    ]
    assert (later.out, wrong.code) == ("", 2)


def test_long_work_shows_how_far_it_is_on_a_terminal_only(journal: Path, tmp_path: Path) -> None:
    with emitted(journal):
        quiet = run("journal", "backup", str(tmp_path / "one.db"), "--journal", str(journal))
        with on_terminal("journal", "backup", str(tmp_path / "two.db"), "--journal", str(journal)) as seen:
            assert seen.wait() == 0

    assert "100%" in "\n".join(seen.screen())
    assert "%" not in quiet.out + quiet.err


# ---- doctor


NGINX = """\
daemon off;
master_process off;
pid {scratch}/pid;
error_log stderr crit;
events {{
}}
http {{
    access_log off;
    client_body_temp_path {scratch}/body;
    proxy_temp_path {scratch}/proxy;
    fastcgi_temp_path {scratch}/fastcgi;
    uwsgi_temp_path {scratch}/uwsgi;
    scgi_temp_path {scratch}/scgi;
    proxy_cache_path {scratch}/cache keys_zone=everything:1m;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass {upstream};
            proxy_set_header Connection "";
            {lines}
        }}
    }}
}}
"""


@contextmanager
def nginx(scratch: Path, upstream: str, lines: str) -> Iterator[str]:
    """A proxy with these lines in its location; what it can be reached by."""
    program, port = installed("nginx"), free_port()
    file = scratch / "nginx.conf"
    file.write_text(NGINX.format(scratch=scratch, port=port, upstream=upstream, lines=lines))
    process = subprocess.Popen([program, "-c", str(file), "-p", str(scratch)], stderr=subprocess.DEVNULL)

    def listens() -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_until(listens, "nginx listens")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait(20)


def verdicts(said: Ended) -> dict[str, str]:
    return {each["check"]: each["verdict"] for each in said.objects()}


SOUND = "proxy_http_version 1.1; proxy_buffering off;"

FAULTS = {
    "buffers": ("proxy_ignore_headers X-Accel-Buffering;", "buffering", "proxy_buffering off;"),
    "cuts": (f"{SOUND} proxy_read_timeout 5s;", "idle", "proxy_read_timeout 90s;"),
    "compresses": (f"{SOUND} gzip on; gzip_types *; gzip_min_length 1; gzip_proxied any;", "compression", "gzip off;"),
    "changes the headers": (f"{SOUND} proxy_hide_header Cache-Control;", "caching", "proxy_cache off;"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_doctor_names_what_a_proxy_does_to_streams(fault: str, tmp_path: Path) -> None:
    lines, check, fix = FAULTS[fault]
    with (
        running_server("--durability=none", "--heartbeat-seconds=7") as server,
        nginx(tmp_path, server.public, lines) as url,
    ):
        said = run("doctor", url, "--json", *([] if fault == "cuts" else ["--quick"]))

    assert said.code == ExitCode.FOUND
    (found,) = [each for each in said.objects() if each["verdict"] == "fault"]
    assert found["check"] == check
    assert fix in found["fix"]
    if fault == "cuts":
        assert re.match(r"a stream was cut after [456]\.\d s without a byte; heartbeats come every 7 s", found["said"])


def test_the_doctor_finds_nothing_behind_a_proxy_that_lets_streams_through(tmp_path: Path) -> None:
    with (
        running_server("--durability=none", "--heartbeat-seconds=1") as server,
        nginx(tmp_path, server.public, SOUND) as url,
    ):
        arguments = ("--internal", server.internal, "--user", "7", "--emit", "3", "--origin", "http://localhost:3000")
        said = run("doctor", url, *arguments, "--json")
        read = run("doctor", url, *arguments)

    assert said.code == 0, said.out
    assert set(verdicts(said).values()) == {"ok"}
    assert set(verdicts(said)) == {
        *("reach", "clock", "http", "seclusion", "descriptors", "cors", "compression", "caching", "buffering", "event"),
        *("idle", "leaving"),
    }
    assert read.out.endswith("No fault found.\n")


def test_the_doctor_names_a_descriptor_limit_below_the_connections() -> None:
    limited = ("prlimit", "--nofile=600:600")
    with running_server("--durability=none", "--max-connections=5000", command_prefix=limited) as server:
        said = run("doctor", server.public, "--internal", server.internal, "--quick", "--json")

    (found,) = [each for each in said.objects() if each["verdict"] == "fault"]
    assert said.code == ExitCode.FOUND
    assert found["check"] == "descriptors"
    assert found["said"] == "the descriptor limit leaves room for 472 streams, and max_connections is 5,000"
    assert "LimitNOFILE=5128" in found["fix"]


def test_the_doctor_names_an_internal_listener_that_is_forwarded(tmp_path: Path) -> None:
    with running_server("--durability=none") as server, nginx(tmp_path, server.internal, SOUND) as url:
        said = run("doctor", url, "--quick", "--json")

    assert verdicts(said)["seclusion"] == "fault"


def test_the_doctor_says_when_nobody_is_there_and_when_a_token_is_asked_for(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    nobody = run("doctor", f"http://127.0.0.1:{free_port()}", "--json")
    with running_server("--durability=none", "--auth=jwt", f"--jwt-keys=HS256={secret}") as server:
        asked = run("doctor", server.public, "--quick", "--json")
        token = run("token", "--user", "7", environment={"TALLYWIRE_JWT_SECRET": SECRET.decode()}).out
        shown = run("doctor", server.public, "--quick", "--json", environment={"TALLYWIRE_TOKEN": token})

    assert (nobody.code, verdicts(nobody)) == (7, {"reach": "fault"})
    assert (asked.code, verdicts(asked)["stream"]) == (7, "fault")
    assert shown.code == 0, shown.out
    assert token.strip() not in shown.out + shown.err


def test_help_speaks_of_options_that_the_command_has(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    keys = tmp_path / "keys"
    keys.write_text(key_of("orders", ("emit",), KEY).line + "\n")
    asking = ("--auth=jwt", f"--jwt-keys=HS256={secret}", "--internal-auth=keys", f"--internal-keys={keys}")
    with running_server("--durability=none", *asking) as server:
        emitted = ("emit", "--user", "7", "--strategy", "3", "--created", "LIMIT", "--url")
        no_key = run(*emitted, server.internal).err
        wrong_key = run(*emitted, server.internal, environment={"TALLYWIRE_KEY": "another-key"}).err
        no_listener = run(*emitted, server.public).err
        no_token = run("doctor", server.public, "--quick").out
        wrong_token = run("doctor", server.public, "--quick", environment={"TALLYWIRE_TOKEN": "a.b.c"}).out
        no_server = run("doctor", f"http://127.0.0.1:{free_port()}").out

    assert "Show a key with --key-file" in no_key
    assert "show another key" in wrong_key
    assert "Emits go to the internal one" in no_listener
    assert "Show a token with --token-file" in no_token
    assert "show another token" in wrong_token
    for said in (no_key, wrong_key, no_listener, no_token, wrong_token):
        assert "--public" not in said
    assert "--url" not in no_token + wrong_token + no_server


def test_the_public_listener_has_a_variable_of_its_own(server: ServerProcess) -> None:
    environment = {"TALLYWIRE_URL": f"http://127.0.0.1:{free_port()}", "TALLYWIRE_PUBLIC_URL": server.public}
    said = run("statistics", "--public", "--user", "7", environment=environment)

    assert (said.code, said.err) == (0, "")


@pytest.mark.parametrize("proxy", FRONTS)
def test_the_doctor_finds_nothing_behind_the_proxies_that_are_shipped(proxy: str, tmp_path: Path) -> None:
    certificate = self_signed(tmp_path)
    secret, token = tmp_path / "secret", tmp_path / "token"
    secret.write_bytes(SECRET)
    token.write_text(run("token", "--user", "7", "--secret-file", str(secret)).out)
    arguments = ("--auth=jwt", f"--jwt-keys=HS256={secret}", "--durability=none", "--heartbeat-seconds=1")
    with (
        FRONTS[proxy](tmp_path, certificate) as front,
        running_server(*arguments, public_port=front.server_port),
    ):
        said = run(
            "doctor", front.base, "--ca-file", str(certificate.certificate), "--token-file", str(token), "--json"
        )
        untrusted = run("doctor", front.base, "--json")

    assert said.code == 0, said.out
    assert verdicts(said) == dict.fromkeys(verdicts(said), "ok") | {"descriptors": "unknown"}
    assert [each["said"] for each in said.objects() if each["check"] == "http"] == ["HTTP/2 over TLSv1.3"]
    assert "--ca-file" in untrusted.objects()[0]["said"]


# ---- demo


def test_the_demo_trades_shows_where_to_look_and_leaves_nothing(tmp_path: Path) -> None:
    with on_terminal(
        "demo", "--minutes", "0.5", "--seed", "7", cwd=tmp_path, environment={"TMPDIR": str(tmp_path)}
    ) as seen:
        seen.wait_for("on the market")
        (url,) = re.findall(r"console   (\S+)/console/", "\n".join(seen.screen()))
        with running("tail", "--url", url, "--user", "1", "--count", "3") as tail:
            assert tail.process.wait(60) == 0
        # Nothing can be left then, however it ends.
        assert list(tmp_path.iterdir()) == []
        assert seen.press_ctrl_c() == 0

    assert seen.screen()[-2] == "The demo has ended; nothing is left of it."
    assert list(tmp_path.iterdir()) == []


def test_a_demo_without_a_terminal_prints_the_addresses_only(tmp_path: Path) -> None:
    with running("demo", "--users", "1", "--minutes", "1", environment={"TMPDIR": str(tmp_path)}) as demo:
        lines = demo.lines_until("emit ")
        (console,) = (line.split()[1] for line in lines if line.startswith("  console"))
        (printed,) = (line.split(maxsplit=1)[1] for line in lines if line.startswith("  emit"))
        pasted = subprocess.run(
            shlex.split(printed), cwd=tmp_path, env=server_environment(), capture_output=True, timeout=60, check=False
        )
        internal = console.removesuffix("/console/")
        report = f"{internal}/internal/connections"
        wait_until(lambda: requests.get(report, timeout=60).json()["connections"] == 2, "the readers of the demo")
        shows_test_batch = requests.get(f"{console}config.json", timeout=60).json()["console_emit"]
        ended = demo.interrupt()

    assert (pasted.returncode, pasted.stderr) == (0, b"")
    assert shows_test_batch
    assert lines[0].startswith("A trading day of 1 user in a minute")
    assert (ended.code, ended.err) == (0, "")
    assert list(tmp_path.iterdir()) == []
