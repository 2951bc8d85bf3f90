"""A server under a supervisor that speaks systemd's protocols: sockets that outlive it, readiness, a watchdog."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.supervisor import Supervisor
from tests.e2e.tally import Tally
from tests.e2e.wire import StreamSocket
from tests.process import broken, running_server

CREATED = {"order_type": "LIMIT", "event_type": "order_created", "success": True}

STUCK = """
import threading
from handlers.operations import LiveHandler
LiveHandler.get = lambda self: threading.Event().wait()
"""
"""A server whose loop stands still once it is asked whether it lives."""

WATCHDOG_MICROSECONDS = "400000"
BEAT_SECONDS = 0.2
QUIET_BEATS = 4
"""So many signs of life would have come in the time in which none may come."""

MORE_BEATS = 100
"""Than can come before a request that has been sent, on a machine that is busy with other things."""


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    with socket.create_server(("127.0.0.1", 0)) as public, socket.create_server(("127.0.0.1", 0)) as internal:
        yield Supervisor({"public": public, "internal": internal})


# ---- sockets


def test_a_server_serves_on_the_sockets_it_is_given(supervisor: Supervisor) -> None:
    with supervisor.started() as server:
        assert (server.public_port, server.internal_port) == (supervisor.port("public"), supervisor.port("internal"))
        with StreamSocket(server.public_port, "user_id=7&strategy_id=3") as stream:
            stream.read_until(lambda stream: len(stream.events) == 1)
            server.emit(7, 3, CREATED)
            stream.read_until(lambda stream: len(stream.events) == 2)


def test_a_restart_refuses_no_connection_and_streams_go_on_exactly(supervisor: Supervisor, tmp_path: Path) -> None:
    journal, port, tally = f"--journal={tmp_path / 'journal.db'}", supervisor.port("public"), Tally()
    with supervisor.started(journal) as first, StreamSocket(port, "user_id=7&strategy_id=3") as stream:
        stream.read_until(lambda stream: len(stream.events) == 1)
        first.emit(7, 3, CREATED)
        assert first.stop() == 0
        stream.read_to_the_end()
    _add(tally, stream)
    # Nobody serves now.
    with StreamSocket(port, f"user_id=7&strategy_id=3&last_event_id={tally.position}") as stream:
        with supervisor.started(journal) as second:
            stream.read_until(lambda stream: len(stream.events) == 1)
            second.emit(7, 3, CREATED)
            stream.read_until(lambda stream: len(stream.events) == 2)
        _add(tally, stream)

    assert tally.counts == {(3, "LIMIT", "created"): 2}


def test_options_of_inherited_sockets_are_those_of_our_own(supervisor: Supervisor) -> None:
    public, internal = supervisor.sockets["public"], supervisor.sockets["internal"]
    with supervisor.started("--send-buffer-bytes=8192", "--stall-seconds=7"):
        # Linux doubles it, for what it needs itself.
        assert public.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * 8192
        assert public.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7000
        assert public.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        for sock in (public, internal):
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_listener_that_is_not_given_is_bound_from_its_setting(supervisor: Supervisor) -> None:
    alone = Supervisor({"public": supervisor.sockets["public"]})
    with alone.started() as server:
        assert server.public_port == alone.port("public")
        assert server.internal_port not in (alone.port("public"), supervisor.port("internal"))
        assert server.get("/healthz/ready") == {"status": "ok"}


@pytest.mark.parametrize("name", ["public", "internal"])
def test_an_inherited_socket_that_others_can_reach_is_refused_like_our_own(name: str) -> None:
    with socket.create_server(("0.0.0.0", 0)) as reachable:
        supervisor = Supervisor({name: reachable})
        refusal = f"(?s)inherited socket '{name}'.*--insecure={name}"
        with pytest.raises(AssertionError, match=refusal), supervisor.started():
            pass
        with supervisor.started(f"--insecure={name}") as server:
            assert server.get("/healthz/ready") == {"status": "ok"}


# ---- what a supervisor is told


@pytest.fixture
def told(tmp_path: Path) -> Iterator[socket.socket]:
    """What hears the server, at `notify` in tmp_path."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(20)
        yield sock


def test_a_supervisor_hears_when_the_server_is_ready_and_when_it_leaves(told: socket.socket) -> None:
    with running_server(environment={"NOTIFY_SOCKET": told.getsockname()}) as server:
        assert told.recv(100) == b"READY=1"
        assert server.stop() == 0
        assert told.recv(100) == b"STOPPING=1"


def test_nothing_is_told_before_both_listeners_answer(told: socket.socket) -> None:
    with running_server(environment={"NOTIFY_SOCKET": told.getsockname()}) as server:
        told.recv(100)
        for port in (server.public_port, server.internal_port):
            socket.create_connection(("127.0.0.1", port)).close()


def test_a_loop_that_stands_still_gives_no_sign_of_life(told: socket.socket) -> None:
    environment = {"NOTIFY_SOCKET": told.getsockname(), "WATCHDOG_USEC": WATCHDOG_MICROSECONDS}
    with running_server(environment=environment, program=broken(STUCK)) as server:
        assert [told.recv(100) for _ in range(4)] == [b"READY=1", *[b"WATCHDOG=1"] * 3]
        with socket.create_connection(("127.0.0.1", server.internal_port)) as asking:
            asking.sendall(b"GET /healthz/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            told.settimeout(QUIET_BEATS * BEAT_SECONDS)
            # Some may come before the request does.
            with pytest.raises(TimeoutError):
                _hear(told, MORE_BEATS)


def test_a_build_whose_signs_of_life_come_from_a_thread_is_seen(told: socket.socket) -> None:
    planted = f"""{STUCK}
from core.systemd import Supervisor
def begin_watchdog(self, call_later):
    def beat():
        while not threading.Event().wait({BEAT_SECONDS}):
            self.tell("WATCHDOG=1")
    threading.Thread(target=beat, daemon=True).start()
Supervisor.begin_watchdog = begin_watchdog
"""
    environment = {"NOTIFY_SOCKET": told.getsockname(), "WATCHDOG_USEC": WATCHDOG_MICROSECONDS}
    with (
        running_server(environment=environment, program=broken(planted)) as server,
        socket.create_connection(("127.0.0.1", server.internal_port)) as asking,
    ):
        asking.sendall(b"GET /healthz/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        _hear(told, 3 * QUIET_BEATS)


# ---- helpers


def _hear(told: socket.socket, count: int) -> None:
    """Take so many messages."""
    for _ in range(count):
        told.recv(100)


def _add(tally: Tally, stream: StreamSocket) -> None:
    for event in stream.events:
        tally.add(event.event, event.data, event.last_event_id)
