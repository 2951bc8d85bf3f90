"""A server under measurement: started as its own process, read from outside, ended by its own pid.

It owns the process, its addresses and the figures that the kernel keeps about it. It knows no workload.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
START_SECONDS = 20.0
# Above the server's own promise of 20 s from SIGTERM to its end: only a server that breaks it is killed.
END_SECONDS = 25.0
READY_POLL_SECONDS = 0.05


class ServerError(Exception):
    """The server under measurement did not start, or did not stay."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a listener is."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class ServerKind:
    """A server that can be measured: its name in the tables, and its command without the addresses.

    `{scratch}` in the arguments becomes a fresh directory, removed after the run.
    """

    name: str
    arguments: tuple[str, ...]
    program: Path = Path(sys.executable)

    @property
    def command(self) -> str:
        """The command as one would type it at the root of the repository."""
        program = "python" if self.program == Path(sys.executable) else self.program.name
        return " ".join((program, *self.arguments)).replace("{scratch}", "SCRATCH")


@dataclass(frozen=True, slots=True)
class Memory:
    """What the kernel says about a process's memory, in bytes.

    `anonymous` leaves file pages out, which the kernel may take back at any moment.
    """

    rss: int
    pss: int
    anonymous: int


class RunningServer:
    """A started server: its addresses, and its costs up to now."""

    def __init__(self, kind: ServerKind, pid: int, public: Address, internal: Address) -> None:
        self.kind = kind
        self.pid = pid
        self.public = public
        self.internal = internal

    def cpu_ns(self) -> int:
        """CPU time of all its threads, user and system, ended threads included, in nanoseconds.

        The kernel's CPU clock of another process (`clock_getcpuclockid(3)`), which has no tick rounding as
        `/proc/PID/stat` has.
        """
        return time.clock_gettime_ns((~self.pid << 3) | 2)

    def memory(self) -> Memory:
        """Memory now, from `/proc/PID/smaps_rollup`."""
        sizes: dict[str, int] = {}
        for line in Path(f"/proc/{self.pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]:
            name, kib, *_ = line.split()
            sizes[name] = int(kib) * 1024
        return Memory(sizes["Rss:"], sizes["Pss:"], sizes["Anonymous:"])


@contextmanager
def running(kind: ServerKind, cores: frozenset[int], log_pipe: int | None = None) -> Iterator[RunningServer]:
    """Starts a server on `cores`, waits until it is ready, and ends it afterwards. It logs into `log_pipe`, if any.

    Raises ServerError with the end of what it wrote to stderr if it is not ready in START_SECONDS.
    """
    with tempfile.TemporaryDirectory(prefix="tallywire-bench-") as scratch:
        public, internal = _free_addresses()
        arguments = [argument.replace("{scratch}", scratch) for argument in kind.arguments]
        listens = ["--public-listen", str(public), "--internal-listen", str(internal)]
        command = [str(kind.program), *arguments, *listens]
        log = Path(scratch) / "stderr"
        with log.open("wb") as stderr:
            process = subprocess.Popen(command, cwd=ROOT, stdout=stderr, stderr=log_pipe or stderr)
        try:
            os.sched_setaffinity(process.pid, cores)  # at once: threads started later inherit it
            _wait_ready(kind, process, internal, log)
            yield RunningServer(kind, process.pid, public, internal)
            if process.poll() is not None:
                raise ServerError(f"{kind.name} ended during the run: {_tail(log)}")
        finally:
            _end(process)


def _free_addresses() -> tuple[Address, Address]:
    """Two loopback addresses whose ports were free a moment ago."""
    with socket.socket() as first, socket.socket() as second:
        for probe in (first, second):
            probe.bind((HOST, 0))
        return Address(HOST, first.getsockname()[1]), Address(HOST, second.getsockname()[1])


def _wait_ready(kind: ServerKind, process: subprocess.Popen[bytes], internal: Address, log: Path) -> None:
    give_up = time.monotonic() + START_SECONDS
    while not _is_ready(internal):
        if process.poll() is not None:
            raise ServerError(f"{kind.name} ended with {process.returncode} before ready: {_tail(log)}")
        if time.monotonic() > give_up:
            raise ServerError(f"{kind.name} was not ready in {START_SECONDS:.0f} s: {_tail(log)}")
        time.sleep(READY_POLL_SECONDS)


def _is_ready(internal: Address) -> bool:
    connection = http.client.HTTPConnection(internal.host, internal.port, timeout=1)
    try:
        connection.request("GET", "/healthz/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _tail(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-2000:].strip() or "(it wrote nothing)"


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and SIGKILL for one that does not end in END_SECONDS; this one process only."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        print(f"bench: pid {process.pid} ignored SIGTERM for {END_SECONDS:.0f} s, killed", file=sys.stderr)
        process.kill()
        process.wait()
