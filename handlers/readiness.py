"""Which of our sockets can be read or written: a set of our own that the loop watches as one descriptor.

The loop keeps a key, a handle and a context for each descriptor and goes through them at each event: that is 3 us of a
read, 10 of a connect and 0.5 KiB of a connection. What it gives up: callbacks have no context of their own.
"""

import asyncio
import logging
import select
import time
from typing import Protocol

READ, WRITE = 1, 4
"""As epoll numbers them."""

EVENTS_AT_ONCE = 64
"""Sockets that are asked for in one turn of the loop: two milliseconds when each brings an emit."""

SERVE_SECONDS = 0.002
"""How long they may hold the loop: the set is level-triggered, so who was not served is told again in the next turn."""

_log = logging.getLogger("tallywire.http")


class Owner(Protocol):
    """Whose a socket is. It may be called without need, and more than once."""

    def on_readable(self) -> None:
        """There is something to read, or the connection has ended."""

    def on_writable(self) -> None:
        """There is room again, or the connection has ended."""


class Readiness(Protocol):
    """Calls the owners of sockets, known by descriptor, as long as these are watched."""

    def watch(self, descriptor: int, owner: Owner, events: int) -> None:
        """From now on call `owner`, and nobody else, for these events of a socket: READ, WRITE, both, or 0 for none."""

    def forget(self, descriptor: int) -> None:
        """Watch it no longer: to be said before it is closed. Harmless when it is not watched."""


def readiness(loop: asyncio.AbstractEventLoop) -> Readiness:
    """The best that this system has, on this loop and for as long as it runs."""
    return EpollReadiness(loop) if hasattr(select, "epoll") else LoopReadiness(loop)


class EpollReadiness:
    """Linux: an epoll set within the loop's own."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._epoll = select.epoll()
        self._owners: list[Owner | None] = []
        """By descriptor, which the kernel gives out from the lowest: 8 bytes each."""
        self._events = bytearray()
        """What is watched of each, so that one who takes a socket over as it is watched costs no system call."""
        loop.add_reader(self._epoll.fileno(), self._call)

    def watch(self, descriptor: int, owner: Owner, events: int) -> None:
        """See `Readiness`."""
        if not events:
            self.forget(descriptor)
            return
        owners, watched = self._owners, self._events
        if descriptor >= len(owners):
            more = descriptor + 1 - len(owners)
            owners.extend([None] * more)
            watched.extend(bytes(more))
        if not watched[descriptor]:
            self._epoll.register(descriptor, events)
        elif watched[descriptor] != events:
            self._epoll.modify(descriptor, events)
        watched[descriptor] = events
        owners[descriptor] = owner

    def forget(self, descriptor: int) -> None:
        """See `Readiness`."""
        if descriptor < len(self._owners) and self._owners[descriptor] is not None:
            self._owners[descriptor] = None
            self._events[descriptor] = 0
            self._epoll.unregister(descriptor)

    def _call(self) -> None:
        owners = self._owners
        until = time.monotonic() + SERVE_SECONDS
        for descriptor, events in self._epoll.poll(0, EVENTS_AT_ONCE):
            try:
                # An end is an event of either kind: whoever waits finds it by reading, or by writing.
                owner = owners[descriptor]
                if owner is not None and events != WRITE:
                    owner.on_readable()
                    owner = owners[descriptor]
                if owner is not None and events != READ:
                    owner.on_writable()
            except Exception:
                _log.exception("Uncaught exception")
            if time.monotonic() > until:
                break


class LoopReadiness:
    """Everywhere else: what the loop itself offers."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def watch(self, descriptor: int, owner: Owner, events: int) -> None:
        """See `Readiness`."""
        if events & READ:
            self._loop.add_reader(descriptor, owner.on_readable)
        else:
            self._loop.remove_reader(descriptor)
        if events & WRITE:
            self._loop.add_writer(descriptor, owner.on_writable)
        else:
            self._loop.remove_writer(descriptor)

    def forget(self, descriptor: int) -> None:
        """See `Readiness`."""
        self._loop.remove_reader(descriptor)
        self._loop.remove_writer(descriptor)
