"""The console: pages for whoever would rather look than read. Files only; what they show they ask of the same routes as
everyone else, with the key that their reader types.
"""

from functools import lru_cache
from importlib.metadata import version

from msgspec import Struct

from core.errors import RouteNotFound
from handlers.base import BaseHandler, Headers
from handlers.files import CONTENT_TYPES, STATIC, FileHandler, StaticFile, read_file

CONSOLE = STATIC / "console"


@lru_cache(1)
def console_headers(public_url: str | None) -> Headers:
    """Whatever a page is made to show: no script but ours runs in it, it reaches nobody but us, and nobody frames it.
    Us: this listener and, where pages from here may read its answers, the public one."""
    connect = "'self'" if public_url is None else f"'self' {public_url}"
    return (
        (
            "Content-Security-Policy",
            f"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src {connect}; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
        ("Referrer-Policy", "no-referrer"),
    )


class ConsoleConfig(Struct, frozen=True):
    """What the console has to know before it asks anything. It is open to everybody, so there is nothing to hide in
    it."""

    version: str
    internal_auth: str
    console_emit: bool
    public_url: str | None
    """Where its API page may call the public listener."""


def _files() -> dict[str, StaticFile]:
    """Every file by its path below `/console/`; the browser client is among them, for the stream inspector."""
    paths = [path for path in CONSOLE.rglob("*") if path.suffix in CONTENT_TYPES]
    return {path.relative_to(CONSOLE).as_posix(): read_file(path) for path in paths} | {
        "tallywire.js": read_file(STATIC / "tallywire.js")
    }


class ConsoleHandler(FileHandler):
    """A file of the console."""

    files = _files()

    def get(self, path: str) -> None:
        file = self.files.get(path or "index.html")
        if file is None:
            raise RouteNotFound(self.request.path)
        for name, value in console_headers(self.services.public_url):
            self.set_header(name, value)
        self.write_file(file)

    head = get


class ConsoleConfigHandler(BaseHandler):
    """What this server's console may do."""

    role = None

    def get(self) -> None:
        settings = self.services.settings
        is_on = settings.console_emit == "on"
        self.write_json(ConsoleConfig(version("tallywire"), settings.internal_auth, is_on, self.services.public_url))

    head = get


class ConsoleRedirectHandler(BaseHandler):
    """`/console`, as people type it; the links of the pages start at `/console/`."""

    role = None

    def get(self) -> None:
        self.set_status(308)
        self.set_header("Location", "/console/")

    head = get
