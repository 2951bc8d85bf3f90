"""A log that nobody reads: the server goes on, and says afterwards how many lines were lost."""

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.e2e.tally import Tally
from tests.e2e.wire import StreamSocket
from tests.process import START_SECONDS, ServerProcess, broken, server_environment

PIPE_BYTES = 4096
FEW_QUEUED = "import core.logs\ncore.logs.QUEUED_LINES = 50"
BATCHES = 200
"""Two lines each, of which a pipe holds about 16, the writer 50 and the queue 50."""

LEAVING_SECONDS = 20
CREATED = {"order_type": "LIMIT", "event_type": "order_created", "success": True}


class PipedLog:
    """The reading end of a server's log, which reads only when it is told to."""

    def __init__(self, descriptor: int) -> None:
        self.lines: list[dict[str, Any]] = []
        self._descriptor = descriptor
        self._rest = b""

    def read_until(self, is_enough: Callable[[], bool]) -> None:
        """Read as long as it takes; the end of the log before that fails, and so does silence."""
        while not is_enough():
            readable, _, _ = select.select([self._descriptor], [], [], START_SECONDS)
            assert readable, f"silence behind {self.lines[-1:]}"
            data = os.read(self._descriptor, 65536)
            assert data, f"the log ended behind {self.lines[-1:]}"
            *lines, self._rest = (self._rest + data).split(b"\n")
            self.lines += map(json.loads, lines)

    def messages(self) -> list[str]:
        return [line["message"] for line in self.lines]

    def dropped(self) -> int:
        """How many lines the log says were lost."""
        return sum(line["lines"] for line in self.lines if line["message"] == "Log lines dropped")


@contextmanager
def server_with_piped_log() -> Iterator[tuple[ServerProcess, PipedLog]]:
    """A server that is ready, and its log, of which nothing is read any more."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    with tempfile.TemporaryDirectory(prefix="tallywire-test-") as directory:
        listens = ("--public-listen=127.0.0.1:0", "--internal-listen=127.0.0.1:0")
        environment = server_environment()
        # With it the interpreter has no buffer, and no lock at its end, that could be in the way.
        environment.pop("PYTHONUNBUFFERED", None)
        command = [sys.executable, *broken(FEW_QUEUED), "serve", *listens, "--durability=none", "--log-format=json"]
        process = subprocess.Popen(
            command, cwd=directory, env=environment, stdout=subprocess.DEVNULL, stderr=writing, text=True
        )
        os.close(writing)
        try:
            log = PipedLog(reading)
            log.read_until(lambda: "Ready" in log.messages())
            ready = log.lines[-1]
            yield ServerProcess(process, Path(os.devnull), ready["public"], ready["internal"]), log
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            os.close(reading)


def test_a_log_that_nobody_reads_stops_nobody_and_what_was_lost_is_told_once_somebody_does() -> None:
    with server_with_piped_log() as (server, log):
        with StreamSocket(server.public_port, "user_id=7&strategy_id=3") as stream:
            stream.read_until(lambda stream: len(stream.events) == 1)
            _emit_and_count(server, stream)
            dropped = server.get("/internal/connections")["log"]["lines_dropped"]
            assert dropped > 0
            log.read_until(lambda: log.dropped() == dropped)
            server.emit(7, 3, CREATED)
            log.read_until(lambda: log.messages()[-1] == "📦 Batch SSE sent")
        of_emits = [message for message in log.messages() if message.startswith(("Batch aggregation", "📦"))]
        assert len(of_emits) + dropped == 2 * (BATCHES + 1), "each line was written or counted"
        server.process.send_signal(signal.SIGTERM)
        log.read_until(lambda: log.messages()[-1] == "Stopped")
        assert server.process.wait(LEAVING_SECONDS) == 0


def test_a_log_that_nobody_reads_keeps_no_server_from_leaving_in_order() -> None:
    with (
        server_with_piped_log() as (server, _log),
        StreamSocket(server.public_port, "user_id=7&strategy_id=3") as stream,
    ):
        stream.read_until(lambda stream: len(stream.events) == 1)
        _emit_and_count(server, stream)
        assert server.stop(timeout=LEAVING_SECONDS) == 0
        stream.read_to_the_end()
        assert stream.events[-1].event == "stream_closing"


def _emit_and_count(server: ServerProcess, stream: StreamSocket) -> None:
    for _ in range(BATCHES):
        server.emit(7, 3, CREATED)
    stream.read_until(lambda stream: len(stream.events) == 1 + BATCHES)
    tally = Tally()
    for event in stream.events:
        tally.add(event.event, event.data, event.last_event_id)
    assert tally.counts == {(3, "LIMIT", "created"): BATCHES}
