"""A raw connection to a listener: bytes in, whole answers out.

It holds a plain socket, since asyncio's streams forget what has been received when a connection is reset.
"""

import asyncio
import re
import socket
import struct
from collections.abc import Iterable

from msgspec import Struct

from tests.http.conftest import DEADLINE_SECONDS

QUIET_TURNS = 200
"""Turns of the loop, which the server shares, without a byte from it: nothing is on its way that needs no timer."""

RECEIVE_BYTES = 65536

_HEAD = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r\n]*\r\n((?:[^\r\n:]+: ?[^\r\n]*\r\n)*)\r\n")
_CHUNK = re.compile(rb"([0-9a-f]+)\r\n")


class Answer(Struct, frozen=True):
    """One answer as a client reads it. Header names are lower case, in the order of the answer."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    is_whole: bool
    """Its body has the length that was announced, or none was."""

    def header(self, name: str) -> str | None:
        """The value of a header that may stand once, None without it."""
        values = [value for given, value in self.headers if given == name]
        assert len(values) <= 1, f"{name} stands {len(values)} times"
        return values[0] if values else None


class Wire:
    """One connection. Whatever waits for the server has a deadline."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self.received = b""
        """What the server sent and `answer` has not taken."""
        self.has_ended = False
        """The server closed the connection, or reset it."""

    @classmethod
    async def open(cls, port: int, *, buffer_bytes: int = 0) -> "Wire":
        """Connect to a port of 127.0.0.1. `buffer_bytes` bounds what the kernel of this end holds, both ways."""
        sock = socket.socket()
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF) if buffer_bytes else ():
            sock.setsockopt(socket.SOL_SOCKET, option, buffer_bytes)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        return cls(sock)

    async def __aenter__(self) -> "Wire":
        return self

    async def __aexit__(self, *_error: object) -> None:
        self._socket.close()

    async def send(self, *pieces: bytes) -> None:
        """Send each piece by itself; the server sees one before the next is sent. Stops when the server has closed."""
        for piece in pieces:
            try:
                async with asyncio.timeout(DEADLINE_SECONDS):
                    await asyncio.get_running_loop().sock_sendall(self._socket, piece)
            except ConnectionError:
                return
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    def send_some(self, data: bytes) -> int:
        """How many bytes the kernel takes now: none when both ends are full."""
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0

    def half_close(self) -> None:
        """Nothing more will be sent."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            self.has_ended = True

    def reset(self) -> None:
        """Leave with a reset, as a client does that loses its network and comes back."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    async def answer(self, *, is_to_head: bool = False) -> Answer:
        """The next whole answer. Fails when the connection ends first."""
        while True:
            found = _read_answer(self.received, is_to_head=is_to_head)
            if found is not None and found[0].is_whole:
                self.received = self.received[found[1] :]
                return found[0]
            assert await self._receive(), f"the connection ended behind {self.received!r}"

    async def begin(self) -> None:
        """Until some of an answer has come."""
        while not self.received:
            assert await self._receive(), "the connection ended without an answer"

    async def answers(self, count: int) -> list[Answer]:
        """So many answers."""
        return [await self.answer() for _ in range(count)]

    async def end(self) -> bytes:
        """Wait until the server closes; answers what came before."""
        while await self._receive():
            pass
        return self.received

    async def settle(self) -> None:
        """Until the server has nothing more to say to what it got; see QUIET_TURNS."""
        quiet = 0
        while quiet < QUIET_TURNS and not self.has_ended:
            await asyncio.sleep(0)
            quiet = 0 if self._take() else quiet + 1

    def _take(self) -> bool:
        try:
            return self._add(self._socket.recv(RECEIVE_BYTES))
        except BlockingIOError:
            return False
        except ConnectionError:
            return self._add(b"")

    async def _receive(self) -> bool:
        if self.has_ended:
            return False
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                return self._add(await asyncio.get_running_loop().sock_recv(self._socket, RECEIVE_BYTES))
        except ConnectionError:
            return self._add(b"")

    def _add(self, data: bytes) -> bool:
        self.received += data
        self.has_ended = self.has_ended or not data
        return bool(data)


def read_answers(received: bytes, *, are_to_head: Iterable[int] = ()) -> list[Answer]:
    """All answers in what a server sent; the last may not be whole. `are_to_head`: the numbers of those to a HEAD."""
    heads = frozenset(are_to_head)
    answers: list[Answer] = []
    while received:
        found = _read_answer(received, is_to_head=len(answers) in heads)
        assert found is not None, f"no answer: {received!r}"
        answers.append(found[0])
        received = received[found[1] :]
    return answers


def _read_answer(received: bytes, *, is_to_head: bool) -> tuple[Answer, int] | None:
    """The first answer and its length; None without a whole head."""
    match = _HEAD.match(received)
    if match is None:
        return None
    status = int(match[1])
    headers = tuple(
        (name.lower(), value.strip())
        for name, _, value in (line.partition(":") for line in match[2].decode("latin-1").splitlines())
    )
    given = dict(headers)
    rest = received[match.end() :]
    if is_to_head or status < 200 or status in (204, 304):
        body, size, is_whole = b"", 0, True
    elif given.get("transfer-encoding") == "chunked":
        body, size, is_whole = _read_chunks(rest)
    else:
        size = min(int(given.get("content-length", len(rest))), len(rest))
        body, is_whole = rest[:size], size == int(given.get("content-length", size))
    return Answer(status, headers, body, is_whole), match.end() + size


def _read_chunks(rest: bytes) -> tuple[bytes, int, bool]:
    body, at = b"", 0
    while match := _CHUNK.match(rest, at):
        size = int(match[1], 16)
        body += rest[match.end() : match.end() + size]
        at = match.end() + size + 2
        if size == 0:
            return body, at, at <= len(rest)
    return body, len(rest), False


def request(
    target: str,
    *headers: str,
    method: str = "GET",
    version: str = "1.1",
    body: bytes | None = None,
    host: str = "localhost",
) -> bytes:
    """A request; with a body its length is said, unless the headers say how it is framed."""
    lines = [f"{method} {target} HTTP/{version}", *([f"Host: {host}"] if host else []), *headers]
    is_framed = any(line.lower().startswith(("content-length:", "transfer-encoding:")) for line in headers)
    if body is not None and not is_framed:
        lines.append(f"Content-Length: {len(body)}")
    return "".join(f"{line}\r\n" for line in lines).encode("latin-1") + b"\r\n" + (body or b"")


BATCH = (
    b'{"user_id":7,"strategy_id":3,"batch_results":'
    b'[{"order_type":"LIMIT","event_type":"order_created","success":true}]}'
)
JSON = "Content-Type: application/json"


def emit_request(*headers: str, version: str = "1.1", body: bytes = BATCH) -> bytes:
    """An emit, of one LIMIT created unless another body is given."""
    return request("/internal/emit", JSON, *headers, method="POST", version=version, body=body)


def chunked(*pieces: bytes) -> bytes:
    """A body in chunks (RFC 9112, section 7.1)."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (*pieces, b""))


def each_byte(data: bytes) -> list[bytes]:
    """Pieces of one byte."""
    return [data[at : at + 1] for at in range(len(data))]
