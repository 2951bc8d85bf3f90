"""Keys behind a URL: fetched without holding anybody up, looked for again when a token names one that is not known."""

import asyncio
import json
from collections.abc import Iterator

import jwt
import pytest
from jwt.algorithms import get_default_algorithms
from msgspec.structs import replace
from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop
from tornado.testing import bind_unused_port
from tornado.web import Application, RequestHandler

import server
from core.hub import Hub
from core.settings import Settings
from handlers.jwks import REFRESH_SECONDS, RETRY_SECONDS, PublishedKeys
from handlers.tokens import TokenAuthority, token_authority
from tests.http.conftest import DEADLINE_SECONDS, Opener, with_settings
from tests.tokens import PrivateKey, claims, private_key


class Publisher:
    """Serves a JWK set, and counts who asks."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.asked = 0
        self.status = 200
        self.content: bytes | None = None
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.now = 100.0

    def answer(self) -> bytes:
        """The set of now: a key for each name, each another one."""
        if self.content is not None:
            return self.content
        make = get_default_algorithms()["ES256"].to_jwk
        keys = [json.loads(make(_key(name).public_key())) | {"kid": name} for name in self.names]
        return json.dumps({"keys": keys}).encode()


def _key(name: str) -> PrivateKey:
    return private_key("ES256", sum(name.encode()))


class SetHandler(RequestHandler):
    """`GET` answers the set."""

    def initialize(self, publisher: Publisher) -> None:
        self._publisher = publisher

    async def get(self) -> None:
        self._publisher.asked += 1
        await self._publisher.may_answer.wait()
        self.set_status(self._publisher.status)
        self.finish(self._publisher.answer())


@pytest.fixture
def publisher() -> Publisher:
    return Publisher()


@pytest.fixture
def url(io_loop: IOLoop, publisher: Publisher) -> Iterator[str]:
    sock, port = bind_unused_port()
    http_server = HTTPServer(
        Application([("/keys", SetHandler, {"publisher": publisher})], log_function=lambda _handler: None)
    )
    http_server.add_sockets([sock])
    yield f"http://127.0.0.1:{port}/keys"
    http_server.stop()


@pytest.fixture
def settings(url: str) -> Settings:
    return with_settings(auth="jwt", jwt_jwks_url=url)


@pytest.fixture
def authority(settings: Settings, publisher: Publisher) -> TokenAuthority:
    return token_authority(settings, lambda: publisher.now)


@pytest.fixture
def published(authority: TokenAuthority) -> PublishedKeys:
    assert authority._published is not None
    return authority._published


@pytest.fixture
def servers(
    io_loop: IOLoop, hub: Hub, settings: Settings, http: str, authority: TokenAuthority
) -> Iterator[server.Listeners]:
    listeners = server.bind(settings)
    http_servers = server.start_servers(replace(settings, http=http), hub, listeners, authority=authority)
    yield listeners
    for http_server in http_servers:
        http_server.stop()
    io_loop.run_sync(lambda: server.leave(settings, hub, http_servers))


def bearer(hub: Hub, name: str) -> str:
    """A token signed with the key of that name."""
    made = jwt.encode(claims(hub.now_ms() / 1000), _key(name), "ES256", {"kid": name})
    return f"Authorization: Bearer {made}"


@pytest.mark.gen_test
@pytest.mark.logs("Keys not fetched")
async def test_until_keys_have_been_fetched_streams_are_told_to_come_back(
    stream: Opener, hub: Hub, publisher: Publisher, published: PublishedKeys
) -> None:
    publisher.status = 500
    async with stream("strategy_id=3", bearer(hub, "a"), "Accept: application/json") as early:
        assert early.status == 503
    async with stream("strategy_id=3", bearer(hub, "a")) as early:
        assert (early.status, (await early.data())["data"]) == (200, {"reason": "busy", "reconnect": True})
    publisher.status, publisher.names = 200, ["a"]
    publisher.now += RETRY_SECONDS
    await published.look()

    async with stream("strategy_id=3", bearer(hub, "a")) as reader:
        assert reader.status == 200


@pytest.mark.gen_test
async def test_an_unknown_key_is_looked_for_once(
    stream: Opener, hub: Hub, publisher: Publisher, published: PublishedKeys
) -> None:
    publisher.names = ["a"]
    await published.look()
    publisher.names = ["a", "b"]
    publisher.now += RETRY_SECONDS
    async with stream("strategy_id=3", bearer(hub, "b")) as reader:
        assert reader.status == 200
    assert publisher.asked == 2

    for name in ("c", "d", "e"):
        async with stream("strategy_id=3", bearer(hub, name)) as refused:
            assert refused.status == 401
    assert publisher.asked == 2


@pytest.mark.gen_test
async def test_many_who_wait_for_a_key_wait_for_one_answer_and_hold_nobody_up(
    stream: Opener, hub: Hub, publisher: Publisher, published: PublishedKeys
) -> None:
    publisher.names = ["a"]
    await published.look()
    publisher.names = ["a", "b"]
    publisher.now += RETRY_SECONDS
    publisher.may_answer.clear()

    async def open_with(name: str) -> int:
        async with stream("strategy_id=3", bearer(hub, name)) as reader:
            return int(reader.status)

    waiting = [asyncio.ensure_future(open_with("b")) for _ in range(5)]
    async with asyncio.timeout(DEADLINE_SECONDS):
        while publisher.asked < 2:
            await asyncio.sleep(0)
    assert await open_with("a") == 200
    publisher.may_answer.set()

    assert await asyncio.gather(*waiting) == [200] * 5
    assert publisher.asked == 2


@pytest.mark.gen_test
@pytest.mark.logs("Keys not fetched")
@pytest.mark.parametrize(("status", "content"), [(500, b"{}"), (302, b"{}"), (200, b"<html>"), (200, b"{" * 300_000)])
async def test_what_is_no_set_leaves_the_keys_as_they_are(
    stream: Opener, hub: Hub, publisher: Publisher, published: PublishedKeys, status: int, content: bytes
) -> None:
    publisher.names = ["a"]
    await published.look()
    publisher.status, publisher.content = status, content
    await published.look()

    assert publisher.asked == 2
    async with stream("strategy_id=3", bearer(hub, "a")) as reader:
        assert reader.status == 200


@pytest.mark.gen_test
@pytest.mark.logs("Keys not fetched")
async def test_a_look_that_failed_is_not_the_last_for_long(publisher: Publisher, published: PublishedKeys) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        publisher.status = 500 if len(slept) in (1, 2) else 200
        if len(slept) == 4:
            raise asyncio.CancelledError

    publisher.names = ["a"]
    with pytest.raises(asyncio.CancelledError):
        await published.run(sleep)

    assert slept == [REFRESH_SECONDS, RETRY_SECONDS, RETRY_SECONDS, REFRESH_SECONDS]
    assert [key.kid for key in published.keys] == ["a"]


@pytest.mark.gen_test
async def test_a_key_that_is_withdrawn_counts_no_more(
    stream: Opener, hub: Hub, publisher: Publisher, published: PublishedKeys
) -> None:
    publisher.names = ["a", "b"]
    await published.look()
    publisher.names = ["b"]
    await published.look()

    async with stream("strategy_id=3", bearer(hub, "a")) as refused:
        assert refused.status == 401
