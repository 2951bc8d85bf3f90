"""The command line as its own process: what it prints, how it ends, and what a person sees of it on a terminal."""

import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fcntl import ioctl
from typing import Any

from tests.process import PROGRAM, ROOT, server_environment, wait_until

SECONDS = 60
"""For a command to end, on a machine that is busy with other things."""

COLUMNS, LINES = 100, 40


class Ended:
    """What a command has left: its exit code and what it wrote."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    def objects(self) -> list[Any]:
        """Of `--json`: one object a line, and nothing else."""
        lines = self.out.splitlines()
        held = [json.loads(line) for line in lines]
        assert all(isinstance(each, dict) for each in held)
        return held


def command(*arguments: str) -> list[str]:
    """What is run for `tallywire ARGUMENTS`."""
    return [sys.executable, *PROGRAM, *arguments]


def run(
    *arguments: str, given: str | bytes = b"", cwd: object = None, environment: Mapping[str, str] | None = None
) -> Ended:
    """Run a command to its end."""
    ended = subprocess.run(
        command(*arguments),
        input=given.encode() if isinstance(given, str) else given,
        capture_output=True,
        timeout=SECONDS,
        check=False,
        cwd=str(cwd or ROOT),
        env=server_environment() | dict(environment or {}),
    )
    err = ended.stderr.decode()
    assert "Traceback" not in err, err
    return Ended(ended.returncode, ended.stdout.decode(), err)


class Running:
    """A command that goes on, with its output in pipes."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._out = b""

    def line(self) -> str:
        """The next line of its output, whole."""
        assert self.process.stdout is not None
        while b"\n" not in self._out:
            readable, _, _ = select.select([self.process.stdout], [], [], SECONDS)
            assert readable, f"no line within {SECONDS} s, behind {self._out!r}"
            piece = os.read(self.process.stdout.fileno(), 65536)
            assert piece, f"the output ends behind {self._out!r}"
            self._out += piece
        line, _, self._out = self._out.partition(b"\n")
        return line.decode()

    def lines_until(self, wanted: str) -> list[str]:
        """Lines up to the first that has this text."""
        lines: list[str] = []
        while not lines or wanted not in lines[-1]:
            lines.append(self.line())
        return lines

    def interrupt(self) -> Ended:
        """As Ctrl-C does; and what it left after that."""
        self.process.send_signal(signal.SIGINT)
        out, err = self.process.communicate(timeout=SECONDS)
        assert b"Traceback" not in err, err.decode()
        return Ended(self.process.returncode, (self._out + out).decode(), err.decode())


@contextmanager
def running(*arguments: str, environment: Mapping[str, str] | None = None, cwd: object = None) -> Iterator[Running]:
    """A command in the background; killed at the end if it still runs."""
    process = subprocess.Popen(
        command(*arguments),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=server_environment() | dict(environment or {}),
        cwd=str(cwd or ROOT),
    )
    try:
        yield Running(process)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


class Terminal:
    """A command on a terminal of its own. `raw` is every byte that it wrote."""

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int) -> None:
        self.process = process
        self.raw = b""
        self._descriptor = descriptor

    def read(self) -> bool:
        """Take what has come; False at the end."""
        readable, _, _ = select.select([self._descriptor], [], [], 0.05)
        if readable:
            try:
                piece = os.read(self._descriptor, 65536)
            except OSError:
                return False
            self.raw += piece
            return bool(piece)
        return self.process.poll() is None

    def wait_for(self, text: str) -> None:
        """Until it stands on the screen."""

        def is_shown() -> bool:
            self.read()
            return any(text in line for line in self.screen())

        wait_until(is_shown, f"{text!r} on the screen", SECONDS)

    def press_ctrl_c(self) -> int:
        """Through the terminal, as a person does; answers the exit code."""
        os.write(self._descriptor, b"\x03")
        return self.wait()

    def wait(self) -> int:
        """Until it ends; answers the exit code."""
        wait_until(lambda: not self.read(), "the end of the command", SECONDS)
        return self.process.wait(SECONDS)

    def screen(self) -> list[str]:
        """The lines that a person sees, without colours and blanks at their ends."""
        lines = [""]
        at = 0
        for match in re.finditer(r"\x1b\[([0-9;?]*)([A-Za-z])|\r|\n|[^\x1b\r\n]+", self.raw.decode("utf-8", "replace")):
            text = match[0]
            if text == "\n":
                lines.append("")
                at = 0
            elif text == "\r":
                at = 0
            elif match[2] == "K":
                lines[-1] = "" if match[1] == "2" else lines[-1][:at]
            elif match[2] is None:
                lines[-1] = lines[-1][:at].ljust(at) + text + lines[-1][at + len(text) :]
                at += len(text)
        return [line.rstrip() for line in lines]


@contextmanager
def on_terminal(
    *arguments: str, environment: Mapping[str, str] | None = None, cwd: object = None
) -> Iterator[Terminal]:
    """A command whose standard streams are a terminal; killed at the end if it still runs."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    process = subprocess.Popen(
        command(*arguments),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=server_environment() | {"TERM": "xterm"} | dict(environment or {}),
        cwd=str(cwd or ROOT),
        start_new_session=True,
        preexec_fn=lambda: ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        os.close(ours)
