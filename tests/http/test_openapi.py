"""GET /openapi.json, from outside. What stands in it is the business of tests/unit and tests/e2e."""

import json

import pytest
from tornado.httpclient import AsyncHTTPClient

import server
from core.hub import Hub
from handlers.openapi import document
from tests.http.conftest import Emitter
from tests.unit.test_openapi import DOCUMENT, check, resolved


@pytest.mark.gen_test
async def test_the_document_is_on_the_internal_listener(emit: Emitter) -> None:
    response = await emit.get("/openapi.json")

    assert (response.code, response.headers["Content-Type"]) == (200, "application/json")
    assert response.body == document()


@pytest.mark.gen_test
async def test_whoever_has_the_document_is_told_so(http_client: AsyncHTTPClient, base_url: str, emit: Emitter) -> None:
    etag = (await emit.get("/openapi.json")).headers["Etag"]
    response = await http_client.fetch(base_url + "/openapi.json", headers={"If-None-Match": etag}, raise_error=False)

    described = DOCUMENT["paths"]["/openapi.json"]["get"]["responses"]["304"]
    assert (response.code, response.body) == (304, b"")
    assert [name for name in described["headers"] if name not in response.headers] == []


@pytest.mark.gen_test
async def test_the_document_is_not_on_the_public_listener(http_client: AsyncHTTPClient, public_port: int) -> None:
    response = await http_client.fetch(f"http://127.0.0.1:{public_port}/openapi.json", raise_error=False)

    assert response.code == 404


@pytest.mark.gen_test
async def test_a_path_that_only_looks_like_it_is_no_route(emit: Emitter) -> None:
    assert (await emit.get("/openapi-json")).code == 404


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("path", "method", "body"),
    [
        ("/internal/emit", "POST", b'{"user_id":7,"strategy_id":3,"batch_results":[]}'),
        ("/internal/users/{user}", "DELETE", None),
        ("/stream", "GET", None),
        ("/healthz/ready", "GET", None),
    ],
)
async def test_what_a_draining_server_answers_is_described(
    http_client: AsyncHTTPClient,
    servers: server.Listeners,
    hub: Hub,
    path: str,
    method: str,
    body: bytes | None,
) -> None:
    hub.is_draining = True
    operation = DOCUMENT["paths"][path][method.lower()]
    listener = getattr(servers, operation["x-listener"][0])
    response = await http_client.fetch(
        f"{server.base_url(listener)}{path.format(user=7)}?user_id=7&strategy_id=3",
        method=method,
        body=body,
        headers={"Content-Type": "application/json", "Accept": "application/json"},
        raise_error=False,
    )

    described = resolved(operation["responses"][str(response.code)])
    content = described["content"][response.headers["Content-Type"]]
    assert response.code == 503
    check(json.loads(response.body), content["schema"])
    assert [name for name in described["headers"] if name not in response.headers] == []
