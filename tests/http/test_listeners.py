"""Which sockets the listeners bind, and how long they stay open."""

import asyncio
import resource
import socket

import pytest

import server
from core.hub import Hub
from tests.http.conftest import with_settings


def has_ipv6() -> bool:
    """Whether this machine has an IPv6 loopback."""
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_localhost_is_one_port_over_ipv4_and_over_ipv6_where_there_is_any() -> None:
    listeners = server.bind(with_settings(public_listen="localhost:0", internal_listen="localhost:0"))
    try:
        for sockets in (listeners.public, listeners.internal):
            families = {sock.family for sock in sockets}
            assert families == ({socket.AF_INET, socket.AF_INET6} if has_ipv6() else {socket.AF_INET})
            assert len({sock.getsockname()[1] for sock in sockets}) == 1
    finally:
        for sock in (*listeners.public, *listeners.internal):
            sock.close()


def test_streams_leave_descriptors_to_everything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _what: (1024, 5000))
    monkeypatch.setattr(resource, "setrlimit", lambda _what, limits: raised.append(limits))

    assert server.available_connections() == 5000 - server.RESERVED_DESCRIPTORS
    assert raised == [(5000, 5000)]


@pytest.mark.gen_test
async def test_balancers_are_waited_for_but_not_with_a_journal_that_fails(hub: Hub) -> None:
    settings, has_failed = with_settings(shutdown_delay_seconds=600), asyncio.Event()
    waiting = asyncio.create_task(server._let_balancers_notice(settings, hub, has_failed))
    await asyncio.sleep(0)
    assert hub.is_leaving
    assert not waiting.done()

    has_failed.set()

    await waiting
