"""A stream may be cut behind any byte of its response: client programs that others wrote resume and count exactly.

Each byte offset has a user of its own, so that all cuts of a sequence of frames happen in one run of a client program.
"""

import json
import re
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pytest

from core.sse import EventParser, ServerSentEvent
from tests.e2e.byte_proxy import ByteProxy, Passage
from tests.e2e.programs import PROGRAMS, node_command
from tests.e2e.tally import KNOWN_EVENTS, Counts, Tally, counted, place
from tests.e2e.wire import ChunkedBody
from tests.process import ServerProcess, running_server, wait_until

HERE = Path(__file__).parent
STRATEGIES = (3, 4)

HEARTBEAT = b"2\r\n:\n\r\n"
HOURLY_SUMMARY = re.compile(rb"[0-9a-f]+\r\nevent: order_hourly_summary\n[^\r]*\r\n")

DEADLINE_SECONDS = 60
"""How long a step of all streams may take, on a machine that is busy with other things."""

NEEDED_DESCRIPTORS = 4096
"""Two for each stream in the proxy, some 1,500 streams, and what else is open."""

FIRST_USERS = count(1_000_000, 10_000)
"""Where the users of each run begin. All have seven digits: responses are equally long for all users of a run."""


class Batch(NamedTuple):
    """What everyone is sent. A result is written `+LIMIT` for created, `-LIMIT` for cancelled, `!LIMIT` for failed."""

    strategy_id: int
    results: str

    def fields(self) -> list[dict[str, object]]:
        """The results as they are emitted."""
        kinds = {"+": "order_created", "-": "order_cancelled", "!": "order_created"}
        return [
            {"order_type": result[1:], "event_type": kinds[result[0]], "success": result[0] != "!"}
            for result in self.results.split()
        ]

    def counts(self) -> Counts:
        """What they count."""
        return counted(self.strategy_id, self.fields())


class Story(NamedTuple):
    """What happens to every stream. With `holds` those that were cut come back behind the last live batch only."""

    earlier: tuple[Batch, ...]
    """Accepted before the streams are opened, which then ask for them."""
    live: tuple[Batch, ...]
    holds: bool
    events: list[str]
    """What the response is made of that is cut behind each byte."""

    def counts(self) -> Counts:
        """What a client has counted in the end."""
        return sum((batch.counts() for batch in (*self.earlier, *self.live, LAST)), Counts())


LIVE = (
    Batch(3, "+LIMIT +LIMIT !MARKET -STOP_LIMIT"),
    Batch(4, "-LIMIT +MARKET"),
    Batch(3, "-LIMIT -LIMIT +STOP_MARKET"),
)
LAST = Batch(4, "+LIMIT -MARKET")
"""Sent when everyone is back: a position that was wrong all the time shows here at the latest."""

STORIES = {
    "from-the-head": Story(
        earlier=(),
        live=LIVE,
        holds=True,
        events=["stream_open", *["order_batch_update"] * 3],
    ),
    "resuming": Story(
        earlier=(Batch(3, "+LIMIT -MARKET"), Batch(4, "+STOP_LIMIT"), Batch(3, "-LIMIT")),
        live=LIVE[:1],
        holds=False,
        events=["stream_open", "order_batch_catch_up", "order_batch_update"],
    ),
}

Command = Callable[[str, int, int], list[str]]
"""A client program on a URL that lacks the user, for so many users from the first."""


def httpx_sse(url: str, first: int, users: int) -> list[str]:
    return [sys.executable, str(PROGRAMS / "crowd_httpx_sse.py"), url, str(first), str(users)]


def requests_sse(url: str, first: int, users: int) -> list[str]:
    return [sys.executable, str(PROGRAMS / "crowd_requests_sse.py"), url, str(first), str(users)]


def sseclient_py(url: str, first: int, users: int) -> list[str]:
    return [sys.executable, str(PROGRAMS / "crowd_sseclient.py"), url, str(first), str(users)]


def npm_eventsource(url: str, first: int, users: int) -> list[str]:
    return node_command("crowd_eventsource.mjs", url, str(first), str(users), *sorted(KNOWN_EVENTS))


PROGRAMS_UNDER_TEST: dict[str, Command] = {
    "httpx-sse": httpx_sse,
    "requests-sse": requests_sse,
    "sseclient-py": sseclient_py,
    "npm-eventsource": npm_eventsource,
}


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    # The bytes of a response are counted: heartbeats as rare as may be, see `_without_interludes`.
    with running_server("--heartbeat-seconds=3600", "--retry-ms=2", "--keep-rows=1000000") as server:
        yield server


@pytest.fixture(scope="module", autouse=True)
def descriptors() -> Iterator[None]:
    """Enough of them for the proxy, which runs in this process, and for the client programs, which inherit that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < NEEDED_DESCRIPTORS:
        pytest.skip(f"a crowd of streams needs {NEEDED_DESCRIPTORS} descriptors, the hard limit here is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, NEEDED_DESCRIPTORS), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
@pytest.mark.parametrize("name", PROGRAMS_UNDER_TEST)
def test_a_stream_cut_behind_any_byte_of_its_frames_resumes_exactly(
    name: str, story: Story, server: ServerProcess, tmp_path: Path
) -> None:
    command = PROGRAMS_UNDER_TEST[name]
    uncut = _without_interludes(*_play(server, command, story, [None], tmp_path))
    assert [event.event for event in _events_of(uncut)] == story.events

    # From the cut that lets nothing of the response pass to the one behind its last byte; and one stream is not cut.
    offsets = range(len(uncut) + 1)
    resets_odd = list(PROGRAMS_UNDER_TEST).index(name) % 2 == 1
    *passed, uncut_again = _play(server, command, story, [*offsets, None], tmp_path, resets_odd=resets_odd)
    assert [len(response) for response in passed] == list(offsets)
    assert len(_without_interludes(uncut_again)) == len(uncut), "the responses of all users are equally long"


# ---- the steps


def _play(
    server: ServerProcess,
    command: Command,
    story: Story,
    cut_at: Sequence[int | None],
    output: Path,
    *,
    resets_odd: bool = False,
) -> list[bytes]:
    """Play the story to one user for each offset, and check what each client counted.

    Every other cut is a reset, the others end in order. Answers what passed of each first response: where it is not
    cut, up to the last live batch.
    """
    first = next(FIRST_USERS)
    users = range(first, first + len(cut_at))
    position = _accepted(server, users, story.earlier)
    tallies = {user_id: Tally(position) for user_id in users}
    with ByteProxy(server.public_port, dict(zip(users, cut_at, strict=True)), users[resets_odd::2]) as proxy:
        passages = proxy.passages
        query = "&".join(f"strategy_id={strategy_id}" for strategy_id in STRATEGIES)
        url = f"{proxy.base}/stream?{query}" + (f"&last_event_id={position}" if position else "")
        program = command(url, first, len(users))
        with (
            _saying(lambda: f"mistakes of the proxy: {proxy.errors}"),
            _crowd(program, output / str(first), tallies, passages) as crowd,
        ):
            crowd.wait_until_at(len(story.earlier))
            if story.holds:
                proxy.hold()
            _accepted(server, users, story.live)
            _wait_until_all_are_cut(passages)
            crowd.wait_until_at(len(story.earlier + story.live), [u for u in users if passages[u].cut_at is None])
            responses = [passages[user_id].first_response for user_id in users]
            proxy.release()
            crowd.wait_until_at(len(story.earlier + story.live))
            _accepted(server, users, (LAST,))
            crowd.wait_until_at(len((*story.earlier, *story.live, LAST)))
        assert not proxy.errors
    for user_id, passage in passages.items():
        _check(tallies[user_id], passage, story)
    if len(users) > 1:
        assert crowd.seen["order_batch_catch_up"], "somebody missed batches of both strategies"
    return responses


def _accepted(server: ServerProcess, users: Sequence[int], batches: Iterable[Batch]) -> str:
    """Emit batches to everyone, one call each; answers the position before the first of a user's life, if any.

    Nobody is left behind when it returns, so that no batch becomes part of another one's frame.
    """
    epoch = ""
    for batch in batches:
        fields = {"strategy_id": batch.strategy_id, "batch_results": batch.fields()}
        answers = server.post("/internal/emit", [{"user_id": user_id, **fields} for user_id in users])
        assert {answer["status"] for answer in answers} == {"accepted"}
        epoch = answers[0]["position"].rpartition("-")[0]
        wait_until(lambda: server.get("/internal/connections")["lagging"] == 0, "nobody is left behind")
    return epoch and f"{epoch}-0"


def _without_interludes(response: bytes) -> bytes:
    """However rare heartbeats are, each is somebody's: of thousands of streams one is met every few minutes. And once
    in a while an hour ends."""
    return HOURLY_SUMMARY.sub(b"", response.replace(HEARTBEAT, b""))


def _wait_until_all_are_cut(passages: Mapping[int, Passage]) -> None:
    def left() -> list[Passage]:
        return [passage for passage in passages.values() if passage.cut_at is not None and not passage.cuts]

    with _saying(lambda: f"not cut yet: {_named(left())}"):
        wait_until(lambda: not left(), "every cut", DEADLINE_SECONDS)


def _check(tally: Tally, passage: Passage, story: Story) -> None:
    where = str(passage)
    assert tally.counts == story.counts(), where
    if passage.cut_at is None:
        assert len(passage.requests) == 1, "nobody comes back without a cut"
    else:
        assert passage.cuts == [passage.cut_at], where
        assert len(passage.requests) == 2, where


def _named(passages: Sequence[Passage]) -> str:
    return f"{len(passages)} streams, {', '.join(map(str, passages[:10]))}"


def _events_of(response: bytes) -> list[ServerSentEvent]:
    """The events of a response, which must end with the last byte of a frame."""
    body = ChunkedBody()
    payload = body.feed(response.partition(b"\r\n\r\n")[2])
    assert payload.endswith(b"\n\n")
    assert response.endswith(b"\n\n\r\n")
    return EventParser().feed(payload)


# ---- client programs


class Crowd:
    """A client program with a stream for each user, and what it has handed over, counted by user."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        output: BinaryIO,
        errors: Path,
        tallies: Mapping[int, Tally],
        passages: Mapping[int, Passage],
    ) -> None:
        self.seen: Counter[str] = Counter()
        """Events by type."""
        self._process = process
        self._output = output
        self._errors = errors
        self._tallies = tallies
        self._passages = passages
        self._unfinished = b""

    def wait_until_at(self, n: int, users: Iterable[int] | None = None) -> None:
        """Until these users, or all, have been brought up to this place of theirs."""
        waiting = set(self._tallies if users is None else users)

        def are_there() -> bool:
            self._count()
            waiting.difference_update([user_id for user_id in waiting if self._is_at(user_id, n)])
            return not waiting

        def not_there() -> str:
            passages = [self._passages[user_id] for user_id in sorted(waiting)]
            return f"not at {n}: {_named(passages)}; the program says: {self._errors.read_text()}"

        with _saying(not_there):
            wait_until(are_there, f"every client at {n}", DEADLINE_SECONDS)

    def _is_at(self, user_id: int, n: int) -> bool:
        tally = self._tallies[user_id]
        return tally.opened > 0 and place(tally.position) >= n

    def _count(self) -> None:
        assert self._process.poll() is None, f"the program ended: {self._errors.read_text()}"
        *lines, self._unfinished = (self._unfinished + self._output.read()).split(b"\n")
        for line in lines:
            self._add(*json.loads(line))

    def _add(self, user_id: int, event: str, data: str, event_id: str) -> None:
        self.seen[event] += 1
        with _saying(lambda: str(self._passages[user_id])):
            self._tallies[user_id].add(event, data, event_id)


@contextmanager
def _crowd(
    command: list[str], output: Path, tallies: Mapping[int, Tally], passages: Mapping[int, Passage]
) -> Iterator[Crowd]:
    output.mkdir()
    events, errors = output / "events", output / "errors"
    with events.open("wb") as stdout, errors.open("wb") as stderr:
        process = subprocess.Popen(command, cwd=HERE, stdout=stdout, stderr=stderr)
    try:
        with events.open("rb") as handed_over:
            yield Crowd(process, handed_over, errors, tallies, passages)
    finally:
        process.kill()
        process.wait()


@contextmanager
def _saying(what: Callable[[], str]) -> Iterator[None]:
    """A failure in the block says this, too."""
    try:
        yield
    except AssertionError as error:
        error.add_note(what())
        raise
