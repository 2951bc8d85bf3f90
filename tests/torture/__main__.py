"""`python -m tests.torture`: kill the server again and again, and print what came of it."""

import argparse
import os
import platform
import random
import sqlite3
import sys
import tempfile
from pathlib import Path

from tests.torture.rounds import Report, plans, torture


def main() -> int:
    """Ends with 0 when everything was exact."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--durability", choices=["power", "process"], default="power")
    parser.add_argument("--mistake", default="", help="one of killed_server.MISTAKES, to see it found out")
    parser.add_argument("--directory", type=Path, help="keep everything there; it must be empty")
    asked = parser.parse_args()
    print(
        f"{asked.kills} kills, seed {asked.seed}, durability {asked.durability}\n"
        f"{os.cpu_count()} cores, {platform.system()} {platform.release()}, {platform.machine()}, "
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}",
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="tallywire-torture-") as temporary:
        directory = Path(temporary) if asked.directory is None else asked.directory
        directory.mkdir(exist_ok=True)
        lives = plans(asked.kills, random.Random(asked.seed))
        report = torture(directory, lives, seed=asked.seed, durability=asked.durability, mistake=asked.mistake)
    _print(report)
    return 0 if report.is_exact and not report.missing and not report.unexpected else 1


def _print(report: Report) -> None:
    print(f"\n{'killed':24}{'times':>8}{'reached':>10}")
    for point, times in report.planned.items():
        print(f"{point:24}{times:>8}{report.reached[point]:>10}")
    total = report.planned.total()
    print(f"{'in all':24}{total:>8}{report.reached.total():>10}    {report.killed_while_starting} while starting")
    print(f"{report.seconds:.0f} s, {report.seconds / max(1, total):.2f} s a kill\n")
    print(report.verdict)
    if report.missing:
        print(f"MISSING at the end: {report.missing}")
    for said, times in report.unexpected.items():
        print(f"LOGGED {times} times: {said}")


if __name__ == "__main__":
    sys.exit(main())
