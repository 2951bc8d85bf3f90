"""Order services and stream clients that remember what they were told, and what must be true of a journal after that.

A `Ledger` and its clients outlive the servers: what they hold must stand in the journal of the next one.
"""

import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from itertools import count
from typing import Any, NamedTuple
from urllib.error import HTTPError

from tests.e2e.tally import Counts, Tally, counted, place, summed
from tests.e2e.wire import StreamSocket
from tests.process import ServerProcess, wait_until

KEYS = ((1, 1), (1, 2), (2, 1))
"""The stream keys that are emitted to: user and strategy."""

ANSWER_SECONDS = 20
"""How long an answer may take, on a machine that is busy with other things."""

NOT_FOUND, UNAVAILABLE = 404, 503

ORDER_TYPES = ("LIMIT", "MARKET", "STOP_LIMIT")
SIZES = (1,) * 12 + (2, 3, 4, 5) * 3 + (1000,)
"""How many batches a call has. A thousand make a round of housekeeping due."""

EVENT_TYPES = ("order_created", "order_cancelled")

Place = tuple[int, str]
"""A user and one of its positions."""

Recorded = dict[Place, tuple[int, Counts]]
"""What a journal keeps: the strategy and the counts of each batch."""


class Batch(NamedTuple):
    """One batch; without a `key` it may not be emitted again when its outcome is unknown."""

    user_id: int
    strategy_id: int
    results: tuple[dict[str, object], ...]
    key: str | None

    def fields(self) -> dict[str, object]:
        """The batch as it is emitted, its key in it."""
        fields = {"user_id": self.user_id, "strategy_id": self.strategy_id, "batch_results": self.results}
        return fields if self.key is None else fields | {"idempotency_key": self.key}

    def counts(self) -> Counts:
        """What it counts."""
        return counted(self.strategy_id, self.results)


class Ledger:
    """What callers were told, and how the batches are called that they will emit."""

    def __init__(self) -> None:
        self.acknowledged: dict[Place, Batch] = {}
        """Over all lives of the server."""
        self.unanswered: list[Batch] = []
        """Keyed, and not known to be accepted."""
        self.perhaps: list[Batch] = []
        """Not keyed, and not known to be accepted."""
        self.refused: Counter[str] = Counter()
        """Calls by the code of their problem."""
        self._names = count(1)

    def batch(self, dice: random.Random, *, is_keyed: bool) -> Batch:
        """One more."""
        user_id, strategy_id = dice.choice(KEYS)
        results = tuple(
            {"order_type": dice.choice(ORDER_TYPES), "event_type": dice.choice(EVENT_TYPES), "success": True}
            for _ in range(dice.randint(1, 6))
        )
        return Batch(user_id, strategy_id, results, f"order-{next(self._names)}" if is_keyed else None)

    def acknowledge(self, batch: Batch, answer: Any) -> None:
        """A batch was accepted; no position may ever get a second meaning."""
        assert summed(batch.strategy_id, answer["summaries"]) == batch.counts()
        earlier = self.acknowledged.setdefault((batch.user_id, answer["position"]), batch)
        assert earlier == batch, f"{answer['position']} has two meanings: {earlier} and {batch}"

    def doubt(self, batches: Iterable[Batch]) -> None:
        """Nobody said that these were accepted."""
        for batch in batches:
            (self.perhaps if batch.key is None else self.unanswered).append(batch)

    def retry(self, server: ServerProcess) -> None:
        """Emit again whatever has a key and no answer; nothing may be refused now."""
        while self.unanswered:
            batch = self.unanswered[-1]
            self.acknowledge(batch, server.post("/internal/emit", batch.fields()))
            self.unanswered.pop()

    def forget(self) -> None:
        """Begin anew, with an epoch; batches are still called by names that no other had."""
        self.acknowledged.clear()
        self.unanswered.clear()
        self.perhaps.clear()

    def check(self, server: ServerProcess) -> Recorded:
        """The journal has what was acknowledged, as it was acknowledged, and beyond it nothing but what is in doubt."""
        recorded = read_journal(server)
        missing = [position for user_id, position in self.acknowledged if (user_id, position) not in recorded]
        assert not missing, f"{len(missing)} acknowledged batches are missing: {sorted(missing, key=place)}"
        for where, batch in self.acknowledged.items():
            assert recorded[where] == (batch.strategy_id, batch.counts()), f"{where} has another meaning than {batch}"
        unexpected = Counter(
            _meaning(where[0], *recorded[where]) for where in recorded if where not in self.acknowledged
        )
        doubted = Counter(
            _meaning(batch.user_id, batch.strategy_id, batch.counts()) for batch in self.unanswered + self.perhaps
        )
        assert unexpected <= doubted, f"counted twice, or never emitted: {unexpected - doubted}"
        check_sums(server, recorded)
        return recorded


def read_journal(server: ServerProcess) -> Recorded:
    """Every batch that is kept."""
    return {
        (user_id, position): (strategy_id, counts)
        for user_id, strategy_id in KEYS
        for position, counts in _batches(server, user_id, strategy_id).items()
    }


def check_sums(server: ServerProcess, recorded: Recorded) -> None:
    """No n was left out, and the totals of each key are the sum of its batches. For a journal that was not trimmed."""
    for user_id, strategy_id in KEYS:
        places = sorted(place(position) for user, position in recorded if user == user_id)
        assert places == list(range(1, len(places) + 1)), "n is dense"
        of_key = (
            counts
            for (user, _position), (strategy, counts) in recorded.items()
            if (user, strategy) == (user_id, strategy_id)
        )
        assert sum(of_key, Counts()) == totals(server, user_id, strategy_id), "totals are the sum of the batches"


def totals(server: ServerProcess, user_id: int, strategy_id: int) -> Counts:
    """What the server states of a key; nothing before its first batch."""
    try:
        stated = server.get(f"/internal/keys/{user_id}/{strategy_id}")
    except HTTPError as error:
        if error.code != NOT_FOUND:
            raise
        return Counts()
    return summed(strategy_id, stated["totals"])


def _batches(server: ServerProcess, user_id: int, strategy_id: int) -> dict[str, Counts]:
    batches: dict[str, Counts] = {}
    after = ""
    while True:
        answer = server.get(f"/internal/batches?user_id={user_id}&strategy_id={strategy_id}{after}")
        batches |= {batch["position"]: summed(strategy_id, batch["summaries"]) for batch in answer["batches"]}
        if not answer["has_more"]:
            return batches
        after = f"&after={answer['batches'][-1]['position']}"


def _meaning(user_id: int, strategy_id: int, counts: Counts) -> tuple[object, ...]:
    return user_id, strategy_id, *sorted(counts.items())


class Caller:
    """An order service in a thread of its own: it emits until it is stopped or loses its connection, or is refused,
    unless it `insists`.

    A call is one batch, or some, or now and then as many as make a round of housekeeping due; with keys, or without
    unless `only_keyed`.
    """

    def __init__(
        self, server: ServerProcess, ledger: Ledger, seed: int, *, only_keyed: bool = False, insists: bool = False
    ) -> None:
        self.ended = threading.Event()
        self._port = server.internal_port
        self._ledger = ledger
        self._dice = random.Random(seed)
        self._only_keyed = only_keyed
        self._insists = insists
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"caller-{seed}")
        self._thread.start()

    def ask_to_stop(self) -> None:
        """Send no further call."""
        self._stop.set()

    def join(self) -> None:
        """Wait for the answer of the last call. Raises what went wrong."""
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            with closing(HTTPConnection("127.0.0.1", self._port, timeout=ANSWER_SECONDS)) as connection:
                while not self._stop.is_set() and self._call(connection):
                    pass
        except BaseException as error:
            self._error = error
        finally:
            self.ended.set()

    def _call(self, connection: HTTPConnection) -> bool:
        """Answers whether to go on."""
        is_keyed = self._only_keyed or self._dice.random() < 0.5
        size = self._dice.choice(SIZES)
        is_single = size == 1
        batches = [self._ledger.batch(self._dice, is_keyed=is_keyed) for _ in range(size)]
        body = batches[0].fields() if is_single else [batch.fields() for batch in batches]
        try:
            connection.request("POST", "/internal/emit", json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = json.loads(response.read())
        except (OSError, HTTPException):
            self._ledger.doubt(batches)
            return False
        if response.status != 200:
            assert response.status == UNAVAILABLE, answer
            self._ledger.refused[answer["code"]] += 1
            self._ledger.doubt(batches)
            return self._insists
        for batch, accepted in zip(batches, [answer] if is_single else answer, strict=True):
            self._ledger.acknowledge(batch, accepted)
        return True


@contextmanager
def calling(
    server: ServerProcess, ledger: Ledger, seeds: Iterable[int], *, only_keyed: bool = False, insists: bool = False
) -> Iterator[list[Caller]]:
    """Callers at work; afterwards they have stopped and nothing was wrong."""
    callers = [Caller(server, ledger, seed, only_keyed=only_keyed, insists=insists) for seed in seeds]
    try:
        yield callers
    finally:
        for caller in callers:
            caller.ask_to_stop()
        for caller in callers:
            caller.join()


class Client:
    """A stream client that comes back to every server with its sums and its position.

    `reset`: the data of the `stream_reset` that its last stream began with. `closing`: the reason that it was told.
    """

    def __init__(self, user_id: int, *strategies: int) -> None:
        self.user_id = user_id
        self.strategies = strategies
        self.tally = Tally()
        self.reset: Any = None
        self.closing = ""
        self.opened = threading.Event()
        """The first event of the last stream has been counted."""
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._stream: StreamSocket | None = None

    @property
    def is_following(self) -> bool:
        """Its last stream has not ended."""
        return self._thread is not None and self._thread.is_alive()

    def follow(self, server: ServerProcess) -> None:
        """Open a stream at the position, and read it in a thread until it ends; returns when it has begun."""
        self.reset, self.closing = None, ""
        self.opened.clear()
        query = "&".join([f"user_id={self.user_id}", *(f"strategy_id={each}" for each in self.strategies), "totals=1"])
        self._stream = StreamSocket(server.public_port, f"{query}&last_event_id={self.tally.position}")
        self._thread = threading.Thread(target=self._read, args=(self._stream,), name=f"client-{self.user_id}")
        self._thread.start()
        assert self.opened.wait(ANSWER_SECONDS), "the stream has begun"
        self._raise()

    def catch_up(self, server: ServerProcess) -> None:
        """Until the sums are those that the server states now."""
        expected = sum((totals(server, self.user_id, each) for each in self.strategies), Counts())
        wait_until(lambda: self._has_counted(expected), f"sums of {expected}")

    def hang_up(self) -> None:
        """Leave now."""
        if self._stream is not None:
            self._stream.hang_up()
        self.leave()

    def leave(self) -> None:
        """Wait for the end of the stream, whoever ended it. Raises what was wrong with it."""
        if self._thread is not None:
            self._thread.join(ANSWER_SECONDS)
            assert not self._thread.is_alive(), "the stream has ended"
            self._thread = None
        if self._stream is not None:
            self._stream.__exit__(None, None, None)
        self._raise()

    def check(self, recorded: Recorded) -> None:
        """What it was shown is what the journal has up to its position."""
        if not self.tally.updates:
            return
        head = place(self.tally.position)
        assert (self.user_id, self.tally.position) in recorded, f"{self.tally.position} was shown and is missing"
        shown = sum(
            (
                counts
                for (user_id, position), (strategy_id, counts) in recorded.items()
                if user_id == self.user_id and strategy_id in self.strategies and place(position) <= head
            ),
            Counts(),
        )
        assert self.tally.counts == shown, "what was shown is in the journal"

    def _has_counted(self, expected: Counts) -> bool:
        self._raise()
        return self.tally.counts == expected

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _read(self, stream: StreamSocket) -> None:
        seen = 0
        try:
            is_open = True
            while is_open:
                # A server that is killed resets its connections.
                try:
                    is_open = stream.read()
                except OSError:
                    is_open = False
                for event in stream.events[seen:]:
                    self._take(event.event, event.data, event.last_event_id)
                seen = len(stream.events)
        except BaseException as error:
            self._error = error
            self.opened.set()

    def _take(self, event: str, data: str, event_id: str) -> None:
        if event == "stream_reset":
            self.reset = json.loads(data)["data"]
            self.tally = Tally(self.reset["position"])
            for stated in self.reset["totals"]:
                self.tally.counts += summed(stated["strategy_id"], stated["summaries"])
        else:
            self.tally.add(event, data, event_id)
        if event == "stream_closing":
            self.closing = json.loads(data)["data"]["reason"]
        self.opened.set()


@contextmanager
def following(server: ServerProcess, clients: Sequence[Client], end: Callable[[], object]) -> Iterator[None]:
    """Clients on their streams; `end` ends them, and nothing was wrong then."""
    try:
        for client in clients:
            client.follow(server)
        yield
    finally:
        with suppress(OSError):
            end()
        for client in clients:
            client.leave()
