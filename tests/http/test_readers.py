"""Who reads: tokens, sessions, tickets, proxies, revocations, and the end of a token, over real sockets."""

import asyncio
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPResponse

from core.auth import MAX_TOKEN_BYTES
from core.hub import Hub
from core.settings import Settings
from handlers.credentials import COOKIE
from tests.http.conftest import DEADLINE_SECONDS, Emitter, Opener, StreamReader, with_settings
from tests.tokens import SECRET, claims, encoded, private_key, public_pem, token

Ask = Callable[..., Any]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET + b"\n")
    public = tmp_path / "public.pem"
    public.write_bytes(public_pem(private_key("ES256")))
    return with_settings(
        auth="jwt",
        jwt_keys=(f"HS256={secret}", f"ES256={public}"),
        cors_origins=("https://app.example.com",),
    )


@pytest.fixture
def ask(http_client: AsyncHTTPClient, public_port: int) -> Ask:
    """`await ask("/totals", Authorization="Bearer ...")` on the public listener."""

    async def fetch(path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> HTTPResponse:
        return await http_client.fetch(
            f"http://127.0.0.1:{public_port}{path}",
            method=method,
            body=body,
            headers={name.replace("_", "-"): value for name, value in headers.items()},
            raise_error=False,
            allow_nonstandard_methods=True,
        )

    return fetch


def bearer(hub: Hub, algorithm: str = "HS256", **changed: Any) -> str:
    """A header with a token that is sound now, but for what is changed."""
    return "Authorization: Bearer " + token(claims(hub.now_ms() / 1000, **changed), algorithm)


def code(response: HTTPResponse) -> str:
    problem: str = json.loads(response.body)["code"]
    return problem


# ---- tokens


@pytest.mark.gen_test
@pytest.mark.parametrize("algorithm", ["HS256", "ES256"])
async def test_a_token_opens_the_streams_of_its_user(stream: Opener, emit: Emitter, hub: Hub, algorithm: str) -> None:
    async with stream("strategy_id=3", bearer(hub, algorithm)) as reader:
        assert reader.status == 200
        assert (await reader.data())["data"]["strategies"] == [3]
        await emit(8, 3)
        answer = await emit(7, 3)

        assert (await reader.event()).last_event_id == answer["position"]


@pytest.mark.gen_test
async def test_every_strategy_is_what_the_token_may_read(stream: Opener, emit: Emitter, hub: Hub) -> None:
    async with (
        stream("strategy_id=*", bearer(hub)) as some,
        stream("strategy_id=*", bearer(hub, strategies="*")) as all_,
    ):
        assert (await some.data())["data"]["strategies"] == [3, 5]
        assert (await all_.data())["data"]["strategies"] == "*"
        await emit(7, 4)
        await emit(7, 5)

        assert (await some.data())["stream"]["strategy_id"] == 5
        assert (await all_.data())["stream"]["strategy_id"] == 4


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("query", "changed", "status", "said"),
    [
        ("strategy_id=3", {"exp": 1_000_000_000, "iat": 999_999_999}, 401, "unauthorized"),
        ("strategy_id=3", {"iat": 4_000_000_000, "exp": 4_000_000_100}, 401, "unauthorized"),
        ("strategy_id=4", {}, 403, "forbidden"),
        ("strategy_id=3&strategy_id=4", {}, 403, "forbidden"),
        ("user_id=8&strategy_id=3", {}, 403, "forbidden"),
        ("strategy_id=*", {"strategies": []}, 403, "forbidden"),
        ("user_id=me&strategy_id=3", {}, 422, "invalid_query"),
        ("strategy_id=x", {}, 422, "invalid_query"),
    ],
)
async def test_what_is_not_its_own_is_refused(
    stream: Opener, hub: Hub, query: str, changed: dict[str, Any], status: int, said: str
) -> None:
    async with stream(query, bearer(hub, **changed), "Accept: text/event-stream") as refused:
        body = json.loads(await refused.reader.readexactly(int(refused.headers["content-length"])))

    assert (refused.status, body["code"]) == (status, said)
    assert ("www-authenticate" in refused.headers) is (status == 401)
    assert len(hub.registry) == 0


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "header",
    [
        "X-Nothing: at all",
        "Authorization: Bearer",
        "Authorization: Basic dXNlcjpwYXNz",
        "Authorization: Bearer x.y.z",
        "Authorization: Bearer " + "x" * 5000,
        f"Cookie: {COOKIE}=x.y.z",
        "Cookie: other=1; another=2",
    ],
)
async def test_without_a_token_that_counts_there_is_nothing(stream: Opener, hub: Hub, header: str) -> None:
    async with stream("user_id=7&strategy_id=3", header) as refused:
        assert refused.status == 401
    async with stream("user_id=7&strategy_id=3&ticket=x", header) as refused:
        assert refused.status == 401
    assert len(hub.registry) == 0


@pytest.mark.gen_test
async def test_two_tokens_are_none(stream: Opener, hub: Hub) -> None:
    async with stream("strategy_id=3", bearer(hub), bearer(hub, sub="8")) as refused:
        assert refused.status == 401


@pytest.mark.gen_test
async def test_a_position_of_another_user_shows_nothing_of_it(stream: Opener, emit: Emitter, hub: Hub) -> None:
    for _ in range(3):
        position = (await emit(8, 3))["position"]
    await emit(7, 3)

    async with stream("strategy_id=3&totals=1", bearer(hub), f"Last-Event-ID: {position}") as reader:
        reset = await reader.data()

    assert reset["type"] == "stream_reset"
    assert reset["data"]["reason"] == "future"
    assert reset["data"]["totals"][0]["summaries"] == [{"order_type": "LIMIT", "created": 1, "cancelled": 0}]


# ---- sessions and tickets


@pytest.mark.gen_test
async def test_a_session_is_a_cookie_that_opens_streams(ask: Ask, stream: Opener, hub: Hub) -> None:
    started = await ask("/stream/session", "POST", b"", Authorization=bearer(hub).partition(": ")[2])
    cookie = started.headers["Set-Cookie"]

    assert started.code == 200
    assert json.loads(started.body)["expires_at"].endswith("Z")
    assert cookie.startswith(f"{COOKIE}=ey")
    seconds = int(cookie.partition("Max-Age=")[2].partition(";")[0])
    assert 0 < seconds <= 600
    assert set(cookie.split("; ")[1:]) == {"Path=/", f"Max-Age={seconds}", "Secure", "HttpOnly", "SameSite=Lax"}
    for cookies in (cookie.partition(";")[0], f"a=b; {cookie.partition(';')[0]}; c=d"):
        async with stream("strategy_id=3", f"Cookie: {cookies}") as reader:
            assert (await reader.data())["type"] == "stream_open"

    ended = await ask("/stream/session", "DELETE")
    assert ended.code == 204
    assert f"{COOKIE}=; " in ended.headers["Set-Cookie"]
    assert "Max-Age=0" in ended.headers["Set-Cookie"]


@pytest.mark.gen_test
async def test_a_session_needs_a_token_itself(ask: Ask, hub: Hub) -> None:
    sound = bearer(hub).partition("Bearer ")[2]

    for headers in ({}, {"Cookie": f"{COOKIE}={sound}"}, {"Authorization": "Bearer " + sound[:-4]}):
        refused = await ask("/stream/session", "POST", b"", **headers)
        assert (refused.code, code(refused)) == (401, "unauthorized")
        assert "Set-Cookie" not in refused.headers


@pytest.mark.gen_test
async def test_a_ticket_starts_one_stream(ask: Ask, stream: Opener, hub: Hub) -> None:
    issued = await ask("/stream/ticket", "POST", b"", Authorization=bearer(hub).partition(": ")[2])
    ticket = json.loads(issued.body)["ticket"]

    async with stream(f"strategy_id=3&ticket={ticket}") as reader:
        assert (await reader.data())["data"]["strategies"] == [3]
        async with stream(f"strategy_id=3&ticket={ticket}") as again:
            assert again.status == 401
    assert (await ask(f"/totals?strategy_id=3&ticket={ticket}")).code == 401


@pytest.mark.gen_test
async def test_a_ticket_counts_for_half_a_minute_and_for_its_own_user_only(
    ask: Ask, stream: Opener, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = bearer(hub).partition(": ")[2]
    tickets = [
        json.loads((await ask("/stream/ticket", "POST", b"", Authorization=header)).body)["ticket"] for _ in "ab"
    ]
    async with stream(f"user_id=8&strategy_id=3&ticket={tickets[0]}") as refused:
        assert refused.status == 403

    now_ms = hub.now_ms
    monkeypatch.setattr(hub, "now_ms", lambda: now_ms() + 30_000)
    async with stream(f"strategy_id=3&ticket={tickets[1]}") as refused:
        assert refused.status == 401


@pytest.mark.gen_test
async def test_a_ticket_does_not_outlive_its_token(
    ask: Ask, stream: Opener, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    exp = int(hub.now_ms() / 1000) + 10
    header = bearer(hub, exp=exp).partition(": ")[2]
    issued = json.loads((await ask("/stream/ticket", "POST", b"", Authorization=header)).body)

    assert datetime.fromisoformat(issued["expires_at"]).timestamp() == exp
    monkeypatch.setattr(hub, "now_ms", lambda: exp * 1000)
    async with stream(f"strategy_id=3&ticket={issued['ticket']}") as refused:
        assert refused.status == 401


@pytest.mark.gen_test
async def test_another_cookie_cannot_carry_a_session(stream: Opener, hub: Hub) -> None:
    own, foreign = (bearer(hub, sub=sub).partition("Bearer ")[2] for sub in ("7", "8"))
    for cookies in (
        (f"Cookie: a=x,{COOKIE}={foreign}; {COOKIE}={own}",),
        (f"Cookie: a=x,{COOKIE}={foreign}", f"Cookie: {COOKIE}={own}"),
    ):
        async with stream("user_id=7&strategy_id=3", *cookies) as reader:
            assert reader.status == 200


@pytest.mark.gen_test
async def test_a_token_that_no_browser_would_keep_starts_no_session(ask: Ask, hub: Hub) -> None:
    room = MAX_TOKEN_BYTES - len(bearer(hub, note="").partition("Bearer ")[2])
    long = bearer(hub, note="x" * (room * 3 // 4 - 2)).partition(": ")[2]
    refused = await ask("/stream/session", "POST", b"", Authorization=long)

    assert MAX_TOKEN_BYTES - len(COOKIE) < len(long) - len("Bearer ") <= MAX_TOKEN_BYTES
    assert (refused.code, code(refused)) == (403, "forbidden")
    assert (await ask("/totals?strategy_id=3", Authorization=long)).code == 200


@pytest.mark.gen_test
async def test_who_asks_for_too_many_tickets_is_told_to_wait(ask: Ask, hub: Hub) -> None:
    header = bearer(hub).partition(": ")[2]
    answers = [await ask("/stream/ticket", "POST", b"", Authorization=header) for _ in range(33)]

    assert [answer.code for answer in answers] == [200] * 32 + [503]
    other = await ask("/stream/ticket", "POST", b"", Authorization=bearer(hub, sub="8").partition(": ")[2])
    assert other.code == 200


# ---- what else a reader asks


@pytest.mark.gen_test
async def test_totals_and_hours_are_the_readers_own(ask: Ask, emit: Emitter, hub: Hub) -> None:
    await emit(7, 3)
    await emit(8, 3)
    position = (await emit(7, 4))["position"]
    one = [{"order_type": "LIMIT", "created": 1, "cancelled": 0}]
    header = {"Authorization": bearer(hub).partition(": ")[2]}

    totals = json.loads((await ask("/totals?strategy_id=*", **header)).body)
    hours = json.loads((await ask("/statistics/hourly", **header)).body)

    assert totals == {"user_id": 7, "position": position, "totals": [{"strategy_id": 3, "summaries": one}]}
    assert [(hour["strategy_id"], hour["summaries"]) for hour in hours["hours"]] == [(3, one)]
    for path in ("/totals?strategy_id=4", "/totals?strategy_id=3&user_id=8", "/statistics/hourly?user_id=8"):
        assert (await ask(path, **header)).code == 403
    for path in ("/totals?strategy_id=3", "/statistics/hourly"):
        assert (await ask(path)).code == 401


@pytest.mark.gen_test
async def test_an_operator_reads_the_stream_of_any_user(emit: Emitter, internal_port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", internal_port)
    writer.write(b"GET /internal/stream?user_id=8&strategy_id=3 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    opened = StreamReader(reader, writer)
    async with asyncio.timeout(DEADLINE_SECONDS):
        await opened.read_head()
    await opened.event()
    answer = await emit(8, 3)

    assert (await opened.event()).last_event_id == answer["position"]
    writer.close()


# ---- the end of what was granted


@pytest.mark.gen_test
async def test_a_stream_is_warned_and_ends_with_its_token(
    stream: Opener, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_ms = hub.now_ms
    exp = int(now_ms() / 1000) + 600
    monkeypatch.setattr(hub, "now_ms", lambda: (exp - 50) * 1000)
    async with stream("strategy_id=3", bearer(hub, exp=exp)) as reader:
        await reader.event()
        expiring = await reader.event()
        monkeypatch.setattr(hub, "now_ms", lambda: exp * 1000)
        subscriber = next(hub.registry.subscribers)
        hub._expiries.discard(subscriber)
        hub._expiries.add(subscriber, hub.clock(), 0)
        closing = await reader.data()
        await reader.end()

    assert expiring.event == "stream_expiring"
    assert expiring.last_event_id == reader.parser.last_event_id
    assert json.loads(expiring.data)["data"]["seconds_left"] == 50
    assert closing["data"] == {"reason": "token_expired", "reconnect": True}
    assert hub.closed["token_expired"] == 1


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("revocation", "ended"),
    [
        ({"user_id": 7}, ["seven-3", "seven-5", "seven-*"]),
        ({"strategy_id": 3, "reason": "strategy_deleted"}, ["seven-3", "seven-*", "eight-3", "eight-*"]),
        ({"user_id": 7, "strategy_id": 5}, ["seven-5", "seven-*"]),
        ({"user_id": 8, "reason": "account_deactivated"}, ["eight-3", "eight-*"]),
        ({"user_id": 9}, []),
        ({"strategy_id": 999}, []),
        ({"user_id": 8, "strategy_id": 999}, ["eight-*"]),
    ],
)
async def test_what_is_revoked_ends_and_does_not_come_back(
    http_client: AsyncHTTPClient,
    base_url: str,
    stream: Opener,
    emit: Emitter,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    revocation: Any,
    ended: list[str],
) -> None:
    asked = {
        "seven-3": ("strategy_id=3", bearer(hub)),
        "seven-5": ("strategy_id=5", bearer(hub)),
        "seven-*": ("strategy_id=*", bearer(hub)),
        "eight-3": ("strategy_id=3", bearer(hub, sub="8")),
        "eight-*": ("strategy_id=*", bearer(hub, sub="8", strategies="*")),
    }
    await emit(8, 3)
    async with (
        stream(*asked["seven-3"]) as a,
        stream(*asked["seven-5"]) as b,
        stream(*asked["seven-*"]) as c,
        stream(*asked["eight-3"]) as d,
        stream(*asked["eight-*"]) as e,
    ):
        streams = dict(zip(asked, (a, b, c, d, e), strict=True))
        for reader in streams.values():
            await reader.event()

        answer = await http_client.fetch(f"{base_url}/internal/revoke", method="POST", body=json.dumps(revocation))

        assert json.loads(answer.body)["closed"] == len(ended)
        for name in ended:
            closing = await streams[name].data()
            assert closing["data"] == {"reason": revocation.get("reason", "revoked"), "reconnect": False}
            await streams[name].end()
        assert len(hub.registry) == len(asked) - len(ended)
        for name, (query, header) in asked.items():
            async with stream(query, header) as again:
                assert again.status == (401 if name in ended else 200)
        # Five seconds ahead, as a clock may be; so the next one that counts is made after that.
        timestamp = datetime.fromisoformat(json.loads(answer.body)["timestamp"]).timestamp()
        ahead = bearer(hub, iat=int(hub.now_ms() / 1000) + 3)
        if revocation == {"user_id": 7}:
            async with stream("strategy_id=3", ahead) as refused:
                assert refused.status == 401
        monkeypatch.setattr(hub, "now_ms", lambda: int(timestamp * 1000) + 2000)
        async with stream("strategy_id=3", bearer(hub)) as anew:
            assert anew.status == 200


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{}", 422),
        (b'{"user_id": 0}', 422),
        (b'{"user_id": "7"}', 422),
        (b'{"user_id": 7, "reason": "because"}', 422),
        (b'{"user_id": 7, "strategy": 3}', 422),
        (b"user_id=7", 400),
        (b"", 400),
    ],
)
async def test_a_revocation_that_is_none_ends_nothing(
    http_client: AsyncHTTPClient, base_url: str, stream: Opener, hub: Hub, body: bytes, status: int
) -> None:
    async with stream("strategy_id=3", bearer(hub)) as reader:
        await reader.event()
        answer = await http_client.fetch(f"{base_url}/internal/revoke", method="POST", body=body, raise_error=False)

        assert answer.code == status
        assert len(hub.registry) == 1


# ---- pages from elsewhere


@pytest.mark.gen_test
async def test_pages_of_exact_origins_read_with_their_cookies(ask: Ask, stream: Opener, hub: Hub) -> None:
    async with stream("strategy_id=3", bearer(hub), "Origin: https://app.example.com") as reader:
        assert reader.headers["access-control-allow-origin"] == "https://app.example.com"
        assert reader.headers["access-control-allow-credentials"] == "true"
        assert reader.headers["vary"] == "Origin"
    refused = await ask("/totals?strategy_id=3", Origin="https://app.example.com")
    assert refused.headers["Access-Control-Allow-Origin"] == "https://app.example.com"
    assert refused.headers["Access-Control-Expose-Headers"] == "Retry-After, X-Request-Id"
    preflight = await ask("/stream/session", "OPTIONS", Origin="https://app.example.com")
    assert preflight.headers["Access-Control-Allow-Methods"] == "POST, DELETE"
    assert "Authorization" in preflight.headers["Access-Control-Allow-Headers"]


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "origin",
    [
        "http://app.example.com",
        "https://app.example.com.evil.example",
        "https://APP.example.com",
        "null",
        "http://localhost:3000",
    ],
)
async def test_no_other_page_reads(stream: Opener, hub: Hub, origin: str) -> None:
    async with stream("strategy_id=3", bearer(hub), f"Origin: {origin}") as reader:
        assert reader.status == 200
        assert not [name for name in reader.headers if name.startswith("access-control")]
        assert reader.headers["vary"] == "Origin"


# ---- proxies


class TestBehindAProxy:
    """With `auth` proxy."""

    @pytest.fixture(params=["127.0.0.0/8", "10.0.0.0/8"])
    def network(self, request: pytest.FixtureRequest) -> str:
        network: str = request.param
        return network

    @pytest.fixture
    def settings(self, network: str) -> Settings:
        return with_settings(auth="proxy", proxy_addresses=(network,))

    @pytest.mark.gen_test
    async def test_its_headers_count_if_they_come_from_it(self, stream: Opener, emit: Emitter, network: str) -> None:
        headers = ("X-Tallywire-User: 7", "X-Tallywire-Strategies: 3, 5")
        async with stream("strategy_id=*", *headers) as reader:
            if network == "10.0.0.0/8":
                assert reader.status == 401
                return
            assert (await reader.data())["data"]["strategies"] == [3, 5]
            await emit(8, 3)
            answer = await emit(7, 3)
            assert (await reader.event()).last_event_id == answer["position"]
        async with stream("strategy_id=4", *headers) as refused:
            assert refused.status == 403

    @pytest.mark.gen_test
    @pytest.mark.parametrize(
        "headers",
        [
            (),
            ("X-Tallywire-User: 7",),
            ("X-Tallywire-Strategies: *",),
            ("X-Tallywire-User: 7", "X-Tallywire-User: 8", "X-Tallywire-Strategies: *"),
            ("X-Tallywire-User: 07", "X-Tallywire-Strategies: *"),
            ("X-Tallywire-User: 7", "X-Tallywire-Strategies: 3,"),
        ],
    )
    async def test_what_it_does_not_say_nobody_is(self, stream: Opener, headers: tuple[str, ...]) -> None:
        async with stream("user_id=7&strategy_id=3", *headers) as refused:
            assert refused.status == 401


def test_a_session_cookie_needs_no_encoding() -> None:
    assert set(encoded(bytes(range(256)))) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
