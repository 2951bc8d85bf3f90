"""The rules of the internal listener: which pages may call, under which names of this machine, and who.

`Guard.judge` is all of them. Both HTTP fronts ask it, before anything of a body is kept.
"""

import logging
import socket
from collections.abc import Iterable
from pathlib import Path

from core.access import LOCAL, Keys, Role, bearer_token, is_loopback_name, is_own_origin
from core.errors import Forbidden, TallywireError, Unauthorized
from core.settings import Settings, SettingsError

MAX_SHOWN = 100
"""Characters of a header that are repeated to whoever sent it, and in the log."""

_log = logging.getLogger("tallywire.access")

Verdict = str | TallywireError
"""The caller's name, or the refusal."""


class Guard:
    """Who may call: whoever has a key of the file, or without one everybody who does not seem to be a foreign page."""

    __slots__ = ("_asks_for_loopback_name", "_file", "_keys")

    def __init__(self, file: Path | None, *, asks_for_loopback_name: bool) -> None:
        """Raises SettingsError when the file cannot be used."""
        self._file = file
        self._keys = None if file is None else read_keys(file)
        self._asks_for_loopback_name = asks_for_loopback_name

    def stand_behind(self, sockets: Iterable[socket.socket]) -> None:
        """Where the file system asks who connects, no page gets through, whatever name it calls by."""
        if all(sock.family == socket.AF_UNIX for sock in sockets):
            self._asks_for_loopback_name = False

    def judge(self, role: Role | None, host: str | None, origin: str | None, authorization: str | None) -> Verdict:
        """Who calls, by the headers of a request. `role`: what a key must allow; None: no key is asked for.

        A request without a Host is one of HTTP/1.0, which no browser sends.
        """
        if origin is not None and not is_own_origin(origin, host):
            return Forbidden(f"A page of {_shown(origin)} may not call here, only one that came from here.")
        if self._keys is not None:
            return LOCAL if role is None else _judge_key(self._keys, role, authorization)
        if self._asks_for_loopback_name and host is not None and not is_loopback_name(host):
            return Forbidden(
                f"Nobody is asked who they are here, so the Host must be localhost or a loopback address, not "
                f"{_shown(host)}: a foreign page could have let that name point here. Call http://127.0.0.1, or start "
                "the server with --internal-auth=keys, or with --insecure=internal if the network is closed."
            )
        return LOCAL

    def reload(self) -> None:
        """Read the keys again: the new ones count from the next request on. A file that cannot be used is an error in
        the log, and changes nothing."""
        if self._file is None:
            return
        try:
            self._keys = read_keys(self._file)
        except SettingsError as error:
            _log.error("Internal keys not read, the old ones count", extra={"reason": str(error)})
        else:
            _log.info("Internal keys read", extra={"file": str(self._file), "keys": len(self._keys.keys)})


def internal_guard(settings: Settings) -> Guard:
    """The guard that the settings ask for. Raises SettingsError, naming the fix."""
    if settings.internal_auth == "keys":
        if not settings.internal_keys:
            raise SettingsError(
                "internal_auth is keys, and no file has them. Name it with --internal-keys; "
                "`tallywire internal-key NAME --role emit` prints a line for it."
            )
        return Guard(Path(settings.internal_keys), asks_for_loopback_name=False)
    if settings.internal_keys:
        raise SettingsError(
            f"internal_keys names {settings.internal_keys}, and internal_auth is none, so nobody would be asked for a "
            "key. Say --internal-auth=keys, or leave the file out."
        )
    return Guard(None, asks_for_loopback_name="internal" not in settings.insecure)


def read_keys(file: Path) -> Keys:
    """The keys of a file. Raises SettingsError, naming the file, the line and the fix."""
    try:
        text = file.read_text("utf-8")
    except UnicodeDecodeError as error:
        # Its own words would repeat some of the file.
        raise SettingsError(f"the file of internal_keys {file}: it is not UTF-8 at byte {error.start}") from None
    except (OSError, ValueError) as error:
        raise SettingsError(f"the file of internal_keys {file}: {getattr(error, 'strerror', None) or error}") from error
    try:
        return Keys.parse(text)
    except ValueError as error:
        raise SettingsError(f"the file of internal_keys {file}: {error}") from error


def _judge_key(keys: Keys, role: Role, authorization: str | None) -> Verdict:
    secret = bearer_token(authorization)
    if secret is None:
        return Unauthorized("There is no key in the request: send one as `Authorization: Bearer KEY`.")
    key = keys.find(secret)
    if key is None:
        return Unauthorized("The key in the request is none that counts here; it may have been replaced.")
    if role not in key.roles:
        return Forbidden(f"This takes the role {role}, which the key of {key.caller} does not have.")
    return key.caller


def _shown(value: str) -> str:
    return repr(value[:MAX_SHOWN])
