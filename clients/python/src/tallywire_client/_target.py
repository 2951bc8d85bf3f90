"""Where the server is and what is shown to it: addresses, keys that never show in a repr, connections of httpx2."""

import os
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import httpx2

from tallywire_client._replies import Again, Reply, judge

MAX_ANSWER_BYTES = 16 * 2**20
"""More than a call can be answered with: whoever sends that is no Tallywire."""

UNIX = "unix:"


class Target:
    """An address as a base URL, and the path of a unix socket or None.

    Raises ValueError for what is neither `http://host:port`, `https://…` nor `unix:/path`.
    """

    __slots__ = ("base_url", "socket_path")

    def __init__(self, url: str) -> None:
        self.socket_path: str | None = None
        if url.startswith(UNIX):
            self.socket_path = url.removeprefix(UNIX)
            self.base_url = "http://localhost"
            if not self.socket_path:
                raise ValueError("unix: names no path; write it as unix:/run/tallywire/internal.sock")
            return
        parts = urlsplit(url)
        if "@" in parts.netloc or "@" in parts.path.partition("/")[0]:
            # First: any other message would repeat it.
            raise ValueError("a key does not stand in the address: give it as key or key_file")
        if parts.scheme not in ("http", "https") or not parts.hostname or not _has_port(parts) or parts.query:
            raise ValueError(f"{url!r} is no address of a server: write http://HOST:PORT or unix:/PATH")
        self.base_url = url.rstrip("/")

    def name(self) -> str:
        """One name for one server, for whoever keeps things apart by server."""
        return f"{UNIX}{self.socket_path}" if self.socket_path else self.base_url


def _has_port(parts: SplitResult) -> bool:
    """One that can be used, or the usual one."""
    try:
        return parts.port != 0
    except ValueError:
        return False


class Secret:
    """A bearer key, given or in a file, which is read again when a key was refused. Shows in no repr."""

    __slots__ = ("_file", "_value")

    def __init__(self, value: str | None, file: str | os.PathLike[str] | None) -> None:
        if value is not None and file is not None:
            raise ValueError("give key or key_file, not both")
        self._file = None if file is None else Path(file)
        self._value = (value and usable(value)) if self._file is None else self._read(self._file)

    def __repr__(self) -> str:
        return "Secret(…)" if self._value else "Secret(none)"

    def headers(self) -> Mapping[str, str]:
        """What shows the key to the server."""
        return {"Authorization": f"Bearer {self._value}"} if self._value else {}

    def has_changed(self) -> bool:
        """Read the file again, if there is one; answers whether it holds another key."""
        if self._file is None:
            return False
        try:
            fresh = self._read(self._file)
        except (OSError, ValueError):  # Being written just now.
            return False
        changed, self._value = fresh != self._value, fresh
        return changed

    @staticmethod
    def _read(file: Path) -> str:
        return usable(file.read_text(encoding="utf-8", errors="replace"))


def usable(secret: str) -> str:
    """A key or a token without what a file has at its end. Raises ValueError, which does not repeat it: no header can
    hold it, and what says so would say it in every log."""
    secret = secret.strip()
    if not (secret.isascii() and (secret.isprintable() and " " not in secret)):
        raise ValueError("a key or token is one line of printable ASCII without blanks")
    return secret


class EmitConnection:
    """One connection to `POST /internal/emit`, used by one thread; it is made at the first call and kept."""

    def __init__(
        self, target: Target, secret: Secret, connect_seconds: float, verify: ssl.SSLContext | None = None
    ) -> None:
        self._url = f"{target.base_url}/internal/emit"
        self._secret = secret
        self._connect_seconds = connect_seconds
        # Proxies of the environment are for what leaves the house: this call does not.
        transport = httpx2.HTTPTransport(
            verify=verify if verify is not None else target.base_url.startswith("https:"),
            trust_env=False,
            uds=target.socket_path,
            limits=httpx2.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=60),
        )
        self._client = httpx2.Client(transport=transport, trust_env=False, follow_redirects=False)

    def post(self, body: bytes, keys: list[str], timeout_seconds: float) -> Reply:
        """Send lines of batches; answers what came of it, in somewhat more than `timeout_seconds` at most."""
        deadline = time.monotonic() + timeout_seconds
        timeouts = httpx2.Timeout(timeout_seconds, connect=min(timeout_seconds, self._connect_seconds))
        headers = {"Content-Type": "application/x-ndjson", **self._secret.headers()}
        try:
            with self._client.stream("POST", self._url, content=body, headers=headers, timeout=timeouts) as response:
                answer = bytearray()
                for piece in response.iter_raw():
                    answer += piece
                    if time.monotonic() > deadline:
                        return Again("the answer did not end in time")
                    if len(answer) > MAX_ANSWER_BYTES:
                        return Again("the answer is larger than any of a Tallywire")
                return judge(response.status_code, response.headers.get("Retry-After", ""), bytes(answer), keys)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            return Again(f"no connection: {error}", is_unsent=True)
        except httpx2.TimeoutException:
            return Again(f"no answer within {timeout_seconds:.0f} s")
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            return Again(f"the connection broke: {type(error).__name__} {error}".rstrip())

    def close(self) -> None:
        """No more calls."""
        self._client.close()
