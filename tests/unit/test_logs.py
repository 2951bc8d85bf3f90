"""Log lines: what they look like, and that whoever writes one never waits for whoever reads it."""

import io
import json
import logging
import os
import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import TextIO

import pytest

from core import logs
from core.logs import BackgroundHandler, JsonFormatter, TextFormatter, start_logging

DEADLINE_SECONDS = 10
"""For whatever a test waits for: it never decides whether a test passes on a machine that works."""

MOMENT = 1761827696.789
MOMENT_TEXT = "2025-10-30T12:34:56.789Z"


def record(message: str, *args: object, level: int = logging.INFO, **fields: object) -> logging.LogRecord:
    made = logging.makeLogRecord(
        {"name": "tallywire.test", "levelno": level, "levelname": logging.getLevelName(level), **fields}
    )
    made.msg, made.args, made.created = message, args, MOMENT
    return made


def failed_record() -> logging.LogRecord:
    try:
        int("the reason")
    except ValueError as error:
        return record("It broke", level=logging.ERROR, exc_info=(type(error), error, error.__traceback__), batches=2)
    raise AssertionError


class Output(io.StringIO):
    """A stream whose text can still be read once it is closed, and that may be a terminal."""

    def __init__(self, *, is_terminal: bool = False) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal

    @property
    def lines(self) -> list[str]:
        return self.getvalue().splitlines()


class HeldOutput(Output):
    """A stream that takes nothing until it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.is_held = threading.Event()
        self.may_go_on = threading.Event()

    def write(self, text: str) -> int:
        self.is_held.set()
        assert self.may_go_on.wait(DEADLINE_SECONDS)
        return super().write(text)


class PlainFormatter(logging.Formatter):
    """The message and how many lines were lost, so that tests can compare whole lines."""

    def format(self, record: logging.LogRecord) -> str:
        return record.getMessage() + (f" lines={record.lines}" if hasattr(record, "lines") else "")


@pytest.fixture
def few_queued(monkeypatch: pytest.MonkeyPatch) -> int:
    """A queue that is full after three lines."""
    monkeypatch.setattr(logs, "QUEUED_LINES", 3)
    return 3


@pytest.fixture
def logging_restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Puts back what `start_logging` changes for the whole process."""
    root, tornado = logging.getLogger(), logging.getLogger("tornado.general")
    for name in ("_srcfile", "logThreads", "logProcesses", "logMultiprocessing"):
        monkeypatch.setattr(logging, name, getattr(logging, name))
    before = root.handlers[:], root.level, tornado.level
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    tornado.setLevel(before[2])


# ---- lines


def test_a_json_line_is_one_object_with_its_fields_last() -> None:
    line = JsonFormatter().format(record("📦 Batch %s sent", "SSE", user_id=7, position="e-1", strategies=(3, 4)))

    assert line == (
        f'{{"time":"{MOMENT_TEXT}","level":"info","logger":"tallywire.test","message":"📦 Batch SSE sent",'
        '"user_id":7,"position":"e-1","strategies":[3,4]}'
    )


def test_a_text_line_is_time_level_message_and_fields() -> None:
    line = TextFormatter().format(record("Ready", level=logging.WARNING, public="http://localhost:1", connections=0))

    assert line == f"{MOMENT_TEXT}  warning  Ready  public=http://localhost:1  connections=0"


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()], ids=["json", "text"])
def test_what_a_terminal_would_obey_is_escaped(formatter: logging.Formatter) -> None:
    line = formatter.format(record("No %s", "\x1b[2J", path="/é📦\r\n\x00\x7f\x9b2J\u202e\u2028\U000e0041"))

    assert line.isprintable()
    assert "No \\u001b[2J" in line
    assert "/é📦\\r\\n\\u0000\\u007f\\u009b2J\\u202e\\u2028\\udb40\\udc41" in line


def test_an_escaped_json_line_says_what_was_given() -> None:
    path = "/é📦\r\n\x00\x7f\x9b2J\u202e\u2028\U000e0041"

    assert json.loads(JsonFormatter().format(record("No", path=path)))["path"] == path


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()], ids=["json", "text"])
def test_a_field_without_a_value_is_left_out(formatter: logging.Formatter) -> None:
    line = formatter.format(record("Stream opened", reset=None, resumed=False, n=0))

    assert "reset" not in line
    assert "resumed" in line
    assert re.search(r"\bn\b", line)


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()], ids=["json", "text"])
def test_nothing_of_the_library_is_taken_for_a_field(formatter: logging.Formatter) -> None:
    logger = logging.Logger("tallywire.test")
    made = logger.makeRecord("tallywire.test", logging.INFO, "here.py", 1, "Ready", (), None, extra={"n": 1})
    logging.Formatter("%(message)s %(asctime)s").format(made)

    line = formatter.format(made)

    names = json.loads(line) if line.startswith("{") else re.findall(r"  (\w+)=", line)
    assert list(names)[-1] == "n"
    assert len(names) == (5 if line.startswith("{") else 1)


def test_a_traceback_is_a_field_of_the_json_line() -> None:
    line = json.loads(JsonFormatter().format(failed_record()))

    assert (line["level"], line["message"], line["batches"]) == ("error", "It broke", 2)
    assert line["traceback"].startswith("Traceback (most recent call last)")
    assert line["traceback"].endswith("invalid literal for int() with base 10: 'the reason'")


def test_a_traceback_follows_the_text_line() -> None:
    first, *traceback = TextFormatter().format(failed_record()).splitlines()

    assert first.endswith("  error    It broke  batches=2")
    assert traceback[0] == "Traceback (most recent call last):"
    assert traceback[-1].startswith("ValueError: ")


def test_what_a_terminal_would_obey_is_escaped_in_a_traceback_too() -> None:
    failed = record("It broke", exc_info=(ValueError, ValueError("the\n\x9breason"), None))

    assert TextFormatter().format(failed).splitlines()[1:] == ["ValueError: the", "\\u009breason"]


def test_a_json_line_stays_one_line_whatever_it_tells() -> None:
    line = JsonFormatter().format(record("a\nb", path="c\nd\r\x00", error=ValueError("e\nf"), strange={1}))

    assert "\n" not in line
    assert json.loads(line)["message"] == "a\nb"
    assert json.loads(line)["error"] == "e\nf"


# ---- the writer


def test_lines_are_written_in_the_order_in_which_they_were_said() -> None:
    output = Output()
    handler = BackgroundHandler(output, PlainFormatter())

    for index in range(500):
        handler.handle(record("line %d", index))
    handler.close()

    assert output.lines == [f"line {index}" for index in range(500)]
    assert handler.dropped == 0


def test_lines_are_written_without_waiting_for_the_end() -> None:
    output = HeldOutput()
    output.may_go_on.set()
    handler = BackgroundHandler(output, PlainFormatter())

    handler.handle(record("first"))
    assert output.is_held.wait(DEADLINE_SECONDS)
    output.is_held.clear()
    handler.handle(record("second"))
    assert output.is_held.wait(DEADLINE_SECONDS)
    handler.close()

    assert output.lines == ["first", "second"]


def test_lines_that_do_not_fit_are_dropped_counted_and_told(few_queued: int) -> None:
    output = HeldOutput()
    handler = BackgroundHandler(output, PlainFormatter())
    handler.handle(record("before"))
    assert output.is_held.wait(DEADLINE_SECONDS)

    for index in range(5):
        handler.handle(record("line %d", index))
    assert handler.dropped == 5 - few_queued
    output.may_go_on.set()
    handler.close()

    assert output.lines == ["before", "line 0", "line 1", "line 2", "Log lines dropped lines=2"]


def test_dropped_lines_are_told_once(few_queued: int) -> None:
    output = HeldOutput()
    handler = BackgroundHandler(output, PlainFormatter())
    handler.handle(record("before"))
    assert output.is_held.wait(DEADLINE_SECONDS)
    for _ in range(few_queued + 4):
        handler.handle(record("line"))
    output.is_held.clear()
    output.may_go_on.set()
    assert output.is_held.wait(DEADLINE_SECONDS)

    handler.handle(record("after"))
    handler.close()

    assert [line for line in output.lines if line.startswith("Log")] == ["Log lines dropped lines=4"]
    assert output.lines[-1] == "after"


def test_the_line_about_dropped_lines_is_a_warning_of_ours(few_queued: int) -> None:
    output = HeldOutput()
    handler = BackgroundHandler(output, JsonFormatter())
    handler.handle(record("before"))
    assert output.is_held.wait(DEADLINE_SECONDS)
    for _ in range(few_queued + 2):
        handler.handle(record("line"))
    output.may_go_on.set()
    handler.close()

    line = json.loads(output.lines[-1])
    assert (line["level"], line["logger"], line["message"]) == ("warning", "tallywire.log", "Log lines dropped")
    assert line["lines"] == 2


def test_a_reader_that_stands_still_holds_neither_the_caller_nor_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "QUEUED_LINES", 100)
    reading, writing = os.pipe()
    handler = BackgroundHandler(os.fdopen(writing, "w"), PlainFormatter())

    def say_far_more_than_a_pipe_holds_and_close() -> None:
        for _ in range(2_000):
            handler.handle(record("x" * 1000))
        handler.close()

    caller = threading.Thread(target=say_far_more_than_a_pipe_holds_and_close, daemon=True)
    try:
        caller.start()
        caller.join(DEADLINE_SECONDS)
        assert not caller.is_alive()
        assert handler.dropped > 0
        assert handler._thread.is_alive(), "the writer still stands there: nothing was read"
    finally:
        os.close(reading)
    handler._thread.join(DEADLINE_SECONDS)
    assert not handler._thread.is_alive(), "once nobody can read any more, the writer ends and nothing is said"
    with suppress(BrokenPipeError):
        handler._stream.close()


def test_a_pipe_that_somebody_has_made_non_blocking_loses_nothing() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    lines = 2_000
    with os.fdopen(writing, "w") as stream:
        handler = BackgroundHandler(stream, PlainFormatter())
        for _ in range(lines):
            handler.handle(record("x" * 99))
        received = b""
        while len(received) < lines * 100:
            received += os.read(reading, 65536)
        handler.close()
    os.close(reading)

    assert received == (b"x" * 99 + b"\n") * lines
    assert handler.dropped == 0


def test_a_reader_that_has_gone_fails_nobody() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    handler = BackgroundHandler(os.fdopen(writing, "w"), PlainFormatter())

    handler.handle(record("to nobody"))
    handler.close()

    assert handler.dropped > 0
    assert not handler._thread.is_alive()
    with suppress(BrokenPipeError):
        handler._stream.close()


def test_a_closed_stream_fails_nobody() -> None:
    output = Output()
    handler = BackgroundHandler(output, PlainFormatter())
    output.close()

    handler.handle(record("to nobody"))
    handler.close()

    assert handler.dropped > 0


def test_closing_without_a_line_writes_nothing() -> None:
    output = Output()

    BackgroundHandler(output, PlainFormatter()).close()

    assert output.getvalue() == ""


@pytest.mark.parametrize(
    "unusable",
    [
        pytest.param(record("%d batches", "many"), id="arguments that do not fit"),
        pytest.param(record("Refused", path="\ud800"), id="text that is not Unicode"),
    ],
)
def test_a_line_that_cannot_be_written_does_not_silence_the_ones_after_it(unusable: logging.LogRecord) -> None:
    output = HeldOutput()
    handler = BackgroundHandler(output, JsonFormatter())
    handler.handle(record("before"))
    assert output.is_held.wait(DEADLINE_SECONDS)

    handler.handle(unusable)
    output.may_go_on.set()
    handler.handle(record("after"))
    handler.close()

    before, instead, after = map(json.loads, output.lines)
    assert (before["message"], after["message"]) == ("before", "after")
    assert (instead["level"], instead["message"]) == ("warning", "Log line not writable")
    assert instead["from_logger"] == "tallywire.test"
    assert "Error" in instead["reason"]


# ---- the process


@pytest.mark.parametrize(
    ("log_format", "is_terminal", "is_json"),
    [
        ("auto", False, True),
        ("auto", True, False),
        ("json", True, True),
        ("text", False, False),
    ],
)
def test_the_format_follows_the_setting_and_auto_follows_the_terminal(
    log_format: str, is_terminal: bool, is_json: bool, logging_restored: None
) -> None:
    output: TextIO = Output(is_terminal=is_terminal)
    handler = start_logging("info", log_format, output)  # type: ignore[arg-type]  # one of the three

    logging.getLogger("tallywire.test").info("Ready", extra={"connections": 3})
    handler.close()

    assert isinstance(output, Output)
    (line,) = output.lines
    if is_json:
        assert json.loads(line).items() >= {"message": "Ready", "connections": 3}.items()
    else:
        assert line.endswith("  info     Ready  connections=3")


def test_every_logger_of_the_process_is_heard_from_the_level_on(logging_restored: None) -> None:
    output = Output()
    handler = start_logging("warning", "json", output)

    logging.getLogger("tallywire.test").info("too quiet")
    logging.getLogger("somebody.else").error("heard")
    handler.close()

    assert [json.loads(line)["message"] for line in output.lines] == ["heard"]


def test_what_a_hostile_client_can_make_tornado_say_is_not_heard(logging_restored: None) -> None:
    output = Output()
    handler = start_logging("debug", "json", output)

    logging.getLogger("tornado.general").info("Malformed HTTP message from ...")
    logging.getLogger("tallywire.test").debug("heard")
    handler.close()

    assert [json.loads(line)["message"] for line in output.lines] == ["heard"]
