"""`python -m bench.versus`: Tallywire and its peers in one run, in turns; figures, ratios, one JSON document.

A round of a workload is: each server in turn, fresh, alone on its cores, with a fresh client. Rounds follow each
other (A B C A B C), so that a drift of the machine meets all of them, and ratios are taken within a round. It needs
Linux and a C compiler, talks to 127.0.0.0/8 only, ends by itself within RUN_SECONDS, and ends no process but those
that it started.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from bench import report
from bench.floor import compiled
from bench.kinds import Absent, Contender, Variant, contenders
from bench.load import LoadError
from bench.machine import Cores, EndedEarly, bound_the_run, raise_descriptor_limit, split_cores
from bench.server import ROOT, ServerError
from bench.versus.figures import FULL, QUICK, Figure, Scale, Workload
from bench.versus.outcome import LeftOut, Measured, Outcome, Section, rows_of, section_lines, table
from bench.versus.session import session
from bench.versus.workloads import WORKLOADS

RUN_SECONDS = 3 * 3600
DESCRIPTORS = 20_000
EVERYONE = "everyone"
LATEST = ROOT / "bench" / "results" / "versus.json"


class Options(argparse.Namespace):
    """The command line, typed."""

    only: list[str]
    servers: list[str]
    rounds: int | None
    quick: bool
    reference: str
    tallywire_flags: str
    variant: list[Variant]
    json: Path


def main() -> int:
    """Runs what the command line asks for; 1 if nothing could be measured or a server spoilt the run."""
    options = _parse(sys.argv[1:])
    bound_the_run(RUN_SECONDS)
    try:
        raise_descriptor_limit(DESCRIPTORS)
        outcome = _run(options)
    except (EndedEarly, LoadError, ServerError, OSError, subprocess.TimeoutExpired) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(table(outcome))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_bytes(msgspec.json.format(msgspec.json.encode(outcome), indent=2) + b"\n")
    return 0


def _parse(arguments: Sequence[str]) -> Options:
    names = [workload.name for workload in WORKLOADS]
    parser = argparse.ArgumentParser(prog="python -m bench.versus", description="Tallywire beside its peers.")
    parser.add_argument("--only", type=_list, default=names, metavar=",".join(names))
    parser.add_argument("--servers", type=_list, default=[], metavar="NAME,NAME", help="all that there are by default")
    parser.add_argument("--rounds", type=int, metavar="N", help="instead of what each workload has")
    parser.add_argument("--quick", action="store_true", help="smaller numbers, rougher figures")
    parser.add_argument("--reference", default="tallywire", metavar="NAME", help="what the others are compared with")
    parser.add_argument("--tallywire-flags", default="", metavar="FLAGS", help="settings for every Tallywire")
    parser.add_argument(
        "--variant",
        type=_variant,
        action="append",
        default=[],
        metavar="NAME=FLAGS",
        help="one more server, tallywire-NAME, with these settings; may be repeated",
    )
    parser.add_argument("--json", type=Path, default=LATEST, metavar="PATH", help="where the figures go")
    options = parser.parse_args(arguments, namespace=Options())
    if unknown := [name for name in options.only if name not in names]:
        parser.error(f"no such workload: {', '.join(unknown)}")
    return options


def _list(text: str) -> list[str]:
    return text.split(",")


def _variant(text: str) -> Variant:
    name, _, flags = text.partition("=")
    return Variant(name, tuple(shlex.split(flags)))


def _run(options: Options) -> Outcome:
    cores = split_cores()
    started_at, started = datetime.now(UTC), time.monotonic()
    with TemporaryDirectory(prefix="tallywire-bench-") as directory:
        client = compiled("client", Path(directory))
        floor = compiled("server", Path(directory))
        chosen = _chosen(options, floor)
        sections = [
            _section(workload, chosen, options, client, cores)
            for workload in WORKLOADS
            if workload.name in options.only
        ]
    return Outcome(
        command=shlex.join(["python", "-m", "bench.versus", *sys.argv[1:]]),
        started_at=started_at.isoformat(timespec="seconds"),
        seconds=time.monotonic() - started,
        machine=report.machine(cores.server, cores.client),
        servers={each.name: each.kind.command for each in chosen if isinstance(each, Contender)},
        sections=tuple(sections),
    )


def _chosen(options: Options, floor: Path) -> list[Contender | Absent]:
    everyone = contenders(tuple(shlex.split(options.tallywire_flags)), tuple(options.variant), floor)
    names = [each.name for each in everyone]
    if unknown := [name for name in options.servers if name not in names]:
        raise ServerError(f"no such server: {', '.join(unknown)}; there are {', '.join(names)}")
    wanted = {*options.servers, *(f"tallywire-{variant.name}" for variant in options.variant)}
    return [each for each in everyone if not options.servers or each.name in wanted]


def _section(
    workload: Workload, chosen: Sequence[Contender | Absent], options: Options, client: Path, cores: Cores
) -> Section:
    """Runs one workload, and prints it as soon as it is there: a whole run takes long."""
    scale = QUICK if options.quick else FULL
    left_out = _left_out(workload, chosen)
    absent = {each.server for each in left_out}
    measured = [
        Measured(each.name, []) for each in chosen if isinstance(each, Contender) and not absent & {each.name, EVERYONE}
    ]
    by_name = {each.name: each for each in chosen if isinstance(each, Contender)}
    for round_ in range(options.rounds or workload.rounds):
        for each in list(measured):
            print(f"bench: {workload.name}, round {round_ + 1}, {each.server} …", file=sys.stderr, flush=True)
            try:
                each.rounds.append(_round(workload, by_name[each.server], scale, client, cores))
            except (LoadError, ServerError) as error:
                left_out.append(LeftOut(each.server, f"failed in round {round_ + 1}: {error}"))
                measured.remove(each)
    section = Section(
        workload.name,
        workload.what(scale),
        options.reference,
        rows_of(measured, options.reference),
        tuple(left_out),
    )
    print("\n".join(section_lines(section)), file=sys.stderr, flush=True)
    return section


def _left_out(workload: Workload, chosen: Sequence[Contender | Absent]) -> list[LeftOut]:
    if workload.needs is not None and not workload.needs.is_file():
        return [LeftOut(EVERYONE, f"{workload.needs.name} is not there")]
    reasons = [(each.name, each.why if isinstance(each, Absent) else workload.leaves_out(each)) for each in chosen]
    return [LeftOut(name, why) for name, why in reasons if why]


def _round(workload: Workload, contender: Contender, scale: Scale, client: Path, cores: Cores) -> Sequence[Figure]:
    with session(contender, client, cores) as one:
        return workload.measure(one, scale)


if __name__ == "__main__":
    sys.exit(main())
