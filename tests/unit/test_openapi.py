"""The document of /openapi.json: whole, valid, and the same as what the code does."""

import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any, get_args

import msgspec
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from tornado.routing import PathMatches
from tornado.web import RequestHandler

from core import models
from core.errors import ERRORS, Forbidden, TallywireError, Unauthorized
from core.settings import Settings
from core.sse import EventParser
from handlers import descriptions, emit, routes, stream
from handlers.base import Services, problem_headers
from handlers.credentials import Anybody
from handlers.descriptions import EVENTS, FORMS, FRAMES, SCHEMAS, WORDS
from handlers.openapi import document
from tests.process import ROOT
from tests.unit.test_docs import EXAMPLES
from tests.unit.test_errors import SAMPLES

DOCUMENT: Any = json.loads(document())
STREAM_EVENTS: Any = DOCUMENT["paths"]["/stream"]["get"]["responses"]["200"]["content"]["text/event-stream"]["x-events"]
METHODS = get_args(descriptions.Method)
PRINTED_BY_ANOTHER_PROCESS = "import sys; from handlers.openapi import document; sys.stdout.buffer.write(document())"

ALL_SAMPLES: tuple[TallywireError, ...] = (*SAMPLES, Unauthorized("There is no token."), Forbidden("It is not yours."))

Place = tuple[str, str, str]
"""Listener, path without the names of its parameters, method."""


def operations() -> Iterator[tuple[str, str, Any]]:
    """Path, method and description of each operation."""
    for path, item in DOCUMENT["paths"].items():
        for method in METHODS:
            if method.lower() in item:
                yield path, method, item[method.lower()]


OPERATIONS = list(operations())
each_operation = pytest.mark.parametrize(
    "operation", [operation for _, _, operation in OPERATIONS], ids=[each["operationId"] for _, _, each in OPERATIONS]
)


def resolved(node: Any) -> Any:
    """What a reference stands for."""
    while "$ref" in node and len(node) == 1:
        target = DOCUMENT
        for step in node["$ref"].removeprefix("#/").split("/"):
            target = target[step]
        node = target
    return node


def check(value: object, schema: Mapping[str, object]) -> None:
    """Raises ValidationError where the value is not what the schema says."""
    validator = Draft202012Validator(
        {**schema, "components": DOCUMENT["components"]}, format_checker=Draft202012Validator.FORMAT_CHECKER
    )
    validator.validate(value)


# ---- whole


def served() -> dict[Place, type[RequestHandler]]:
    """What the routers have."""
    services = Services(None, Settings(), None, Anybody())  # type: ignore[arg-type]  # no request is served
    found = {}
    for listener, application in (("public", routes.public(services)), ("internal", routes.internal(services))):
        for rule in application.wildcard_router.rules:
            assert isinstance(rule.matcher, PathMatches)
            path = rule.matcher.regex.pattern.removesuffix("$").replace("([^/]+)", "{}").replace(r"\.", ".")
            if path.startswith("/console"):
                continue  # pages for people, which no program calls
            for method in METHODS:
                if getattr(rule.target, method.lower()) is not RequestHandler._unimplemented_method:
                    found[listener, path, method] = rule.target
    return found


def described() -> dict[Place, Any]:
    """What the document has."""
    return {
        (listener, re.sub(r"{\w+}", "{}", path), method): operation
        for path, method, operation in OPERATIONS
        for listener in operation["x-listener"]
    }


def test_every_method_of_every_route_is_described_and_no_other() -> None:
    assert set(described()) == set(served())


def test_the_parameters_of_a_query_are_those_that_the_code_reads() -> None:
    reads = r'(?:optional_argument|optional_identifier|required_identifier|moment|get_query_argument)\("(\w+)"'
    read = {place: set(re.findall(reads, inspect.getsource(handler))) for place, handler in served().items()}
    of_a_reader, of_a_stream = (
        set(re.findall(r'given(?:, |\.get\()"(\w+)"', inspect.getsource(function)))
        for function in (stream.readable, stream.read_stream_request)
    )
    for place, handler in served().items():
        if place[2] == "OPTIONS":
            read[place] = set()
        elif issubclass(handler, stream.StreamHandler):
            read[place] = of_a_reader | of_a_stream
        elif "readable(" in inspect.getsource(handler):
            read[place] |= of_a_reader

    assert sum(map(len, read.values())) > 10, "they are still read as this test thinks"
    assert read == {
        place: {each["name"] for each in operation.get("parameters", []) if each["in"] == "query"}
        for place, operation in described().items()
    }


def test_every_parameter_of_a_path_is_described() -> None:
    for path, _, operation in OPERATIONS:
        named = [each["name"] for each in operation.get("parameters", []) if each["in"] == "path"]
        assert named == re.findall(r"{(\w+)}", path)


def test_every_error_code_is_described_and_some_operation_answers_it() -> None:
    answered = {
        code
        for _, _, operation in OPERATIONS
        for answer in operation["responses"].values()
        for code in codes(resolved(answer))
    }

    assert DOCUMENT["components"]["schemas"]["Problem"]["properties"]["code"]["enum"] == [each.code for each in ERRORS]
    assert answered == {error.code for error in ERRORS}


def codes(answer: Any) -> list[str]:
    """The codes that an answer may have when it is a problem."""
    problem = answer.get("content", {}).get("application/problem+json")
    return problem["schema"]["properties"]["code"]["enum"] if problem else []


def test_every_event_is_described_in_both_shapes_and_no_other() -> None:
    controls = [control.event for control in get_args(models.ControlEvent)]

    assert set(STREAM_EVENTS) == {*FRAMES, *controls} == set(EVENTS)
    assert all({"description", "envelope", "flat"} == set(event) for event in STREAM_EVENTS.values())


def test_every_media_type_of_an_emit_is_named() -> None:
    operation = DOCUMENT["paths"]["/internal/emit"]["post"]

    assert set(operation["requestBody"]["content"]) == set(emit._MEDIA_TYPES.values())
    assert [name for name in emit._MEDIA_TYPES if name not in json.dumps(operation)] == []


def test_no_words_are_left_of_what_is_gone() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    fields = {
        name
        for struct, schema in schemas.items()
        for field in schema["properties"]
        for name in (field, f"{struct}.{field}")
    }

    assert [name for name in (*WORDS, *FORMS) if name not in fields] == []
    assert [name for name in SCHEMAS if name not in schemas] == []


@each_operation
def test_every_operation_says_what_it_is_for_and_who_may_call_it(operation: Any) -> None:
    assert operation["summary"]
    assert operation["tags"] == operation["x-listener"]
    schemes = {name for alternative in operation["security"] for name in alternative}
    assert schemes <= set(DOCUMENT["components"]["securitySchemes"])
    assert (not schemes) == ("401" not in operation["responses"])


# ---- valid


def test_it_is_openapi() -> None:
    OpenAPIV31SpecValidator(DOCUMENT).validate()


def test_it_is_the_same_for_every_process_and_names_the_version() -> None:
    for seed in ("1", "2"):
        printed = subprocess.run(
            [sys.executable, "-c", PRINTED_BY_ANOTHER_PROCESS],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        )
        assert printed.stdout == document()
    assert DOCUMENT["info"]["version"] == version("tallywire")


@each_operation
def test_every_parameter_has_an_example_that_fits(operation: Any) -> None:
    for parameter in operation.get("parameters", []):
        check(parameter["example"], parameter["schema"])


def bodies(operation: Any) -> Iterator[tuple[str, Any]]:
    """What the operation takes and answers, by media type, problems aside."""
    yield from operation.get("requestBody", {"content": {}})["content"].items()
    for answer in operation["responses"].values():
        for media_type, content in resolved(answer).get("content", {}).items():
            if media_type != "application/problem+json":
                yield media_type, content


@each_operation
def test_every_body_has_examples_that_fit(operation: Any) -> None:
    for media_type, content in bodies(operation):
        values = [example["value"] for example in content.get("examples", {}).values()]
        assert values or operation["operationId"] == "openapi"
        for value in values:
            check(value, content["schema"])
            if media_type == "application/x-ndjson":
                assert len(value.splitlines()) > 1
                for line in value.splitlines():
                    check(json.loads(line), content["x-line-schema"])
            if media_type == "text/event-stream":
                check_events(value, content["x-events"])


def check_events(text: str, schemas: Any) -> None:
    """The data line of each event fits the schema of its shape."""
    for event in EventParser().feed(text.encode()):
        data = json.loads(event.data)
        check(data, schemas[event.event]["envelope" if "type" in data else "flat"])


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.partition("\n")[0].removeprefix("event: "))
def test_every_event_of_the_protocol_fits_its_schema(example: str) -> None:
    check_events(example, STREAM_EVENTS)


@pytest.mark.parametrize("error", ALL_SAMPLES, ids=lambda error: error.code)
def test_every_problem_fits_its_schema(error: TallywireError) -> None:
    check(json.loads(msgspec.json.encode(models.problem_of(error, "an-id"))), {"$ref": "#/components/schemas/Problem"})


@each_operation
def test_a_problem_has_the_headers_and_the_status_that_its_error_has(operation: Any) -> None:
    samples = {each.code: each for each in ALL_SAMPLES}
    for status, answer in operation["responses"].items():
        described = set(resolved(answer)["headers"]) - {"X-Request-Id"}
        for error in (samples[code] for code in codes(resolved(answer))):
            assert str(error.status) == status
            assert described == {name for name, _ in problem_headers(error)} - {"Content-Type"}


@each_operation
def test_every_answer_has_the_request_id(operation: Any) -> None:
    for answer in operation["responses"].values():
        assert "X-Request-Id" in resolved(answer)["headers"]
