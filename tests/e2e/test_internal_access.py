"""Keys that change and a unix socket that comes and goes, seen from outside the process."""

import json
import signal
import socket
import stat
import subprocess
import sys
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import pytest

from core.access import key_of
from tests.process import PROGRAM, ServerProcess, running_server, wait_until

ENDING_SECONDS = 20
BATCH = json.dumps(
    {
        "user_id": 7,
        "strategy_id": 3,
        "batch_results": [{"order_type": "LIMIT", "event_type": "order_created", "success": True}],
    }
)
OLD, NEW = "the-old-secret", "the-new-secret"


class LocalConnection(HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


def emit(connection: HTTPConnection, secret: str | None = None) -> int:
    """Emit once; answers the status."""
    headers = {"Content-Type": "application/json"}
    if secret is not None:
        headers["Authorization"] = f"Bearer {secret}"
    connection.request("POST", "/internal/emit", BATCH, headers)
    response = connection.getresponse()
    response.read()
    return response.status


def reload_keys(server: ServerProcess, message: str) -> None:
    """Send SIGHUP, and wait until one more such line is in the log."""
    before = messages(server).count(message)
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: messages(server).count(message) > before, message)


def messages(server: ServerProcess) -> list[str]:
    return [str(line["message"]) for line in server.log_lines()]


def refusal(*arguments: str) -> str:
    """What a server says that does not start."""
    ended = subprocess.run(
        [sys.executable, *PROGRAM, "serve", "--public-listen=127.0.0.1:0", "--durability=none", *arguments],
        capture_output=True,
        text=True,
        timeout=ENDING_SECONDS,
        check=False,
    )
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    return ended.stderr


def test_a_signal_lets_new_keys_in_and_old_ones_out_and_a_broken_file_changes_nothing(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(key_of("orders", ["emit"], OLD).line)
    with (
        running_server("--internal-auth=keys", f"--internal-keys={keys}") as server,
        closing(HTTPConnection("127.0.0.1", server.internal_port, timeout=10)) as connection,
    ):
        assert [emit(connection, secret) for secret in (None, OLD, NEW)] == [401, 200, 401]
        connected = connection.sock
        keys.write_text(key_of("orders", ["emit"], NEW).line)
        reload_keys(server, "Internal keys read")
        assert [emit(connection, secret) for secret in (None, OLD, NEW)] == [401, 401, 200]
        keys.write_text(f"orders emit {OLD}")
        reload_keys(server, "Internal keys not read, the old ones count")
        assert [emit(connection, secret) for secret in (None, OLD, NEW)] == [401, 401, 200]
        assert connection.sock is connected, "one connection for all of it"
        assert server.stop() == 0
        (failed,) = (line for line in server.log_lines() if line["level"] not in ("info", "debug"))
        assert failed["level"] == "error"
        assert f"{keys}: line 1: " in failed["reason"]
        log = server.log.read_text()
        assert [secret for secret in (OLD, NEW) if secret in log] == []


def test_a_server_that_leaves_takes_its_unix_socket_along(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("s") / "s"
    with running_server(f"--internal-listen=unix:{path}") as server:
        assert server.internal == f"unix:{path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with closing(LocalConnection(path)) as connection:
            assert [emit(connection), emit(connection)] == [200, 200]
        assert server.stop() == 0
        assert not path.exists()


def test_a_socket_that_a_killed_server_left_is_replaced_and_that_of_a_living_one_is_not(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("s") / "s"
    with running_server(f"--internal-listen=unix:{path}") as killed:
        killed.stop(signal.SIGKILL)
    assert path.is_socket()
    with running_server(f"--internal-listen=unix:{path}") as server:
        said = refusal(f"--internal-listen=unix:{path}")
        assert f"internal_listen unix:{path}: a server listens on it already" in said
        with closing(LocalConnection(path)) as connection:
            assert emit(connection) == 200
        assert server.stop() == 0


def test_a_file_of_keys_that_cannot_be_used_is_refused_with_its_line(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"# who calls\norders write {'0' * 64}\n")
    said = refusal("--internal-listen=127.0.0.1:0", "--internal-auth=keys", f"--internal-keys={keys}")
    assert f"{keys}: line 2: a role is one of emit, read, admin" in said


def test_a_key_made_by_the_command_opens_the_server(tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, *PROGRAM, "internal-key", "orders", "--role", "emit"],
        capture_output=True,
        text=True,
        timeout=ENDING_SECONDS,
        check=True,
    )
    _, secret, _, line = made.stdout.splitlines()
    keys = tmp_path / "keys"
    keys.write_text(line)
    with (
        running_server("--internal-auth=keys", f"--internal-keys={keys}") as server,
        closing(HTTPConnection("127.0.0.1", server.internal_port, timeout=10)) as connection,
    ):
        assert [emit(connection), emit(connection, secret.strip())] == [401, 200]
