"""The rules of the internal listener: keys and roles, pages and names, over each front."""

import json
import logging
from pathlib import Path

import pytest
from tornado.routing import PathMatches

import server
from core.access import ROLES, Role, key_of
from core.hub import Hub
from core.settings import Settings, SettingsError
from handlers import routes
from handlers.base import MAX_UNWANTED_BYTES, BaseHandler, Services
from handlers.credentials import Anybody
from tests.fronts import FRONTS
from tests.http.conftest import port_of, with_settings
from tests.http.probe import counted
from tests.http.strictness import shown
from tests.http.wire import BATCH, JSON, Answer, Wire, chunked, emit_request, request

SECRETS: dict[Role, str] = {role: f"the-secret-of-{role}" for role in ROLES}
ROTATED = "the-next-secret-of-emit"
OF_ANOTHER = "the-secret-of-another-caller"
EMIT, READ, ADMIN = (f"Authorization: Bearer {SECRETS[role]}" for role in ROLES)

ROLE_OF_ROUTE: dict[str, tuple[str, Role]] = {
    "/internal/emit": ("POST", "emit"),
    "/internal/connections": ("GET", "read"),
    "/internal/statistics/hourly?user_id=7": ("GET", "read"),
    "/internal/keys/7": ("GET", "read"),
    "/internal/keys/7/3": ("GET", "read"),
    "/internal/batches?user_id=7&strategy_id=3": ("GET", "read"),
    "/internal/stream": ("GET", "read"),
    "/metrics": ("GET", "read"),
    "/internal/revoke": ("POST", "admin"),
    "/internal/users/99": ("DELETE", "admin"),
}
LET_IN = (200, 422)
"""Whoever is let in may still ask something that makes no sense."""

OPEN = ("/healthz/live", "/healthz/ready")
FOREIGN = "Origin: http://evil.example"

each_route = pytest.mark.parametrize(
    ("path", "method", "role"), [(path, *rest) for path, rest in ROLE_OF_ROUTE.items()], ids=list(ROLE_OF_ROUTE)
)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A file with a key for each role, another one of the caller `emit`, and one of another caller."""
    keys = [key_of(role, [role], SECRETS[role]) for role in ROLES]
    keys += [key_of("emit", ["emit"], ROTATED), key_of("another", ["emit"], OF_ANOTHER)]
    file = tmp_path / "keys"
    file.write_text("\n".join(key.line for key in keys))
    return file


def asking(path: str, method: str, *headers: str, host: str = "localhost") -> bytes:
    """A request that the route takes."""
    if method == "POST":
        return request(path, JSON, *headers, method=method, body=BATCH, host=host)
    return request(path, *headers, method=method, host=host)


async def ask(port: int, sent: bytes) -> Answer:
    async with await Wire.open(port) as wire:
        await wire.send(sent)
        return await wire.answer()


def problem(answer: Answer) -> tuple[int, str]:
    """Its status and code, once it is known to be a problem as any other, without a word for other origins."""
    assert answer.header("content-type") == "application/problem+json"
    assert not [name for name, _ in answer.headers if name.startswith("access-control-")]
    body = json.loads(answer.body)
    assert body["status"] == answer.status
    return answer.status, body["code"]


def test_every_internal_route_is_tried_here() -> None:
    services = Services(None, Settings(), None, Anybody())  # type: ignore[arg-type]  # no request is served
    asked = {path.partition("?")[0]: role for path, (_, role) in ROLE_OF_ROUTE.items()} | dict.fromkeys(
        (*OPEN, "/openapi.json", "/console", "/console/", "/console/config.json")
    )
    for rule in routes.internal(services).wildcard_router.rules:
        assert isinstance(rule.matcher, PathMatches)
        assert issubclass(rule.target, BaseHandler)
        role = rule.target.role or "nobody is asked"
        if rule.matcher.regex.pattern.startswith("/healthz/"):
            role = "nobody is asked"
        wanted = {asked[path] or "nobody is asked" for path in asked if rule.matcher.regex.fullmatch(path)}
        assert wanted == {role}


class TestWithKeys:
    """Callers show a key."""

    @pytest.fixture
    def settings(self, keys: Path) -> Settings:
        return with_settings(internal_auth="keys", internal_keys=str(keys))

    @pytest.mark.gen_test
    @each_route
    async def test_a_route_takes_a_key_of_its_role_and_no_other(
        self, internal_port: int, path: str, method: str, role: Role
    ) -> None:
        for other, secret in SECRETS.items():
            answer = await ask(internal_port, asking(path, method, f"Authorization: Bearer {secret}"))
            if other == role:
                assert answer.status in LET_IN
            else:
                assert problem(answer) == (403, "forbidden")
                assert f"the role {role}," in json.loads(answer.body)["detail"]

    @pytest.mark.gen_test
    @each_route
    @pytest.mark.parametrize(
        "headers",
        [
            (),
            ("Authorization: Bearer wrong",),
            ("Authorization: Bearer",),
            ("Authorization:",),
            (f"Authorization: Basic {SECRETS['emit']}",),
            (f"Authorization: {SECRETS['emit']}",),
            (EMIT, READ, ADMIN),
            tuple(f"Cookie: Authorization=Bearer {secret}" for secret in SECRETS.values()),
        ],
    )
    async def test_without_a_key_that_counts_nothing_is_answered(
        self, internal_port: int, path: str, method: str, role: Role, headers: tuple[str, ...]
    ) -> None:
        answer = await ask(internal_port, asking(path, method, *headers))

        assert problem(answer) == (401, "unauthorized")
        assert (answer.header("www-authenticate") or "").startswith("Bearer ")

    @pytest.mark.gen_test
    @pytest.mark.parametrize("path", OPEN)
    @pytest.mark.parametrize("headers", [(), (FOREIGN,)])
    async def test_health_is_answered_to_anybody(self, internal_port: int, path: str, headers: tuple[str, ...]) -> None:
        assert (await ask(internal_port, request(path, *headers, host="balancer.example"))).status in LET_IN

    @pytest.mark.gen_test
    async def test_what_is_not_there_needs_no_key(self, internal_port: int) -> None:
        assert problem(await ask(internal_port, request("/nowhere"))) == (404, "not_found")

    @pytest.mark.gen_test
    async def test_a_key_may_be_sent_to_any_name_of_the_server(self, internal_port: int) -> None:
        for host in ("tallywire.internal:8081", "10.0.0.7"):
            answer = await ask(internal_port, asking("/internal/emit", "POST", EMIT, host=host))
            assert answer.status in LET_IN

    @pytest.mark.gen_test
    async def test_the_scheme_of_a_key_is_written_as_one_likes(self, internal_port: int) -> None:
        assert (await ask(internal_port, emit_request(f"authorization: bEARER  {SECRETS['emit']}"))).status in LET_IN

    @pytest.mark.gen_test
    async def test_a_refused_emit_counts_nothing_and_its_connection_goes_on(self, internal_port: int) -> None:
        # What stands in the body would be the next request, were it not read to its end.
        hidden = emit_request(EMIT)
        async with await Wire.open(internal_port) as wire:
            await wire.send(emit_request(body=hidden) + emit_request(READ, body=hidden) + emit_request(EMIT))
            statuses = [answer.status for answer in await wire.answers(3)]
            await wire.send(request("/internal/keys/7/3", READ))
            key = json.loads((await wire.answer()).body)

        assert statuses == [401, 403, 200]
        assert key["batches"] == 1

    @pytest.mark.gen_test
    @pytest.mark.parametrize("body", [b"", b"x", b"x" * MAX_UNWANTED_BYTES], ids=["none", "a byte", "the most"])
    async def test_a_refused_body_that_comes_by_and_by_is_thrown_away(self, internal_port: int, body: bytes) -> None:
        sent = emit_request(body=body)
        at = len(sent) - len(body)
        async with await Wire.open(internal_port) as wire:
            await wire.send(sent[:at], body[: len(body) // 2], body[len(body) // 2 :])
            refused = await wire.answer()
            await wire.send(emit_request(EMIT))
            assert (await wire.answer()).status in LET_IN

        assert problem(refused) == (401, "unauthorized")

    @pytest.mark.gen_test
    async def test_a_body_in_chunks_is_taken_with_a_key_only(self, internal_port: int) -> None:
        body = chunked(BATCH, b" ")
        for headers, status in (((), 401), ((READ,), 403), ((EMIT,), 200)):
            answer = await ask(internal_port, emit_request(*headers, "Transfer-Encoding: chunked", body=body))
            assert answer.status == status
        key = json.loads((await ask(internal_port, request("/internal/keys/7/3", READ))).body)

        assert key["batches"] == 1

    @pytest.mark.gen_test
    @pytest.mark.parametrize(
        "headers",
        [
            (f"Content-Length: {MAX_UNWANTED_BYTES + 1}",),
            ("Content-Length: 9999999",),
            ("Content-Length: 60000000",),
            ("Content-Length: 500", "Expect: 100-continue"),
            ("Transfer-Encoding: chunked",),
        ],
    )
    async def test_a_caller_without_a_key_is_told_ahead_of_a_body_that_is_long_or_waits_or_has_no_end(
        self, internal_port: int, headers: tuple[str, ...]
    ) -> None:
        async with await Wire.open(internal_port) as wire:
            await wire.send(request("/internal/emit", JSON, *headers, method="POST"))
            answer = await wire.answer()
            wire.half_close()
            await wire.end()

        assert problem(answer) == (401, "unauthorized")

    @pytest.mark.gen_test
    async def test_nothing_is_held_for_a_caller_without_a_key(
        self, internal_port: int, hub: Hub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(hub, "begin_intake", lambda: pytest.fail("a shutdown would wait for it"))
        async with await Wire.open(internal_port) as wire:
            await wire.send(emit_request(), emit_request("Authorization: Bearer wrong"), emit_request(ADMIN))
            assert [answer.status for answer in await wire.answers(3)] == [401, 401, 403]

    @pytest.mark.gen_test
    async def test_idempotency_keys_belong_to_the_name_and_survive_its_next_secret(self, internal_port: int) -> None:
        other = BATCH.replace(b"LIMIT", b"MARKET")
        keyed = "Idempotency-Key: one"
        async with await Wire.open(internal_port) as wire:
            await wire.send(
                emit_request(EMIT, keyed),
                emit_request(f"Authorization: Bearer {ROTATED}", keyed),
                emit_request(f"Authorization: Bearer {OF_ANOTHER}", keyed, body=other),
                emit_request(EMIT, keyed, body=other),
                request("/internal/batches?idempotency_key=one", READ),
            )
            first, repeated, others, conflict, asked = await wire.answers(5)

        assert [json.loads(answer.body)["duplicate"] for answer in (first, repeated, others)] == [False, True, False]
        assert problem(conflict) == (422, "idempotency_conflict")
        assert {batch["caller"] for batch in json.loads(asked.body)["batches"]} == {"emit", "another"}

    @pytest.mark.gen_test
    async def test_no_answer_and_no_log_line_has_a_secret(
        self, internal_port: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        wrong = "a-secret-of-another-server"
        said = b""
        for path, (method, _) in ROLE_OF_ROUTE.items():
            for secret in (*SECRETS.values(), wrong):
                said += (await ask(internal_port, asking(path, method, f"Authorization: Bearer {secret}"))).body
        logged = "".join(str(record.__dict__) for record in caplog.records if record.name.startswith("tallywire"))

        assert "Request refused" in logged
        assert [secret for secret in (*SECRETS.values(), wrong) if secret in logged or secret.encode() in said] == []


class TestPages:
    """What a browser sends says which page asks."""

    @pytest.fixture(params=["none", "keys"])
    def settings(self, request: pytest.FixtureRequest, keys: Path) -> Settings:
        if request.param == "keys":
            return with_settings(internal_auth="keys", internal_keys=str(keys))
        return with_settings()

    @pytest.mark.gen_test
    @each_route
    @pytest.mark.parametrize("origin", ["http://evil.example", "http://localhost:3000", "null", ""])
    async def test_a_page_of_another_origin_is_refused(
        self, internal_port: int, path: str, method: str, role: Role, origin: str
    ) -> None:
        key = f"Authorization: Bearer {SECRETS[role]}"
        async with await Wire.open(internal_port) as wire:
            sent = asking(path, method, key, f"Origin: {origin}", host=f"localhost:{internal_port}")
            await wire.send(sent + asking(path, method, key))
            refused, answered = await wire.answers(2)

        assert problem(refused) == (403, "forbidden")
        assert answered.status in LET_IN, "the connection goes on"

    @pytest.mark.gen_test
    @each_route
    async def test_a_page_of_our_own_may_ask(self, internal_port: int, path: str, method: str, role: Role) -> None:
        host = f"localhost:{internal_port}"
        key = f"Authorization: Bearer {SECRETS[role]}"
        answer = await ask(internal_port, asking(path, method, key, f"Origin: http://{host}", host=host))

        assert answer.status in LET_IN
        assert not [name for name, _ in answer.headers if name.startswith("access-control-")]

    @pytest.mark.gen_test
    @pytest.mark.parametrize("path", [*ROLE_OF_ROUTE, *OPEN, "/nowhere"])
    async def test_no_pre_flight_is_granted(self, internal_port: int, path: str) -> None:
        for origin in ("http://localhost:3000", f"http://localhost:{internal_port}"):
            headers = (f"Origin: {origin}", "Access-Control-Request-Method: POST")
            sent = request(path, *headers, method="OPTIONS", host=f"localhost:{internal_port}")
            status, _ = problem(await ask(internal_port, sent))
            assert status >= 400


class TestWithoutKeys:
    """Everybody on this machine may ask, and no page that was let point here."""

    @pytest.mark.gen_test
    @each_route
    async def test_a_name_that_may_have_been_made_to_point_here_is_refused(
        self, internal_port: int, path: str, method: str, role: Role
    ) -> None:
        # A rebound page is of the same origin as what it asks.
        rebound = asking(path, method, "Origin: http://evil.example:8081", host="evil.example:8081")
        async with await Wire.open(internal_port) as wire:
            await wire.send(rebound + asking(path, method, host="127.evil.example") + asking(path, method))
            refused, without_origin, answered = await wire.answers(3)

        assert problem(refused) == problem(without_origin) == (403, "forbidden")
        assert "--internal-auth=keys" in json.loads(refused.body)["detail"]
        assert answered.status in LET_IN

    @pytest.mark.gen_test
    async def test_what_a_rebound_page_emits_counts_nothing(self, internal_port: int) -> None:
        await ask(internal_port, asking("/internal/emit", "POST", host="evil.example"))

        assert await counted(internal_port) == 0

    @pytest.mark.gen_test
    @pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8081", "127.8.8.8", "[::1]:8081"])
    async def test_a_loopback_name_is_answered(self, internal_port: int, host: str) -> None:
        assert (await ask(internal_port, asking("/internal/emit", "POST", host=host))).status in LET_IN

    @pytest.mark.gen_test
    @pytest.mark.parametrize("path", OPEN)
    async def test_health_is_answered_under_any_name(self, internal_port: int, path: str) -> None:
        assert (await ask(internal_port, request(path, FOREIGN, host="balancer.example"))).status in LET_IN

    @pytest.mark.gen_test
    async def test_an_http_1_0_request_without_a_host_comes_from_no_browser(self, internal_port: int) -> None:
        sent = request("/internal/emit", JSON, method="POST", version="1.0", body=BATCH, host="")

        assert (await ask(internal_port, sent)).status in LET_IN

    @pytest.mark.gen_test
    async def test_a_key_that_nobody_asked_for_changes_nothing(self, internal_port: int) -> None:
        assert (await ask(internal_port, emit_request(EMIT))).status in LET_IN


class TestInsecure:
    """The operator says that the network is closed."""

    @pytest.fixture
    def settings(self) -> Settings:
        return with_settings(insecure=("internal",))

    @pytest.mark.gen_test
    async def test_any_name_is_answered_and_a_foreign_page_is_not(self, internal_port: int) -> None:
        named = asking("/internal/emit", "POST", host="tallywire:8081")
        foreign = asking("/internal/emit", "POST", FOREIGN, host="tallywire:8081")

        assert (await ask(internal_port, named)).status in LET_IN
        assert problem(await ask(internal_port, foreign)) == (403, "forbidden")


class TestAlike:
    """Every front refuses in the same words."""

    @pytest.fixture(params=["none", "keys"])
    def settings(self, request: pytest.FixtureRequest, keys: Path) -> Settings:
        if request.param == "keys":
            return with_settings(internal_auth="keys", internal_keys=str(keys))
        return with_settings()

    @pytest.mark.gen_test
    async def test_every_front_refuses_alike(self, fronts: dict[str, server.Listeners]) -> None:
        sent = [
            asking(path, method, *headers, host=host)
            for path, (method, _) in ROLE_OF_ROUTE.items()
            for headers in ((), (EMIT,), (READ,), ("Authorization: Bearer wrong",), (FOREIGN,), ("Origin: null",))
            for host in ("localhost", "evil.example")
        ]
        answers = {}
        for front in FRONTS:
            async with await Wire.open(port_of(fronts[front].internal)) as wire:
                await wire.send(b"".join(sent))
                answers[front] = [shown(answer) for answer in await wire.answers(len(sent))]

        refused = {front: [answer for answer in given if answer.status >= 400] for front, given in answers.items()}
        assert len(refused[FRONTS[0]]) >= len(sent) / 2
        assert all(refused[front] == refused[FRONTS[0]] for front in FRONTS)


def test_leaving_loopback_needs_keys_or_the_word(keys: Path) -> None:
    off_loopback = with_settings(internal_listen="0.0.0.0:0")
    with pytest.raises(SettingsError) as refused:
        server._bind("internal", off_loopback.internal_listen, off_loopback)
    for fix in ("127.0.0.1", "unix:PATH", "--internal-auth=keys", "--insecure=internal"):
        assert fix in str(refused.value)
    for allowed in (
        with_settings(internal_listen="0.0.0.0:0", insecure=("internal",)),
        with_settings(internal_listen="0.0.0.0:0", internal_auth="keys", internal_keys=str(keys)),
    ):
        listeners = server.bind(allowed)
        for sock in (*listeners.public, *listeners.internal):
            sock.close()


def test_keys_of_the_internal_listener_do_not_open_the_public_one(keys: Path) -> None:
    with pytest.raises(SettingsError, match="--insecure=public") as refused:
        server.bind(with_settings(public_listen="0.0.0.0:0", internal_auth="keys", internal_keys=str(keys)))
    assert "--internal-auth" not in str(refused.value)
