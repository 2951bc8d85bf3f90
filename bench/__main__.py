"""`python -m bench`: runs the workloads, prints one table, writes one JSON document.

It needs Linux (epoll, /proc), talks to 127.0.0.0/8 only, ends by itself within RUN_SECONDS, and ends no
process but the servers that it started.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from bench import report, workloads
from bench.kinds import Kinds
from bench.load import LoadError
from bench.machine import EndedEarly, bound_the_run, raise_descriptor_limit, split_cores
from bench.server import ROOT, ServerError, ServerKind
from bench.workloads import FULL, QUICK, Sizes

RUN_SECONDS = 900
SPARE_DESCRIPTORS = 200
LATEST = ROOT / "bench" / "results" / "latest.json"

Workload = Callable[[Sequence[ServerKind], frozenset[int], Sizes], report.Section]
WORKLOADS: dict[str, tuple[Workload, Callable[[Kinds], Sequence[ServerKind]]]] = {
    "fanout": (workloads.fanout, lambda kinds: kinds.fanned_out),
    "emit": (workloads.emit, lambda kinds: kinds.emitting),
    "memory": (workloads.memory, lambda kinds: kinds.fanned_out),
    "connect": (workloads.connect, lambda kinds: kinds.fanned_out),
    "journal": (workloads.journal, lambda kinds: kinds.journals),
    "restart": (workloads.restart, lambda kinds: kinds.journals[:1]),
}


def main() -> int:
    """Runs what the command line asks for; 1 if a server made a run meaningless."""
    options = _parse(sys.argv[1:])
    bound_the_run(RUN_SECONDS)
    try:
        outcome = _run(options)
    except (EndedEarly, LoadError, ServerError, OSError, subprocess.TimeoutExpired) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(report.table(outcome))
    _write(outcome, options.json)
    return 0


class Options(argparse.Namespace):
    """The command line, typed."""

    quick: bool
    only: list[str]
    json: Path


def _parse(arguments: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(prog="python -m bench", description="What Tallywire costs, measured.")
    parser.add_argument("--quick", action="store_true", help="a run under half a minute, rougher figures")
    parser.add_argument("--only", type=_names, default=list(WORKLOADS), metavar=",".join(WORKLOADS))
    parser.add_argument("--json", type=Path, default=LATEST, metavar="PATH", help="where the figures go")
    return parser.parse_args(arguments, namespace=Options())


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in WORKLOADS]:
        raise argparse.ArgumentTypeError(f"no such workload: {', '.join(unknown)}")
    return names


def _run(options: Options) -> report.Report:
    sizes = QUICK if options.quick else FULL
    raise_descriptor_limit(_descriptors(sizes))
    cores = split_cores()
    os.sched_setaffinity(0, cores.client)
    started_at, started = datetime.now(UTC), time.monotonic()
    kinds = Kinds()
    chosen = [(name, *_measured(name, kinds)) for name in WORKLOADS if name in options.only]
    sections = tuple(_announced(*choice, cores.server, sizes) for choice in chosen)
    return report.Report(
        command=" ".join(["python -m bench", *sys.argv[1:]]),
        started_at=started_at.isoformat(timespec="seconds"),
        seconds=time.monotonic() - started,
        machine=report.machine(cores.server, cores.client),
        servers={kind.name: kind.command for _, _, measured in chosen for kind in measured},
        sections=sections,
    )


def _measured(name: str, kinds: Kinds) -> tuple[Workload, Sequence[ServerKind]]:
    """A workload and the servers that it measures."""
    workload, pick = WORKLOADS[name]
    return workload, pick(kinds)


def _announced(
    name: str, workload: Workload, kinds: Sequence[ServerKind], cores: frozenset[int], sizes: Sizes
) -> report.Section:
    """Runs one workload, saying on stderr that it has begun."""
    print(f"bench: {name} …", file=sys.stderr, flush=True)
    return workload(kinds, cores, sizes)


def _descriptors(sizes: Sizes) -> int:
    """What the largest of the workloads needs."""
    streams = max(sizes.memory_connections, 3 * sizes.emit_keys, 2 * sizes.fanout_connections)
    return streams + SPARE_DESCRIPTORS


def _write(outcome: report.Report, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(outcome), indent=2) + b"\n")


if __name__ == "__main__":
    sys.exit(main())
