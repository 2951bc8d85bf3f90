"""Faults of clients and of the machine, against a running server.

Whoever has nothing to do with a fault is served exactly while it goes on, and afterwards nothing is left of it: no
stream, no descriptor. What a front makes of single bytes is asked in tests/http.
"""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from http.client import HTTPConnection
from typing import Any

import pytest

from tests.e2e.tally import Tally
from tests.e2e.wire import READ_SECONDS, StreamSocket, connected, request_bytes
from tests.process import PROGRAM, ServerProcess, broken, running_server, wait_until

BYSTANDERS = (1, 2, 3)
FAULTY = 9
"""The user whose client has the fault."""

STREAM = f"/stream?user_id={FAULTY}&strategy_id=1"
QUERY = f"user_id={FAULTY}&strategy_id=1"
CREATED = {"order_type": "LIMIT", "event_type": "order_created", "success": True}
SMALL_BUFFER_BYTES = 4096
LARGE_BATCH = [{**CREATED, "order_type": f"AN_ORDER_TYPE_WITH_A_LONG_NAME{number}"} for number in range(10, 42)]
"""A frame of some KiB."""

MORE_THAN_KERNELS_HOLD = 300
"""Of those."""

STALL_SECONDS = 1
FROZEN_SECONDS = 0.5

SHORT_PATIENCE = "server.HEADER_SECONDS = server.PUBLIC_IDLE_SECONDS = 0.5"

READER = """
import socket, sys
sock = socket.socket()
sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
sock.connect(("127.0.0.1", int(sys.argv[1])))
sock.sendall(sys.stdin.buffer.read())
while sock.recv(65536):
    print("read", flush=True)
"""
"""A client that reads on as long as it runs."""


class Others:
    """Streams that have nothing to do with the fault, and a caller that keeps its connection."""

    def __init__(self, caller: HTTPConnection, streams: dict[int, StreamSocket]) -> None:
        self.emitted = 0
        self._caller = caller
        self._streams = streams

    def emit(self, user_id: int, results: list[dict[str, object]], count: int = 1) -> list[Any]:
        """So many equal batches in one call; their answers."""
        line = json.dumps({"user_id": user_id, "strategy_id": 1, "batch_results": results}).encode()
        self._caller.request(
            "POST", "/internal/emit", b"\n".join([line] * count), {"Content-Type": "application/x-ndjson"}
        )
        answers = [json.loads(answer) for answer in self._caller.getresponse().read().splitlines()]
        assert {answer["status"] for answer in answers} == {"accepted"}
        return answers

    def go_on(self) -> None:
        """One more batch for each; it arrives, once, where it belongs."""
        self.emitted += 1
        for user_id, stream in self._streams.items():
            self.emit(user_id, [CREATED] * user_id)
            stream.read_until(lambda stream: len(stream.events) == 1 + self.emitted)

    def check(self) -> None:
        """Each has been told exactly what was accepted for it."""
        for user_id, stream in self._streams.items():
            tally = Tally()
            for event in stream.events:
                tally.add(event.event, event.data, event.last_event_id)
            assert tally.counts == {(1, "LIMIT", "created"): user_id * self.emitted}

    def report(self) -> Any:
        """What an operator is told."""
        self._caller.request("GET", "/internal/connections")
        return json.load(self._caller.getresponse())


@contextmanager
def others_unharmed(*arguments: str, program: tuple[str, ...] = PROGRAM) -> Iterator[tuple[ServerProcess, Others]]:
    """A server and its other clients, while a fault goes on; at the end nothing may be left of it."""
    settings = ("--durability=none", f"--stall-seconds={STALL_SECONDS}", *arguments)
    with running_server(*settings, program=program) as server:
        before = descriptors(server)
        with ExitStack() as clients:
            caller = clients.enter_context(closing(HTTPConnection("127.0.0.1", server.internal_port, timeout=20)))
            streams = {
                user_id: clients.enter_context(StreamSocket(server.public_port, f"user_id={user_id}&strategy_id=1"))
                for user_id in BYSTANDERS
            }
            others = Others(caller, streams)
            for stream in streams.values():
                stream.read_until(lambda stream: len(stream.events) == 1)
            others.go_on()
            yield server, others
            others.go_on()
            wait_until(lambda: others.report()["connections"] == len(streams), "of the fault no stream is left")
            others.check()
        server.wait_for_connections(0)
        wait_until(lambda: descriptors(server) == before, "every descriptor is given back")
        assert server.stop() == 0


def descriptors(server: ServerProcess) -> int:
    """How many the server has open."""
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


def go_on_until(others: Others, condition: Callable[[], bool], what: str) -> None:
    """Serve the others until something has happened."""

    def is_so() -> bool:
        others.go_on()
        return condition()

    wait_until(is_so, what)


# ---- clients that do not read


def test_a_client_that_reads_nothing_is_ended_as_stalled_and_resumes_without_loss() -> None:
    with others_unharmed() as (server, others):
        with StreamSocket(server.public_port, QUERY, receive_buffer_bytes=SMALL_BUFFER_BYTES) as stalled:
            wait_until(lambda: others.report()["connections"] == 4, "the stream is open")
            others.emit(FAULTY, LARGE_BATCH, MORE_THAN_KERNELS_HOLD)
            go_on_until(others, lambda: others.report()["closed"].get("stalled") == 1, "the client is given up")
            tally = _read_what_is_left(stalled)
            assert tally.updates < MORE_THAN_KERNELS_HOLD
        with StreamSocket(server.public_port, f"{QUERY}&last_event_id={tally.position}") as resumed:
            resumed.read_until(lambda stream: len(stream.events) == 2)
            _add(tally, resumed)
        assert set(tally.counts.values()) == {MORE_THAN_KERNELS_HOLD}
        assert len(tally.counts) == len(LARGE_BATCH)


def test_a_client_whose_process_stands_still_is_ended_as_stalled() -> None:
    with others_unharmed() as (server, others):
        reader = subprocess.Popen(
            [sys.executable, "-c", READER, str(server.public_port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        with reader:
            assert reader.stdin is not None
            assert reader.stdout is not None
            reader.stdin.write(request_bytes(STREAM))
            reader.stdin.close()
            assert reader.stdout.readline() == b"read\n"
            _freeze(reader.pid)
            others.emit(FAULTY, LARGE_BATCH, MORE_THAN_KERNELS_HOLD)
            go_on_until(others, lambda: others.report()["closed"].get("stalled") == 1, "the client is given up")
            reader.kill()


def test_a_client_that_vanishes_without_a_word_is_ended_as_stalled_and_resumes_without_loss() -> None:
    tally = Tally()
    with others_unharmed() as (server, others):
        with StreamSocket(server.public_port, QUERY) as vanished:
            vanished.read_until(lambda stream: len(stream.events) == 1)
            vanished.vanish()
            others.emit(FAULTY, [CREATED])
            go_on_until(others, lambda: others.report()["closed"].get("stalled") == 1, "the client is given up")
            _add(tally, vanished)
        with StreamSocket(server.public_port, f"{QUERY}&last_event_id={tally.position}") as resumed:
            resumed.read_until(lambda stream: len(stream.events) == 2)
            _add(tally, resumed)
        assert tally.counts == {(1, "LIMIT", "created"): 1}


def test_a_client_that_reads_slowly_is_not_stalled() -> None:
    with (
        others_unharmed() as (server, others),
        StreamSocket(server.public_port, QUERY, receive_buffer_bytes=SMALL_BUFFER_BYTES) as slow,
    ):
        wait_until(lambda: others.report()["connections"] == 4, "the stream is open")
        others.emit(FAULTY, LARGE_BATCH, MORE_THAN_KERNELS_HOLD)
        tally = Tally()
        while sum(tally.counts.values()) < MORE_THAN_KERNELS_HOLD * len(LARGE_BATCH):
            assert slow.read()
            others.go_on()
            tally = Tally()
            _add(tally, slow)
        assert "stalled" not in others.report()["closed"]


# ---- clients that send what they should not


def test_a_client_that_half_closes_behind_its_request_is_let_go() -> None:
    with others_unharmed() as (server, others), closing(connected(server.public_port)) as half:
        half.settimeout(READ_SECONDS)
        half.sendall(request_bytes(STREAM))
        assert half.recv(65536).startswith(b"HTTP/1.1 200")
        half.shutdown(socket.SHUT_WR)
        _read_to_the_end(half)
        go_on_until(others, lambda: others.report()["closed"] == {"client_closed": 1}, "the stream has ended")


@pytest.mark.parametrize("junk", [b"\0", b"GET / HTTP/1.1\r\n\r\n", b"\r\n" * 40_000], ids=["byte", "request", "much"])
def test_a_client_that_sends_something_behind_its_request_is_cut(junk: bytes) -> None:
    with others_unharmed() as (server, others), closing(connected(server.public_port)) as noisy:
        noisy.settimeout(READ_SECONDS)
        noisy.sendall(request_bytes(STREAM))
        assert noisy.recv(65536).startswith(b"HTTP/1.1 200")
        with suppress(ConnectionError):
            noisy.sendall(junk)
            _read_to_the_end(noisy)
        go_on_until(others, lambda: others.report()["closed"] == {"client_sent_data": 1}, "the stream has ended")


def test_a_head_that_comes_byte_by_byte_is_given_up_and_holds_nobody() -> None:
    with (
        others_unharmed(program=broken(SHORT_PATIENCE)) as (server, others),
        closing(connected(server.public_port)) as slow,
    ):
        slow.setblocking(False)
        sent = iter(request_bytes(STREAM).removesuffix(b"\r\n") + b"X-Padding: " + b"a" * 8000)
        wait_until(lambda: _sends_one_more(slow, sent, others), "the client is let go")
        assert others.report()["connections"] == len(BYSTANDERS)


def test_a_body_in_chunks_of_one_byte_counts_once_and_holds_nobody() -> None:
    batch = {"user_id": FAULTY, "strategy_id": 1, "batch_results": [CREATED]}
    head = b"POST /internal/emit HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with others_unharmed() as (server, others), closing(connected(server.internal_port)) as slow:
        slow.settimeout(READ_SECONDS)
        slow.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        slow.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
        for place, byte in enumerate(json.dumps(batch).encode()):
            slow.sendall(b"1\r\n%c\r\n" % byte)
            if place % 20 == 0:
                others.go_on()
        slow.sendall(b"0\r\n\r\n")
        assert slow.recv(65536).startswith(b"HTTP/1.1 200")
        assert server.get(f"/internal/keys/{FAULTY}/1")["batches"] == 1


# ---- the machine


def test_a_server_that_was_frozen_goes_on_exactly_where_it_was() -> None:
    with others_unharmed() as (server, others):
        _freeze(server.process.pid)
        with (
            closing(connected(server.internal_port)) as emitting,
            closing(connected(server.public_port)) as opening,
        ):
            batch = json.dumps({"user_id": FAULTY, "strategy_id": 1, "batch_results": [CREATED]}).encode()
            head = b"POST /internal/emit HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            emitting.sendall(head + b"Content-Length: %d\r\n\r\n%b" % (len(batch), batch))
            opening.sendall(request_bytes(STREAM))
            emitting.settimeout(FROZEN_SECONDS)
            with pytest.raises(TimeoutError):
                emitting.recv(1)
            server.process.send_signal(signal.SIGCONT)
            for sock in (emitting, opening):
                sock.settimeout(READ_SECONDS)
                assert sock.recv(65536).startswith(b"HTTP/1.1 200")
            others.go_on()
            assert others.report()["loop"]["lag_ms_max"] > 1000 * FROZEN_SECONDS / 2


def test_a_server_without_a_descriptor_left_serves_whom_it_has_and_later_those_who_waited() -> None:
    # Tornado's own would spin.
    with others_unharmed("--http=lean") as (server, others):
        limits = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
        used = max(map(int, os.listdir(f"/proc/{server.process.pid}/fd")))
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (used + 2, limits[1]))
        with ExitStack() as newcomers:
            waiting = [newcomers.enter_context(StreamSocket(server.public_port, QUERY)) for _ in range(20)]
            go_on_until(others, lambda: _messages(server).count("Not accepting") > 3, "no descriptor is left")
            resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, limits)
            for stream in waiting:
                stream.read_until(lambda stream: len(stream.events) == 1)
                assert stream.events[0].event == "stream_open"
            others.go_on()


# ---- helpers


def _freeze(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    # Behind the name, which may have any letters.
    wait_until(lambda: _stat(pid).rpartition(")")[2].split()[0] == "T", "the process stands still")


def _stat(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as file:
        return file.read()


def _sends_one_more(sock: socket.socket, data: Iterator[int], others: Others) -> bool:
    """Send a byte and serve the others; whether the connection has ended."""
    others.go_on()
    try:
        sock.send(bytes([next(data)]))
        return sock.recv(65536) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def _read_to_the_end(sock: socket.socket) -> None:
    # A stream that should have ended may go on with heartbeats.
    wait_until(lambda: not sock.recv(65536), "the server ends the connection")


def _read_what_is_left(stream: StreamSocket) -> Tally:
    """What the kernel of this end had taken before the connection was reset."""
    with suppress(ConnectionError):
        stream.read_to_the_end()
    tally = Tally()
    _add(tally, stream)
    return tally


def _add(tally: Tally, stream: StreamSocket) -> None:
    for event in stream.events:
        tally.add(event.event, event.data, event.last_event_id)


def _messages(server: ServerProcess) -> list[str]:
    return [str(line["message"]) for line in server.log_lines()]
