"""The load client of the benchmarks against a scripted server: a figure is worth what its counting is worth."""

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.floor import compiled, compiler
from bench.load import LoadError
from bench.native import Emit, NativeClient, Subscription
from bench.server import Address

GET = b"GET /stream HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /internal/emit HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
OPENING = b'event: stream_open\ndata: {"data":{"heartbeat_seconds":15}}\nid: e-1\n\n'
FRAME = b'event: order_batch_update\ndata: {"stream":{"after":"e-1","batches":%d}}\nid: 1k7q2m9x4v0ce-42\n\n'
HEARTBEAT = b":\n"
SCRIPT_SECONDS = 10


def _chunk(block: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(block), block)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if compiler() is None:
        pytest.skip("no C compiler is installed")
    return compiled("client", tmp_path_factory.mktemp("client"))


class Script:
    """Listens twice; sends a stream's bytes in pieces as soon as it is asked to emit, and then answers."""

    def __init__(self, pieces: Sequence[bytes], connections: int) -> None:
        self._listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        self.public, self.internal = (Address(*listener.getsockname()[:2]) for listener in self._listeners)
        self.asked = b""
        self._pieces = pieces
        self._body = b'{"status":"accepted","connections":%d}' % connections
        self._thread = threading.Thread(target=self._play)
        for listener in self._listeners:
            listener.settimeout(SCRIPT_SECONDS)

    def __enter__(self) -> "Script":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        for listener in self._listeners:
            listener.close()

    def _play(self) -> None:
        stream, _ = self._listeners[0].accept()
        with stream:
            stream.settimeout(SCRIPT_SECONDS)
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.asked = stream.recv(65536)
            stream.sendall(HEAD + _chunk(OPENING))
            caller, _ = self._listeners[1].accept()
            with caller:
                caller.settimeout(SCRIPT_SECONDS)
                caller.recv(65536)
                for piece in self._pieces:
                    stream.sendall(piece)
                caller.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(self._body), self._body))
                caller.recv(1)


@contextmanager
def _streaming(program: Path, tmp_path: Path, script: Script) -> Iterator[NativeClient]:
    """A client with one open stream and one emit laid down."""
    with script, NativeClient(program, tmp_path, script.public, script.internal, '"connections":', None) as client:
        client.load_streams([Subscription(0, GET)])
        client.open_streams(1, 1)
        client.load_emits([Emit(POST, key=0)])
        yield client


@pytest.mark.parametrize("cut", [1, 2, 3, 5, 7, 13, 64, 65, 1000])
@pytest.mark.parametrize("framing", [_chunk, bytes], ids=["chunked", "plain"])
def test_each_batch_is_counted_once_however_frames_are_cut(
    program: Path, tmp_path: Path, cut: int, framing: type[bytes]
) -> None:
    sent = b"".join(framing(block) for block in (FRAME % 1, HEARTBEAT, FRAME % 12, FRAME % 1, HEARTBEAT, FRAME % 3))
    pieces = [sent[at : at + cut] for at in range(0, len(sent), cut)]
    with _streaming(program, tmp_path, Script(pieces, connections=17)) as client:
        emitted = client.emit(1)
    assert (emitted.frames, emitted.batches, emitted.stream_bytes) == (4, 17, len(sent))


def test_a_frame_too_many_fails_the_run(program: Path, tmp_path: Path) -> None:
    script = Script([_chunk(FRAME % 1 + FRAME % 1)], connections=1)
    with _streaming(program, tmp_path, script) as client, pytest.raises(LoadError, match="more frames came"):
        client.emit(1)


def test_latency_counts_from_when_an_emit_was_due(program: Path, tmp_path: Path) -> None:
    with _streaming(program, tmp_path, Script([FRAME % 1], connections=1)) as client:
        due_ns = 30_000_000
        client.load_emits([Emit(POST, key=0, due_ns=due_ns)])
        emitted = client.emit(0, paced_senders=1, is_timed=True)
    assert emitted.latency.count == 1
    assert emitted.wall_ns >= due_ns
    assert emitted.latency.slowest_ns <= emitted.wall_ns - due_ns
