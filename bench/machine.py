"""What a run takes from this machine: cores for each side, descriptors, and no more time than it was given."""

from __future__ import annotations

import os
import resource
import signal
import sys
from dataclasses import dataclass
from types import FrameType


class EndedEarly(Exception):
    """The run was told to end, or took too long: no fault of the server of the moment."""


@dataclass(frozen=True, slots=True)
class Cores:
    """Where the two sides run."""

    server: frozenset[int]
    client: frozenset[int]


def split_cores() -> Cores:
    """Cores for the servers, and one for the client: a core that they share shows in every figure."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) == 1:
        print("bench: one core only, client and server share it: figures will be worse", file=sys.stderr)
        return Cores(frozenset(cores), frozenset(cores))
    return Cores(frozenset(cores[:-1]), frozenset(cores[-1:]))


def raise_descriptor_limit(needed: int) -> None:
    """Raises the soft limit to the hard one, and that one too where it may; client and server inherit them.

    Raises EndedEarly when that is not enough.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard == resource.RLIM_INFINITY else max(hard, needed)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
    except (OSError, ValueError) as error:
        raise EndedEarly(f"{needed} descriptors are needed, the hard limit is {hard}: raise it") from error


def bound_the_run(seconds: int) -> None:
    """SIGTERM and the end of the time leave by EndedEarly, so that started processes are ended."""

    def leave(number: int, _: FrameType | None) -> None:
        why = f"it took longer than {seconds} s" if number == signal.SIGALRM else "SIGTERM"
        raise EndedEarly(f"ended early: {why}")

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGALRM, leave)
    signal.alarm(seconds)
