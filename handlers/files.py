"""Files that are served as they are.

They are read once, at the start: no request waits for the disk, and a file that is missing from an installation is
noticed before anybody asks for it. Tornado makes an ETag of each body and answers 304 to whoever has it.
"""

from pathlib import Path

from msgspec import Struct

from handlers.base import BaseHandler, Headers

STATIC = Path(__file__).parent / "static"

CONTENT_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}
"""By suffix. Not those of the machine: one that is missing there would be text, and nosniff keeps a browser from
running it."""


class StaticFile(Struct, frozen=True):
    """A file as it is sent."""

    content_type: str
    body: bytes


def read_file(path: Path) -> StaticFile:
    """Raises OSError, and KeyError for a kind that nobody has thought of."""
    return StaticFile(CONTENT_TYPES[path.suffix], path.read_bytes())


class FileHandler(BaseHandler):
    """Base of those that answer with a file. To everybody: what may be downloaded with the source is no secret."""

    role = None

    def write_file(self, file: StaticFile) -> None:
        """Finish with it. Browsers keep it and ask each time whether it is still the same, so that a new version of the
        server is never met by an old page."""
        self.set_header("Cache-Control", "no-cache")
        self.set_header("Content-Type", file.content_type)
        self.finish(file.body)


class BrowserClientHandler(FileHandler):
    """`clients/js/tallywire.js`, for pages that import it from here."""

    file = read_file(STATIC / "tallywire.js")

    def get(self) -> None:
        self.write_file(self.file)

    head = get

    def cors_headers(self) -> Headers:
        """Modules are fetched with CORS. Any page may run it: whose streams it may read is asked at the stream."""
        return (("Access-Control-Allow-Origin", "*"),)
