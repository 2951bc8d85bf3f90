"""GET /openapi.json: how to call every route, as OpenAPI 3.1 writes it, made of `handlers.descriptions` and of the
structs of the wire.

It is the same for every process of a version: addresses are the defaults, and nothing in it depends on settings. What
OpenAPI has no words for stands in extensions: `x-listener` (which listeners have a route), `x-line-schema` (one line of
NDJSON), `x-events` (the events of a stream).
"""

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from http import HTTPStatus
from importlib.metadata import version
from inspect import cleandoc
from itertools import chain, groupby
from typing import get_args

import msgspec
from msgspec import Raw, Struct
from msgspec.json import schema_components

from core import models
from core.errors import (
    BodyTooLarge,
    HeadTooLarge,
    InternalError,
    InvalidQuery,
    MalformedBody,
    MalformedRequest,
    MethodNotAllowed,
    TallywireError,
    Unauthorized,
    Unavailable,
)
from core.settings import Settings
from handlers.base import MAX_UNWANTED_BYTES, BaseHandler
from handlers.descriptions import (
    EVENTS,
    FORMS,
    FRAMES,
    NOT_YOURS,
    REQUEST_ID,
    ROUTES,
    SCHEMAS,
    SCHEMES,
    WORDS,
    Access,
    Answer,
    Content,
    Operation,
    Parameter,
    Route,
)

Node = dict[str, object]
"""A piece of the document. OpenAPI 3.1 and JSON Schema 2020-12 say which fields there are, so it is no struct."""

EVERY_ROUTE = (MalformedRequest, MalformedBody, MethodNotAllowed, BodyTooLarge, HeadTooLarge, InternalError)
"""What any route may answer, whatever it is for."""

_REF = "#/components/schemas/{name}"

_TAKEN_IN = (models.Batch.__name__, models.BatchResult.__name__, models.Revocation.__name__)
"""Structs that callers write, who may leave out what has a default. The server leaves out what is UNSET only."""

_ABOUT = f"""\
Tallywire counts batches of orders and tells browsers and services about them over Server-Sent Events. It has two \
listeners: on the public one are streams, on the internal one is everything that starts with /internal, and this \
document. Their addresses are settings; those given here are the defaults. Whether somebody must say who they are is a \
setting, too: where nobody is asked, no security scheme is needed.

Every answer has X-Request-Id. Whatever is not answered as asked is a problem (RFC 9457): act on its code and on its \
retry. A method that a route does not take is answered 405, a path that is no route 404. A route that takes no body \
throws away up to {MAX_UNWANTED_BYTES} bytes of one. Ignore fields, events and reasons that you do not know: later \
versions add some."""

_HEADERS: Mapping[str, tuple[str, Node]] = {
    "X-Request-Id": ("The id of the request, which leads to the server's log.", {"type": "string"}),
    "Retry-After": ("Seconds after which to call again.", {"type": "integer", "minimum": 0}),
    "WWW-Authenticate": ("How to say who you are.", {"type": "string"}),
    "Allow": ("The methods that the route takes.", {"type": "string"}),
    "Etag": ("What If-None-Match may name.", {"type": "string"}),
}
_USUAL_HEADERS = ("X-Request-Id",)


@lru_cache(1)
def document() -> bytes:
    """The document, always the same bytes."""
    return msgspec.json.format(msgspec.json.encode(_document()), indent=2)


class OpenapiHandler(BaseHandler):
    """The document, to everybody."""

    role = None

    async def get(self) -> None:
        # The first time it takes 10 ms, for which the loop would stand still.
        self.write_json(Raw(await asyncio.to_thread(document)))


def _document() -> Node:
    return {
        "openapi": "3.1.0",
        "info": {"title": "Tallywire", "version": version("tallywire"), "description": _ABOUT},
        "tags": [
            {"name": "public", "description": "The public listener: what browsers reach."},
            {"name": "internal", "description": "The internal listener: what order services and operators reach."},
        ],
        "servers": [_server(listener) for listener in ("public", "internal")],
        "paths": {route.path: _path(route) for route in ROUTES},
        "components": {
            "schemas": _schemas(),
            "responses": {name: _problem(errors) for name, errors in _shared_problems().items()},
            "parameters": {REQUEST_ID.name: _parameter(REQUEST_ID)},
            "headers": {name: {"description": says, "schema": form} for name, (says, form) in _HEADERS.items()},
            "securitySchemes": dict(SCHEMES),
        },
    }


def _server(listener: str) -> Node:
    setting = f"{listener}_listen"
    default: str = getattr(Settings(), setting)
    return {
        "url": "http://{address}",
        "description": f"The {listener} listener.",
        "variables": {"address": {"default": default, "description": f"HOST:PORT, the setting {setting}."}},
    }


# ---- routes


def _path(route: Route) -> Node:
    return {
        "x-listener": list(route.listeners),
        "servers": [_server(listener) for listener in route.listeners],
        "parameters": [{"$ref": f"#/components/parameters/{REQUEST_ID.name}"}],
        **{operation.method.lower(): _operation(route, operation) for operation in route.operations},
    }


def _operation(route: Route, operation: Operation) -> Node:
    node: Node = {
        "operationId": operation.name,
        "tags": list(route.listeners),
        "summary": operation.summary,
        "x-listener": list(route.listeners),
    }
    if operation.description:
        node["description"] = operation.description
    if operation.parameters:
        node["parameters"] = [_parameter(parameter) for parameter in operation.parameters]
    if operation.bodies:
        node["requestBody"] = {"required": True, "content": _contents(operation.bodies)}
    node["responses"] = _responses(operation)
    node["security"] = _security(operation.access)
    return node


def _parameter(parameter: Parameter) -> Node:
    return {
        "name": parameter.name,
        "in": parameter.place,
        "required": parameter.required,
        "description": parameter.description,
        "schema": _schema(parameter.type),
        "example": parameter.example,
    }


def _security(access: Access) -> list[Node]:
    """The empty one: a server may ask nobody."""
    if not access.schemes:
        return []
    roles = [access.role] if access.role else []
    alternatives: list[Node] = [{scheme: roles} for scheme in access.schemes]
    return [*alternatives, {}]


def _contents(contents: Iterable[Content]) -> Node:
    return {content.media_type: _media_type(content) for content in contents}


def _media_type(content: Content) -> Node:
    node: Node = {"schema": {"type": "object"} if content.type is None else _schema(content.type)}
    if content.line_type is not None:
        node = {"schema": {"type": "string"}, "x-line-schema": _schema(content.line_type)}
    if content.has_events:
        node = {"schema": {"type": "string"}, "x-events": _events()}
    if content.examples:
        node["examples"] = {
            name.replace(" ", "-"): {"summary": name, "value": msgspec.to_builtins(example)}
            for name, example in content.examples.items()
        }
    return node


# ---- answers


def _responses(operation: Operation) -> Node:
    nodes: Node = {str(answer.status): _answer(operation, answer) for answer in operation.answers}
    if _has_etag(operation):
        nodes[str(HTTPStatus.NOT_MODIFIED.value)] = {
            "description": "If-None-Match named the Etag of this very answer.",
            "headers": _headers("Etag"),
        }
    for status, errors in _refusals(operation).items():
        name = _shared_name(errors)
        problem = {"$ref": f"#/components/responses/{name}"} if name else _problem(errors)
        nodes[status] = problem
    return nodes


def _has_etag(operation: Operation) -> bool:
    """Tornado makes one of every body that a handler answers 200 with."""
    is_read = operation.method in ("GET", "HEAD")
    return is_read and not any(content.has_events for answer in operation.answers for content in answer.contents)


def _refusals(operation: Operation) -> dict[str, tuple[type[TallywireError], ...]]:
    """What it may be refused with, by status."""
    errors = {*EVERY_ROUTE, *operation.errors, *(NOT_YOURS if operation.access.schemes else ())}
    in_order = sorted(errors, key=lambda error: (error.status, error.code))
    return {str(status): tuple(group) for status, group in groupby(in_order, key=lambda error: error.status)}


def _shared_name(errors: tuple[type[TallywireError], ...]) -> str | None:
    """What several routes answer is written once."""
    return "Or".join(error.__name__ for error in errors) if len(errors) <= 2 else None


def _shared_problems() -> dict[str, tuple[type[TallywireError], ...]]:
    every = chain.from_iterable(_refusals(operation).values() for route in ROUTES for operation in route.operations)
    return {name: errors for errors in every if (name := _shared_name(errors)) is not None}


def _answer(operation: Operation, answer: Answer) -> Node:
    node: Node = {"description": answer.description}
    own: Node = {name: {"description": says, "schema": {"type": "string"}} for name, says in answer.headers.items()}
    has_etag = answer.status == HTTPStatus.OK and _has_etag(operation)
    node["headers"] = _headers(*(["Etag"] if has_etag else [])) | own
    if answer.contents:
        node["content"] = _contents(answer.contents)
    return node


def _headers(*names: str) -> Node:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in (*_USUAL_HEADERS, *names)}


def _problem(errors: tuple[type[TallywireError], ...]) -> Node:
    """The answer with one of these errors, which share a status."""
    return {
        "description": " ".join(f"{error.code}: {error.title}." for error in errors),
        "headers": _headers(*_problem_headers(errors)),
        "content": {"application/problem+json": {"schema": _problem_schema(errors)}},
    }


def _problem_headers(errors: tuple[type[TallywireError], ...]) -> Iterator[str]:
    """Those of `handlers.base.problem_headers`."""
    if MethodNotAllowed in errors:
        yield "Allow"
    if any(issubclass(error, Unauthorized) for error in errors):
        yield "WWW-Authenticate"
    if any(issubclass(error, Unavailable) for error in errors):
        yield "Retry-After"


def _problem_schema(errors: tuple[type[TallywireError], ...]) -> Node:
    return {
        "allOf": [_schema(models.Problem)],
        "properties": {"status": {"const": errors[0].status}, "code": {"enum": [error.code for error in errors]}},
    }


# ---- schemas


def _schema(type_: object) -> Node:
    """That of a type; of a struct only where it is to be found."""
    (schema,), _ = schema_components((type_,), schema_hook=_anything, ref_template=_REF)
    return schema


def _anything(type_: type) -> Node:
    if type_ is not object:
        raise NotImplementedError
    return {"description": "Anything."}


def _schemas() -> Node:
    """Those of all structs on the wire, with what their types do not say."""
    _, components = schema_components(_wire_types(), schema_hook=_anything, ref_template=_REF)
    for name, schema in components.items():
        schema["description"] = SCHEMAS.get(name) or cleandoc(schema["description"])
        for field, form in schema["properties"].items():
            own_name = f"{name}.{field}"
            form["description"] = WORDS.get(own_name) or WORDS[field]
            form.update(FORMS.get(own_name, FORMS.get(field, {})))
            if name not in _TAKEN_IN and "default" in form:
                del form["default"]
                schema["required"].append(field)
    components["Problem"]["examples"] = [
        msgspec.to_builtins(models.problem_of(InvalidQuery("user_id", "is required"), "order-service-4711"))
    ]
    return components | {_envelope_name(control): _envelope(control) for control in get_args(models.ControlEvent)}


def _wire_types() -> Iterator[object]:
    yield models.Problem
    for route in ROUTES:
        for operation in route.operations:
            answered = chain.from_iterable(answer.contents for answer in operation.answers)
            for content in (*operation.bodies, *answered):
                yield from (type_ for type_ in (content.type, content.line_type) if type_ is not None)
    yield from chain.from_iterable(FRAMES.values())
    yield from get_args(models.ControlEvent)


def _events() -> Node:
    """Each event of a stream, with the schema of its data line for each shape."""
    shapes: dict[str, tuple[str, str]] = {
        **{event: (envelope.__name__, flat.__name__) for event, (envelope, flat) in FRAMES.items()},
        **{control.event: (_envelope_name(control), control.__name__) for control in get_args(models.ControlEvent)},
    }
    return {
        event: {
            "description": EVENTS[event],
            "envelope": {"$ref": _REF.format(name=envelope)},
            "flat": {"$ref": _REF.format(name=flat)},
        }
        for event, (envelope, flat) in shapes.items()
    }


def _envelope_name(control: type[Struct]) -> str:
    return f"{control.__name__}Envelope"


def _envelope(control: type[models.StreamOpen]) -> Node:
    """As `core.sse.encode_control` writes it."""
    return {
        "type": "object",
        "description": f"The data line of {control.event} with shape=envelope.",
        "properties": {
            "type": {"const": control.event, "description": WORDS["type"]},
            "data": {"$ref": _REF.format(name=control.__name__), "description": WORDS["data"]},
        },
        "required": ["type", "data"],
    }
