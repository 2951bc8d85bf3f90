"""How a command ends: the exit codes, and the one line that says why."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import IntEnum

import click

from core.journal.base import JournalError
from core.settings import SettingsError


class ExitCode(IntEnum):
    """What a script sees of a command that has ended. Numbers never change their meaning."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    REFUSED = 4
    LATER = 5
    UNKNOWN = 6
    FOUND = 7
    INTERRUPTED = 130
    READER_GONE = 141


MEANINGS: Mapping[ExitCode, str] = {
    ExitCode.DONE: "it is done",
    ExitCode.FAILED: "it failed: a file, a setting or the journal cannot be used",
    ExitCode.USAGE: "the command line cannot be used",
    ExitCode.UNREACHABLE: "no server answers there; nothing was done",
    ExitCode.REFUSED: "the server refused, and would again",
    ExitCode.LATER: "the server cannot now; try again later",
    ExitCode.UNKNOWN: "the answer is lost: repeat it with the same idempotency key",
    ExitCode.FOUND: "a check has found something",
    ExitCode.INTERRUPTED: "Ctrl-C",
    ExitCode.READER_GONE: "whoever read the output has left",
}


class CommandFailed(click.ClickException):
    """A command ends: one line that says why and what to do, and an exit code of the table."""

    def __init__(self, message: str, code: ExitCode) -> None:
        super().__init__(message)
        self.code = code


@contextmanager
def ended_in_order(context: click.Context) -> Iterator[None]:
    """Whatever a command ends by becomes an exit code of the table: no traceback for a Ctrl-C, a closed pipe, or a file
    that cannot be read."""
    try:
        try:
            yield
        except (SettingsError, JournalError) as error:
            raise CommandFailed(str(error), ExitCode.FAILED) from error
        except BrokenPipeError:
            raise
        except OSError as error:
            raise CommandFailed(_said(error), ExitCode.FAILED) from error
    except CommandFailed as error:
        error.show()
        context.exit(error.code)
    except KeyboardInterrupt:
        # The shell's prompt shall not stand behind the ^C.
        if sys.stderr.isatty():
            click.echo(err=True)
        context.exit(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        give_up_output()
        context.exit(ExitCode.READER_GONE)


def give_up_output() -> None:
    """The interpreter flushes standard output at its end, and would complain about a pipe that nobody reads."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _said(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)
