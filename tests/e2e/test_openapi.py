"""Requests that schemathesis makes of the document are answered as the document says, whichever front reads them.

It looks for what nobody thought of: in one mode requests keep to the document, in the other they break it. They are the
same each time.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from msgspec import msgpack
from schemathesis import Case, GenerationMode

from handlers.openapi import document
from tests.process import ServerProcess, running_server
from tests.unit.test_openapi import DOCUMENT, METHODS, OPERATIONS, check, check_events, resolved

EXAMPLES = 12
"""Requests to each operation in each mode."""

ANSWER_SECONDS = 20
"""For an answer to come, on a machine that is busy with other things."""

EVENT_STREAM, NDJSON, MSGPACK = "text/event-stream", "application/x-ndjson", "application/msgpack"
UNKNOWN_METHODS = ("TRACE", "PROPFIND")

NEEDED = {
    "batches": [["user_id", "strategy_id"], ["idempotency_key"]],
    **{operation: [["user_id", "strategy_id"]] for operation in ("stream", "totals")},
    "ownHours": [["user_id"]],
}
"""Parameters that must be there, where that depends on the others."""

PLACES = [
    pytest.param(listener, path, method, id=f"{method} {path} {listener}")
    for path, method, operation in OPERATIONS
    for listener in operation["x-listener"]
]


WITH_A_TOKEN = ("startSession", "ticket")
"""Operations that make no sense on a server that asks nobody who they are."""


def for_schemathesis() -> Any:
    """The document, with the lines of NDJSON as a list: what stands in an extension it does not look at."""
    raw = json.loads(document())
    content = raw["paths"]["/internal/emit"]["post"]["requestBody"]["content"][NDJSON]
    content["schema"] = {"type": "array", "items": content["x-line-schema"]}
    return schemathesis.openapi.from_dict(raw)


@schemathesis.serializer(NDJSON)
def lines(_context: object, value: Any) -> bytes:
    """As NDJSON where it is a list at all."""
    items = value if isinstance(value, list) else [value]
    return "".join(json.dumps(item) + "\n" for item in items).encode()


@schemathesis.serializer(MSGPACK)
def packed(_context: object, value: Any) -> bytes:
    """As MessagePack, which has no integers beyond 64 bits: those go as text."""
    try:
        return msgpack.encode(value)
    except OverflowError:
        return msgpack.encode(str(value))


SCHEMA = for_schemathesis()
EMIT = DOCUMENT["paths"]["/internal/emit"]["post"]


@pytest.fixture(scope="module")
def server(http: None) -> Iterator[ServerProcess]:
    """One for all requests: none of them may harm those that follow."""
    with running_server("--durability=none") as server:
        # Something that answers can be about.
        server.post("/internal/emit", EMIT["requestBody"]["content"]["application/json"]["examples"]["one"]["value"])
        yield server
        assert server.process.poll() is None
        assert "Traceback" not in server.log.read_text()
        assert {line["message"] for line in server.log_lines() if line["level"] != "info"} == set()


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


@pytest.mark.parametrize(("listener", "path", "method"), PLACES)
def test_what_the_document_gives_as_an_example_succeeds(
    server: ServerProcess, session: requests.Session, listener: str, path: str, method: str
) -> None:
    operation = DOCUMENT["paths"][path][method.lower()]
    if operation["operationId"] in WITH_A_TOKEN:
        assert session.request(method, getattr(server, listener) + path).status_code == 403
        return
    # Connections are reported with somebody connected.
    with session.get(f"{server.public}/stream?user_id=7&strategy_id=3", stream=True, timeout=ANSWER_SECONDS) as reader:
        first_event(reader)
        for parameters in asked_for(operation):
            url = getattr(server, listener) + path.format(**parameters["path"])
            for headers, body in sent_bodies(operation):
                asked = requests.Request(method, url, headers, params=parameters["query"], data=body)
                sent = session.prepare_request(asked)
                with session.send(sent, stream=True, timeout=ANSWER_SECONDS) as response:
                    assert response.ok, response.text
                    check_answer(operation, response)


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize(("listener", "path", "method"), PLACES)
def test_requests_are_answered_as_the_document_says(
    server: ServerProcess, session: requests.Session, listener: str, path: str, method: str, mode: GenerationMode
) -> None:
    operation = DOCUMENT["paths"][path][method.lower()]
    strategy = SCHEMA[path][method].as_strategy(generation_mode=mode)

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy)
    def ask(case: Case[Any]) -> None:
        sent = case.as_transport_kwargs(base_url=getattr(server, listener))
        with session.request(**sent, stream=True, timeout=ANSWER_SECONDS) as response:
            check_answer(operation, response)

    ask()


@pytest.mark.parametrize(("listener", "path", "method"), PLACES)
def test_any_other_method_is_answered_405_with_those_that_are_described(
    server: ServerProcess, session: requests.Session, listener: str, path: str, method: str
) -> None:
    item = DOCUMENT["paths"][path]
    allowed = [name for name in METHODS if name.lower() in item]
    url = getattr(server, listener) + path.format(user=7, strategy=3)
    for other in (name for name in (*METHODS, *UNKNOWN_METHODS) if name not in allowed):
        # Tornado's server ends the connection behind a method that it does not know, and does not say so.
        headers = {"Connection": "close"} if other in UNKNOWN_METHODS else {}
        with session.request(other, url, headers=headers, timeout=ANSWER_SECONDS) as response:
            assert response.status_code == 405, other
            assert response.headers["Allow"] == ", ".join(allowed)


def asked_for(operation: Any) -> Iterator[dict[str, dict[str, Any]]]:
    """The examples of the parameters that it cannot do without, by place."""
    described = operation.get("parameters", [])
    for wanted in NEEDED.get(operation["operationId"], [[each["name"] for each in described if each["required"]]]):
        yield {
            place: {
                each["name"]: each["example"] for each in described if each["name"] in wanted and each["in"] == place
            }
            for place in ("path", "query")
        }


def sent_bodies(operation: Any) -> Iterator[tuple[dict[str, str], bytes | None]]:
    """Headers and body of each example of a body; one without where it takes none."""
    if "requestBody" not in operation:
        yield {}, None
        return
    encoders = {
        "application/json": lambda value: json.dumps(value).encode(),
        NDJSON: str.encode,
        MSGPACK: msgpack.encode,
    }
    for media_type, content in operation["requestBody"]["content"].items():
        for example in content["examples"].values():
            yield {"Content-Type": media_type}, encoders[media_type](example["value"])


def check_answer(operation: Any, response: requests.Response) -> None:
    """Its status, its headers and its body are described; of a stream its first event is."""
    status = str(response.status_code)
    assert status in operation["responses"]
    assert response.status_code != 500
    described = resolved(operation["responses"][status])
    # Those of CORS depend on who asks.
    always = [name for name in described["headers"] if not name.startswith("Access-Control-")]
    assert [name for name in always if name not in response.headers] == []
    if response.request.method == "HEAD" or not described.get("content"):
        assert response.content == b""
        return
    media_type = response.headers["Content-Type"].partition(";")[0]
    content = described["content"][media_type]
    if media_type == EVENT_STREAM:
        check_events(first_event(response), content["x-events"])
    elif media_type == NDJSON:
        for line in response.content.splitlines():
            check(json.loads(line), content["x-line-schema"])
    elif content["schema"].get("type") == "string":
        check(response.text, content["schema"])
    else:
        check(response.json(), content["schema"])


def first_event(response: requests.Response) -> str:
    """The first block of a stream; what follows is not waited for."""
    text = b""
    for piece in response.iter_content(None):
        text += piece
        if b"\n\n" in text:
            return text.partition(b"\n\n")[0].decode() + "\n\n"
    raise AssertionError(f"it ended after {text!r}")
