"""The internal listener on a unix socket."""

import asyncio
import json
import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import server
from core.access import key_of
from core.settings import Settings, SettingsError
from handlers.local_socket import bind_local_socket, remove_local_socket
from tests.http.conftest import with_settings
from tests.http.wire import Answer, Wire, emit_request, request


@pytest.fixture
def path() -> Iterator[Path]:
    """Where a socket may be: pytest's own directories have names too long for one."""
    with tempfile.TemporaryDirectory(prefix="tallywire-") as directory:
        yield Path(directory) / "internal.sock"


@pytest.fixture
def settings(path: Path) -> Settings:
    return with_settings(internal_listen=f"unix:{path}")


async def ask(path: Path, *sent: bytes) -> list[Answer]:
    """Ask one after the other on one connection."""
    sock = socket.socket(socket.AF_UNIX)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, str(path))
    async with Wire(sock) as wire:
        await wire.send(*sent)
        return await wire.answers(len(sent))


def bind(path: Path) -> socket.socket:
    return bind_local_socket(str(path), 8)


def refused_address(address: str) -> None:
    """Bind the internal listener alone, which raises."""
    server._bind("internal", address, with_settings(internal_listen=address))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.gen_test
async def test_an_emit_over_a_unix_socket_counts_whatever_its_host_is(servers: server.Listeners, path: Path) -> None:
    named = request("/internal/keys/7/3", host="orders.example")
    emitted, asked = await ask(path, emit_request(), named)

    assert (emitted.status, asked.status) == (200, 200)
    assert json.loads(asked.body)["batches"] == 1


@pytest.mark.gen_test
async def test_a_page_is_refused_there_too(servers: server.Listeners, path: Path) -> None:
    (answer,) = await ask(path, emit_request("Origin: http://evil.example"))

    assert answer.status == 403


class TestWithKeys:
    """Keys are asked for there as well, where somebody wants them: callers have names then."""

    @pytest.fixture
    def settings(self, path: Path, tmp_path: Path) -> Settings:
        keys = tmp_path / "keys"
        keys.write_text(key_of("orders", ["emit"], "secret").line)
        return with_settings(internal_listen=f"unix:{path}", internal_auth="keys", internal_keys=str(keys))

    @pytest.mark.gen_test
    async def test_a_key_is_needed(self, servers: server.Listeners, path: Path) -> None:
        without, emitted = await ask(path, emit_request(), emit_request("Authorization: Bearer secret"))

        assert (without.status, emitted.status) == (401, 200)


def test_where_it_can_be_reached_is_what_the_setting_says(servers: server.Listeners, path: Path) -> None:
    assert server.base_url(servers.internal) == f"unix:{path}"


def test_the_examples_can_be_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    server._print_examples("http://127.0.0.1:1", "unix:/run/my app/internal.sock")

    assert "curl --unix-socket '/run/my app/internal.sock' http://localhost/internal/emit -H" in capsys.readouterr().out


def test_the_examples_name_the_console_where_a_browser_can_open_it(capsys: pytest.CaptureFixture[str]) -> None:
    server._print_examples("http://127.0.0.1:1", "http://127.0.0.1:2")
    over_tcp = capsys.readouterr().out
    server._print_examples("http://127.0.0.1:1", "unix:/run/internal.sock")

    assert "http://127.0.0.1:2/console/    # look, in a browser\n" in over_tcp
    assert "console" not in capsys.readouterr().out


# ---- the file


def test_only_its_user_may_connect_whatever_the_umask_is(path: Path) -> None:
    before = os.umask(0)
    try:
        with bind(path):
            assert mode(path) == 0o600
    finally:
        os.umask(before)


def test_nobody_can_connect_before_the_mode_is_right(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listened: list[int] = []
    listen = socket.socket.listen

    def look(sock: socket.socket, backlog: int) -> None:
        listened.append(mode(path))
        listen(sock, backlog)

    monkeypatch.setattr(socket.socket, "listen", look)
    bind(path).close()

    assert listened == [0o600]


def test_what_a_killed_server_left_is_replaced(path: Path) -> None:
    bind(path).close()
    assert path.exists()

    with bind(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_server_that_lives_keeps_its_socket(path: Path) -> None:
    with bind(path) as living:
        with pytest.raises(SettingsError, match="a server listens on it already") as refused:
            refused_address(f"unix:{path}")
        who_asked, _ = living.accept()
        who_asked.close()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    assert f"internal_listen unix:{path}" in str(refused.value)
    assert "--internal-listen" in str(refused.value)


def test_a_server_with_a_full_queue_lives(path: Path) -> None:
    with (
        bind_local_socket(str(path), 0),
        socket.socket(socket.AF_UNIX) as first,
        socket.socket(socket.AF_UNIX) as next_,
    ):
        for client in (first, next_):
            client.setblocking(False)
            client.connect_ex(str(path))
        with pytest.raises(OSError, match="a server listens on it already"):
            bind(path)


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_nothing_but_a_socket_is_replaced(path: Path, kind: str) -> None:
    if kind == "file":
        path.write_text("keep me")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(path.parent / "elsewhere")

    with pytest.raises(OSError, match="no socket"):
        bind(path)
    assert path.is_symlink() or path.exists()


@pytest.mark.parametrize(
    ("address", "said"),
    [("unix:", "write unix:PATH"), ("unix:/nowhere/at/all", "No such file"), (f"unix:/tmp/{'x' * 200}", "too long")],
)
def test_a_path_that_cannot_be_one_is_refused_with_the_setting(address: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said) as refused:
        refused_address(address)
    assert f"internal_listen {address}: " in str(refused.value)


def test_the_public_listener_takes_no_path(path: Path) -> None:
    with pytest.raises(SettingsError, match="HOST:PORT"):
        server.bind(with_settings(public_listen=f"unix:{path}"))


def test_who_leaves_takes_the_file_along_unless_another_has_the_name(path: Path) -> None:
    bind(path).close()
    remove_local_socket(str(path))
    assert not path.exists()
    remove_local_socket(str(path))

    with bind(path):
        remove_local_socket(str(path))
        assert path.exists()
