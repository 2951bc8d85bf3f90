"""What every test shares: a loop, a quiet log, and skips that are failures where everything can be installed."""

import asyncio
import logging
import os
import signal
from collections.abc import Generator, Iterator

import hypothesis
import pytest
from tornado.ioloop import IOLoop
from tornado.platform.asyncio import AsyncIOLoop

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As a shell does to what it runs in the background. The programs under test would ignore Ctrl-C, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)

if os.environ.get("TALLYWIRE_NO_SKIPS"):
    # The check of a clone says the same about the same code each time; who works on it looks further at each run.
    hypothesis.settings.register_profile("the same each time", derandomize=True)
    hypothesis.settings.load_profile("the same each time")


@pytest.fixture
def io_loop() -> Iterator[IOLoop]:
    """A fresh loop for each test; pytest-tornado's own predates the asyncio of today."""
    asyncio_loop = asyncio.new_event_loop()
    asyncio.set_event_loop(asyncio_loop)
    loop = AsyncIOLoop(asyncio_loop=asyncio_loop)
    yield loop
    unfinished = [task for task in asyncio.all_tasks(asyncio_loop) if not task.done()]
    for task in unfinished:
        task.cancel()
    asyncio_loop.run_until_complete(asyncio.gather(*unfinished, return_exceptions=True))
    loop.close(all_fds=True)
    asyncio.set_event_loop(None)


@pytest.fixture(autouse=True)
def quiet_log(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Silence is specified: a warning or an error that the test did not announce fails it."""
    marker = request.node.get_closest_marker("logs")
    announced = set(marker.args) if marker else set()
    yield
    unannounced = [
        record.getMessage()
        for when in ("setup", "call")
        for record in caplog.get_records(when)
        if record.levelno >= logging.WARNING and record.getMessage() not in announced
    ]
    assert not unannounced


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With TALLYWIRE_NO_SKIPS a skipped test has failed: something that could be installed is missing."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("TALLYWIRE_NO_SKIPS"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, and no skip is allowed here: {report.longrepr}"
    return report
