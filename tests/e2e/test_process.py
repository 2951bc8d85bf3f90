"""The process seen from outside: how it starts, what it refuses, what it logs, how it leaves."""

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from core.sse import EventParser
from tests.e2e.tally import Tally
from tests.e2e.wire import StreamSocket
from tests.process import PROGRAM, ServerProcess, broken, free_port, running_server, wait_until

SMALL_BUFFER_BYTES = 4096
MANY_TYPES = tuple(f"AN_ORDER_TYPE_WITH_A_LONG_NAME{number}" for number in range(10, 42))
"""Frames of some KiB: what a kernel finds by tidying up its buffers is no room for one of them."""

MORE_THAN_KERNELS_HOLD = 300
"""Batches, each a frame of its own until the connection blocks: about 1 MB where 64 KiB fit."""

LEAVING_SECONDS = 15
CREATED = {"order_type": "LIMIT", "event_type": "order_created", "success": True}


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    with running_server() as server:
        yield server
        _check_log(server)


# ---- the way out


@pytest.mark.parametrize(
    ("number", "loop"), [(signal.SIGTERM, "asyncio"), (signal.SIGINT, "asyncio"), (signal.SIGTERM, "uvloop")]
)
def test_a_signal_tells_fifty_streams_and_ends_in_order(number: signal.Signals, loop: str) -> None:
    with running_server("--drain-seconds=2", f"--loop={loop}") as server, ExitStack() as open_streams:
        reading = [
            open_streams.enter_context(StreamSocket(server.public_port, f"user_id={1 + n % 4}&strategy_id=1"))
            for n in range(40)
        ]
        idle = [
            open_streams.enter_context(StreamSocket(server.public_port, f"user_id={1 + n % 4}&strategy_id=1"))
            for n in range(5)
        ]
        blocked = [
            open_streams.enter_context(
                StreamSocket(server.public_port, "user_id=5&strategy_id=1", receive_buffer_bytes=SMALL_BUFFER_BYTES)
            )
            for _ in range(5)
        ]
        for stream in reading:
            stream.read_until(lambda stream: len(stream.events) == 1)
        server.wait_for_connections(len(reading + idle + blocked))
        _block(server, user_id=5, connections=len(blocked))
        last = {user_id: server.emit(user_id, 1, CREATED)["position"] for user_id in (1, 2, 3, 4)}
        assert server.stop(number, LEAVING_SECONDS) == 0
        for n, stream in enumerate(reading):
            stream.read_to_the_end()
            _check_farewell(stream, last[1 + n % 4])
        retries = {stream.retries[-1] for stream in reading}
        assert len(retries) > 10, "clients that lost the server together do not come back together"
        # What the kernel had taken is still there for those who did not read.
        idle[0].read_to_the_end()
        _check_farewell(idle[0], last[1])
        assert _messages(server)[-1] == "Stopped"
        # A stream that was blocked a moment ago may find room for its last bytes after all.
        cut = [line["connections"] for line in server.log_lines() if line["message"] == "Streams cut"]
        assert sum(cut) <= len(blocked)
        _check_log(server, warnings={"Streams cut"} if cut else set())


def test_a_stream_that_reads_again_while_the_server_leaves_is_told_everything() -> None:
    with (
        running_server("--drain-seconds=600", "--stall-seconds=600") as server,
        StreamSocket(server.public_port, "user_id=5&strategy_id=1", receive_buffer_bytes=SMALL_BUFFER_BYTES) as stream,
    ):
        server.wait_for_connections(1)
        _block(server, user_id=5, connections=1)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "Stopping" in _messages(server), "the signal is at work")
        stream.read_to_the_end()
        assert server.process.wait(LEAVING_SECONDS) == 0
        assert stream.events[-1].event == "stream_closing"
        assert stream.chunked.is_complete
        tally = Tally()
        for event in stream.events:
            tally.add(event.event, event.data, event.last_event_id)
        expected = {(1, order_type, "created"): MORE_THAN_KERNELS_HOLD for order_type in MANY_TYPES}
        assert tally.counts == expected, "brought up to date before the end"
        _check_log(server)


def test_a_server_that_leaves_accepts_no_connection_and_no_work() -> None:
    with (
        running_server("--drain-seconds=600", "--stall-seconds=600") as server,
        closing(HTTPConnection("127.0.0.1", server.internal_port, timeout=20)) as internal,
        closing(HTTPConnection("127.0.0.1", server.public_port, timeout=20)) as public,
        StreamSocket(server.public_port, "user_id=5&strategy_id=1", receive_buffer_bytes=SMALL_BUFFER_BYTES),
    ):
        server.wait_for_connections(1)
        _block(server, user_id=5, connections=1)
        for connection in (internal, public):
            assert _answer(connection, "GET", "/healthz/ready") == (200, {"status": "ok"})
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "Stopping" in _messages(server), "the signal is at work")
        wait_until(lambda: _answer(internal, "GET", "/healthz/ready")[0] == 503, "not ready")
        for port in (server.public_port, server.internal_port):
            with socket.socket() as sock:
                assert sock.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED
        status, problem = _answer(internal, "POST", "/internal/emit", {"user_id": 5, "batch_results": []})
        assert (status, problem["code"]) == (503, "draining")
        public.request("GET", "/stream?user_id=5&strategy_id=1", headers={"Accept": "text/event-stream"})
        refused = public.getresponse()
        assert refused.status == 200, "a native EventSource gives up for good on any other"
        parser = EventParser()
        (closed,) = parser.feed(refused.read())
        assert closed.event == "stream_closing"
        assert json.loads(closed.data)["data"] == {"reason": "busy", "reconnect": True}
        assert parser.retry_ms is not None
        server.stop(timeout=LEAVING_SECONDS)
        _check_log(server)


def test_a_signal_without_streams_ends_at_once_and_in_order(server: ServerProcess) -> None:
    assert server.stop(timeout=LEAVING_SECONDS) == 0
    assert _messages(server)[-2:] == ["Stopping", "Stopped"]


def test_a_second_signal_ends_at_once() -> None:
    with (
        running_server("--drain-seconds=600", "--stall-seconds=600") as server,
        StreamSocket(server.public_port, "user_id=5&strategy_id=1", receive_buffer_bytes=SMALL_BUFFER_BYTES),
    ):
        server.wait_for_connections(1)
        _block(server, user_id=5, connections=1)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "Stopping" in _messages(server), "the first signal is at work")
        assert server.process.poll() is None, "a stream that takes nothing is waited for"
        assert server.stop(timeout=LEAVING_SECONDS) == 1
        assert "Stopped" not in _messages(server)
        _check_log(server)


def test_with_a_delay_a_server_says_at_once_that_it_is_not_ready_and_stays_at_work() -> None:
    with running_server("--shutdown-delay-seconds=600") as server:
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "Not ready any more" in _messages(server), "the signal is at work")
        for port in (server.public_port, server.internal_port):
            with closing(HTTPConnection("127.0.0.1", port, timeout=20)) as newcomer:
                assert _answer(newcomer, "GET", "/healthz/ready") == (503, {"status": "draining"})
                assert _answer(newcomer, "GET", "/healthz/live") == (200, {"status": "ok"})
        with StreamSocket(server.public_port, "user_id=7&strategy_id=3") as stream:
            stream.read_until(lambda stream: len(stream.events) == 1)
            server.emit(7, 3, CREATED)
            stream.read_until(lambda stream: len(stream.events) == 2)
            assert [event.event for event in stream.events] == ["stream_open", "order_batch_update"]
        assert "Stopping" not in _messages(server)
        assert server.stop(timeout=LEAVING_SECONDS) == 1, "a second signal ends at once"
        _check_log(server)


def test_after_the_delay_a_server_leaves_as_without_one() -> None:
    with (
        running_server("--shutdown-delay-seconds=1") as server,
        StreamSocket(server.public_port, "user_id=7&strategy_id=3") as stream,
    ):
        stream.read_until(lambda stream: len(stream.events) == 1)
        assert server.stop(timeout=LEAVING_SECONDS) == 0
        stream.read_to_the_end()
        assert json.loads(stream.events[-1].data)["data"] == {"reason": "draining", "reconnect": True}
        said = [line for line in _messages(server) if line in ("Not ready any more", "Stopping", "Stopped")]
        assert said == ["Not ready any more", "Stopping", "Stopped"]
        _check_log(server)


# ---- refusals to start


@pytest.mark.parametrize("listener", ["public", "internal"])
def test_a_port_in_use_is_refused_with_the_setting_and_a_fix(listener: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        said = _refusal(f"--{listener}-listen={address}")
    assert f"{listener}_listen {address}" in said
    assert "Address already in use" in said
    assert f"--{listener}-listen" in said


@pytest.mark.parametrize("listener", ["public", "internal"])
def test_listening_off_loopback_without_saying_so_is_refused_with_a_fix(listener: str) -> None:
    said = _refusal(f"--{listener}-listen=0.0.0.0:0")
    assert f"{listener}_listen is 0.0.0.0:0" in said
    assert "127.0.0.1" in said
    assert f"--insecure={listener}" in said


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--auth=jwt"], ["auth is jwt", "--jwt-keys", "--jwt-jwks-url"]),
        (["--auth=jwt", "--jwt-keys=secret"], ["'secret'", "ALGORITHM=FILE", "HS256"]),
        (["--auth=jwt", "--jwt-keys=HS512=/x"], ["'HS512=/x'", "EdDSA"]),
        (["--auth=jwt", "--jwt-keys=HS256=/nowhere"], ["/nowhere", "No such file"]),
        (["--auth=jwt", "--jwt-keys=HS256=/etc/hostname"], ["/etc/hostname", "at least 32 bytes"]),
        (["--auth=jwt", "--jwt-jwks-url=http://login.example.com/keys"], ["login.example.com", "Use https"]),
        (["--jwt-keys=HS256=/nowhere"], ["auth is none", "--auth=jwt"]),
        (["--auth=proxy", "--proxy-addresses=10.0.0.1", "--jwt-jwks-url=https://a/k"], ["auth is proxy", "--auth=jwt"]),
        (["--auth=jwt", "--jwt-jwks-url=https://me:word@a/k"], ["jwt_jwks_url", "log"]),
        (["--auth=jwt", "--jwt-jwks-url=http://localhost:x@evil.example/"], ["jwt_jwks_url"]),
        (["--auth=proxy", "--proxy-addresses=10.0.0.1", "--proxy-user-header=X User"], ["'X User'", "hyphens"]),
        (["--cors-origins=https://App.example.com"], ["lower case"]),
        (["--cors-origins=https://app.example.com:443"], ["usual port"]),
        (["--auth=proxy"], ["auth is proxy", "--proxy-addresses"]),
        (["--auth=proxy", "--proxy-addresses=10.0.0.1/8"], ["10.0.0.1/8", "no block of addresses"]),
        (["--cors-origins=*"], ["'*'", "https://app.example.com"]),
        (["--cors-origins=https://a.example/"], ["'https://a.example/'", "without a path"]),
    ],
)
def test_a_way_of_asking_who_reads_that_cannot_work_is_refused_with_a_fix(flags: list[str], words: list[str]) -> None:
    said = _refusal(*flags)
    assert [word for word in words if word not in said] == []


def test_settings_that_are_refused_leave_no_journal(tmp_path: Path) -> None:
    _refusal("--public-listen=0.0.0.0:0", f"--journal={tmp_path / 'tallywire.db'}")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_setting_in_the_file_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "tallywire.toml"
    file.write_text("heartbeat_secs = 5\n")
    said = _refusal(f"--config={file}")
    assert "the settings file" in said
    assert "heartbeat_secs" in said
    assert "serve --help" in said


def test_a_file_that_is_not_toml_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "tallywire.toml"
    file.write_text("retry_ms: 5\n")
    assert str(file) in _refusal(f"--config={file}")


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "missing.toml"
    assert str(file) in _refusal(f"--config={file}")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("TALLYWIRE_RETRY_MS", "soon"),
        ("TALLYWIRE_RETRY_MS", "0"),
        ("TALLYWIRE_SHAPE", "round"),
        ("TALLYWIRE_INSECURE", "public,private"),
        ("TALLYWIRE_HEARTBEAT_SECONDS", "-1"),
    ],
)
def test_a_bad_value_in_the_environment_is_refused_by_name(variable: str, value: str) -> None:
    said = _refusal(**{variable: value})
    assert "the environment" in said
    assert variable.removeprefix("TALLYWIRE_").lower() in said.lower()


def test_a_loop_that_is_not_installed_is_refused_with_a_fix() -> None:
    said = _refusal("--loop=uvloop", program=broken("sys.modules['uvloop'] = None"))
    assert "uvloop" in said
    assert "pip install uvloop" in said


def test_an_address_that_is_none_is_refused_with_an_example() -> None:
    said = _refusal("--public-listen=8080")
    assert "'8080'" in said
    assert "127.0.0.1:8080" in said


def test_help_names_serve_and_its_settings() -> None:
    assert "serve" in _help("--help")
    listed = _help("serve", "--help")
    for flag in ("--public-listen", "--internal-listen", "--config", "--heartbeat-seconds"):
        assert flag in listed


# ---- the log


def test_the_line_of_a_server_that_is_ready_says_whom_it_asks(server: ServerProcess) -> None:
    (ready,) = [line for line in map(json.loads, server.log.read_text().splitlines()) if line["message"] == "Ready"]
    assert ready == ready | {"auth": "none", "internal_auth": "none"}


def test_the_log_lines_of_an_emit_stand_word_for_word_with_their_fields(server: ServerProcess) -> None:
    cancelled = {"order_type": "MARKET", "event_type": "order_cancelled", "success": True}
    unusable = {**CREATED, "order_type": "limit"}
    position = _emit(server, "request-of-the-test", [CREATED, cancelled, unusable])["position"]
    assert _emit(server, "request-of-nothing", [{"success": False}])["status"] == "skipped"
    assert server.stop() == 0
    whose = {"level": "info", "user_id": 7, "strategy_id": 3}
    accepted = whose | {"position": position, "request_id": "request-of-the-test"}
    aggregated, sent = _lines_of(server, "request-of-the-test")
    assert aggregated == aggregated | accepted | {"message": "Batch aggregation: 2 order types"}
    assert sent == sent | accepted | {"message": "📦 Batch SSE sent", "summaries": 2, "invalid": 1}
    (skipped,) = _lines_of(server, "request-of-nothing")
    assert skipped == skipped | {"message": "No successful orders - batch SSE skipped", "level": "info"}


def test_the_line_of_a_skipped_batch_says_whose_it_was(server: ServerProcess) -> None:
    _emit(server, "request-of-nothing", [{"success": False}])
    assert server.stop() == 0
    (skipped,) = _lines_of(server, "request-of-nothing")
    assert skipped == skipped | {"user_id": 7, "strategy_id": 3}


def test_clients_that_come_and_go_leave_no_traceback(server: ServerProcess) -> None:
    for sent in (b"\r\n\r\n", b"GET /stream HTTP/9.9\r\n\r\n", b"\0" * 100, b"GET /stream?user_id=1&strategy_id=1 HTT"):
        for port in (server.public_port, server.internal_port):
            with socket.create_connection(("127.0.0.1", port)) as sock:
                sock.sendall(sent)
    for reads in (False, True) * 10:
        with StreamSocket(server.public_port, "user_id=1&strategy_id=1") as stream:
            if reads:
                stream.read_until(lambda stream: len(stream.events) == 1)
    server.emit(1, 1, CREATED)
    server.wait_for_connections(0)
    assert server.stop() == 0


# ---- HTTP/1.0


def test_an_http_1_0_client_gets_the_same_bytes_without_chunk_framing(server: ServerProcess) -> None:
    query = "user_id=7&strategy_id=3&totals=1"
    with (
        StreamSocket(server.public_port, query) as modern,
        StreamSocket(server.public_port, query, version="1.0") as old,
    ):
        for stream in (modern, old):
            stream.read_until(lambda stream: len(stream.events) == 1)
        for results in ([CREATED], [CREATED, CREATED], [{**CREATED, "order_type": "MARKET"}]):
            server.emit(7, 3, *results)
        for stream in (modern, old):
            stream.read_until(lambda stream: len(stream.events) == 4)
        assert server.stop() == 0
        modern.read_to_the_end()
        old.read_to_the_end()
    assert "Transfer-Encoding: chunked" in modern.head
    assert "Transfer-Encoding" not in old.head
    assert "Connection: close" in old.head
    assert modern.chunked.is_complete
    # The reconnection time is spread at random, for each stream.
    assert _without_retry(old.body) == _without_retry(modern.body)
    assert old.events == modern.events
    assert old.events[-1].event == "stream_closing"


# ---- helpers


def _block(server: ServerProcess, user_id: int, connections: int) -> None:
    """Emit more than the kernels hold for streams that do not read."""
    results = [{**CREATED, "order_type": order_type} for order_type in MANY_TYPES]
    line = json.dumps({"user_id": user_id, "strategy_id": 1, "batch_results": results}).encode()
    _post(server, "application/x-ndjson", b"\n".join([line] * MORE_THAN_KERNELS_HOLD), {})
    report = f"/internal/connections?user_id={user_id}"
    wait_until(lambda: server.get(report)["blocked"] == connections, f"{connections} blocked streams")


def _check_farewell(stream: StreamSocket, position: str) -> None:
    opened, update, closing = stream.events
    assert opened.event == "stream_open"
    assert update.event == "order_batch_update"
    assert update.last_event_id == position, "brought up to date before the end"
    assert closing.event == "stream_closing"
    assert closing.last_event_id == position, "a farewell moves no position"
    assert json.loads(closing.data)["data"] == {"reason": "draining", "reconnect": True}
    assert stream.retries[-1] is not None, "a reconnection time of its own"
    assert stream.chunked.is_complete, "the end of the body"


def _emit(server: ServerProcess, request_id: str, results: list[dict[str, object]]) -> Any:
    batch = {"user_id": 7, "strategy_id": 3, "batch_results": results}
    return json.loads(_post(server, "application/json", json.dumps(batch).encode(), {"X-Request-Id": request_id}))


def _post(server: ServerProcess, content_type: str, body: bytes, headers: dict[str, str]) -> bytes:
    request = urllib.request.Request(
        server.internal + "/internal/emit", body, {"Content-Type": content_type, **headers}
    )
    with urllib.request.urlopen(request, timeout=20) as response:
        for name, value in headers.items():
            assert response.headers[name] == value
        answer: bytes = response.read()
        return answer


def _answer(connection: HTTPConnection, method: str, path: str, body: object = None) -> tuple[int, Any]:
    connection.request(
        method,
        path,
        None if body is None else json.dumps(body),
        {} if body is None else {"Content-Type": "application/json"},
    )
    response = connection.getresponse()
    return response.status, json.load(response)


def _messages(server: ServerProcess) -> list[str]:
    return [str(line["message"]) for line in server.log_lines()]


def _lines_of(server: ServerProcess, request_id: str) -> list[dict[str, Any]]:
    return [line for line in server.log_lines() if line.get("request_id") == request_id]


def _check_log(server: ServerProcess, *, warnings: Collection[str] = ()) -> None:
    """Every line is one of ours; nothing above INFO but what the test expects, and never a traceback."""
    text = server.log.read_text()
    assert "Traceback" not in text
    lines = server.log_lines()
    assert len(lines) == len(text.splitlines()), text
    assert {line["message"] for line in lines if line["level"] != "info"} == set(warnings)


def _refusal(*arguments: str, program: Sequence[str] = PROGRAM, **environment: str) -> str:
    """What a server that refuses to start says. Its other settings are fine."""
    listeners = {name: f"127.0.0.1:{free_port()}" for name in ("TALLYWIRE_PUBLIC_LISTEN", "TALLYWIRE_INTERNAL_LISTEN")}
    ended = _run("serve", *arguments, program=program, **listeners, **environment)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
    return ended.stderr


def _help(*arguments: str) -> str:
    ended = _run(*arguments)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def _run(*arguments: str, program: Sequence[str] = PROGRAM, **environment: str) -> subprocess.CompletedProcess[str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("TALLYWIRE_")}
    return subprocess.run(
        [sys.executable, *program, *arguments],
        env=ours | environment,
        capture_output=True,
        text=True,
        timeout=LEAVING_SECONDS,
        check=False,
    )


def _without_retry(body: bytes) -> bytes:
    return re.sub(rb"retry: [0-9]+\n", b"retry\n", body)
