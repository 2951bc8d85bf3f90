"""Log lines that never hold the loop: a bounded queue, and a thread that writes what is in it a few times a second.

A line costs the caller one small object. When whoever reads the log stands still, the queue fills and further lines
are dropped and counted; the server goes on. Fields given with `extra` follow the fixed sentence.
"""

import json
import logging
import os
import select
import threading
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal, TextIO

from msgspec.json import Encoder

QUEUED_LINES = 10_000
"""Lines that may wait for the writer: a second of a busy server, some MiB."""

LINGER_SECONDS = 0.05
"""How long the writer gathers lines: it wakes at most 20 times a second, so that it seldom takes the loop's turn."""

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
_encoder = Encoder(enc_hook=str)


class BackgroundHandler(logging.Handler):
    """Hands records to a thread that writes them to `stream`. `dropped` counts the lines that did not fit."""

    def __init__(self, stream: TextIO, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.dropped = 0
        self._reported = 0
        self._stream = stream
        self._output = _output(stream)
        self._queue: deque[logging.LogRecord] = deque()
        self._something = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        if len(self._queue) >= QUEUED_LINES:
            self.dropped += 1
            return
        self._queue.append(record)
        if not self._something.is_set():
            self._something.set()

    def close(self) -> None:
        """Write what is queued, for at most a second: a reader that stands still does not keep the process."""
        self._stopping.set()
        self._something.set()
        self._thread.join(timeout=1)
        super().close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._something.wait()
            self._something.clear()
            self._stopping.wait(LINGER_SECONDS)
            self._write()
        self._write()

    def _write(self) -> None:
        lines = [self._line(self._queue.popleft()) for _ in range(len(self._queue))]
        if self.dropped > self._reported:
            lines.append(self.format(_own_record("Log lines dropped", lines=self.dropped - self._reported)))
            self._reported = self.dropped
        if not lines:
            return
        try:
            self._output("\n".join(lines).encode("utf-8", "backslashreplace") + b"\n")
        except (OSError, ValueError):
            # Nobody reads the log any more. There is nowhere left to say so.
            self.dropped += len(lines)

    def _line(self, record: logging.LogRecord) -> str:
        try:
            return self.format(record)
        except Exception as error:  # whatever a library logs must not end the log
            return self.format(_own_record("Log line not writable", from_logger=record.name, reason=repr(error)))


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return printable(_encoder.encode(line).decode())


class TextFormatter(logging.Formatter):
    """A line for a person: time, level, message, then the fields as name=value."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f"  {name}={value}" for name, value in _fields(record).items())
        lines = [f"{_timestamp(record)}  {record.levelname.lower():7}  {record.getMessage()}{fields}"]
        if record.exc_info:
            lines += self.formatException(record.exc_info).split("\n")
        return "\n".join(map(printable, lines))


def start_logging(level: str, log_format: Literal["auto", "text", "json"], stream: TextIO) -> BackgroundHandler:
    """Send every logger of the process to `stream`. The caller closes the handler at the end."""
    # What the standard library collects for fields that no format here shows: callers' frames and thread names.
    logging._srcfile = None  # documented in the library's chapter on optimisation
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    text = log_format == "text" or (log_format == "auto" and stream.isatty())
    handler = BackgroundHandler(stream, TextFormatter() if text else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # Tornado says at INFO what a hostile client can make it say without limit.
    logging.getLogger("tornado.general").setLevel(logging.WARNING)
    return handler


def dropped_lines() -> int:
    """How many lines of this process found no room, or nobody to read them, since the start."""
    return sum(handler.dropped for handler in logging.getLogger().handlers if isinstance(handler, BackgroundHandler))


def _output(stream: TextIO) -> Callable[[bytes], None]:
    """Writes to `stream`, past its buffer where there is a descriptor.

    Whoever waits within a buffered stream holds its lock. When nobody reads the log, the interpreter, which flushes the
    standard streams at its end, would wait for that lock and for whoever reads, and the process would never exit.
    """
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):

        def write_text(data: bytes) -> None:
            stream.write(data.decode())
            stream.flush()

        return write_text

    def write(data: bytes) -> None:
        while data:
            try:
                data = data[os.write(descriptor, data) :]
            except BlockingIOError:
                # Whoever shares the other end with us has made it so.
                select.select([], [descriptor], [])

    return write


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD and value is not None}


def printable(line: str) -> str:
    """A line that a terminal only shows: what it would obey stands there as JSON escapes it."""
    if line.isprintable():
        return line
    return "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in line)


def _timestamp(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def _own_record(message: str, **fields: object) -> logging.LogRecord:
    return logging.makeLogRecord(
        {"name": "tallywire.log", "levelno": logging.WARNING, "levelname": "WARNING", "msg": message, **fields}
    )
