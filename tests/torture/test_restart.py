"""A short version of `python -m tests.torture.restart`."""

import asyncio
from pathlib import Path

import pytest

from tests.torture import restart

STREAMS, RATE = 200, 100


def test_a_restart_under_load_loses_nothing_and_paces_who_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restart, "LOAD_SECONDS", 0.5)
    run = restart.Restart(STREAMS, RATE, tmp_path)
    service = asyncio.run(run.run())

    assert run.exit_code == 0
    assert (run.farewells, run.refused) == ({"draining": STREAMS}, {})
    assert service.accepted.total() > 0
    assert run.missing(service) == 0
    # Half to one and a half of retry_ms, and a place within the time that so many take at that rate.
    came_back = [moment - run.down_at for moment in run.opened]
    assert len(came_back) == STREAMS
    assert max(came_back) - min(came_back) > STREAMS / RATE / 2, "they do not come at once"
