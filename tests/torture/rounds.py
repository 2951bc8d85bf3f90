"""One server after the other in one directory, each killed; at the end one that is left to finish, and the verdict."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec import Struct

from tests.process import ROOT, START_SECONDS, free_port
from tests.torture.journal_file import read_journal, write_rows
from tests.torture.load import Load

RANDOM = "random"
"""Killed from outside, at any time: while it starts, too."""

MOST_HITS = {
    "in recovery": 1,
    "after insert": 100,
    "in commit": 30,
    "after commit": 30,
    "before publish": 30,
    "in fan-out": 60,
    "before answer": 40,
    "in checkpoint": 10,
    "in trim": 8,
}
"""For each point the hit that is the last is drawn from 1 to so many: what a life of KEEP_ROWS batches reaches."""

KEEP_ROWS = 300
"""So many rows are kept, and so many batches sent to one server: each row is seen in the journal before it is trimmed,
and from the third life on or so some are trimmed all the time."""

LIFE_SECONDS = 10
"""A server whose point is not reached within so long, and START_SECONDS, is killed from outside."""

SHORTEST_SECONDS, LONGEST_SECONDS = 0.1, 1.3
"""When a server dies that is killed at random, after the beginning of its start: that takes 0.5 s or so."""

LEAVING_SECONDS = 30

POLL_SECONDS = 0.005


class Plan(NamedTuple):
    """Where one server dies: a point, and at which hit of it."""

    point: str
    hits: int


class Report(Struct):
    """What a run came to. `reached`: kills at the very point; the others came from outside, after LIFE_SECONDS.

    `verdict` and `is_exact`: what the checker printed, and whether it found nothing wrong. `unexpected`: warnings and
    errors in the logs of the servers.
    """

    planned: Counter[str]
    reached: Counter[str]
    killed_while_starting: int = 0
    missing: str = ""
    unexpected: Counter[str] = msgspec.field(default_factory=Counter)
    seconds: float = 0.0
    verdict: str = ""
    is_exact: bool = False


def plans(kills: int, chance: random.Random) -> list[Plan]:
    """Every point in turn, killing at random among them; trimming last, when there is something to trim."""
    points = [RANDOM, *MOST_HITS]
    return [plan(points[n % len(points)], chance) for n in range(kills)]


def plan(point: str, chance: random.Random) -> Plan:
    """This point at a hit that is drawn."""
    return Plan(point, chance.randint(1, MOST_HITS.get(point, 1)))


def torture(
    directory: Path,
    lives: Sequence[Plan],
    *,
    seed: int,
    durability: str = "power",
    mistake: str = "",
    settle_seconds: float = 60,
) -> Report:
    """Kill as planned, let everything settle, and have it checked."""
    return asyncio.run(_Rounds(directory, seed, durability, mistake).run(lives, settle_seconds))


class _Rounds:
    def __init__(self, directory: Path, seed: int, durability: str, mistake: str) -> None:
        self._directory = directory
        self._chance = random.Random(seed)
        self._durability = durability
        self._mistake = mistake
        # The same ports all the time: clients come back to where they were.
        self._public_port, self._internal_port = free_port(), free_port()
        self._load = Load(directory, self._public_port, self._internal_port, seed, KEEP_ROWS)
        self._report = Report(Counter(), Counter())

    async def run(self, lives: Sequence[Plan], settle_seconds: float) -> Report:
        begun = time.monotonic()
        (self._directory / "run.json").write_text(json.dumps({"keep_rows": KEEP_ROWS}))
        self._load.start()
        try:
            for life in lives:
                await self._kill(life)
            await self._finish(settle_seconds)
        finally:
            await self._load.end()
        await self._check()
        self._report.seconds = time.monotonic() - begun
        return self._report

    async def _kill(self, life: Plan) -> None:
        process = self._start(life)
        try:
            if life.point == RANDOM:
                await asyncio.sleep(self._chance.uniform(SHORTEST_SECONDS, LONGEST_SECONDS))
                self._report.killed_while_starting += not self._is_ready()
                is_killed_here = True
            else:
                is_killed_here = not await _ended(process, START_SECONDS + LIFE_SECONDS)
        finally:
            process.kill()
            code = process.wait()
        if code != -signal.SIGKILL:
            raise AssertionError(f"the server ended by itself with {code}:\n{self._log().read_text()}")
        self._report.planned[life.point] += 1
        self._report.reached[life.point] += not is_killed_here or life.point == RANDOM
        await self._look()

    async def _finish(self, settle_seconds: float) -> None:
        process = self._start(None)
        try:
            self._report.missing = await self._load.settle(settle_seconds)
            process.terminate()
            if not await _ended(process, LEAVING_SECONDS):
                self._report.unexpected["the last server did not leave"] += 1
            elif process.returncode:
                self._report.unexpected[f"the last server left with {process.returncode}"] += 1
        finally:
            process.kill()
            process.wait()
        await self._look()

    def _start(self, life: Plan | None) -> subprocess.Popen[bytes]:
        self._load.begin_life()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TALLYWIRE_")}
        environment |= {"PYTHONPATH": str(ROOT), "TORTURE_MISTAKE": self._mistake}
        if life is not None and life.point != RANDOM:
            environment |= {
                "TORTURE_POINT": life.point,
                "TORTURE_HITS": str(life.hits),
                "TORTURE_SEED": str(self._chance.random()),
            }
        with self._log().open("wb") as log:
            return subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "tests.torture.killed_server",
                    "serve",
                    f"--public-listen=127.0.0.1:{self._public_port}",
                    f"--internal-listen=127.0.0.1:{self._internal_port}",
                    f"--durability={self._durability}",
                    f"--keep-rows={KEEP_ROWS}",
                    "--send-buffer-bytes=4096",
                    "--heartbeat-seconds=1",
                    "--log-format=json",
                ],
                cwd=self._directory,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    def _log(self) -> Path:
        return self._directory / f"server-{self._load.life:04}.log"

    def _is_ready(self) -> bool:
        return '"message":"Ready"' in self._log().read_text()

    async def _look(self) -> None:
        """Note what the journal holds while nobody has it, and what the server had to say."""
        contents = await asyncio.to_thread(read_journal, self._directory / "tallywire.db", only_rows=True)
        write_rows(contents, self._directory / f"journal-{self._load.life:04}.json")
        self._report.unexpected.update(_unexpected(self._log().read_text()))

    async def _check(self) -> None:
        checker = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.torture.checker",
            str(self._directory),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        said, _ = await checker.communicate()
        self._report.verdict = said.decode()
        self._report.is_exact = checker.returncode == 0


def _unexpected(log: str) -> Iterator[str]:
    """What a server said beyond the usual; the last line of one that was killed may be torn."""
    for line in log.splitlines():
        if not line.startswith("{"):
            yield line
        elif line.endswith("}"):
            said = json.loads(line)
            *_, cause = said.get("traceback", "").splitlines() or [""]
            if said["level"] != "info":
                yield f"{said['message']} {cause}".rstrip()


async def _ended(process: subprocess.Popen[bytes], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while process.poll() is None:
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(POLL_SECONDS)
    return True
