"""The server as its own process, for tests that look at it from outside."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PROGRAM = (str(ROOT / "server.py"),)
FRONT_VARIABLE = "TALLYWIRE_HTTP"
"""The one setting of this process' own environment that its servers follow: which front they serve with."""

START_SECONDS = 20
"""How long a server may take to become ready, on a machine that is busy with other things."""


class ServerProcess:
    """A running server: its base URLs, its process, its log."""

    def __init__(self, process: subprocess.Popen[str], log: Path, public: str, internal: str) -> None:
        self.process = process
        self.log = log
        self.public = public
        self.internal = internal

    @property
    def public_port(self) -> int:
        return int(self.public.rpartition(":")[2])

    @property
    def internal_port(self) -> int:
        return int(self.internal.rpartition(":")[2])

    def emit(self, user_id: int, strategy_id: int, *results: dict[str, object]) -> Any:
        """Emit one batch; answers the decoded answer."""
        batch = {"user_id": user_id, "strategy_id": strategy_id, "batch_results": results}
        return self.post("/internal/emit", batch)

    def post(self, path: str, body: object) -> Any:
        request = urllib.request.Request(
            self.internal + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response)

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.internal + path, timeout=10) as response:
            return json.load(response)

    def wait_for_connections(self, count: int, path: str = "/internal/connections") -> None:
        """Until exactly so many streams are open."""
        wait_until(lambda: self.get(path)["connections"] == count, f"{count} connections")

    def log_lines(self) -> list[dict[str, Any]]:
        # Not splitlines(): a line separator within a string is none of the log's.
        return [json.loads(line) for line in self.log.read_text().split("\n") if line.startswith("{")]

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout: float = 30) -> int:
        """Send the signal and wait; answers the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout)


def wait_until(condition: Any, what: str, timeout: float = START_SECONDS) -> None:
    """Poll until the condition holds; fails with `what` when it does not in time."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what}")
        time.sleep(0.01)


def free_port() -> int:
    """A port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def running_server(
    *arguments: str,
    public_port: int = 0,
    internal_port: int = 0,
    command_prefix: Sequence[str] = (),
    program: Sequence[str] = PROGRAM,
    environment: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> Iterator[ServerProcess]:
    """A server on free ports (or the given ones); killed at the end if it still runs.

    `command_prefix`: a command that becomes the one behind it. `program`: what the interpreter runs, see `broken`.
    `environment`: more variables; `pass_fds`: descriptors that it has too.
    """
    with tempfile.TemporaryDirectory(prefix="tallywire-test-") as directory:
        log = Path(directory) / "log"
        with log.open("w") as stderr:
            process = subprocess.Popen(
                [
                    *command_prefix,
                    sys.executable,
                    *program,
                    "serve",
                    f"--public-listen=127.0.0.1:{public_port}",
                    f"--internal-listen=127.0.0.1:{internal_port}",
                    "--log-format=json",
                    *arguments,
                ],
                cwd=directory,
                env=server_environment() | dict(environment or {}),
                pass_fds=pass_fds,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                text=True,
            )
        try:
            public, internal = _wait_for_ready(process, log)
            yield ServerProcess(process, log, public, internal)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def server_environment() -> dict[str, str]:
    """That of this process, without settings but the front."""
    return {
        name: value for name, value in os.environ.items() if name == FRONT_VARIABLE or not name.startswith("TALLYWIRE_")
    }


def broken(patch: str) -> tuple[str, str]:
    """A program that is the server with a planted mistake: statements that run before it."""
    return "-c", f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nimport server\n{patch}\nserver.main()"


def _wait_for_ready(process: subprocess.Popen[str], log: Path) -> tuple[str, str]:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        for line in log.read_text().splitlines():
            if '"message":"Ready"' in line:
                ready = json.loads(line)
                return ready["public"], ready["internal"]
        if process.poll() is not None:
            break
        time.sleep(0.01)
    raise AssertionError(f"the server did not become ready:\n{log.read_text()}")
