"""What the documents say exists, and what exists is in the documents."""

import inspect
import json
import re
from functools import partial
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from tornado.routing import PathMatches

from core import models, settings
from core.access import Keys
from core.errors import ERRORS, TallywireError
from core.journal.memory import MOST_ROWS
from core.sse import COMMENT_HEARTBEAT, EventParser, ServerSentEvent, encode_event
from core.subscriber import CloseReason
from core.totals import Position
from handlers import routes, stream
from handlers.base import Services
from handlers.credentials import Anybody
from tests.process import ROOT

REFERENCE = (ROOT / "docs" / "reference.md").read_text()
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text()
SECURITY = (ROOT / "docs" / "security.md").read_text()
DEPLOYMENT = (ROOT / "docs" / "deployment.md").read_text()
README = (ROOT / "README.md").read_text()

CONTROLS = {control.event: control for control in get_args(models.ControlEvent)}
FRAMES = {
    "order_batch_update": (models.OrderBatchUpdate, models.FlatOrderBatchUpdate),
    "order_batch_catch_up": (models.OrderBatchCatchUp, models.FlatOrderBatchCatchUp),
}
EVENTS = [*FRAMES, *CONTROLS]


@pytest.mark.parametrize("field", settings.fields(), ids=lambda field: field.name)
def test_every_setting_is_in_the_reference_as_it_is(field: settings.SettingField) -> None:
    default = ", ".join(field.default) if isinstance(field.default, tuple) else field.default
    shown = f"`{default}`" if default != "" else "none"

    assert f"| `{field.flag}` | `{field.variable}` | {shown} | {field.description}" in REFERENCE


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.code)
def test_every_error_code_is_in_the_reference_with_its_status(error: type[TallywireError]) -> None:
    assert f"| `{error.code}` | {error.status} |" in REFERENCE


def test_the_reference_knows_no_error_code_that_does_not_exist() -> None:
    documented = re.findall(r"^\| `([a-z_]+)` \| \d{3} \|", REFERENCE, re.MULTILINE)

    assert documented == [error.code for error in ERRORS]


def test_every_event_and_reason_is_in_the_reference() -> None:
    reasons = (*get_args(models.ResetReason), *get_args(models.ClosingReason), *get_args(CloseReason))

    assert [name for name in (*EVENTS, *reasons) if f"`{name}`" not in REFERENCE] == []


def test_every_route_is_in_the_reference() -> None:
    services = Services(None, settings.Settings(), None, Anybody())  # type: ignore[arg-type]  # no request is served
    documented = REFERENCE.replace("{user}", "([^/]+)").replace("{strategy}", "([^/]+)").replace("{file}", "(.*)")

    for application in (routes.public(services), routes.internal(services)):
        for rule in application.wildcard_router.rules:
            assert isinstance(rule.matcher, PathMatches)
            pattern = rule.matcher.regex.pattern.removesuffix("$").replace(r"\.", ".")
            assert re.search(rf"`(GET|POST|DELETE) {re.escape(pattern)}[`?]", documented), pattern


def test_every_role_is_in_the_reference_and_in_the_security_page() -> None:
    services = Services(None, settings.Settings(), None, Anybody())  # type: ignore[arg-type]  # no request is served
    documented = REFERENCE.replace("{user}", "([^/]+)").replace("{strategy}", "([^/]+)")

    for rule in routes.internal(services).wildcard_router.rules:
        assert isinstance(rule.matcher, PathMatches)
        pattern = rule.matcher.regex.pattern.removesuffix("$")
        if pattern.startswith("/internal/"):
            assert re.search(
                rf"^\| internal, `{rule.target.role}` \| `\w+ {re.escape(pattern)}[`?]", documented, re.M
            ), pattern
            shown = f"`[A-Z ]*{re.escape(pattern.partition('(')[0])}[…`]"
            assert re.search(rf"^\| `{rule.target.role}` \| .*{shown}", SECURITY, re.M), pattern


def test_a_file_of_keys_as_it_is_shown_can_be_used() -> None:
    (shown,) = re.findall(r"^```\n(# name.*?)^```$", SECURITY, re.M | re.S)

    assert [(key.caller, set(key.roles)) for key in Keys.parse(shown).keys] == [
        ("orders", {"emit"}),
        ("operator", {"read", "admin"}),
    ]


def test_every_public_route_is_in_the_deployment_guide() -> None:
    services = Services(None, settings.Settings(), None, Anybody())  # type: ignore[arg-type]  # no request is served
    rules = routes.public(services).wildcard_router.rules
    patterns = [rule.matcher.regex.pattern.removesuffix("$") for rule in rules if isinstance(rule.matcher, PathMatches)]
    paths = [pattern.replace(r"\.", ".") for pattern in patterns]

    assert [path for path in paths if f"`{path}`" not in DEPLOYMENT] == []


def test_the_readmes_first_two_commands_are_targets_of_the_makefile() -> None:
    commands = re.findall(r"^make (\w+)", README, re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text()

    assert commands[:2] == ["run", "test"]
    assert all(re.search(rf"^{command}:", makefile, re.MULTILINE) for command in commands)


# ---- links

PAGES = sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / "clients").glob("*/README.md"), ROOT / "README.md"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target, _, heading in re.findall(r"\]\(([^)#:\s]*)(#([^)\s]*))?\)", page.read_text()):
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), target
        assert not heading or heading in _anchors(file), f"{target}#{heading}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    linked = {target for page in PAGES for target in re.findall(r"\]\((?:docs/)?([\w-]+\.md)", page.read_text())}

    assert [page.name for page in PAGES if page.parent.name == "docs" and page.name not in linked] == []


def _anchors(page: Path) -> set[str]:
    """Of its headings, as renderers make them: lower case, dashes for spaces, nothing else that is no letter."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# ---- docs/protocol.md

EXAMPLES = re.findall(r"^```sse\n(.*?)^```$", PROTOCOL, re.MULTILINE | re.DOTALL)
"""What stands in its blocks of event stream, to be the bytes on the wire."""

in_order = partial(json.loads, object_pairs_hook=list, parse_int=float)
"""JSON for a comparison that sees the order of fields, and no difference between 15 and 15.0."""


def test_every_event_and_reason_of_a_stream_is_in_the_protocol() -> None:
    reasons = (*get_args(models.ResetReason), *get_args(models.ClosingReason))

    assert [name for name in (*EVENTS, *reasons) if f"`{name}`" not in PROTOCOL] == []


def test_every_parameter_of_a_stream_is_in_the_protocol_and_in_the_reference() -> None:
    parameters = re.findall(
        r'given(?:, |\.get\()"(\w+)"',
        inspect.getsource(stream.read_stream_request) + inspect.getsource(stream.readable),
    )

    assert {"user_id", "strategy_id", "last_event_id"} < set(parameters), "they are still read as this test thinks"
    assert [name for name in parameters if not re.search(rf"[`?&]{name}[`=]", PROTOCOL)] == []
    assert [name for name in parameters if f"| `{name}` |" not in REFERENCE] == []


def test_the_protocol_shows_every_event_and_the_comment() -> None:
    shown = [event.event for example in EXAMPLES for event in EventParser().feed(example.encode())]

    assert set(shown) == set(EVENTS)
    assert COMMENT_HEARTBEAT.decode() in EXAMPLES


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.partition("\n")[0].removeprefix("event: "))
def test_every_example_of_the_protocol_is_what_a_server_writes(example: str) -> None:
    parser = EventParser()
    events = parser.feed(example.encode())
    if example == COMMENT_HEARTBEAT.decode():
        assert (events, parser.comments) == ([], 1)
        return

    (event,) = events
    event_id = event.last_event_id or None
    written = encode_event(event.event, event.data.encode(), event_id=event_id, retry_ms=parser.retry_ms)
    assert example == written.decode(), "one block, its lines in their order"
    assert event_id is None or str(Position.parse(event_id)) == event_id
    assert in_order(event.data) == in_order(_written_again(event)), "its fields in their order, and no others"


def _written_again(event: ServerSentEvent) -> bytes:
    """The data line read into its struct and out of it: a field that the struct does not have is lost on the way."""
    is_flat = "type" not in json.loads(event.data)
    if event.event in FRAMES:
        return msgspec.json.encode(msgspec.json.decode(event.data, type=FRAMES[event.event][is_flat]))
    fields = json.loads(event.data)
    inner = msgspec.convert(fields if is_flat else fields["data"], CONTROLS[event.event])
    return msgspec.json.encode(inner if is_flat else {"type": event.event, "data": inner})


def test_the_bound_of_the_journal_in_memory_is_said_as_it_is() -> None:
    keep_rows = next(field for field in settings.fields() if field.name == "keep_rows")

    assert f"With durability none at most {MOST_ROWS}." in keep_rows.description


# ---- the guarantees


GUARANTEES = (ROOT / "docs" / "guarantees.md").read_text()


def test_whatever_the_guarantees_name_as_their_proof_is_there() -> None:
    named = set(re.findall(r"`(tests/[\w/.]+)`", GUARANTEES))

    assert len(named) >= 9
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_durability_and_every_way_to_refuse_an_emit_is_in_the_guarantees() -> None:
    durability = next(field for field in settings.fields() if field.name == "durability")
    refusals = ("disk_full", "journal_full", "outcome_unknown")

    assert [name for name in (*durability.choices, *refusals) if f"`{name}`" not in GUARANTEES] == []


def test_make_torture_runs_what_the_guarantees_say() -> None:
    makefile = (ROOT / "Makefile").read_text()

    assert "`make torture`" in GUARANTEES
    for wanted in ("--kills 200", "--durability process", "TALLYWIRE_POWER_CUTS=30", "seq -s, 1 30"):
        assert wanted in makefile


# ---- docs/operations.md

OPERATIONS = (ROOT / "docs" / "operations.md").read_text()


def test_whatever_the_operations_name_as_shown_by_is_there() -> None:
    named = set(re.findall(r"`(tests/[\w/.]+)`", OPERATIONS))

    assert len(named) >= 5
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_setting_that_the_operations_name_is_one() -> None:
    known = {field.name for field in settings.fields()}
    limits = {name for name in known if name.startswith(("max_", "keep_"))}
    named = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", OPERATIONS))

    assert limits <= named
    assert {name for name in named if name.endswith(("_seconds", "_per_second", "_listen"))} <= known


def test_every_field_of_the_report_of_connections_is_in_the_reference() -> None:
    structs = (models.ConnectionsReport, models.ConnectionFacts, models.LoopFacts, models.LogFacts, models.LimitFacts)
    names = [name for struct in structs for name in struct.__struct_fields__]

    assert [name for name in names if not re.search(rf'[`"]{name}[`"]', REFERENCE)] == []


# ---- releases


def test_server_and_clients_are_of_one_version_which_the_changelog_has() -> None:
    server, python, js = (
        re.findall(pattern, (ROOT / file).read_text(), re.MULTILINE)[0]
        for file, pattern in (
            ("setup.cfg", r"^version = (.+)$"),
            ("clients/python/pyproject.toml", r'^version = "(.+)"$'),
            ("clients/js/package.json", r'^  "version": "(.+)",$'),
        )
    )

    assert server == python == js
    assert f"\n## {server}" in (ROOT / "CHANGELOG.md").read_text()
