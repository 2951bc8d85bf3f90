"""A TCP proxy on loopback whose connections can be cut on demand: all at once, or behind certain bytes."""

import re
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from tests.e2e.wire import connected, cut

HELD_SECONDS = 60
"""How long a connection is held while the way to the server is cut."""

COMMENT_IN_A_CHUNK = b"\r\n:\n"


class CuttingProxy:
    """Passes bytes both ways until it is told to `cut`; then holds new connections until it is told to `restore`.

    `requests` are the heads of the requests that passed, `heartbeats` the comment heartbeats that passed.
    """

    def __init__(self, target_port: int) -> None:
        self.requests: list[str] = []
        self.heartbeats = 0
        self.is_cut = threading.Event()
        self._target_port = target_port
        self._way = threading.Event()
        self._way.set()
        self._resets = False
        self._cut_behind: re.Pattern[bytes] | None = None
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._is_closing = False
        self.base = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_closing = True
        self._listener.shutdown(socket.SHUT_RDWR)
        self.cut()
        self._way.set()
        for thread in self._threads:
            thread.join(HELD_SECONDS)
        self._listener.close()

    def cut(self, *, resets: bool = False) -> None:
        """Cut every connection now: in order, as a proxy that restarts does, or with a reset."""
        with self._lock:
            self._way.clear()
            self._resets = resets
            for client, server in self._pairs:
                # Reading ends, so that both directions wake up; how the client learns of it is up to `_serve`.
                end(client, socket.SHUT_RD)
                end(server)
        self.is_cut.set()

    def cut_behind(self, pattern: bytes) -> None:
        """Cut behind the first bytes to the client that match from now on; `is_cut` is set then."""
        self.is_cut.clear()
        self._cut_behind = re.compile(pattern)

    def restore(self) -> None:
        """Let the connections that came meanwhile, and further ones, through."""
        self.is_cut.clear()
        self._way.set()

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        with client:
            self._way.wait(HELD_SECONDS)
            if self._is_closing:
                return
            with connected(self._target_port) as server:
                pair = client, server
                with self._lock:
                    self._pairs.add(pair)
                upstream = threading.Thread(target=self._pass_up, args=pair)
                upstream.start()
                self._pass_down(server, client)
                upstream.join()
                with self._lock:
                    self._pairs.discard(pair)
                if self._resets:
                    cut(client)

    def _pass_up(self, client: socket.socket, server: socket.socket) -> None:
        head = b""
        while data := received(client):
            if b"\r\n\r\n" not in head:
                head += data
                if b"\r\n\r\n" in head:
                    self.requests.append(head.decode("latin-1"))
            if not sent(server, data):
                break
        end(server)

    def _pass_down(self, server: socket.socket, client: socket.socket) -> None:
        armed: re.Pattern[bytes] | None = None
        seen, tail = b"", b""
        while data := received(server):
            if self._cut_behind is not armed:
                armed, seen = self._cut_behind, b""
            if armed is not None:
                found = armed.search(seen + data)
                if found:
                    self._cut_behind = None
                    sent(client, data[: found.end() - len(seen)])
                    self.cut()
                    break
                seen += data
            self.heartbeats += (tail + data).count(COMMENT_IN_A_CHUNK)
            tail = (tail + data)[-len(COMMENT_IN_A_CHUNK) + 1 :]
            if not sent(client, data):
                break
        end(server)
        end(client, socket.SHUT_RD)


def received(sock: socket.socket) -> bytes:
    """What has come, nothing at the end."""
    try:
        return sock.recv(65536)
    except OSError:
        return b""


def sent(sock: socket.socket, data: bytes) -> bool:
    """Whether it could be."""
    try:
        sock.sendall(data)
    except OSError:
        return False
    return True


def end(sock: socket.socket, how: int = socket.SHUT_RDWR) -> None:
    """Shut it down, as far as it is open."""
    try:
        sock.shutdown(how)
    except OSError:
        return
