"""The tutorials, followed step by step as they stand there: commands run, files written, pages opened.

What a fence's info string says, behind the language (renderers show nothing of it):

| fence | is |
|---|---|
| `sh run` | run to its end; it must succeed. What it exports, and where it goes, holds for the next one |
| `sh run NAME` | run in a terminal of its own, until `<!-- stop: NAME -->` presses Ctrl-C or it is run again |
| `output`, `output NAME` | lines of what was printed last, or in that terminal, in this order; `…` is anything |
| `html FILE`, `py FILE` … | written to the file |
| `page URL` | lines that a browser shows there. It stays open; further words name another tab of it |

A fence that also says `npm`, `nginx` or `systemd-analyze` waits for that program, `root` for the right to mount.
Those that say nothing are for the reader. Ports are replaced by free ones. Nothing is installed from a registry that is
in this environment already: the folder `tallywire` has the clone's files, with an environment that is this one.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from msgspec import Struct
from playwright.sync_api import Browser, Page, sync_playwright

from tests.e2e.mounts import unmount
from tests.e2e.programs import installed
from tests.e2e.test_clients import CHROMIUM_FLAGS
from tests.process import ROOT, free_port, server_environment, wait_until

SECONDS = 60
"""For a step, on a machine that is busy with other things."""

BLOCK = re.compile(r"^```(\w+) ([^\n]+)\n(.*?)^```$|^<!-- (stop|close): (.*?) -->$", re.MULTILINE | re.DOTALL)
OUTPUT = re.compile(r"^```(output)()\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PORTS = ("8080", "8081", "8000", "5173", "8443")
NEEDS = frozenset({"npm", "nginx", "root", "systemd-analyze"})

EPOCH = re.compile(r"\b[0-9a-z]{13}(?=-\d|\b)")
COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
TIME = re.compile(r"\b\d{4}-\d\d-\d\d[T ]\d\d:[\d:.]+Z?|\b\d\d:\d\d:\d\d\.\d{3}\b")


class Step(Struct, frozen=True):
    """A block that does something, and where it begins in its page."""

    at: int
    language: str
    words: tuple[str, ...]
    text: str


def steps_of(page: str) -> list[Step]:
    """In order; blocks for the reader are not among them."""
    found = []
    for match in (*BLOCK.finditer(page), *OUTPUT.finditer(page)):
        line = page.count("\n", 0, match.start()) + 1
        if match[1]:
            found.append(Step(line, match[1], tuple(match[2].split()), match[3]))
        else:
            found.append(Step(line, match[4], (match[5],), ""))
    return sorted(found, key=lambda step: step.at)


class Terminal:
    """A command that goes on, and what it has printed."""

    def __init__(self, script: str, place: Path, environment: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("w") as output:
            self.process = subprocess.Popen(
                ["bash", "-ec", script],
                cwd=place,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def press_ctrl_c(self) -> None:
        """Everything in the terminal is told, as by a real one; killed where that does not end it."""
        for number in (signal.SIGINT, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, number)
                self.process.wait(SECONDS)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue
            break


class Reader:
    """Somebody who follows a tutorial in an empty folder."""

    def __init__(self, folder: Path, browser: Browser) -> None:
        clone(folder)
        self.folder = folder
        self.place = folder
        self.ports = {port: str(free_port()) for port in PORTS}
        self.environment = server_environment() | {
            "HOME": str(folder),
            "PATH": f"{folder / 'tallywire' / '.venv' / 'bin'}:{os.environ['PATH']}:/usr/sbin:/sbin",
            "PYTHONUNBUFFERED": "1",
            "TALLYWIRE_PUBLIC_LISTEN": f"127.0.0.1:{self.ports['8080']}",
            "TALLYWIRE_INTERNAL_LISTEN": f"127.0.0.1:{self.ports['8081']}",
            "TALLYWIRE_LOG_FORMAT": "text",
        }
        self.terminals: dict[str, Terminal] = {}
        self.pages: dict[str, Page] = {}
        self.printed = ""
        nginx = folder / "tallywire" / "deploy" / "nginx" / "tallywire.conf"
        nginx.write_text(self._here(nginx.read_text()))
        self._context = browser.new_context(ignore_https_errors=True)

    def take(self, step: Step) -> None:
        """One step. Raises AssertionError where the page promises too much."""
        words = tuple(word for word in step.words if word not in NEEDS)
        match step.language, words:
            case "sh", ("run",):
                self._run(self._here(step.text))
            case "sh", ("run", name):
                self._stop(name)
                log = self.folder / f".{name}.log"
                self.terminals[name] = Terminal(self._here(step.text), self.place, self.environment, log)
            case "stop", (name,):
                self._stop(name)
            case "close", (page,):
                self.pages.pop(self._here(page)).close()
            case "output", ():
                self._expect(step.text, self.printed)
            case "output", (name,):
                terminal = self.terminals[name]
                wait_until(
                    lambda: _is_in(step.text, self._there(terminal.log.read_text())), f"{name} prints it", SECONDS
                )
            case "page", (url, *tab):
                self._look(self._here(url), " ".join(tab), step.text)
            case _, (name,):
                file = self.place / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(self._here(step.text))
            case _:
                raise AssertionError(f"nobody knows what to do with ```{step.language} {' '.join(step.words)}")

    def close(self) -> None:
        for name in list(self.terminals):
            self._stop(name)
        self._context.close()
        for mounted in self.folder.rglob("disk"):
            unmount(str(mounted))

    def screens(self) -> str:
        """What is to be seen everywhere, for who has to find out what went wrong."""
        printed = [f"--- {name}\n{terminal.log.read_text()[-3000:]}" for name, terminal in self.terminals.items()]
        shown = [f"--- {name}\n{page.locator('body').inner_text()[:2000]}" for name, page in self.pages.items()]
        return "\n".join([f"--- printed\n{self.printed}", *printed, *shown])

    def _run(self, script: str) -> None:
        state = self.folder / ".environment"
        whole = f'{script}\n{{ pwd; env -0; }} >"{state}"\n'
        ended = subprocess.run(
            ["bash", "-ec", whole],
            cwd=self.place,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=2 * SECONDS,
            check=False,
        )
        self.printed = self._there(ended.stdout.decode())
        assert ended.returncode == 0, f"exit code {ended.returncode}"
        place, _, variables = state.read_text().partition("\n")
        self.place = Path(place)
        self.environment = dict(each.split("=", 1) for each in variables.rstrip("\0").split("\0"))

    def _stop(self, name: str) -> None:
        if terminal := self.terminals.pop(name, None):
            terminal.press_ctrl_c()

    def _look(self, url: str, tab: str, text: str) -> None:
        name = f"{url} {tab}".rstrip()
        if name not in self.pages:
            self.pages[name] = self._context.new_page()
            self.pages[name].goto(url)
        page = self.pages[name]
        wait_until(lambda: _is_in(text, page.locator("body").inner_text()), f"{name} shows it", SECONDS)

    def _expect(self, text: str, printed: str) -> None:
        assert _is_in(text, printed), "it was not printed"

    def _here(self, text: str) -> str:
        for port, free in self.ports.items():
            text = re.sub(rf"\b{port}\b", free, text)
        return text

    def _there(self, text: str) -> str:
        text = COLOUR.sub("", text)  # the end of one may touch a port
        for port, free in self.ports.items():
            text = re.sub(rf"\b{free}\b", port, text)
        return text


def _is_in(wanted: str, shown: str) -> bool:
    """Whether the lines are there, in this order; blanks, colours, times and epochs do not matter, `…` is anything."""
    rest = iter(_plain(shown))
    return all(any(re.fullmatch(_pattern(line), candidate) for candidate in rest) for line in _plain(wanted) if line)


def _plain(text: str) -> list[str]:
    text = COLOUR.sub("", text)
    text = TIME.sub("TIME", EPOCH.sub("EPOCH", text))
    return [" ".join(line.split()) for line in text.splitlines()]


def _pattern(line: str) -> str:
    return ".*".join(re.escape(part.strip()) for part in line.split("…"))


def clone(folder: Path) -> None:
    """The files of the clone, and what `make run` and pip would have installed there."""
    here = folder / "tallywire"
    here.mkdir()
    for entry in ROOT.iterdir():
        if entry.name not in (".git", ".venv", "tallywire.db", "deploy"):
            (here / entry.name).symlink_to(entry)
    # Real files: they name ports, which are replaced.
    shutil.copytree(ROOT / "deploy", here / "deploy")
    programs = here / ".venv" / "bin"
    programs.mkdir(parents=True)
    python = f'export PYTHONPATH="{ROOT / "clients" / "python" / "src"}"\nexec "{sys.executable}"'
    for name, line in (("tallywire", f'{python} "{ROOT / "server.py"}" "$@"'), ("python", f'{python} "$@"')):
        (programs / name).write_text(f"#!/bin/sh\n{line}\n")
        (programs / name).chmod(0o755)
    (here / ".venv" / ".run-installed").touch()


def test_a_line_that_was_not_printed_and_one_out_of_order_are_noticed() -> None:
    assert _is_in("a 1\n… c\n", "\x1b[1ma   1\x1b[0m\nb\nsome c\n")
    assert not _is_in("b\na\n", "a\nb\n")
    assert not _is_in("a 2\n", "a 1\n")
    assert not _is_in("LIMIT 4 0\n", "STOP_LIMIT\t4\t0\n")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=installed("chromium"), args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "docs").glob("tutorial-*.md")))
def test_a_tutorial_works_as_it_is_written(name: str, tmp_path: Path, browser: Browser) -> None:
    missing = set()
    with ExitStack() as stack:
        reader = Reader(tmp_path, browser)
        stack.callback(reader.close)
        for step in steps_of((ROOT / "docs" / f"{name}.md").read_text()):
            if lacking := {need for need in NEEDS.intersection(step.words) if not _has(need)}:
                missing |= lacking
                continue
            try:
                reader.take(step)
            except (AssertionError, subprocess.TimeoutExpired) as error:
                raise AssertionError(f"docs/{name}.md:{step.at}: {error}\n{reader.screens()}") from error
    if missing:
        pytest.skip(f"everything but the steps that need {', '.join(sorted(missing))} was followed")


def _has(need: str) -> bool:
    if need == "root":
        return os.geteuid() == 0
    return shutil.which(need, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is not None
