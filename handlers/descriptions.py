"""What each route takes and answers, in words for whoever calls it: `handlers.openapi` makes a document of it.

Pure data. `ROUTES` has an entry for every route and method of `handlers.routes`, `EVENTS` one for every event of a
stream, `WORDS` one for every field on the wire; tests miss what is not there. Shapes are not repeated here: they are
those of the structs that are named.
"""

from collections.abc import Mapping
from typing import Annotated, Literal, get_args

from msgspec import Meta, Struct
from msgspec.structs import replace

from core.errors import (
    ERRORS,
    Busy,
    DiskFull,
    Draining,
    FieldProblem,
    Forbidden,
    IdempotencyConflict,
    InvalidBatch,
    InvalidBody,
    InvalidIdempotencyKey,
    InvalidQuery,
    InvalidResults,
    JournalFull,
    OutcomeUnknown,
    Retry,
    RouteNotFound,
    StrategyIdMissing,
    TallywireError,
    TooManyBatches,
    TooManyOrderTypes,
    TooManyResults,
    Unauthorized,
    UnsupportedMediaType,
)
from core.hub import MAX_IDEMPOTENCY_KEY
from core.models import (
    MAX_ID,
    Accepted,
    Batch,
    BatchesReport,
    BatchFacts,
    BatchResult,
    ConnectionFacts,
    ConnectionsReport,
    DeletedUser,
    EmitAnswer,
    FlatOrderBatchCatchUp,
    FlatOrderBatchUpdate,
    Health,
    HourFacts,
    HourlyStatistics,
    KeyFacts,
    KeysReport,
    LimitFacts,
    LogFacts,
    LoopFacts,
    OrderBatchCatchUp,
    OrderBatchUpdate,
    Rejected,
    Revocation,
    Revoked,
    Session,
    Shape,
    Skipped,
    StrategyId,
    StrategyTotals,
    Summary,
    Ticket,
    UserId,
    UserTotals,
    problem_of,
)
from core.reports import BATCHES_LISTED, KEYS_LISTED, SLOWEST_LISTED
from core.statistics import DEFAULT_HOURS, MOST_HOURS
from core.subscriber import State
from handlers.credentials import COOKIE, TICKET_SECONDS
from handlers.emit import MAX_BATCH_BYTES, MAX_BATCHES, MAX_NDJSON_BYTES, MAX_RESULTS
from handlers.stream import MAX_STRATEGIES

Listener = Literal["public", "internal"]
Place = Literal["path", "query", "header"]
Method = Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


class Parameter(Struct, frozen=True):
    """One parameter. `type` is what msgspec makes its schema of; a list is repeated. Those of a path are required."""

    name: str
    place: Place
    type: object
    description: str
    example: object
    required: bool = False


class Content(Struct, frozen=True):
    """A body in one media type. Examples by name, as structs, or as text where the body is no JSON.

    `type` None: JSON of a form that others say. `line_type`: the body is text, and this is one line of it.
    `has_events`: it is a stream of EVENTS.
    """

    media_type: str
    examples: Mapping[str, object]
    type: object = None
    line_type: object = None
    has_events: bool = False


class Answer(Struct, frozen=True):
    """An answer that is no problem. `headers` are those beside the ones that every answer has, with what they say."""

    status: int
    description: str
    contents: tuple[Content, ...] = ()
    headers: Mapping[str, str] = {}


class Access(Struct, frozen=True):
    """Who may call: whoever meets one of `schemes`, names of SCHEMES, with `role` where they have roles.

    No scheme: everybody.
    """

    schemes: tuple[str, ...] = ()
    role: str | None = None


class Operation(Struct, frozen=True, kw_only=True):
    """One method of a route. `name` is its operationId. `errors` are those beside the ones of every route."""

    method: Method
    name: str
    summary: str
    description: str = ""
    access: Access
    parameters: tuple[Parameter, ...] = ()
    bodies: tuple[Content, ...] = ()
    answers: tuple[Answer, ...]
    errors: tuple[type[TallywireError], ...] = ()


class Route(Struct, frozen=True):
    """A path on these listeners, `{name}` where the pattern of `handlers.routes` has a group."""

    listeners: tuple[Listener, ...]
    path: str
    operations: tuple[Operation, ...]


# ---- who may call

SCHEMES: Mapping[str, Mapping[str, str]] = {
    "internalKey": {
        "type": "http",
        "scheme": "bearer",
        "description": "A key of an order service or an operator. It has roles: emit may emit batches, read may look "
        "things up, admin may delete and revoke. Asked for when the server runs with internal_auth.",
    },
    "publicToken": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "A signed token that says whose batches its bearer may read: sub is the user, strategies a list "
        "of ids or *. Asked for with auth jwt; with auth proxy the proxy in front says it instead.",
    },
    "publicSession": {
        "type": "apiKey",
        "in": "cookie",
        "name": COOKIE,
        "description": "The cookie of a session, for a native EventSource, which cannot send headers of its own.",
    },
    "publicTicket": {
        "type": "apiKey",
        "in": "query",
        "name": "ticket",
        "description": f"A ticket that starts one stream within {TICKET_SECONDS} seconds, for clients that make a URL "
        "for each attempt. A token itself never stands in a URL.",
    },
}

OPEN = Access()
STREAM = Access(("publicToken", "publicSession", "publicTicket"))
READER = Access(("publicToken", "publicSession"))
TOKEN = Access(("publicToken",))
EMIT = Access(("internalKey",), "emit")
READ = Access(("internalKey",), "read")
ADMIN = Access(("internalKey",), "admin")

NOT_YOURS = (Unauthorized, Forbidden)
"""What every route answers that is not OPEN."""

# ---- parameters

IdempotencyKey = Annotated[str, Meta(pattern=f"^[ -~]{{1,{MAX_IDEMPOTENCY_KEY}}}$")]
PositionText = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
RequestId = Annotated[str, Meta(pattern="^[!-~]{1,128}$")]
Strategy = Annotated[int, Meta(ge=1, le=MAX_ID)] | Literal["*"]
AskedStrategies = Annotated[list[Strategy], Meta(min_length=1, max_length=MAX_STRATEGIES)]

POSITION = "1k7q2m9x4v0ce-42"
EARLIER = "1k7q2m9x4v0ce-41"
_LATEST = "2026-01-31T14:59:22.972Z"
_HOUR = "2026-01-31T14:00:00.000Z"

USER = Parameter("user_id", "query", UserId, "Whose.", 7, required=True)
SOME_USER = Parameter("user_id", "query", UserId, "Of this user only.", 7)
SOME_STRATEGY = Parameter("strategy_id", "query", StrategyId, "Of this strategy only.", 3)
PATH_USER = Parameter("user", "path", UserId, "The user.", 7, required=True)
PATH_STRATEGY = Parameter("strategy", "path", StrategyId, "The strategy.", 3, required=True)
_MOMENT = "A time as ISO 8601 writes it, UTC without an offset."
FROM = Parameter("from", "query", str, f"{_MOMENT} It belongs to what is asked for.", "2026-01-31T14:00Z")
TO = Parameter("to", "query", str, f"{_MOMENT} It does not belong to what is asked for.", "2026-01-31T15:00Z")

REQUEST_ID = Parameter(
    "X-Request-Id",
    "header",
    RequestId,
    "Your own id of the request. It comes back in the answer and stands in the server's log; without one, or when it "
    "is longer or has blanks, the server makes one.",
    "order-service-4711",
)
"""Every route takes it."""

# ---- examples

_SUMMARIES = (Summary("LIMIT", 1, 0), Summary("STOP_LIMIT", 0, 1))
_RESULTS = [
    BatchResult(success=True, order_type="LIMIT", event_type="order_created"),
    BatchResult(success=True, order_type="STOP_LIMIT", event_type="order_cancelled"),
    BatchResult(success=False),
]
_BATCH = Batch(user_id=7, batch_results=_RESULTS, strategy_id=3, idempotency_key="batch-4711")
_MANY = [_BATCH, Batch(user_id=8, batch_results=_RESULTS[:1], strategy_id=4)]
_ACCEPTED = Accepted(POSITION, _SUMMARIES, connections=2, ignored=0, duplicate=False, idempotency_key="batch-4711")
_PARTLY = Accepted(
    POSITION,
    _SUMMARIES,
    connections=2,
    ignored=0,
    duplicate=False,
    invalid=(FieldProblem("$.batch_results[2].order_type", "expected an order type of the form [A-Z][A-Z0-9_]{0,31}"),),
)
_SKIPPED = Skipped("no_successful_orders", ignored=1)
_REJECTED = Rejected(problem_of(StrategyIdMissing(), "order-service-4711"))
_ANSWERS = [_ACCEPTED, _SKIPPED, _REJECTED]
_BATCHES = {"one": _BATCH, "many": _MANY}

_NDJSON_BATCHES = (
    '{"user_id":7,"strategy_id":3,"batch_results":[{"success":true,"order_type":"LIMIT","event_type":"order_created"}]}\n'
    '{"user_id":8,"strategy_id":4,"batch_results":[]}\n'
)
_NDJSON_ANSWERS = (
    f'{{"status":"accepted","position":"{POSITION}","summaries":[{{"order_type":"LIMIT","created":1,"cancelled":0}}],'
    '"connections":2,"ignored":0,"duplicate":false}\n'
    '{"status":"skipped","reason":"no_successful_orders","ignored":0}\n'
)
_STREAM = (
    "event: stream_open\nretry: 1467\n"
    f'data: {{"type":"stream_open","data":{{"position":"{EARLIER}","strategies":[3],"resumed":false,'
    f'"heartbeat_seconds":15.0}}}}\nid: {EARLIER}\n\n'
    "event: order_batch_update\n"
    'data: {"type":"order_batch_update","data":{"summaries":[{"order_type":"LIMIT","created":5,"cancelled":3}],'
    f'"timestamp":"{_LATEST}"}},"stream":{{"strategy_id":3,"after":"{EARLIER}","batches":1}}}}\n'
    f"id: {POSITION}\n\n"
)

# ---- the routes

MAY_NOT_COMMIT = (Busy, Draining, DiskFull, JournalFull, OutcomeUnknown)
"""What whoever changes the journal may be answered."""


def json_of(type_: object, examples: Mapping[str, object]) -> tuple[Content, ...]:
    """A body that is JSON only."""
    return (Content("application/json", examples, type_),)


_EMIT = Operation(
    method="POST",
    name="emit",
    summary="Count and publish a batch, or many",
    description="Counts the results of a batch by order type and writes one event to every stream of its user and "
    f"strategy. A batch has at most {MAX_RESULTS} results and {MAX_BATCH_BYTES} bytes, a call at most {MAX_BATCHES} "
    f"batches and {MAX_BATCH_BYTES} bytes, as NDJSON {MAX_NDJSON_BYTES}. A single batch is answered with its own "
    "status code. Many are answered 200 with an answer each, in the same order, as a list or as lines; one bad batch "
    "does not harm the others. An idempotency key makes a batch that is sent again count once. application/ndjson and "
    "application/jsonl stand for application/x-ndjson, application/x-msgpack and application/vnd.msgpack for "
    "application/msgpack, which is written as the JSON would be, and answered as JSON.",
    access=EMIT,
    parameters=(
        Parameter(
            "Idempotency-Key",
            "header",
            IdempotencyKey,
            "The key of a single batch. With many, each batch carries its own idempotency_key instead.",
            "batch-4711",
        ),
    ),
    bodies=(
        Content("application/json", _BATCHES, Batch | list[Batch]),
        Content("application/x-ndjson", {"lines": _NDJSON_BATCHES}, line_type=Batch),
        Content("application/msgpack", _BATCHES, Batch | list[Batch]),
    ),
    answers=(
        Answer(
            200,
            "A single batch was accepted, or skipped since nothing in it counts; or the answers of many.",
            (
                Content(
                    "application/json",
                    {"accepted": _ACCEPTED, "partly invalid": _PARTLY, "skipped": _SKIPPED, "many": _ANSWERS},
                    Accepted | Skipped | list[EmitAnswer],
                ),
                Content("application/x-ndjson", {"lines": _NDJSON_ANSWERS}, line_type=EmitAnswer),
            ),
        ),
    ),
    errors=(
        UnsupportedMediaType,
        InvalidBatch,
        InvalidResults,
        StrategyIdMissing,
        TooManyResults,
        TooManyBatches,
        TooManyOrderTypes,
        InvalidIdempotencyKey,
        IdempotencyConflict,
        *MAY_NOT_COMMIT,
    ),
)

_CONNECTIONS = Operation(
    method="GET",
    name="connections",
    summary="Who is connected",
    description=f"How many streams are open, how many lag, the {SLOWEST_LISTED} that are furthest behind, and why "
    "streams have ended since the server started.",
    access=READ,
    parameters=(SOME_USER,),
    answers=(
        Answer(
            200,
            "The streams that are open now.",
            json_of(
                ConnectionsReport,
                {
                    "one": ConnectionsReport(
                        connections=1,
                        lagging=0,
                        blocked=0,
                        slowest=(
                            ConnectionFacts(
                                user_id=7,
                                strategies=(3, 4),
                                state="ready",
                                position=POSITION,
                                behind_batches=0,
                                unsent_bytes=0,
                                age_seconds=12.5,
                                peer="127.0.0.1:50412",
                            ),
                        ),
                        closed={"client_closed": 3},
                        refused={"streams_per_user": 1},
                        accepts_delayed=0,
                        loop=LoopFacts(lag_ms_recent_max=0.4, lag_ms_max=3.1, tasks=3),
                        log=LogFacts(lines_dropped=0),
                        limits=LimitFacts(max_connections=10_000, wanted=10_000),
                    )
                },
            ),
        ),
    ),
    errors=(InvalidQuery,),
)

_METRIC = (
    "# HELP tallywire_emit_calls_total Calls of POST /internal/emit whose body has arrived.\n"
    "# TYPE tallywire_emit_calls_total counter\n"
    "tallywire_emit_calls_total 42.0\n"
)

_OPENMETRIC = (
    "# HELP tallywire_emit_calls Calls of POST /internal/emit whose body has arrived.\n"
    "# TYPE tallywire_emit_calls counter\n"
    "tallywire_emit_calls_total 42.0\n"
    "# EOF\n"
)

_METRICS = Operation(
    method="GET",
    name="metrics",
    summary="Metrics",
    description="Everything that is counted and measured, for a monitoring system to scrape.",
    access=READ,
    answers=(
        Answer(
            200,
            "As Prometheus writes it, or as OpenMetrics where Accept names that.",
            (
                Content("text/plain", {"one of them": _METRIC}, str),
                Content("application/openmetrics-text", {"one of them": _OPENMETRIC}, str),
            ),
        ),
    ),
)

_HOURLY = Operation(
    method="GET",
    name="hourly",
    summary="Counts by hour",
    description="Every hour and strategy for which something was counted, exact up to the last commit. from and to are "
    f"widened to whole hours and span at most {MOST_HOURS // 24} days; without them these are the last {DEFAULT_HOURS} "
    "hours.",
    access=READ,
    parameters=(USER, SOME_STRATEGY, FROM, TO),
    answers=(
        Answer(
            200,
            "The hours, by hour and strategy.",
            json_of(
                HourlyStatistics,
                {
                    "one hour": HourlyStatistics(
                        7, _HOUR, "2026-01-31T15:00:00.000Z", (HourFacts(_HOUR, 3, (Summary("LIMIT", 62, 33),)),)
                    )
                },
            ),
        ),
    ),
    errors=(InvalidQuery, Busy),
)

_KNOWN_KEY = KeyFacts(7, 3, _SUMMARIES, 42, POSITION, "1k7q2m9x4v0ce-1", _LATEST, 2)

_KEYS = Operation(
    method="GET",
    name="keys",
    summary="The stream keys of a user",
    description=f"Every strategy of the user that something was accepted for, by strategy, {KEYS_LISTED} at most, and "
    "those behind them with after. An empty list means that nothing was ever accepted for the user, or that it was "
    "deleted since.",
    access=READ,
    parameters=(PATH_USER, Parameter("after", "query", StrategyId, "Only strategies behind this one.", 2)),
    answers=(Answer(200, "The keys.", json_of(KeysReport, {"one": KeysReport(7, (_KNOWN_KEY,), has_more=False)})),),
    errors=(RouteNotFound, InvalidQuery, Busy),
)

_KEY = Operation(
    method="GET",
    name="key",
    summary="One stream key: a user and a strategy",
    description="Its totals since the journal began, its newest and its oldest kept position. Zero and null where "
    "nothing was ever accepted.",
    access=READ,
    parameters=(PATH_USER, PATH_STRATEGY),
    answers=(
        Answer(
            200,
            "What is known of the key.",
            json_of(
                KeyFacts,
                {
                    "known": _KNOWN_KEY,
                    "never heard of": KeyFacts(7, 4),
                },
            ),
        ),
    ),
    errors=(RouteNotFound, InvalidQuery, Busy),
)

_BATCHES_OF = Operation(
    method="GET",
    name="batches",
    summary="The batches that were accepted",
    description=f"By stream key, with user_id and strategy_id: in order, {BATCHES_LISTED} at most, and those behind "
    "them with after. Batches that have been trimmed are not among them. Or with idempotency_key alone: what was "
    "accepted under that key, at most one batch a caller; an empty list means that nothing is remembered under it.",
    access=READ,
    parameters=(
        Parameter("user_id", "query", UserId, "Whose. Required without idempotency_key.", 7),
        Parameter("strategy_id", "query", StrategyId, "Which. Required without idempotency_key.", 3),
        FROM,
        TO,
        Parameter("after", "query", PositionText, "Only batches behind this position.", EARLIER),
        Parameter("idempotency_key", "query", IdempotencyKey, "Stands alone, without the others.", "batch-4711"),
    ),
    answers=(
        Answer(
            200,
            "The batches.",
            json_of(
                BatchesReport,
                {
                    "by stream key": BatchesReport(
                        (BatchFacts(7, 3, POSITION, _LATEST, _SUMMARIES),),
                        has_more=False,
                    ),
                    "by idempotency key": BatchesReport(
                        (BatchFacts(7, 3, POSITION, _LATEST, _SUMMARIES, 0, "local", "batch-4711"),), has_more=False
                    ),
                },
            ),
        ),
    ),
    errors=(InvalidQuery, Busy),
)

_DELETE_USER = Operation(
    method="DELETE",
    name="deleteUser",
    summary="Delete everything of a user",
    description="Batches, hours and idempotency keys are gone, and the user's streams are ended for good. Positions go "
    "on behind the one in the answer, so that none is given out twice.",
    access=ADMIN,
    parameters=(PATH_USER,),
    answers=(Answer(200, "It is done.", json_of(DeletedUser, {"deleted": DeletedUser(7, POSITION, 42, 1)})),),
    errors=(RouteNotFound, InvalidQuery, *MAY_NOT_COMMIT),
)

_READER = Parameter("user_id", "query", UserId, "Whose. Required where no token says who reads, else of no use.", 7)
_READABLE = Parameter(
    "strategy_id",
    "query",
    AskedStrategies,
    f"Which strategies: up to {MAX_STRATEGIES} ids, each as a parameter of its own, or * alone for every one that may "
    "be read, future ones included.",
    [3, 4],
    required=True,
)


def _stream(name: str, access: Access, user: Parameter, about: str) -> Operation:
    return Operation(
        method="GET",
        name=name,
        summary="The event stream",
        description=f"{about}Server-Sent Events that never end by themselves. The events, and the form of their data "
        "lines for each shape, stand under x-events of the answer; docs/protocol.md says how to sum them and how to "
        "resume. A native EventSource gives up for good on any status but 200, so a stream that is refused for load is "
        "answered 200 with one stream_closing; the 503 is for requests that do not accept text/event-stream.",
        access=access,
        parameters=(user, _READABLE, *_HOW),
        answers=(
            Answer(
                200,
                "The stream: stream_open or stream_reset first, then updates.",
                (Content("text/event-stream", {"a start and an update": _STREAM}, has_events=True),),
            ),
        ),
        errors=(InvalidQuery, Busy, Draining),
    )


_HOW = (
    Parameter(
        "last_event_id",
        "query",
        PositionText,
        "Where to resume: the id of the last event. For clients that cannot set the header, which wins.",
        EARLIER,
    ),
    Parameter("Last-Event-ID", "header", PositionText, "Where to resume: the id of the last event.", EARLIER),
    Parameter(
        "shape",
        "query",
        Shape,
        "The form of a data line: type and data, or what is inside alone. A setting says which is usual.",
        "envelope",
    ),
    Parameter(
        "heartbeat",
        "query",
        Literal["comment", "event"],
        "What keeps a quiet stream alive; usually comment.",
        "event",
    ),
    Parameter("totals", "query", Literal["0", "1"], "1: updates and stream_open state the totals, too.", "1"),
)


def _pre_flight(name: str) -> Operation:
    return Operation(
        method="OPTIONS",
        name=name,
        summary="A CORS pre-flight",
        description="For pages of other origins that set headers themselves, as a native EventSource never does.",
        access=OPEN,
        answers=(
            Answer(
                204,
                "What may be asked for.",
                headers={
                    "Allow": "The methods of the route.",
                    "Access-Control-Allow-Methods": "Where other origins may read: the methods that they may use.",
                    "Access-Control-Allow-Headers": "Likewise: the headers that they may set.",
                    "Access-Control-Max-Age": "Likewise: seconds for which a browser may remember it.",
                },
            ),
        ),
    )


_SESSION = Operation(
    method="POST",
    name="startSession",
    summary="Make the token a cookie",
    description="For a native EventSource, which cannot send headers: the browser sends the cookie with each "
    "reconnect. Again with the next token when stream_expiring comes.",
    access=TOKEN,
    answers=(
        Answer(
            200,
            "The cookie is set.",
            json_of(Session, {"started": Session(_LATEST)}),
            {"Set-Cookie": f"{COOKIE}: HttpOnly, Secure, until the token ends."},
        ),
    ),
    errors=(Busy,),
)

_END_SESSION = Operation(
    method="DELETE",
    name="endSession",
    summary="Take the cookie back",
    description="Streams that are open stay so.",
    access=OPEN,
    answers=(Answer(204, "The cookie is gone.", headers={"Set-Cookie": f"{COOKIE}, emptied."}),),
)

_TICKET = Operation(
    method="POST",
    name="ticket",
    summary="A ticket for one stream",
    description=f"It starts one stream within {TICKET_SECONDS} seconds, as the parameter ticket.",
    access=READER,
    answers=(Answer(200, "The ticket.", json_of(Ticket, {"issued": Ticket("Zk3vJ8QmX0c2Tn5yRb1W", _LATEST)})),),
    errors=(Busy,),
)

_TOTALS = Operation(
    method="GET",
    name="totals",
    summary="The reader's totals",
    description="What was counted since the journal began, and the position that it stands at: a stream resumed from "
    "there goes on without a gap.",
    access=READER,
    parameters=(_READER, _READABLE),
    answers=(
        Answer(
            200,
            "The totals.",
            json_of(UserTotals, {"one": UserTotals(7, POSITION, (StrategyTotals(3, _SUMMARIES),))}),
        ),
    ),
    errors=(InvalidQuery, Busy),
)

_REVOKE = Operation(
    method="POST",
    name="revoke",
    summary="Take back what readers have been granted",
    description="Tokens issued up to now count no more, for a user, a strategy, or a strategy of a user, also after a "
    "restart; streams opened with them end.",
    access=ADMIN,
    bodies=json_of(
        Revocation, {"a user": Revocation(user_id=7), "a strategy": Revocation(None, 3, "strategy_deleted")}
    ),
    answers=(Answer(200, "It is done.", json_of(Revoked, {"revoked": Revoked(_LATEST, 2)})),),
    errors=(InvalidBody, *MAY_NOT_COMMIT),
)


def _health(method: Literal["GET", "HEAD"], what: str) -> Operation:
    is_live = what == "live"
    body = json_of(Health, {"ok": Health("ok")}) if method == "GET" else ()
    not_ready = json_of(Health, {"draining": Health("draining")}) if method == "GET" else ()
    answers = (Answer(200, "It is so.", body),)
    purpose = Parameter(
        "for", "query", Literal["streams", "emit"], "emit: whether it takes emits, too. Usually streams.", "emit"
    )
    return Operation(
        method=method,
        name=what if method == "GET" else f"{what}Head",
        summary="The process runs" if is_live else "The server can serve streams",
        access=OPEN,
        parameters=() if is_live else (purpose,),
        answers=answers if is_live else (*answers, Answer(503, "Not now; status says why.", not_ready)),
        errors=() if is_live else (InvalidQuery,),
    )


_OPENAPI = Operation(
    method="GET",
    name="openapi",
    summary="This document",
    access=OPEN,
    answers=(Answer(200, "OpenAPI 3.1.", (Content("application/json", {}),)),),
    errors=(Forbidden,),
)


def _browser_client(method: Literal["GET", "HEAD"]) -> Operation:
    body = (Content("text/javascript", {"its beginning": "/** Tallywire's client */"}, type=str),)
    return Operation(
        method=method,
        name="browserClient" if method == "GET" else "browserClientHead",
        summary="The client for browsers",
        description="One ES module without dependencies, for pages of any origin. docs/clients.md says how to use it.",
        access=OPEN,
        answers=(
            Answer(
                200,
                "The module.",
                body if method == "GET" else (),
                {"Cache-Control": "no-cache: ask again each time.", "Access-Control-Allow-Origin": "Always *."},
            ),
        ),
    )


ROUTES: tuple[Route, ...] = (
    Route(("public",), "/stream", (_stream("stream", STREAM, _READER, ""), _pre_flight("streamPreFlight"))),
    Route(("public",), "/stream/session", (_SESSION, _END_SESSION, _pre_flight("sessionPreFlight"))),
    Route(("public",), "/stream/ticket", (_TICKET, _pre_flight("ticketPreFlight"))),
    Route(("public",), "/totals", (_TOTALS, _pre_flight("totalsPreFlight"))),
    Route(
        ("public",),
        "/statistics/hourly",
        (
            replace(
                _HOURLY,
                name="ownHours",
                access=READER,
                parameters=(_READER, replace(_READABLE, required=False), FROM, TO),
            ),
            _pre_flight("ownHoursPreFlight"),
        ),
    ),
    Route(
        ("internal",),
        "/internal/stream",
        (_stream("anyStream", READ, replace(USER, description="Whose batches."), "Of any user. "),),
    ),
    Route(("internal",), "/internal/revoke", (_REVOKE,)),
    Route(("internal",), "/internal/emit", (_EMIT,)),
    Route(("internal",), "/internal/connections", (_CONNECTIONS,)),
    Route(("internal",), "/internal/statistics/hourly", (_HOURLY,)),
    Route(("internal",), "/internal/keys/{user}", (_KEYS,)),
    Route(("internal",), "/internal/keys/{user}/{strategy}", (_KEY,)),
    Route(("internal",), "/internal/batches", (_BATCHES_OF,)),
    Route(("internal",), "/internal/users/{user}", (_DELETE_USER,)),
    Route(("public",), "/tallywire.js", (_browser_client("GET"), _browser_client("HEAD"))),
    Route(("public", "internal"), "/healthz/live", (_health("GET", "live"), _health("HEAD", "live"))),
    Route(("public", "internal"), "/healthz/ready", (_health("GET", "ready"), _health("HEAD", "ready"))),
    Route(("internal",), "/metrics", (_METRICS,)),
    Route(("internal",), "/openapi.json", (_OPENAPI,)),
)

# ---- events

FRAMES: Mapping[str, tuple[type[Struct], type[Struct]]] = {
    "order_batch_update": (OrderBatchUpdate, FlatOrderBatchUpdate),
    "order_batch_catch_up": (OrderBatchCatchUp, FlatOrderBatchCatchUp),
}
"""Events with counts: the data line with `shape=envelope` and with `shape=flat`. The others are `ControlEvent`."""

EVENTS: Mapping[str, str] = {
    "order_batch_update": "Counts of one strategy. Add them. Its id is the position of the last batch in it.",
    "order_batch_catch_up": "Counts of several strategies at once, never on a stream of one named strategy. Add all of "
    "them. Its id is the position of the last batch in it.",
    "stream_open": "The first event of a stream that starts or resumes without loss. Its id is where it does.",
    "stream_reset": "The first event instead, when it cannot be shown that nothing is missing. Its totals replace your "
    "sums. Its id is the newest position.",
    "stream_heartbeat": "With heartbeat=event, every heartbeat_seconds. It has no id.",
    "stream_expiring": "The token that the stream was opened with ends soon: get the next one. It has no id.",
    "stream_closing": "The server ends the stream now. Come back after its retry time if reconnect is true. It has no "
    "id.",
    "order_hourly_summary": "What was counted in the hour that has ended: a notice, not to be added. It has no id.",
}

# ---- fields

SCHEMAS: Mapping[str, str] = {
    "Batch": "What one emit carries: results of one user's strategy. Further fields are allowed and not looked at.",
    "BatchResult": "One result of a batch. Only one whose success is true is looked at. Further fields are allowed.",
    "ConnectionFacts": "One open stream.",
    "FlatOrderBatchCatchUp": "The data line of order_batch_catch_up with shape=flat.",
    "FlatOrderBatchUpdate": "The data line of order_batch_update with shape=flat.",
    "OrderBatchCatchUp": "The data line of order_batch_catch_up with shape=envelope.",
    "Problem": "Why a request was not answered as asked (RFC 9457).",
    "Summary": "The counts of one order type.",
    "UpdateData": "The counts and when the last of their batches was accepted.",
    "StreamInfo": "Which strategy, where the stream stood before, and how many batches are merged.",
}
"""Schemas for which the docstring of their struct speaks of the inside."""

WORDS: Mapping[str, str] = {
    "accepts_delayed": "How often clients had to wait to be accepted, since too many came at once.",
    "after": "The position at which this stream stood before. It equals the id that you keep, or a frame was lost.",
    "age_seconds": "How long it has been open.",
    "batch_results": f"The results, {MAX_RESULTS} at most.",
    "batches": "How many batches.",
    "BatchesReport.batches": "The batches, in order.",
    "behind_batches": "How many batches of its strategies it has not been sent yet.",
    "blocked": "How many of them are waited for, since their client does not read.",
    "caller": "Who emitted it.",
    "cancelled": "How many orders were cancelled.",
    "closed": "How many streams were ended.",
    "ConnectionsReport.closed": "How many streams have ended since the start, by reason.",
    "code": "What is wrong, for a program.",
    "connections": "How many streams of this user and strategy are open.",
    "ConnectionsReport.connections": "How many streams are open, of all users or of the one asked for.",
    "created": "How many orders were created.",
    "data": "What the event says.",
    "detail": "What is wrong with this request, for a person.",
    "duplicate": "This batch was accepted before under the same idempotency key: nothing was sent.",
    "errors": "The fields that are wrong.",
    "expires_at": "When it ends.",
    "event_type": "order_created or order_cancelled; any other counts nothing and is reported in the number ignored.",
    "from": "The first hour.",
    "KeysReport.has_more": "Further keys lie behind the last one: ask again with after its strategy.",
    "has_more": "Further batches lie behind the last one: ask again with after.",
    "head": "The newest position of the key, null without any.",
    "heartbeat_seconds": "The seconds between two heartbeats of this stream.",
    "hour": "When the hour began.",
    "hours": "The hours in which something was counted.",
    "idempotency_key": "A key under which the batch counts once, however often it is sent.",
    "ignored": "How many successful results had an event_type that does not count.",
    "invalid": "Results that should count and cannot; the others counted.",
    "keys": "The keys, by strategy.",
    "lag_ms_max": "The most milliseconds by which the server was ever late.",
    "lag_ms_recent_max": "The same within the last ten seconds.",
    "lagging": "How many of them have not been sent everything yet.",
    "last_accepted": "When the newest batch was accepted, null without any.",
    "limits": "How many streams may be open.",
    "lines_dropped": "How many lines of the log were dropped, since its reader did not take them.",
    "log": "What became of the log.",
    "loop": "How late the server was with what was due.",
    "max_connections": "How many streams may be open: as many as wanted, or as the descriptor limit leaves room for.",
    "message": "What is wrong with it.",
    "oldest_kept": "The oldest position of the key that is still kept, null without any.",
    "order_type": "The order type.",
    "BatchResult.order_type": "The order type, of the form [A-Z][A-Z0-9_]{0,31}.",
    "path": "Where it stands: a JSONPath, or the name of a parameter or a header.",
    "peer": "The address of the client, as the server sees it.",
    "position": "A place in the sequence of this user's batches. Opaque: store it, send it back, compare it.",
    "DeletedUser.position": "The user's positions go on behind this one; null when there were none.",
    "problem": "The problem that this batch alone would have been answered with.",
    "reason": "Why.",
    "reconnect": "Whether to come back.",
    "refused": "How many streams were refused since the start, by reason.",
    "request_id": "The id of the request, which leads to the server's log.",
    "resumed": "True: what was missed since your position follows. False: the stream starts here.",
    "retry": "no: do not repeat it unchanged. later: repeat it later. same key: repeat it with its idempotency key.",
    "rows": "How many batches were deleted.",
    "seconds_left": "How many seconds that are.",
    "slowest": f"The {SLOWEST_LISTED} that are furthest behind, at most.",
    "state": "Whether it can be written to now.",
    "status": "What became of the batch.",
    "Health.status": "ok, draining, or the code with which an emit would be refused now.",
    "Problem.status": "The status code.",
    "strategies": "What the stream carries: ids in ascending order, or * for every strategy.",
    "strategy_id": "The strategy.",
    "Batch.strategy_id": "The strategy. Without one, or with 0, the batch is refused: nobody could be told.",
    "stream": "Whose these counts are, and where the stream stood.",
    "success": "true: the result may count. false, null or absent: it counts nothing.",
    "summaries": "The counts by order type; types without any are left out.",
    "timestamp": "When the last batch in it was accepted.",
    "StreamHeartbeat.timestamp": "Now.",
    "tasks": "How many tasks are at work: those of requests come and go.",
    "ticket": "The ticket.",
    "Revocation.reason": "What their streams are told.",
    "Revocation.user_id": "Of this user; absent: of all.",
    "Revocation.strategy_id": "Of this strategy; absent: of all. One of both must be there.",
    "Revoked.timestamp": "Tokens issued until then count no more.",
    "title": "What is wrong, in general.",
    "to": "The end of the last hour.",
    "totals": "The counts since the journal began.",
    "type": "The name of the event.",
    "Problem.type": "A name of the problem that never changes.",
    "unsent_bytes": "How much of the last event has not left yet.",
    "updates": "One update for each strategy, as the data of an order_batch_update.",
    "user_id": "The user.",
    "wanted": "How many the setting max_connections says.",
}
"""Fields by name, or by struct and name where the struct makes a difference."""

_POSITION_FORM: Mapping[str, object] = {"pattern": r"^[A-Za-z0-9._-]{1,64}$", "examples": [POSITION]}
_TIME_FORM: Mapping[str, object] = {"format": "date-time", "examples": [_LATEST]}
_COUNT_FORM: Mapping[str, object] = {"minimum": 0}
_ID_FORM: Mapping[str, object] = {"minimum": 1, "maximum": MAX_ID}
_AS_TYPED: Mapping[str, object] = {}

FORMS: Mapping[str, Mapping[str, object]] = {
    **dict.fromkeys(("after", "head", "oldest_kept", "position"), _POSITION_FORM),
    **dict.fromkeys(("expires_at", "from", "hour", "last_accepted", "timestamp", "to"), _TIME_FORM),
    **dict.fromkeys(
        ("created", "cancelled", "ignored", "connections", "lagging", "blocked", "rows", "seconds_left"), _COUNT_FORM
    ),
    **dict.fromkeys(("behind_batches", "unsent_bytes", "age_seconds"), _COUNT_FORM),
    **dict.fromkeys(("user_id", "strategy_id"), _ID_FORM),
    **dict.fromkeys(("Batch.user_id", "Batch.strategy_id", "BatchResult.order_type"), _AS_TYPED),
    **dict.fromkeys(("Revocation.user_id", "Revocation.strategy_id"), _AS_TYPED),
    "batch_results": {"maxItems": MAX_RESULTS},
    "idempotency_key": {"pattern": f"^[ -~]{{1,{MAX_IDEMPOTENCY_KEY}}}$"},
    "order_type": {"pattern": "^[A-Z][A-Z0-9_]{0,31}$", "examples": ["LIMIT"]},
    "slowest": {"maxItems": SLOWEST_LISTED},
    "state": {"enum": [state.value for state in State]},
    "code": {"enum": [error.code for error in ERRORS]},
    "retry": {"enum": list(get_args(Retry))},
    "Problem.status": {"enum": sorted({error.status for error in ERRORS})},
}
"""What the types of these fields do not say; named as in WORDS."""
