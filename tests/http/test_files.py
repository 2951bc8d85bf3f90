"""GET /tallywire.js: the browser client, for pages of any origin."""

import pytest
from tornado.httpclient import AsyncHTTPClient

from tests.http.conftest import Emitter
from tests.process import ROOT

SOURCE = ROOT / "clients" / "js" / "tallywire.js"


@pytest.fixture
def url(public_port: int) -> str:
    return f"http://127.0.0.1:{public_port}/tallywire.js"


@pytest.mark.gen_test
async def test_the_client_is_served_as_a_module_that_any_page_may_import(
    http_client: AsyncHTTPClient, url: str
) -> None:
    response = await http_client.fetch(url, headers={"Origin": "https://pages.example.com"})

    assert response.body == SOURCE.read_bytes()
    assert response.headers["Content-Type"] == "text/javascript; charset=utf-8"
    assert response.headers["Access-Control-Allow-Origin"] == "*"
    assert response.headers["Cache-Control"] == "no-cache"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert "Access-Control-Allow-Credentials" not in response.headers


@pytest.mark.gen_test
async def test_whoever_has_the_client_is_told_so(http_client: AsyncHTTPClient, url: str) -> None:
    head = await http_client.fetch(url, method="HEAD")
    again = await http_client.fetch(url, headers={"If-None-Match": head.headers["Etag"]}, raise_error=False)

    assert (head.body, int(head.headers["Content-Length"])) == (b"", len(SOURCE.read_bytes()))
    assert (again.code, again.body) == (304, b"")
    assert again.headers["Access-Control-Allow-Origin"] == "*"


@pytest.mark.gen_test
async def test_the_client_is_not_on_the_internal_listener(emit: Emitter) -> None:
    assert (await emit.get("/tallywire.js")).code == 404
