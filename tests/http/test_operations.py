"""Health, connections, keys, and what is not there."""

import json
import logging

import pytest
from tornado.httpclient import AsyncHTTPClient

from core import reports
from core.errors import MOST_SHOWN
from core.hub import Hub
from tests.http.conftest import Emitter, Opener


@pytest.mark.gen_test
@pytest.mark.parametrize("path", ["/healthz/live", "/healthz/ready", "/healthz/ready?for=emit"])
async def test_a_running_server_is_live_and_ready(emit: Emitter, path: str) -> None:
    response = await emit.get(path)

    assert (response.code, json.loads(response.body)) == (200, {"status": "ok"})


@pytest.mark.gen_test
async def test_a_key_states_its_totals_head_and_oldest_row(emit: Emitter, stream: Opener, hub: Hub) -> None:
    await emit(7, 3)
    await emit(7, 4)
    await emit(7, 3)
    async with stream("user_id=7&strategy_id=3") as reader:
        await reader.event()
        facts = json.loads((await emit.get("/internal/keys/7/3")).body)

    epoch = hub.journal.epoch
    assert facts["totals"] == [{"order_type": "LIMIT", "created": 2, "cancelled": 0}]
    assert (facts["head"], facts["oldest_kept"], facts["batches"]) == (f"{epoch}-3", f"{epoch}-1", 2)
    assert facts["connections"] == 1


@pytest.mark.gen_test
async def test_a_key_nobody_ever_counted_for_is_zero(emit: Emitter) -> None:
    facts = json.loads((await emit.get("/internal/keys/7/3")).body)

    assert (facts["totals"], facts["head"], facts["batches"]) == ([], None, 0)


@pytest.mark.gen_test
async def test_the_keys_of_a_user_state_the_same_as_each_alone(emit: Emitter, stream: Opener) -> None:
    for strategy_id in (4, 3, 3, 2**53 - 1):
        await emit(7, strategy_id)
    await emit(8, 5)
    async with stream("user_id=7&strategy_id=3&strategy_id=9") as reader:
        await reader.event()
        report = json.loads((await emit.get("/internal/keys/7")).body)
        alone = [json.loads((await emit.get(f"/internal/keys/7/{each}")).body) for each in (3, 4, 2**53 - 1)]

    assert report == {"user_id": 7, "keys": alone, "has_more": False}
    assert [key["connections"] for key in alone] == [1, 0, 0]


@pytest.mark.gen_test
async def test_more_keys_than_one_answer_states_come_page_by_page(
    emit: Emitter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "KEYS_LISTED", 2)
    for strategy_id in range(1, 6):
        await emit(7, strategy_id)

    pages = [json.loads((await emit.get(f"/internal/keys/7?after={after}")).body) for after in (2, 4)]
    pages.insert(0, json.loads((await emit.get("/internal/keys/7")).body))

    assert [[key["strategy_id"] for key in page["keys"]] for page in pages] == [[1, 2], [3, 4], [5]]
    assert [page["has_more"] for page in pages] == [True, True, False]


@pytest.mark.gen_test
async def test_a_user_nobody_ever_counted_for_has_no_keys(emit: Emitter) -> None:
    report = json.loads((await emit.get("/internal/keys/7")).body)

    assert report == {"user_id": 7, "keys": [], "has_more": False}


@pytest.mark.gen_test
async def test_connections_are_reported_of_one_user_or_of_all(emit: Emitter, stream: Opener) -> None:
    async with stream("user_id=7&strategy_id=3") as one, stream("user_id=8&strategy_id=*") as two:
        await one.event()
        await two.event()
        everyone = json.loads((await emit.get("/internal/connections")).body)
        of_eight = json.loads((await emit.get("/internal/connections?user_id=8")).body)

    assert everyone["connections"] == 2
    assert of_eight["connections"] == 1
    assert of_eight["slowest"][0]["strategies"] == "*"
    assert of_eight["slowest"][0]["state"] == "ready"
    assert of_eight["slowest"][0]["peer"].startswith("127.0.0.1:")


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "path",
    [
        "/internal/keys/7/x",
        "/internal/keys/0/3",
        "/internal/keys/x",
        "/internal/keys/7?after=0",
        "/internal/keys/7?after=1&after=2",
        "/internal/connections?user_id=x",
        "/internal/connections?user_id=1&user_id=2",
        "/healthz/ready?for=lunch",
    ],
)
async def test_a_bad_parameter_is_named(emit: Emitter, path: str) -> None:
    response = await emit.get(path)

    assert (response.code, json.loads(response.body)["code"]) == (422, "invalid_query")


@pytest.mark.gen_test
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS"])
async def test_what_is_not_there_is_a_problem_with_any_method(
    http_client: AsyncHTTPClient, base_url: str, method: str
) -> None:
    body = b"x" * 50_000 if method == "POST" else None
    response = await http_client.fetch(base_url + "/nowhere", method=method, body=body, raise_error=False)

    assert response.code == 404
    assert response.headers["Content-Type"] == "application/problem+json"
    assert json.loads(response.body)["code"] == "not_found"


@pytest.mark.gen_test
@pytest.mark.parametrize("path", ["/nowhere", "/internal/emit"])
async def test_a_long_path_is_neither_repeated_nor_logged_in_full(
    emit: Emitter, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    caplog.set_level(logging.DEBUG)
    response = await emit.get(f"{path}/{'x' * 5000}")
    fields = [vars(record) for record in caplog.records if record.name.startswith("tallywire")]
    (refusal,) = (each for each in fields if each["msg"] == "Request refused")

    assert response.code == 404
    assert f"{(path + '/').ljust(MOST_SHOWN - 1, 'x')}… " in json.loads(response.body)["detail"]
    assert refusal["path"].endswith("x…")
    assert all(len(str(value)) <= MOST_SHOWN for each in fields for value in each.values())


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("path", "method", "allow"),
    [
        ("/internal/emit", "GET", "POST"),
        ("/internal/connections", "DELETE", "GET"),
        ("/healthz/live", "POST", "GET, HEAD"),
        ("/internal/users/7", "GET", "DELETE"),
        ("/internal/statistics/hourly", "POST", "GET"),
        ("/internal/emit", "PROPFIND", "POST"),
    ],
)
async def test_a_method_that_a_route_does_not_take_is_told_which_it_takes(
    http_client: AsyncHTTPClient, base_url: str, path: str, method: str, allow: str
) -> None:
    response = await http_client.fetch(
        base_url + path,
        method=method,
        body=b"" if method == "POST" else None,
        allow_nonstandard_methods=True,
        raise_error=False,
    )

    assert response.code == 405
    assert response.headers["Allow"] == allow
    assert json.loads(response.body)["code"] == "method_not_allowed"


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "path", ["/internal/emit", "/internal/connections", "/internal/keys/7/3", "/internal/batches", "/metrics"]
)
async def test_nothing_internal_is_on_the_public_listener(
    http_client: AsyncHTTPClient, public_port: int, path: str
) -> None:
    response = await http_client.fetch(f"http://127.0.0.1:{public_port}{path}", raise_error=False)

    assert response.code == 404


@pytest.mark.gen_test
async def test_a_pre_flight_lets_a_client_set_last_event_id(http_client: AsyncHTTPClient, public_port: int) -> None:
    response = await http_client.fetch(
        f"http://127.0.0.1:{public_port}/stream",
        method="OPTIONS",
        headers={"Origin": "http://localhost:5173", "Access-Control-Request-Headers": "last-event-id"},
    )

    assert response.code == 204
    assert response.headers["Access-Control-Allow-Origin"] == "http://localhost:5173"
    assert "Last-Event-ID" in response.headers["Access-Control-Allow-Headers"]
