"""The load client: thousands of streams and the emitter that feeds them, on one epoll of raw sockets.

It lives in another process than the server and should live on another core. It does as little per frame as
Python allows (one `recv`, one `count`), so that the server is the limit and not the client; the client's CPU
in each table shows whether that held. It parses no event: a frame is an event block with an `id:` line, and
those are counted. What is owed is exact: each answer says how many connections its frame went to, and a run
that does not receive precisely that many fails.
"""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import msgspec

from bench.server import Address

MARKER = b"\nid: "
ANSWER_END = b"\r\n\r\n"
READ_BYTES = 16 * 1024
EMITTER_SEND_BYTES = 128 * 1024  # a call of 30 batches of ten results has 22 KiB
# A client that sleeps in epoll must be woken by the server's `send`: 4 µs a frame which a client on another
# machine would not cost, paid by a slow server for each frame and by a fast one for few. Reading in bursts,
# nobody pays it often. Times on the wall are that much less exact. Fan-out is measured both ways.
READ_PAUSE_SECONDS = 0.0003
POLL_SECONDS = 0.5
POLL_EVENTS = 1024
CONNECT_SECONDS = 5.0
WAIT_SECONDS = 30.0
# Below the smallest accept backlog in use (128): a SYN dropped there comes again only after a second.
OPENINGS_IN_FLIGHT = 64
# An address has 28,232 ephemeral ports towards one listener by default, TIME_WAIT included: stay well below.
STREAMS_PER_CLIENT_ADDRESS = 5_000
CLIENT_ADDRESSES = 200


class LoadError(Exception):
    """The server did something which makes the run meaningless."""


@dataclass(frozen=True, slots=True)
class StreamKey:
    """What a connection registers under."""

    user_id: int
    strategy_id: int


@dataclass(frozen=True, slots=True)
class Call:
    """One request to `/internal/emit`, ready to send, with the number of batches that it carries."""

    request: bytes
    batches: int


class Outcome(msgspec.Struct, frozen=True):
    """The two fields of an answer which tell what is owed."""

    status: str
    connections: int = 0


_decode_outcomes = msgspec.json.Decoder(Outcome | list[Outcome]).decode


class FrameCounter:
    """Counts frames in many byte streams, however a stream is cut into reads. Pure."""

    def __init__(self) -> None:
        self._tails: dict[int, bytes] = {}

    def feed(self, stream: int, data: bytes) -> int:
        """The number of `id:` lines that begin in `stream` up to and with `data`, not counted before."""
        tail = self._tails.pop(stream, None)
        if tail is not None:
            data = tail + data
        if not data.endswith(b"\n\r\n"):  # else: the end of a chunk that ends a line, nothing is cut here
            self._tails[stream] = data[1 - len(MARKER) :]
        return data.count(MARKER)

    def forget(self, stream: int) -> None:
        """Drops what is kept of a stream that has ended."""
        self._tails.pop(stream, None)


class LoadClient:
    """Streams and emitters towards one server. A context manager: its end closes all sockets."""

    def __init__(self, public: Address, internal: Address) -> None:
        self.frames = 0
        self.stream_bytes = 0
        self.reads_in_bursts = True
        """Pause between two looks at the sockets, so that the server's `send` seldom has to wake the client."""
        self._public = public
        self._internal = internal
        self._epoll = select.epoll()
        self._streams: dict[int, socket.socket] = {}
        self._opening: dict[int, bytes] = {}
        self._emitters: dict[int, socket.socket] = {}
        self._answers: dict[int, bytes] = {}
        self._idle_emitters: deque[socket.socket] = deque()
        self._counter = FrameCounter()
        self._opened = 0
        self._answered_batches = 0
        self._owed_frames = 0

    def __enter__(self) -> LoadClient:
        """Nothing is opened yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes all sockets."""
        self.close_streams()
        for emitter in self._emitters.values():
            emitter.close()
        self._epoll.close()

    # -- streams

    def open_streams(self, keys: Iterable[StreamKey]) -> None:
        """Opens a stream per key, OPENINGS_IN_FLIGHT at a time; returns when each has read its `stream_open`.

        Raises LoadError for a refusal, and when no stream opens for WAIT_SECONDS.
        """
        for key in keys:
            self._start_stream(key)
            self._pump_until(lambda: len(self._opening) < OPENINGS_IN_FLIGHT, "a stream to open")
        self._pump_until(lambda: not self._opening, "the last streams to open")

    def close_streams(self) -> None:
        """Closes every stream from this side."""
        for descriptor, stream in self._streams.items():
            self._counter.forget(descriptor)
            stream.close()
        self._streams.clear()
        self._opening.clear()

    def _start_stream(self, key: StreamKey) -> None:
        stream = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        stream.setsockopt(socket.IPPROTO_IP, socket.IP_BIND_ADDRESS_NO_PORT, 1)
        stream.bind((self._client_host(), 0))
        stream.settimeout(CONNECT_SECONDS)
        stream.connect((self._public.host, self._public.port))
        stream.sendall(
            b"GET /stream?user_id=%d&strategy_id=%d HTTP/1.1\r\nHost: %b\r\nAccept: text/event-stream\r\n\r\n"
            % (key.user_id, key.strategy_id, str(self._public).encode())
        )
        stream.setblocking(False)
        self._streams[stream.fileno()] = stream
        self._opening[stream.fileno()] = b""
        self._epoll.register(stream.fileno(), select.EPOLLIN)
        self._opened += 1

    def _client_host(self) -> str:
        """Source addresses 127.0.0.2 and up, so that no (address, listener) pair runs out of ports."""
        return f"127.0.0.{2 + self._opened // STREAMS_PER_CLIENT_ADDRESS % CLIENT_ADDRESSES}"

    # -- emits

    def emit(self, calls: Sequence[Call], in_flight: int) -> None:
        """Sends every call, `in_flight` at a time on as many kept-alive sockets, and waits for what they owe.

        Returns when every call is answered and every frame which the answers promise has been received.
        Raises LoadError if a batch is not accepted, or frames do not come, or too many come.
        """
        while len(self._emitters) < in_flight:
            self._open_emitter()
        frames_before, self._owed_frames, self._answered_batches = self.frames, 0, 0
        for call in calls:
            self._pump_until(lambda: len(self._emitters) - len(self._idle_emitters) < in_flight, "an answer")
            _send_whole(self._idle_emitters.popleft(), call.request)
        batches = sum(call.batches for call in calls)
        self._pump_until(lambda: self._answered_batches >= batches, "the last answers")
        self._pump_until(lambda: self.frames - frames_before >= self._owed_frames, "the last frames")
        if self.frames - frames_before != self._owed_frames:
            raise LoadError(f"{self._owed_frames} frames were owed, {self.frames - frames_before} came")

    def idle(self, seconds: float) -> None:
        """Reads what comes for so many seconds: heartbeats, as a rule."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._pump(left)

    def _open_emitter(self) -> None:
        emitter = socket.create_connection((self._internal.host, self._internal.port), CONNECT_SECONDS)
        emitter.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        emitter.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, EMITTER_SEND_BYTES)
        emitter.setblocking(False)
        self._emitters[emitter.fileno()] = emitter
        self._answers[emitter.fileno()] = b""
        self._idle_emitters.append(emitter)
        self._epoll.register(emitter.fileno(), select.EPOLLIN)

    # -- reading

    def _pump_until(self, is_done: Callable[[], bool], what: str) -> None:
        """Reads until `is_done`; LoadError if that takes longer than WAIT_SECONDS."""
        give_up = time.monotonic() + WAIT_SECONDS
        while not is_done():
            self._pump(POLL_SECONDS)
            if time.monotonic() > give_up:
                raise LoadError(
                    f"waited {WAIT_SECONDS:.0f} s for {what}: {self._answered_batches} batches answered, "
                    f"{self._owed_frames} frames owed, {self.frames} frames in all"
                )

    def _pump(self, seconds: float) -> None:
        """Reads once from each socket that has something, waiting up to `seconds` for the first."""
        streams, feed = self._streams, self._counter.feed
        for descriptor, _ in self._epoll.poll(seconds, POLL_EVENTS):
            stream = streams.get(descriptor)
            if stream is None:
                self._read_answer(descriptor)
                continue
            data = stream.recv(READ_BYTES)
            if not data or descriptor in self._opening:
                self._read_opening(descriptor, data)
                continue
            self.stream_bytes += len(data)
            self.frames += feed(descriptor, data)
        if self.reads_in_bursts:
            time.sleep(READ_PAUSE_SECONDS)

    def _read_opening(self, descriptor: int, data: bytes) -> None:
        """The rare cases: a stream before its first event, or at its end."""
        head = self._opening.pop(descriptor, b"") + data
        if not data:
            raise LoadError(f"the server closed a stream after {head[-300:]!r}")
        if MARKER not in head:
            self._opening[descriptor] = head
            return
        if not head.startswith(b"HTTP/1.1 200") or b"event: stream_open\n" not in head:
            raise LoadError(f"a stream did not open: {head[:600]!r}")
        # The first block's id is no frame that an emit owes.
        self.frames += self._counter.feed(descriptor, head) - 1

    def _read_answer(self, descriptor: int) -> None:
        emitter = self._emitters[descriptor]
        data = emitter.recv(READ_BYTES)
        if not data:
            raise LoadError("the server closed an emitter's connection")
        answer = self._answers[descriptor] + data
        head, separator, body = answer.partition(ANSWER_END)
        if not separator or len(body) < _content_length(head):
            self._answers[descriptor] = answer
            return
        self._answers[descriptor] = b""
        self._idle_emitters.append(emitter)
        self._note_outcomes(head, body)

    def _note_outcomes(self, head: bytes, body: bytes) -> None:
        if not head.startswith(b"HTTP/1.1 200"):
            raise LoadError(f"an emit was refused: {head[:100]!r} {body[:400]!r}")
        outcomes = _decode_outcomes(body)
        for outcome in outcomes if isinstance(outcomes, list) else [outcomes]:
            if outcome.status != "accepted":
                raise LoadError(f"a batch was {outcome.status}: {body[:400]!r}")
            self._answered_batches += 1
            self._owed_frames += outcome.connections


def _send_whole(emitter: socket.socket, request: bytes) -> None:
    """Sends a request, which finds the send buffer empty: the one before it has been answered."""
    if emitter.send(request) != len(request):
        raise LoadError(f"a request of {len(request)} bytes did not fit the send buffer")


def _content_length(head: bytes) -> int:
    """The body's length in bytes; LoadError for an answer that does not state it."""
    lowered = head.lower()
    start = lowered.find(b"\r\ncontent-length:")
    if start < 0:
        raise LoadError(f"an answer without Content-Length: {head[:300]!r}")
    return int(lowered[start + 17 :].split(b"\r\n", 1)[0])


def call_of(keys: Sequence[StreamKey], batch_results: bytes, internal: Address) -> Call:
    """One emit: a batch for each key, as a single object for one key and a JSON array for several."""
    batches = [
        b'{"user_id":%d,"strategy_id":%d,"batch_results":%b}' % (key.user_id, key.strategy_id, batch_results)
        for key in keys
    ]
    body = batches[0] if len(batches) == 1 else b"[" + b",".join(batches) + b"]"
    head = (
        f"POST /internal/emit HTTP/1.1\r\nHost: {internal}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return Call(head.encode() + body, len(batches))
