"""Calls to a running server over TCP, TLS or a unix socket: one answer, or a stream. Blocking, with a deadline each.

A secret travels in a header and is in no message: not in an error, not in a URL.
"""

import os
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlencode, urlsplit

import click
import msgspec
from msgspec import Struct

from core import settings as known_settings
from core.commands.endings import CommandFailed, ExitCode
from core.commands.terminal import secret_of
from core.errors import FieldProblem
from core.logs import printable

ANSWER_SECONDS = 30.0
"""For an answer; an emit may wait for a disk."""

PIECE_BYTES = 65_536
UNIX = "unix:"

KEY_VARIABLE, TOKEN_VARIABLE = "TALLYWIRE_KEY", "TALLYWIRE_TOKEN"
URL_VARIABLE, PUBLIC_URL_VARIABLE = "TALLYWIRE_URL", "TALLYWIRE_PUBLIC_URL"
"""Two: what order services set for the internal listener leads no reader there."""

Query = Sequence[tuple[str, str]]

NO_HEADERS: Mapping[str, str] = {}

FILE = click.Path(path_type=Path, dir_okay=False)

ENDINGS = {"no": ExitCode.REFUSED, "later": ExitCode.LATER, "same key": ExitCode.UNKNOWN}
"""By what a problem says about repeating."""

_A_KEY, _A_TOKEN = f"key with --key-file or {KEY_VARIABLE}", f"token with --token-file or {TOKEN_VARIABLE}"


class Ways(Struct, frozen=True):
    """What helps when a call fails, in the options that the command has: each a sentence, or the rest of one."""

    elsewhere: str
    secret: str
    listener: str

    def out_of(self, code: str, *, has_shown: bool) -> str:
        """By the code of a problem; empty where nothing helps."""
        match code:
            case "unauthorized" if has_shown:
                return f" The one that was shown is refused: show another {self.secret}."
            case "unauthorized":
                return f" Show a {self.secret}."
            case "not_found":
                return f" {self.listener}"
        return ""


EMITTING = Ways("Name another with --url.", _A_KEY, "Is it the public listener? Emits go to the internal one.")
READING = Ways("Name another with --url.", _A_KEY, "Is it the public listener? Then add --public.")
READING_IN_PUBLIC = Ways("Name another with --url.", _A_TOKEN, "Is it the internal listener? Then leave --public out.")
EXAMINED = Ways("Name another.", _A_TOKEN, "Is it the internal listener? URL is what browsers use.")
EXAMINED_INSIDE = Ways("Name another with --internal.", _A_KEY, "Is it the public listener? --internal is the other.")

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., object])


class Unreachable(CommandFailed):
    """Nobody has answered. `was_sent`: the request may have been carried out all the same."""

    def __init__(self, target: "Target", error: Exception, *, was_sent: bool) -> None:
        reason = _reason(error)
        super().__init__(
            f"no server answers at {target.url}: {reason}. Is it running? {target.ways.elsewhere}", ExitCode.UNREACHABLE
        )
        self.reason = reason
        self.was_sent = was_sent


class Target(Struct, frozen=True):
    """Where a server is, and what it is shown. `path`: of its unix socket, else empty; `prefix`: of its routes."""

    url: str
    host: str
    port: int | None
    path: str
    prefix: str
    is_tls: bool
    secret: str | None = None
    ca_file: str | None = None
    ways: Ways = EMITTING

    def connect(self, timeout: float, protocols: Sequence[str] = ()) -> socket.socket:
        """A connection, over TLS where it is asked for. `protocols`: what is offered for it. Raises OSError."""
        if self.path:
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(timeout)
            sock.connect(self.path)
            return sock
        sock = socket.create_connection((self.host, self.port or (443 if self.is_tls else 80)), timeout)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not self.is_tls:
            return sock
        context = ssl.create_default_context()
        if self.ca_file is not None:
            context.load_verify_locations(self.ca_file)
        if protocols:
            context.set_alpn_protocols(list(protocols))
        try:
            return context.wrap_socket(sock, server_hostname=self.host)
        except BaseException:
            sock.close()
            raise


class Answer(Struct, frozen=True):
    """A response that has been read to its end. Names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class _Problem(Struct, frozen=True):
    """An RFC 9457 problem as far as it is needed; a proxy's own answer is none."""

    detail: str
    code: str
    retry: str = "no"
    errors: tuple[FieldProblem, ...] = ()


class _Connection(HTTPConnection):
    """HTTP/1.1 to a target. `raw` is the socket, which `http.client` lets go of when an answer has no length."""

    def __init__(self, target: Target, timeout: float) -> None:
        # Always with a port: without one an IPv6 address would be taken apart.
        usual = 443 if target.is_tls else 80
        super().__init__(target.host, target.port or usual, timeout=timeout)
        self.default_port = usual
        self._target = target
        self._seconds = timeout
        self.raw: socket.socket | None = None

    def connect(self) -> None:
        self.sock = self.raw = self._target.connect(self._seconds)


class OpenStream:
    """An answer that goes on. `read` waits for at most the given seconds and answers b"" at the end.

    It raises TimeoutError, behind which nothing more can be read, OSError and HTTPException.
    """

    def __init__(self, connection: _Connection, response: HTTPResponse) -> None:
        self._connection = connection
        self._response = response
        self.status = response.status
        self.headers = _headers(response)

    def read(self, seconds: float) -> bytes:
        """What has come, as soon as something has."""
        if self._connection.raw is not None:
            self._connection.raw.settimeout(max(seconds, 0.001))
        return self._response.read1(PIECE_BYTES)

    def rest(self) -> Answer:
        """All of an answer that does end."""
        return Answer(self.status, self.headers, self._response.read())


def target_of(url: str, secret: str | None = None, ca_file: Path | None = None, ways: Ways = EMITTING) -> Target:
    """The server that a URL or unix:PATH names. Raises click.UsageError."""
    if url.startswith(UNIX):
        return Target(url, "localhost", None, url.removeprefix(UNIX), "", is_tls=False, secret=secret, ways=ways)
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        port = parts.port
    except ValueError as error:
        raise click.UsageError(f"{printable(url)} has no port that can be used.") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise click.UsageError(
            f"{printable(url)} is no address of a server. Write http://127.0.0.1:8081, https://stream.example.com or "
            "unix:/run/tallywire/internal.sock."
        )
    if parts.username is not None or parts.password is not None:
        raise click.UsageError("a URL holds no key: use --key-file, --token-file or the environment.")
    _check_certificates(ca_file)
    return Target(
        parts._replace(path=parts.path.rstrip("/")).geturl(),
        parts.hostname,
        port,
        "",
        parts.path.rstrip("/"),
        is_tls=parts.scheme == "https",
        secret=secret,
        ca_file=None if ca_file is None else str(ca_file),
        ways=ways,
    )


def _check_certificates(file: Path | None) -> None:
    try:
        if file is not None:
            ssl.create_default_context().load_verify_locations(str(file))
    except (OSError, ssl.SSLError) as error:
        raise click.UsageError(f"{file} cannot be used as certificates: it is to be PEM, and readable.") from error


def server_options(command: F) -> F:
    """Options of a command that calls the internal listener: `url`, `key_file`, `ca_file`, for `internal_target`."""
    for option in (
        click.option("--ca-file", type=FILE, help="Certificates to trust besides the system's, as PEM."),
        click.option(
            "--key-file", type=FILE, help=f"File with a key of the internal listener.  [{KEY_VARIABLE}: the key]"
        ),
        click.option("--url", help=f"The server: a URL or unix:PATH.  [{URL_VARIABLE}; default: internal_listen]"),
    ):
        command = option(command)
    return command


def reader_options(command: F) -> F:
    """The same for one that readers may call, too: `public` and `token_file` besides, for `reader_target`."""
    for option in (
        click.option(
            "--token-file",
            type=FILE,
            help=f"File with the token of a reader, for --public.  [{TOKEN_VARIABLE}: the token]",
        ),
        click.option(
            "--public",
            is_flag=True,
            help=f"The server is its public listener.  [{PUBLIC_URL_VARIABLE}; default: public_listen]",
        ),
    ):
        command = option(command)
    return server_options(command)


def internal_target(url: str | None, key_file: Path | None, ca_file: Path | None, ways: Ways = EMITTING) -> Target:
    """The internal listener. Raises click.UsageError."""
    url = url or os.environ.get(URL_VARIABLE) or default_url("internal_listen")
    return target_of(url, secret_of(key_file, KEY_VARIABLE), ca_file, ways)


def reader_target(
    url: str | None, key_file: Path | None, ca_file: Path | None, public: bool, token_file: Path | None
) -> Target:
    """The internal listener, or the public one with a token. Raises click.UsageError."""
    if not public:
        if token_file is not None:
            raise click.UsageError("--token-file is for the public listener: add --public.")
        return internal_target(url, key_file, ca_file, READING)
    if key_file is not None:
        raise click.UsageError("--key-file is for the internal listener: leave it or --public out.")
    url = url or os.environ.get(PUBLIC_URL_VARIABLE) or default_url("public_listen")
    return target_of(url, secret_of(token_file, TOKEN_VARIABLE), ca_file, READING_IN_PUBLIC)


def default_url(setting: str) -> str:
    """Where a server listens that is started with the settings of this environment. Raises SettingsError."""
    settings = known_settings.load({}, os.environ, {})
    return settings.public_listen if setting == "public_listen" else settings.internal_listen


def request(
    target: Target,
    method: str,
    path: str,
    query: Query = (),
    *,
    body: bytes | None = None,
    headers: Mapping[str, str] = NO_HEADERS,
    seconds: float = ANSWER_SECONDS,
) -> Answer:
    """One answer, whatever its status. Raises Unreachable."""
    with open_stream(target, path, query, method=method, body=body, headers=headers, seconds=seconds) as stream:
        try:
            return stream.rest()
        except (OSError, HTTPException) as error:
            raise Unreachable(target, error, was_sent=True) from error


def get(target: Target, path: str, query: Query, kind: type[T]) -> T:
    """What a GET answers. Raises CommandFailed."""
    answer = request(target, "GET", path, query)
    if answer.status != 200:
        raise refusal(target, answer)
    try:
        return msgspec.json.decode(answer.body, type=kind)
    except msgspec.DecodeError as error:
        raise CommandFailed(f"what answers at {target.url} is not Tallywire.", ExitCode.REFUSED) from error


@contextmanager
def open_stream(
    target: Target,
    path: str,
    query: Query = (),
    *,
    method: str = "GET",
    body: bytes | None = None,
    headers: Mapping[str, str] = NO_HEADERS,
    seconds: float = ANSWER_SECONDS,
) -> Iterator[OpenStream]:
    """An answer from its first byte on; its head comes within `seconds`. Raises Unreachable."""
    connection = _Connection(target, seconds)
    shown = {"Authorization": f"Bearer {target.secret}"} if target.secret else {}
    try:
        try:
            connection.connect()
        except (OSError, UnicodeError) as error:
            raise Unreachable(target, error, was_sent=False) from error
        try:
            place = f"{target.prefix}{path}{'?' if query else ''}{urlencode(query)}"
            connection.request(method, place, body, {**shown, **headers})
            response = connection.getresponse()
        except (OSError, HTTPException) as error:
            raise Unreachable(target, error, was_sent=True) from error
        with response:
            yield OpenStream(connection, response)
    finally:
        connection.close()


def refusal(target: Target, answer: Answer) -> CommandFailed:
    """What an answer that is no success becomes: what the server says, and what helps."""
    try:
        problem = msgspec.json.decode(answer.body, type=_Problem)
    except msgspec.DecodeError:
        later = answer.status in (429, 502, 503, 504)
        return CommandFailed(
            f"{target.url} answers {answer.status}, and not as Tallywire does: is something else in front, or there?",
            ExitCode.LATER if later else ExitCode.REFUSED,
        )
    failed = problem_ending(problem.detail, problem.code, problem.retry, answer.status, problem.errors)
    return CommandFailed(failed.message + target.ways.out_of(problem.code, has_shown=bool(target.secret)), failed.code)


def problem_ending(
    detail: str, code: str, retry: str, status: int, errors: Sequence[FieldProblem] = ()
) -> CommandFailed:
    """A problem as the end of a command."""
    # Of a single field the detail says the same.
    fields = "".join(f" {error.path}: {error.message}." for error in errors if error.message not in detail)
    return CommandFailed(printable(f"{detail}{fields} ({status} {code})"), ENDINGS.get(retry, ExitCode.REFUSED))


def _headers(response: HTTPResponse) -> dict[str, str]:
    held: dict[str, str] = {}
    for name, value in response.getheaders():
        name = name.lower()
        held[name] = f"{held[name]}, {value}" if name in held else value
    return held


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate does not count ({error.verify_message}); name who signed it with --ca-file"
    if isinstance(error, TimeoutError):
        return "there was no answer in time"
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    return f"what came is no HTTP ({type(error).__name__})"
