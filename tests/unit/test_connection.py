"""A stream on a real socket, and many of them written to at once: in C where it was compiled, else in Python."""

import errno
import os
import select
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from core.counters import StreamCounters
from core.subscriber import CloseReason, State, for_each, stream_options
from handlers import connection as module
from handlers.connection import Connection
from handlers.readiness import WRITE, Owner

FRAME = bytes(range(256)) + b"one"
SECOND = bytes(reversed(range(256))) + b"two"
SECONDS = 20
"""For what has to come, on a machine that is busy."""

SETTLED_SECONDS = 0.1
"""By then what was on its way has arrived, and makes no more room."""

COUNTS = 7


class Watch:
    """A readiness that writes down what is wanted of it."""

    def __init__(self) -> None:
        self.events: dict[int, int] = {}
        self.fails_for: int | None = None

    def watch(self, descriptor: int, owner: Owner, events: int) -> None:
        """See `Readiness`."""
        if descriptor == self.fails_for and descriptor in self.events:
            raise OSError("no memory")
        self.events[descriptor] = events

    def forget(self, descriptor: int) -> None:
        """See `Readiness`."""
        self.events.pop(descriptor, None)


class Client:
    """Both ends of a TCP connection with a stream on it, READY."""

    def __init__(self, watch: Watch, counters: StreamCounters) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.theirs = socket.create_connection(listener.getsockname(), SECONDS)
            self.ours, _ = listener.accept()
        self.ours.setblocking(False)
        self.descriptor = self.ours.fileno()
        self.stream = Connection(7, stream_options(), self.ours, watch)
        self.stream.counters = counters
        self.endings: list[CloseReason] = []
        self.stream.on_closed = lambda _stream, reason: self.endings.append(reason)
        self.stream.state = State.READY
        self.filled_bytes = 0

    def fill(self) -> None:
        """Nothing is read, and the kernel has no room left."""
        refusals = 0
        while refusals < 2:
            try:
                # There may be room for a byte where there is none for more.
                self.filled_bytes += self.ours.send(b"-" * (1 if refusals else 65536))
            except BlockingIOError:
                refusals += 1
                select.select([], [self.ours], [], SETTLED_SECONDS)

    def take(self, size_bytes: int) -> bytes:
        """Read so much."""
        taken = b""
        while len(taken) < size_bytes and (data := self.theirs.recv(min(size_bytes - len(taken), 65536))):
            taken += data
        return taken

    def rest(self) -> bytes:
        """Everything that is still on its way, when we send nothing more."""
        self.ours.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: self.theirs.recv(65536), b""))

    def go_on(self) -> None:
        """Tell the stream that there is room, until it has sent all."""
        deadline = time.monotonic() + SECONDS
        while self.stream.state is State.BLOCKED and time.monotonic() < deadline:
            select.select([], [self.ours], [], SECONDS)
            self.stream.on_writable()

    def reset(self) -> None:
        """The client's kernel refuses from now on."""
        self.theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.theirs.close()

    def close(self) -> None:
        self.stream.close("client_closed")
        self.theirs.close()


class Crowd:
    """Streams of one user."""

    def __init__(self, size: int) -> None:
        self.watch = Watch()
        self.counters = StreamCounters()
        self.clients = [Client(self.watch, self.counters) for _ in range(size)]

    def write(self, frame: bytes = FRAME) -> None:
        streams = [client.stream for client in self.clients]
        streams[0].hand_over_to_each(streams, frame, COUNTS)


@pytest.fixture(params=["native", "python"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "python":
        monkeypatch.setattr(module, "send_to_each", None)
    elif module.send_to_each is None:
        # What a user without them runs is the other way, which is always tried.
        pytest.skip("no C compiler, or not Python's headers, were at hand when this was installed")
    return str(request.param)


@pytest.fixture
def crowd(way: str) -> Iterator[Crowd]:
    crowd = Crowd(5)
    yield crowd
    for client in crowd.clients:
        client.close()


def test_each_gets_every_byte_once(crowd: Crowd) -> None:
    crowd.write()
    crowd.write(SECOND)

    assert [client.rest() for client in crowd.clients] == [FRAME + SECOND] * 5
    assert crowd.counters.counts_delivered == 2 * 5 * COUNTS
    assert {client.stream.state for client in crowd.clients} == {State.READY}


def test_who_has_no_room_keeps_the_frame_and_the_others_have_it(crowd: Crowd) -> None:
    slow = crowd.clients[2]
    slow.fill()

    crowd.write()

    assert [client.stream.state is State.BLOCKED for client in crowd.clients] == [False, False, True, False, False]
    assert slow.stream.unsent_bytes == len(FRAME)
    assert slow.stream.pending_counts() == COUNTS
    assert crowd.counters.counts_delivered == 4 * COUNTS
    assert crowd.watch.events[slow.descriptor] & WRITE
    assert [client.rest() for client in crowd.clients if client is not slow] == [FRAME] * 4

    slow.take(slow.filled_bytes)
    slow.go_on()
    assert slow.rest() == FRAME
    assert crowd.counters.counts_delivered == 5 * COUNTS


def test_who_is_gone_ends_and_the_others_have_it(crowd: Crowd) -> None:
    for gone in (crowd.clients[0], crowd.clients[3]):
        gone.reset()

    crowd.write()

    assert [client.endings for client in crowd.clients] == [["reset"], [], [], ["reset"], []]
    assert crowd.counters.counts_delivered == 3 * COUNTS
    assert crowd.counters.counts_abandoned == 2 * COUNTS
    assert [crowd.clients[place].rest() for place in (1, 2, 4)] == [FRAME] * 3
    assert crowd.clients[0].descriptor not in crowd.watch.events


def test_a_fault_with_one_is_raised_when_the_others_have_been_looked_after(crowd: Crowd) -> None:
    faulty, slow = crowd.clients[1], crowd.clients[4]
    faulty.fill()
    slow.fill()
    crowd.watch.fails_for = faulty.descriptor

    with pytest.raises(OSError, match="no memory"):
        crowd.write()

    assert faulty.endings == ["fault"]
    assert crowd.counters.counts_abandoned == COUNTS
    assert slow.stream.state is State.BLOCKED
    assert crowd.counters.counts_delivered == 3 * COUNTS


def test_when_nobody_knows_what_left_all_have_to_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_descriptors: list[int], _data: bytes) -> list[tuple[int, int]]:
        raise MemoryError

    monkeypatch.setattr(module, "send_to_each", fail)
    crowd = Crowd(3)
    with pytest.raises(MemoryError):
        crowd.write()

    assert [client.endings for client in crowd.clients] == [["fault"]] * 3
    assert crowd.counters.counts_abandoned == 3 * COUNTS
    for client in crowd.clients:
        client.theirs.close()


def test_all_that_goes_wrong_is_raised() -> None:
    with pytest.raises(ExceptionGroup) as raised:
        for_each([1, 0, 2, 0], lambda number: 1 // number)
    assert [type(each) for each in raised.value.exceptions] == [ZeroDivisionError] * 2


@pytest.mark.parametrize("taken", [0, 1, len(FRAME) - 1])
def test_the_rest_of_what_was_taken_in_part_leaves_first(taken: int, crowd: Crowd) -> None:
    client = crowd.clients[0]
    client.stream.settle(FRAME, COUNTS, client.ours.send(FRAME[:taken]))
    assert client.stream.unsent_bytes == len(FRAME) - taken

    client.go_on()

    assert client.stream.state is State.READY
    assert client.rest() == FRAME


@pytest.mark.parametrize(
    ("taken", "outcome"), [(5, 5), (0, 0), (-errno.ETIMEDOUT, "stalled"), (-errno.EPIPE, "reset"), (-9, "reset")]
)
def test_what_the_kernel_says_has_its_reason(taken: int, outcome: int | CloseReason) -> None:
    assert module._outcome(taken) == outcome


@pytest.mark.parametrize("way", ["native"], indirect=True)
class TestExtension:
    """What it does with what nobody should hand it."""

    def test_it_answers_for_each_that_did_not_take_all(self, way: str) -> None:
        assert module.send_to_each is not None
        crowd = Crowd(3)
        crowd.clients[1].fill()
        closed = os.dup(0)
        os.close(closed)
        descriptors = [crowd.clients[0].descriptor, crowd.clients[1].descriptor, closed]

        rest = module.send_to_each(descriptors, FRAME)

        assert rest == [(1, 0), (2, -errno.EBADF)]
        for client in crowd.clients:
            client.close()

    def test_a_part_is_counted(self, way: str) -> None:
        assert module.send_to_each is not None
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        large = b"y" * 2**22

        ((place, taken),) = module.send_to_each([ours.fileno()], large)

        assert place == 0
        assert 0 < taken < len(large)
        ours.close()
        assert len(b"".join(iter(lambda: theirs.recv(65536), b""))) == taken
        theirs.close()

    def test_what_is_no_list_of_descriptors_is_refused(self, way: str) -> None:
        assert module.send_to_each is not None
        send = module.send_to_each
        with pytest.raises(TypeError):
            send((1, 2), FRAME)  # type: ignore[arg-type]  # on purpose
        with pytest.raises(TypeError):
            send(["1"], FRAME)  # type: ignore[list-item]  # on purpose
        with pytest.raises(TypeError):
            send([1], "text")  # type: ignore[arg-type]  # on purpose
        with pytest.raises(ValueError, match="at most 256"):
            send([0] * 257, FRAME)
        with pytest.raises(ValueError, match="no descriptor"):
            send([2**32], FRAME)
        assert send([], FRAME) == []
