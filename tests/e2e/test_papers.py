"""Code that the papers show, run as it stands there."""

import hashlib
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest

from tests.process import ROOT, ServerProcess, free_port, running_server

MIGRATION = (ROOT / "docs" / "migration.md").read_text()
CREATED = {"order_type": "LIMIT", "event_type": "order_created", "success": True}
UNREADABLE = [{"order_type": "limit", "event_type": "order_created", "success": True}]


@pytest.fixture
def outbox() -> dict[str, Callable[..., None]]:
    """The functions of the recipe."""
    (recipe,) = re.findall(r"^```python\n(.*?)^```$", MIGRATION, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(recipe, names)
    return names


@pytest.fixture
def database(tmp_path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(tmp_path / "orders.db")
    (table,) = re.findall(r"CREATE TABLE outbox \(.*\)$", MIGRATION, re.MULTILINE)
    database.execute(table)
    return database


def waiting(database: sqlite3.Connection) -> int:
    (count,) = database.execute("SELECT count(*) FROM outbox").fetchone()
    return int(count)


def counted(server: ServerProcess) -> list[dict[str, object]]:
    totals: list[dict[str, object]] = server.get("/internal/keys/7/3")["totals"]
    return totals


def test_the_outbox_sends_what_was_noted_and_a_crash_before_the_delete_counts_nothing_twice(
    outbox: dict[str, Callable[..., None]], database: sqlite3.Connection
) -> None:
    for _ in range(3):
        outbox["note"](database, 7, 3, [CREATED, CREATED])
    database.commit()
    with running_server("--durability=none") as server:
        outbox["relay"](NoCommit(database), server.internal)
        database.rollback()
        assert waiting(database) == 3
        outbox["relay"](database, server.internal)

        assert waiting(database) == 0
        assert counted(server) == [{"order_type": "LIMIT", "created": 6, "cancelled": 0}]


def test_the_outbox_keeps_what_nobody_takes(
    outbox: dict[str, Callable[..., None]], database: sqlite3.Connection
) -> None:
    outbox["note"](database, 7, 3, [CREATED])
    with pytest.raises(URLError):
        outbox["relay"](database, f"http://127.0.0.1:{free_port()}")
    assert waiting(database) == 1


def test_what_will_never_be_accepted_does_not_hold_up_the_rest(
    outbox: dict[str, Callable[..., None]], database: sqlite3.Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    outbox["note"](database, 7, 3, UNREADABLE)
    outbox["note"](database, 7, 3, [CREATED])
    with running_server("--durability=none") as server:
        outbox["relay"](database, server.internal)

        assert counted(server) == [{"order_type": "LIMIT", "created": 1, "cancelled": 0}]
    assert waiting(database) == 0
    assert "never accepted" in capsys.readouterr().out


def test_the_outbox_shows_its_key_and_sends_more_than_a_call_may_have_in_several(
    outbox: dict[str, Callable[..., None]], database: sqlite3.Connection, tmp_path: Path
) -> None:
    secret = "a-secret-of-this-test"
    keys = tmp_path / "keys"
    keys.write_text(f"orders emit,read {hashlib.sha256(secret.encode()).hexdigest()}\n")
    for _ in range(12):
        outbox["note"](database, 7, 3, [CREATED | {"memo": "x" * 100}] * 5000)
    database.commit()
    calls = 0
    with running_server("--durability=none", "--internal-auth=keys", f"--internal-keys={keys}") as server:
        while waiting(database):
            outbox["relay"](database, server.internal, secret)
            calls += 1

    assert 1 < calls < 12


class NoCommit:
    """A database whose client dies before its commit."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self.execute = database.execute

    def commit(self) -> None:
        pass
