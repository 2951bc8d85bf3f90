"""Streams as bytes: a request, the chunk framing, and a socket that reads only when it is told to."""

import socket
import struct
from collections.abc import Callable
from types import TracebackType

from bench.rude import deafen
from core.sse import EventParser, ServerSentEvent

READ_SECONDS = 20
"""How long a read may wait, on a machine that is busy with other things."""


def request_bytes(path: str, *, version: str = "1.1", last_event_id: str = "") -> bytes:
    """A GET of a stream."""
    lines = [f"GET {path} HTTP/{version}", "Host: 127.0.0.1", "Accept: text/event-stream"]
    if last_event_id:
        lines.append(f"Last-Event-ID: {last_event_id}")
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n"


class ChunkedBody:
    """Takes chunk framing off (RFC 9112, section 7.1); feed it pieces of any size."""

    def __init__(self) -> None:
        self.is_complete = False
        self._line = b""
        self._left_bytes = 0
        self._is_behind_chunk = False
        self._is_last = False

    def feed(self, data: bytes) -> bytes:
        """The payload in `data`; nothing may follow the end of the body."""
        payload, at = [], 0
        while at < len(data):
            assert not self.is_complete, f"bytes behind the end of the body: {data[at:]!r}"
            if self._left_bytes:
                piece = data[at : at + self._left_bytes]
                payload.append(piece)
                self._left_bytes -= len(piece)
                at += len(piece)
                continue
            end = data.find(b"\n", at) + 1 or len(data)
            self._line += data[at:end]
            at = end
            if self._line.endswith(b"\r\n"):
                self._read(self._line.removesuffix(b"\r\n"))
                self._line = b""
        return b"".join(payload)

    def _read(self, line: bytes) -> None:
        if self._is_behind_chunk:
            assert line == b"", f"a chunk is longer than it says: {line!r}"
            self._is_behind_chunk = False
            self.is_complete = self._is_last
            return
        self._left_bytes = int(line, 16)
        self._is_last = self._left_bytes == 0
        self._is_behind_chunk = True


class StreamSocket:
    """One stream over a blocking socket. It reads nothing by itself; a small `receive_buffer_bytes` makes that felt."""

    def __init__(
        self,
        port: int,
        query: str,
        *,
        version: str = "1.1",
        receive_buffer_bytes: int | None = None,
    ) -> None:
        self.head = ""
        self.body = b""
        self.events: list[ServerSentEvent] = []
        self.chunked = ChunkedBody()
        self.retries: list[int | None] = []
        """For each event, the reconnection time that its own block named."""
        self._parser = EventParser()
        self._socket = connected(port, receive_buffer_bytes)
        self._socket.settimeout(READ_SECONDS)
        self._socket.sendall(request_bytes(f"/stream?{query}", version=version))

    def __enter__(self) -> "StreamSocket":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def vanish(self) -> None:
        """Answer nothing any more, as a machine that has lost its power."""
        deafen(self._socket)

    def hang_up(self) -> None:
        """Leave; whoever waits for bytes, in another thread too, sees the end."""
        self._socket.shutdown(socket.SHUT_RDWR)

    def read_until(self, is_enough: Callable[["StreamSocket"], bool]) -> None:
        """Read as long as it takes; the end of the stream before that fails."""
        while not is_enough(self):
            assert self.read(), f"the stream ended after {self.body!r}"

    def read_to_the_end(self) -> None:
        """Read until the server closes the connection."""
        while self.read():
            pass

    def read(self) -> bool:
        """Read what is there; answers whether the connection is still open."""
        data = self._socket.recv(65536)
        if not self.head:
            head, _, data = self._read_head(data)
            self.head = head.decode("latin-1")
        elif not data:
            return False
        payload = self.chunked.feed(data) if "Transfer-Encoding: chunked" in self.head else data
        self.body += payload
        self._take(payload)
        return True

    def _read_head(self, data: bytes) -> tuple[bytes, bytes, bytes]:
        while b"\r\n\r\n" not in data:
            more = self._socket.recv(65536)
            assert more, f"the connection ended in the head: {data!r}"
            data += more
        return data.partition(b"\r\n\r\n")

    def _take(self, payload: bytes) -> None:
        # Line by line, so that a reconnection time is seen with the event of its own block.
        for line in payload.splitlines(keepends=True):
            if event := self._parser.feed(line):
                self.events += event
                self.retries.append(self._parser.retry_ms)
                self._parser.retry_ms = None


def connected(port: int, receive_buffer_bytes: int | None = None) -> socket.socket:
    """A socket connected over loopback. A receive buffer must be bounded before the handshake names it."""
    sock = socket.socket()
    try:
        if receive_buffer_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        sock.connect(("127.0.0.1", port))
    except OSError:
        sock.close()
        raise
    return sock


def cut(sock: socket.socket) -> None:
    """Close at once and with a reset, as a client that loses its network does when it comes back."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
