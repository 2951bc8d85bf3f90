"""The guard of the internal listener as the settings make it, and what a new file of keys changes."""

import logging
import socket
from pathlib import Path

import pytest

from core.access import key_of
from core.errors import Forbidden, Unauthorized
from core.settings import Settings, SettingsError
from handlers.guard import Guard, Verdict, internal_guard

NEW, OLD = "the-new-secret", "the-old-secret"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text(key_of("orders", ["emit"], OLD).line)
    return file


def asked(guard: Guard, secret: str | None = None, host: str = "localhost:8081") -> Verdict:
    return guard.judge("emit", host, None, None if secret is None else f"Bearer {secret}")


def test_a_new_file_counts_once_it_has_been_read(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    guard = internal_guard(Settings(internal_auth="keys", internal_keys=str(file)))
    assert asked(guard, OLD) == "orders"
    file.write_text(key_of("billing", ["emit"], NEW).line)
    assert asked(guard, OLD) == "orders"

    guard.reload()

    assert isinstance(asked(guard, OLD), Unauthorized)
    assert asked(guard, NEW) == "billing"
    assert [record.message for record in caplog.records] == ["Internal keys read"]


@pytest.mark.logs("Internal keys not read, the old ones count")
@pytest.mark.parametrize("broken", ["", f"orders emit {NEW}", "orders emit \ud800"])
def test_a_file_that_cannot_be_used_changes_nothing(file: Path, broken: str, caplog: pytest.LogCaptureFixture) -> None:
    guard = internal_guard(Settings(internal_auth="keys", internal_keys=str(file)))
    file.write_bytes(broken.encode("utf-8", "surrogatepass"))

    guard.reload()

    assert asked(guard, OLD) == "orders"
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert str(file) in record.__dict__["reason"]
    assert NEW not in str(record.__dict__)


@pytest.mark.logs("Internal keys not read, the old ones count")
def test_a_file_that_has_gone_changes_nothing(file: Path) -> None:
    guard = internal_guard(Settings(internal_auth="keys", internal_keys=str(file)))
    file.unlink()

    guard.reload()

    assert asked(guard, OLD) == "orders"


def test_without_keys_there_is_nothing_to_read_again() -> None:
    guard = internal_guard(Settings())

    guard.reload()

    assert asked(guard) == "local"


@pytest.mark.parametrize(
    ("settings", "passes"),
    [
        (Settings(), False),
        (Settings(insecure=("public",)), False),
        (Settings(insecure=("internal",)), True),
    ],
)
def test_a_foreign_name_passes_only_where_no_browser_comes(settings: Settings, passes: bool) -> None:
    verdict = asked(internal_guard(settings), host="evil.example:8081")

    assert verdict == "local" if passes else isinstance(verdict, Forbidden)


@pytest.mark.parametrize(
    ("file_says", "said"),
    [
        (None, "No such file or directory"),
        (b"", "there is no key in it"),
        (b"orders emit\n", "line 1: a key is NAME ROLES SHA256"),
        (b"orders emit \xff", "it is not UTF-8 at byte 12"),
    ],
)
def test_a_file_that_cannot_be_used_at_the_start_is_refused_by_name(
    tmp_path: Path, file_says: bytes | None, said: str
) -> None:
    file = tmp_path / "keys"
    if file_says is not None:
        file.write_bytes(file_says)

    with pytest.raises(SettingsError, match="internal_keys") as refused:
        internal_guard(Settings(internal_auth="keys", internal_keys=str(file)))

    assert f"{file}: {said}" in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "fix"),
    [
        (Settings(internal_auth="keys"), "--internal-keys"),
        (Settings(internal_keys="keys"), "--internal-auth=keys"),
    ],
)
def test_keys_and_the_wish_for_them_go_together(settings: Settings, fix: str) -> None:
    with pytest.raises(SettingsError, match=fix):
        internal_guard(settings)


def test_a_foreign_name_passes_where_the_file_system_asks_and_not_because_a_setting_says_so() -> None:
    guard = internal_guard(Settings(internal_listen="unix:/run/tallywire.sock"))
    with socket.socket(socket.AF_UNIX) as local, socket.socket() as open_to_pages:
        guard.stand_behind([local, open_to_pages])
        assert isinstance(asked(guard, host="evil.example:8081"), Forbidden)
        guard.stand_behind([local])
        assert asked(guard, host="evil.example:8081") == "local"
