"""The console's files, from outside: what they are sent with, and to whom. The rest is the business of tests/e2e."""

import json
import os
from pathlib import Path

import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPResponse

from core.settings import Settings
from tests.http.conftest import with_settings

FILES = (
    "",
    "index.html",
    "shell.js",
    "console.css",
    "icon.svg",
    "pages/overview.js",
    "vendor/uPlot.esm.js",
    "tallywire.js",
)


@pytest.fixture
def settings() -> Settings:
    return with_settings(console_emit="on")


async def fetch(client: AsyncHTTPClient, url: str, **headers: str) -> HTTPResponse:
    return await client.fetch(url, headers=headers, raise_error=False, follow_redirects=False)


@pytest.mark.gen_test
@pytest.mark.parametrize("path", FILES)
async def test_a_file_is_sent_with_a_policy_that_lets_nothing_else_in(
    http_client: AsyncHTTPClient, base_url: str, path: str
) -> None:
    response = await fetch(http_client, f"{base_url}/console/{path}")
    policy = dict(each.split(" ", 1) for each in response.headers["Content-Security-Policy"].split("; "))

    assert response.code == 200
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == "'self'"
    assert "unsafe" not in response.headers["Content-Security-Policy"]
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Referrer-Policy"] == "no-referrer"
    assert response.headers["Cache-Control"] == "no-cache"


@pytest.mark.gen_test
async def test_a_file_that_the_browser_has_is_not_sent_again(http_client: AsyncHTTPClient, base_url: str) -> None:
    etag = (await fetch(http_client, f"{base_url}/console/shell.js")).headers["Etag"]
    response = await fetch(http_client, f"{base_url}/console/shell.js", **{"If-None-Match": etag})

    assert (response.code, response.body) == (304, b"")


@pytest.mark.gen_test
async def test_the_address_as_people_type_it_leads_there(http_client: AsyncHTTPClient, base_url: str) -> None:
    response = await fetch(http_client, f"{base_url}/console")

    assert (response.code, response.headers["Location"]) == (308, "/console/")


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "path", ["nothing.js", "..", "../console.py", "%2e%2e/console.py", "pages/", "pages", "vendor/uPlot.LICENSE"]
)
async def test_nothing_but_its_files_can_be_had(http_client: AsyncHTTPClient, base_url: str, path: str) -> None:
    response = await fetch(http_client, f"{base_url}/console/{path}")

    assert (response.code, json.loads(response.body)["code"]) == (404, "not_found")


@pytest.mark.gen_test
@pytest.mark.parametrize("path", ["/console", "/console/", "/console/config.json"])
async def test_the_public_listener_has_no_console(http_client: AsyncHTTPClient, public_port: int, path: str) -> None:
    assert (await fetch(http_client, f"http://127.0.0.1:{public_port}{path}")).code == 404


@pytest.mark.gen_test
async def test_it_is_told_what_it_may_do(http_client: AsyncHTTPClient, base_url: str) -> None:
    config = json.loads((await fetch(http_client, f"{base_url}/console/config.json")).body)

    assert (config["internal_auth"], config["console_emit"]) == ("none", True)


@pytest.mark.gen_test
async def test_its_pages_may_call_both_listeners_where_neither_asks_who_they_are(
    http_client: AsyncHTTPClient, base_url: str, public_port: int
) -> None:
    page = await fetch(http_client, f"{base_url}/console/")
    public_url = json.loads((await fetch(http_client, f"{base_url}/console/config.json")).body)["public_url"]

    assert public_url == f"http://127.0.0.1:{public_port}"
    assert f"connect-src 'self' {public_url};" in page.headers["Content-Security-Policy"]


class TestWithTokens:
    """Readers show a token."""

    @pytest.fixture
    def settings(self, tmp_path: Path) -> Settings:
        secret = tmp_path / "secret"
        secret.write_text(os.urandom(48).hex())
        return with_settings(auth="jwt", jwt_keys=(f"HS256={secret}",))

    @pytest.mark.gen_test
    async def test_its_pages_call_the_internal_listener_only(self, http_client: AsyncHTTPClient, base_url: str) -> None:
        page = await fetch(http_client, f"{base_url}/console/")
        config = json.loads((await fetch(http_client, f"{base_url}/console/config.json")).body)

        assert config["public_url"] is None
        assert "connect-src 'self';" in page.headers["Content-Security-Policy"]


class TestFromOtherMachines:
    """The internal listener is for others, too, the public one is not: at its address they have one of their own."""

    @pytest.fixture
    def settings(self) -> Settings:
        return with_settings(internal_listen="0.0.0.0:0", insecure=("internal",))

    @pytest.mark.gen_test
    async def test_its_pages_call_the_internal_listener_only(
        self, http_client: AsyncHTTPClient, internal_port: int
    ) -> None:
        base_url = f"http://127.0.0.1:{internal_port}"
        page = await fetch(http_client, f"{base_url}/console/")
        config = json.loads((await fetch(http_client, f"{base_url}/console/config.json")).body)

        assert config["public_url"] is None
        assert "connect-src 'self';" in page.headers["Content-Security-Policy"]


@pytest.mark.gen_test
async def test_a_page_from_elsewhere_gets_nothing_of_it(http_client: AsyncHTTPClient, base_url: str) -> None:
    response = await fetch(http_client, f"{base_url}/console/config.json", Origin="https://evil.example")

    assert response.code == 403
