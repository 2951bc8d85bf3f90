"""What a supervisor hands over and is told, with real sockets and descriptors."""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core.settings import SettingsError
from core.systemd import NOTHING_INHERITED, Inherited, Supervisor, inherited_sockets

FIRST = 900
"""Where the test puts the descriptors that are handed over: far from those of pytest."""


class Handover:
    """Puts sockets where a supervisor would put them, and says so in an environment."""

    def __init__(self) -> None:
        self.descriptors: list[int] = []

    def __call__(self, *named: tuple[str, socket.socket]) -> dict[str, str]:
        for place, (_name, sock) in enumerate(named, FIRST):
            os.dup2(sock.fileno(), place)
            self.descriptors.append(place)
            sock.close()
        return {
            "LISTEN_FDS": str(len(named)),
            "LISTEN_PID": str(os.getpid()),
            "LISTEN_FDNAMES": ":".join(name for name, _sock in named),
        }

    def close(self) -> None:
        for descriptor in self.descriptors:
            try:
                os.close(descriptor)
            except OSError:
                continue


@pytest.fixture
def handover() -> Iterator[Handover]:
    handover = Handover()
    yield handover
    handover.close()


def listening(host: str = "127.0.0.1") -> socket.socket:
    return socket.create_server((host, 0))


def close(inherited: Inherited) -> None:
    for sock in (*inherited.public, *inherited.internal):
        sock.close()


# ---- sockets


def test_sockets_are_known_by_name_whatever_their_order(handover: Handover) -> None:
    public, internal, other = listening(), listening(), listening()
    ports = [sock.getsockname()[1] for sock in (public, internal, other)]
    environment = handover(("internal", internal), ("public", public), ("public", other))

    inherited = inherited_sockets(environment, FIRST)

    assert [sock.getsockname()[1] for sock in inherited.public] == [ports[0], ports[2]]
    assert [sock.getsockname()[1] for sock in inherited.internal] == [ports[1]]
    close(inherited)


def test_no_child_inherits_the_sockets_or_takes_the_variables_for_its_own(handover: Handover) -> None:
    environment = handover(("public", listening())) | {"LISTEN_PIDFDID": "1", "PATH": "/bin"}

    inherited = inherited_sockets(environment, FIRST)

    assert environment == {"PATH": "/bin"}
    assert not os.get_inheritable(inherited.public[0].fileno())
    close(inherited)


def test_without_variables_nothing_is_inherited() -> None:
    assert inherited_sockets({}, FIRST) is NOTHING_INHERITED


def test_variables_meant_for_another_process_are_not_ours(handover: Handover) -> None:
    environment = handover(("public", listening())) | {"LISTEN_PID": "1"}

    assert inherited_sockets(environment, FIRST) is NOTHING_INHERITED
    assert environment == {}


def test_an_internal_socket_may_be_a_unix_socket(handover: Handover, tmp_path: Path) -> None:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(tmp_path / "internal"))
    sock.listen()

    inherited = inherited_sockets(handover(("internal", sock)), FIRST)

    assert inherited.internal[0].getsockname() == str(tmp_path / "internal")
    close(inherited)


def datagrams() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    return sock


def unix_listening() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(f"\0tallywire-test-{os.getpid()}")
    sock.listen()
    return sock


@pytest.mark.parametrize(
    ("name", "make", "said"),
    [
        ("web", listening, r"named 'web'.*FileDescriptorName=public"),
        ("public", socket.socket, r"'public', descriptor 900, is not a listening stream socket.*Accept=no"),
        ("internal", datagrams, r"'internal', descriptor 900, is not a listening stream socket"),
        ("public", unix_listening, r"'public', descriptor 900, is not one of TCP"),
    ],
)
def test_a_socket_that_cannot_be_used_is_refused_by_name_and_closed(
    handover: Handover, name: str, make: Callable[[], socket.socket], said: str
) -> None:
    environment = handover((name, make()))

    with pytest.raises(SettingsError, match=said):
        inherited_sockets(environment, FIRST)
    assert environment == {}


def test_a_descriptor_that_is_no_socket_is_refused(handover: Handover) -> None:
    environment = handover(("public", listening()))
    with open(os.devnull) as file:
        os.dup2(file.fileno(), FIRST)

    with pytest.raises(SettingsError, match="'public', descriptor 900, is no socket"):
        inherited_sockets(environment, FIRST)


def test_a_descriptor_that_is_not_there_is_refused(handover: Handover) -> None:
    environment = handover(("public", listening())) | {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "public:internal"}

    with pytest.raises(SettingsError, match="'internal', descriptor 901, is no socket"):
        inherited_sockets(environment, FIRST)


@pytest.mark.parametrize("names", ["", "public", "public:internal:internal"])
def test_a_socket_without_a_name_is_refused_with_a_fix(handover: Handover, names: str) -> None:
    environment = handover(("public", listening()), ("internal", listening())) | {"LISTEN_FDNAMES": names}

    with pytest.raises(SettingsError, match=r"2 sockets are inherited .* FileDescriptorName=public"):
        inherited_sockets(environment, FIRST)


@pytest.mark.parametrize("count", ["", "two", "-1"])
def test_a_count_that_is_none_is_refused(count: str) -> None:
    with pytest.raises(SettingsError, match="LISTEN_FDS"):
        inherited_sockets({"LISTEN_FDS": count, "LISTEN_PID": str(os.getpid())}, FIRST)


# ---- what a supervisor is told


@pytest.fixture(params=["path", "abstract"])
def heard(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """NOTIFY_SOCKET, and the socket behind it."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@tallywire-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + address[1:] if address.startswith("@") else address)
        sock.setblocking(False)
        yield address, sock


def test_what_is_told_arrives_and_no_child_tells_it_again(heard: tuple[str, socket.socket]) -> None:
    address, sock = heard
    environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "PATH": "/bin"}

    with Supervisor.from_environment(environment) as supervisor:
        supervisor.tell("READY=1")

    assert sock.recv(100) == b"READY=1"
    assert environment == {"PATH": "/bin"}


class Timers:
    """A loop that calls back when the test says so."""

    def __init__(self) -> None:
        self.due: list[tuple[float, Callable[[], None]]] = []

    def call_later(self, seconds: float, function: Callable[[], None]) -> None:
        self.due.append((seconds, function))


@pytest.mark.parametrize("pid", ["", str(os.getpid())])
def test_signs_of_life_come_from_the_loop_twice_as_often_as_expected(
    heard: tuple[str, socket.socket], pid: str
) -> None:
    address, sock = heard
    environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "3000000"} | ({"WATCHDOG_PID": pid} if pid else {})
    timers = Timers()

    with Supervisor.from_environment(environment) as supervisor:
        supervisor.begin_watchdog(timers.call_later)
        for _ in range(3):
            assert sock.recv(100) == b"WATCHDOG=1"
            with pytest.raises(BlockingIOError):
                sock.recv(100)
            ((seconds, beat),) = timers.due
            assert seconds == 1.5
            timers.due.clear()
            beat()


@pytest.mark.parametrize(
    "variables",
    [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}],
)
def test_a_watchdog_that_is_not_ours_gets_no_sign(heard: tuple[str, socket.socket], variables: dict[str, str]) -> None:
    address, sock = heard
    timers = Timers()

    with Supervisor.from_environment({"NOTIFY_SOCKET": address} | variables) as supervisor:
        supervisor.begin_watchdog(timers.call_later)

    assert not timers.due
    with pytest.raises(BlockingIOError):
        sock.recv(100)


def test_without_a_supervisor_nobody_is_told() -> None:
    with Supervisor.from_environment({"WATCHDOG_USEC": "3000000"}) as supervisor:
        supervisor.tell("READY=1")
        supervisor.begin_watchdog(Timers().call_later)


@pytest.mark.logs("Supervisor not told")
def test_a_supervisor_that_has_gone_is_a_line_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Supervisor(str(tmp_path / "nobody")) as supervisor:
        supervisor.tell("READY=1")

    assert [record.getMessage() for record in caplog.records] == ["Supervisor not told"]
