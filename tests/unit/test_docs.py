"""What the documents say exists, and what exists is in the documents."""

import re
from typing import get_args

import pytest
from tornado.routing import PathMatches

from core import models, settings
from core.errors import ERRORS, TallywireError
from core.subscriber import CloseReason
from handlers import routes
from handlers.base import Services
from tests.process import ROOT

REFERENCE = (ROOT / "docs" / "reference.md").read_text()
README = (ROOT / "README.md").read_text()


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
    events = ["order_batch_update", "order_batch_catch_up"]
    events += [event.event for event in get_args(models.ControlEvent)]
    reasons = (*get_args(models.ResetReason), *get_args(models.ClosingReason), *get_args(CloseReason))

    assert [name for name in (*events, *reasons) if f"`{name}`" not in REFERENCE] == []


def test_every_route_is_in_the_reference() -> None:
    services = Services(None, settings.Settings(), allows_loopback_origins=False)  # type: ignore[arg-type]  # no request is served
    documented = REFERENCE.replace("{user}", "([^/]+)").replace("{strategy}", "([^/]+)")

    for application in (routes.public(services), routes.internal(services)):
        for rule in application.wildcard_router.rules:
            assert isinstance(rule.matcher, PathMatches)
            pattern = rule.matcher.regex.pattern.removesuffix("$")
            assert re.search(rf"`(GET|POST|DELETE) {re.escape(pattern)}[`?]", documented), pattern


def test_the_readmes_first_two_commands_are_targets_of_the_makefile() -> None:
    commands = re.findall(r"^make (\w+)", README, re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text()

    assert commands[:2] == ["run", "test"]
    assert all(re.search(rf"^{command}:", makefile, re.MULTILINE) for command in commands)
