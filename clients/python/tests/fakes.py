"""What the tests of the client share: a server made of a few lines, which does whatever it is told to."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

Behaviour = Callable[[socket.socket, bytes], object]
"""What is done to a connection once the body of a request has come."""

REQUEST_SECONDS = 20


class FakeServer:
    """Listens on loopback and behaves; `bodies` are those that have come, in order."""

    def __init__(self, behave: Behaviour) -> None:
        self.behave = behave
        self.bodies: list[bytes] = []
        self.heads: list[bytes] = []
        self.came = threading.Condition()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def wait_for_bodies(self, count: int) -> None:
        with self.came:
            assert self.came.wait_for(lambda: len(self.bodies) >= count, REQUEST_SECONDS), "the client has called"

    def close(self) -> None:
        # A thread in accept() is only woken by the end of the socket, not of its number.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(REQUEST_SECONDS)
        for connection in self._open:
            connection.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._open.append(connection)
                thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError):
            while request := _request(connection):
                head, body = request
                with self.came:
                    self.heads.append(head)
                    self.bodies.append(body)
                    self.came.notify_all()
                self.behave(connection, body)


def _request(connection: socket.socket) -> tuple[bytes, bytes] | None:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            return None
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    length = 0
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
    while len(body) < length:
        piece = connection.recv(65536)
        if not piece:
            return None
        body += piece
    return head, body


def answer(connection: socket.socket, status: int, body: bytes, headers: str = "") -> None:
    """An answer in order, whatever is in it."""
    head = f"HTTP/1.1 {status} Whatever\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    connection.sendall(head.encode() + body)


def accept_all(connection: socket.socket, body: bytes) -> None:
    """As a Tallywire that accepts everything."""
    lines = []
    for number, line in enumerate(body.split(b"\n")):
        key = json.loads(line)["idempotency_key"]
        accepted = {"status": "accepted", "position": f"e-{number}", "summaries": [], "connections": 0, "ignored": 0}
        lines.append(json.dumps({**accepted, "duplicate": False, "idempotency_key": key}).encode() + b"\n")
    answer(connection, 200, b"".join(lines))


def problem(status: int, code: str, retry: str, headers: str = "") -> Behaviour:
    """Answers everything with this problem."""
    body = json.dumps({"status": status, "code": code, "detail": "as told", "retry": retry}).encode()
    return lambda connection, _body: answer(connection, status, body, headers)


def in_turn(*behaviours: Behaviour) -> Behaviour:
    """One request after the other; the last one for all that follow."""
    rest = list(behaviours)

    def behave(connection: socket.socket, body: bytes) -> None:
        (rest.pop(0) if len(rest) > 1 else rest[0])(connection, body)

    return behave


@contextmanager
def fake_server(behave: Behaviour = accept_all) -> Iterator[FakeServer]:
    server = FakeServer(behave)
    try:
        yield server
    finally:
        server.close()


def absent_url() -> str:
    """An address at which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{sock.getsockname()[1]}"
