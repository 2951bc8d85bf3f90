"""Clients that misbehave, a kind at a time: `python -m bench.rude KIND PUBLIC INTERNAL`, until SIGTERM.

Each is bounded in connections and in pace; it talks to loopback only.
"""

from __future__ import annotations

import asyncio
import ctypes
import socket
import struct
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress

CROWD = 200
"""Connections of a kind that holds them."""

PER_SECOND = 200
"""Attempts of a kind that makes new ones."""

Address = tuple[str, int]
Kind = Callable[[Address, Address], Awaitable[None]]

BPF_RETURN = 0x06
SO_ATTACH_FILTER = 26

STREAM = b"GET /stream?user_id=%d&strategy_id=1 HTTP/1.1\r\nHost: localhost\r\n\r\n"
BATCH = b'{"user_id":9,"strategy_id":9,"batch_results":[]}'


async def _connect(address: Address, receive_bytes: int = 0) -> socket.socket:
    sock = socket.socket()
    if receive_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, address)
    return sock


async def _send(sock: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(sock, data)


async def _again_and_again(attempt: Callable[[int], Awaitable[None]]) -> None:
    """PER_SECOND times a second, for ever, whatever becomes of each."""
    number = 0
    running: set[asyncio.Task[None]] = set()

    async def one(at: int) -> None:
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(10):
                await attempt(at)

    while True:
        number += 1
        task = asyncio.get_running_loop().create_task(one(number))
        running.add(task)
        task.add_done_callback(running.discard)
        await asyncio.sleep(1 / PER_SECOND)


def deafen(sock: socket.socket) -> None:
    """From now on nothing that arrives is seen or acknowledged, nor said to be unwanted: to its peer it has vanished.

    A classic BPF program of one instruction, "keep 0 bytes": see socket(7), SO_ATTACH_FILTER.
    """
    program = ctypes.create_string_buffer(struct.pack("HBBI", BPF_RETURN, 0, 0, 0))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(program)))


async def stalled_readers(public: Address, internal: Address) -> None:
    """On a key that is emitted to, with a small window that they never open again."""
    held = [await _connect(public, 2048) for _ in range(CROWD)]
    for sock in held:
        await _send(sock, STREAM % 9_000)
    await _emit_on(internal)


async def vanished(public: Address, internal: Address) -> None:
    """They were on a key that is emitted to, and are no more."""
    held = [await _connect(public) for _ in range(CROWD)]
    for sock in held:
        await _send(sock, STREAM % 9_000)
        await asyncio.get_running_loop().sock_recv(sock, 4096)
        deafen(sock)
    await _emit_on(internal)


async def _emit_on(internal: Address) -> None:
    """Emit to the key that they are on, for ever."""
    emitter = await _connect(internal)
    result = b'{"success":true,"order_type":"LIMIT","event_type":"order_created"}'
    body = b'{"user_id":9000,"strategy_id":1,"batch_results":[%b]}' % result
    head = b"POST /internal/emit HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    while True:
        await _send(emitter, head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        await asyncio.get_running_loop().sock_recv(emitter, 4096)
        await asyncio.sleep(0.02)


async def slow_heads(public: Address, _internal: Address) -> None:
    """A byte of a request now and then."""

    async def dribble(sock: socket.socket) -> None:
        while True:
            for byte in b"GET /stream?user_id=1&strategy_id=1 HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100:
                with suppress(OSError):
                    await _send(sock, bytes([byte]))
                await asyncio.sleep(1)
            sock = await _connect(public)

    await asyncio.gather(*[dribble(await _connect(public)) for _ in range(CROWD)])


async def one_byte_chunks(_public: Address, internal: Address) -> None:
    """Bodies of emits, a byte a chunk."""
    head = b"POST /internal/emit HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"

    async def attempt(_number: int) -> None:
        sock = await _connect(internal)
        with sock:
            await _send(sock, head + b"Transfer-Encoding: chunked\r\n\r\n")
            await _send(sock, b"".join(b"1\r\n%c\r\n" % byte for byte in BATCH) + b"0\r\n\r\n")
            await asyncio.get_running_loop().sock_recv(sock, 4096)

    await _again_and_again(attempt)


async def junk_behind_the_request(public: Address, _internal: Address) -> None:
    """What no reader sends."""

    async def attempt(number: int) -> None:
        sock = await _connect(public)
        with sock:
            await _send(sock, STREAM % (10_000 + number % 100))
            await _send(sock, b"\x16\x03\x01" * 100)
            while await asyncio.get_running_loop().sock_recv(sock, 4096):
                pass

    await _again_and_again(attempt)


async def half_closers(public: Address, _internal: Address) -> None:
    """They send their FIN behind the request."""

    async def attempt(number: int) -> None:
        sock = await _connect(public)
        with sock:
            await _send(sock, STREAM % (10_000 + number % 100))
            sock.shutdown(socket.SHUT_WR)
            while await asyncio.get_running_loop().sock_recv(sock, 4096):
                pass

    await _again_and_again(attempt)


async def resets(public: Address, _internal: Address) -> None:
    """They open a stream and vanish."""

    async def attempt(number: int) -> None:
        sock = await _connect(public)
        await _send(sock, STREAM % (10_000 + number % 100))
        await asyncio.get_running_loop().sock_recv(sock, 4096)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()

    await _again_and_again(attempt)


async def scanners(public: Address, _internal: Address) -> None:
    """What is no HTTP at all."""

    async def attempt(_number: int) -> None:
        sock = await _connect(public)
        with sock:
            await _send(sock, b"\x03\x00\x00\x2f\x2a\xe0" + b"\x00" * 41 + b"\r\n\r\n")
            while await asyncio.get_running_loop().sock_recv(sock, 4096):
                pass

    await _again_and_again(attempt)


async def silent(public: Address, _internal: Address) -> None:
    """They connect and say nothing, and come back when they are sent away."""

    async def hold() -> None:
        while True:
            with suppress(OSError):
                sock = await _connect(public)
                with sock:
                    await asyncio.get_running_loop().sock_recv(sock, 1)

    await asyncio.gather(*(hold() for _ in range(CROWD)))


KINDS: tuple[Kind, ...] = (
    stalled_readers,
    vanished,
    slow_heads,
    one_byte_chunks,
    junk_behind_the_request,
    half_closers,
    resets,
    scanners,
    silent,
)


def main() -> None:
    """Misbehave until the end."""
    name, *addresses = sys.argv[1:]
    public, internal = ((host, int(port)) for host, _, port in (text.rpartition(":") for text in addresses))
    kind = {kind.__name__: kind for kind in KINDS}[name]
    asyncio.run(asyncio.wait_for(kind(public, internal), 600))


if __name__ == "__main__":
    main()
