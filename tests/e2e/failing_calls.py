"""System calls on a journal's files that fail when a test says so: strace answers them in the kernel's place."""

import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.process import ServerProcess, wait_until

TRACER_ENDS_SECONDS = 20


class Fault(NamedTuple):
    """Which calls are counted, on which of the journal's files, and what the Nth of them fails with."""

    calls: str
    error: str
    files: Sequence[str] = ("", "-wal")

    def tracer(self, journal: Path, n: int, record: Path) -> list[str]:
        """The command that lets the Nth call of each thread fail, and all others pass."""
        paths = [argument for suffix in self.files for argument in ("-P", f"{journal}{suffix}")]
        inject = f"inject={self.calls}:error={self.error}:when={n}"
        return ["strace", "-f", "-qq", "-o", str(record), *paths, "-e", f"trace={self.calls}", "-e", inject]


SYNCS = Fault("fdatasync,fsync", "EIO")


def need_strace() -> None:
    """Skip where it cannot be used."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    tried = subprocess.run(["strace", "-f", "-qq", "-o", "/dev/null", "true"], capture_output=True, check=False)
    if tried.returncode:
        pytest.skip(f"strace may not trace here: {tried.stderr.decode().strip()}")


class Failing:
    """A tracer at work on a running server."""

    def __init__(self, record: Path) -> None:
        self._record = record

    @property
    def has_failed(self) -> bool:
        """The call has been answered with its error."""
        return "(INJECTED)" in self._record.read_text()


@contextmanager
def failing(server: ServerProcess, fault: Fault, journal: Path, n: int, record: Path) -> Iterator[Failing]:
    """The Nth call from now on fails; only the journal's writer makes any once the server is ready."""
    record.touch()
    tracer = subprocess.Popen([*fault.tracer(journal, n, record), "-p", str(server.process.pid)])
    try:
        tasks = Path(f"/proc/{server.process.pid}/task")
        wait_until(
            lambda: all(f"TracerPid:\t{tracer.pid}\n" in (task / "status").read_text() for task in tasks.iterdir()),
            "every thread of the server is traced",
        )
        yield Failing(record)
    finally:
        # Asked to end, it lets go of the server, which goes on.
        tracer.send_signal(signal.SIGTERM)
        tracer.wait(TRACER_ENDS_SECONDS)
