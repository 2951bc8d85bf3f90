"""Visits to the console in a real browser, which notice whatever the browser complains about."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Request

from tests.process import ROOT, ServerProcess

PAGES = sorted(path.stem for path in (ROOT / "handlers" / "static" / "console" / "pages").glob("*.js"))
"""Every page that there is: whoever adds one is held to what holds for all."""

WIDE, NARROW = 1280, 360
AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"

CREATED = {"order_type": "LIMIT", "event_type": "order_created", "success": True}
CANCELLED = {"order_type": "STOP_LIMIT", "event_type": "order_cancelled", "success": True}

Colours = str
"""light or dark, as the system of the reader has it."""


class Visit:
    """A reader with the console open."""

    def __init__(self, page: Page, server: ServerProcess, expected: Sequence[str]) -> None:
        self.page = page
        self.server = server
        self.complaints: list[str] = []
        self.requests: list[Request] = []
        self._expected = expected
        page.on("console", lambda message: self._complain(message.type, message.text))
        page.on("pageerror", lambda error: self._complain("exception", str(error)))
        page.on("request", lambda request: self.requests.append(request))

    def _complain(self, kind: str, text: str) -> None:
        if kind in ("error", "warning", "exception") and not any(each in text for each in self._expected):
            self.complaints.append(f"{kind}: {text}")

    def open(self, name: str, query: str = "") -> None:
        """Go to a page of the console, and wait until it is there."""
        self.page.goto(f"{self.server.internal}/console/#/{name}{query and '?'}{query}")
        self.wait_for_page()

    def wait_for_page(self) -> None:
        """Until there is something below the heading."""
        self.page.locator("main .page > *").first.wait_for(state="attached")

    def text(self, selector: str) -> str:
        return self.page.locator(selector).first.inner_text()

    def figure(self, label: str) -> str:
        """The value of a figure."""
        return (
            self.page.locator(".stat", has=self.page.get_by_text(label, exact=True)).locator(".stat-value").inner_text()
        )

    def wait_for_figure(self, label: str, value: str) -> None:
        """Until a figure has this value."""
        self.page.locator(".stat", has=self.page.get_by_text(label, exact=True)).locator(
            ".stat-value", has_text=value
        ).wait_for()

    def wait_for_state(self, state: str) -> None:
        """Until the badge beside the heading says so."""
        self.page.locator(".page-head .badge", has_text=state).wait_for()

    def overflow(self) -> int:
        """Pixels by which the page is wider than the window."""
        width: int = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        return width

    def check(self) -> None:
        """Nothing was complained about, and nobody else was asked for anything."""
        assert self.complaints == []
        elsewhere = [each.url for each in self.requests if not each.url.startswith((self.server.internal, "data:"))]
        assert elsewhere == []


@contextmanager
def visit(
    chromium: Browser,
    server: ServerProcess,
    *,
    colours: Colours = "light",
    width: int = WIDE,
    expected: Sequence[str] = (),
    bypass_csp: bool = False,
    time_zone: str = "UTC",
) -> Iterator[Visit]:
    """A reader with a browser session of its own, checked at the end. `expected`: parts of complaints that are
    right."""
    context = chromium.new_context(
        viewport={"width": width, "height": 800},
        color_scheme="dark" if colours == "dark" else "light",
        bypass_csp=bypass_csp,
        timezone_id=time_zone,
        locale="en-GB",
    )
    try:
        visitor = Visit(context.new_page(), server, expected)
        yield visitor
        visitor.check()
    finally:
        context.close()


def violations(visitor: Visit) -> list[str]:
    """What axe finds that is serious or critical."""
    if not AXE.is_file():
        pytest.skip("npm ci has not been run in tests/e2e: `make test` does it where there is npm")
    visitor.page.add_script_tag(path=AXE)
    found: Any = visitor.page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    return [
        f"{each['id']}: {node['html'][:160]}: {node['failureSummary']}"
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]
