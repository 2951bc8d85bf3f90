"""Tokens, tickets and keys go in, and come out nowhere: not in the log, not in an answer, not in the metrics."""

import json
import time
from pathlib import Path

import pytest
import requests

from core.access import key_of
from handlers.credentials import COOKIE
from tests.process import running_server
from tests.tokens import SECRET, claims, private_key, private_pem, public_pem, token

KEY = "Vb7-key-of-the-order-service-that-nobody-may-see"
WRONG_KEY = "Wk3-another-key-that-is-not-one-of-the-file"


@pytest.mark.parametrize("front", ["lean", "tornado"])
def test_no_secret_leaves_the_server(front: str, tmp_path: Path) -> None:
    secret, public, keys = tmp_path / "secret", tmp_path / "public.pem", tmp_path / "keys"
    secret.write_bytes(SECRET)
    public.write_bytes(public_pem(private_key("RS256")))
    line = key_of("orders", ["emit", "read", "admin"], KEY).line
    keys.write_text(line + "\n")
    said: list[str] = []
    sound, expired = token(claims(time.time())), token(claims(time.time() - 10_000))
    of_a_file = token(claims(time.time(), strategies="*"), "RS256")
    broken = sound[:-3] + "AAA"
    with running_server(
        "--auth=jwt",
        f"--jwt-keys=HS256={secret}",
        f"--jwt-keys=RS256={public}",
        "--internal-auth=keys",
        f"--internal-keys={keys}",
        f"--http={front}",
        "--log-level=debug",
        "--durability=none",
    ) as server:

        def ask(method: str, url: str, **headers: str) -> requests.Response:
            with requests.request(method, url, headers=headers, stream=True, timeout=20) as answer:
                body = next(answer.iter_content(4096), b"") if answer.ok else answer.content
                said.append(f"{answer.headers}{body.decode()}")
                return answer

        for shown in (sound, expired, of_a_file, broken, "x" * 3000):
            for path in ("/stream?strategy_id=3", "/totals?strategy_id=3", "/statistics/hourly", "/nowhere"):
                ask("GET", server.public + path, Authorization=f"Bearer {shown}")
                ask("GET", server.public + path, Cookie=f"{COOKIE}={shown}")
                ask("GET", f"{server.public}{path}{'&' if '?' in path else '?'}ticket={shown}")
        session = requests.post(
            f"{server.public}/stream/session", headers={"Authorization": f"Bearer {sound}"}, timeout=20
        )
        assert session.ok
        said.append(session.text)
        issued = requests.post(
            f"{server.public}/stream/ticket", headers={"Authorization": f"Bearer {sound}"}, timeout=20
        )
        ticket = issued.json()["ticket"]
        for _ in range(2):
            ask("GET", f"{server.public}/stream?strategy_id=3&ticket={ticket}")
        for key in (KEY, WRONG_KEY):
            for method, path in (
                ("POST", "/internal/emit"),
                ("GET", "/internal/connections"),
                ("POST", "/internal/revoke"),
                ("DELETE", "/internal/users/7"),
                ("GET", "/internal/batches"),
                ("GET", "/openapi.json"),
                ("GET", "/nowhere"),
            ):
                ask(method, server.internal + path, Authorization=f"Bearer {key}")
        for accept in ("text/plain", "application/openmetrics-text"):
            scraped = requests.get(
                f"{server.internal}/metrics", headers={"Authorization": f"Bearer {KEY}", "Accept": accept}, timeout=20
            )
            assert 'answers_refused_total{code="unauthorized"}' in scraped.text
            said.append(scraped.text)
        assert server.stop() == 0
        said.append(server.log.read_text())

    assert len(said) > 70
    planted = {
        "the token": sound,
        "its signature": sound.rpartition(".")[2],
        "its payload": sound.split(".")[1],
        "an expired token": expired,
        "a token of a key in a file": of_a_file,
        "a token that is none": broken,
        "the secret": SECRET.decode(),
        "the private key": private_pem(private_key("RS256")).decode().splitlines()[1],
        "the ticket": ticket,
        "the key": KEY,
        "a wrong key": WRONG_KEY,
        "the digest of the key": line.split()[-1],
    }
    assert json.loads(issued.text)["ticket"] == ticket
    found = [name for name, planted_text in planted.items() if any(planted_text in text for text in said)]
    assert found == []
