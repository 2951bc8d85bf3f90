"""`--auth jwt`: tokens shown as Bearer, as the cookie of a session, or as a ticket.

Imported only where it is asked for: with the cryptography behind it, it is 12 MiB and a tenth of a second of a start.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from core.auth import ALGORITHMS, KeyProblem, TokenRules, VerificationKey, keys_of_file, verify
from core.errors import Busy, Forbidden, Unauthorized
from core.principal import Principal
from core.settings import Settings, SettingsError
from handlers.credentials import COOKIE, Credentials, Tickets
from handlers.jwks import PublishedKeys, fetch

MAX_COOKIE_BYTES = 4096
"""Name and value, that a browser keeps: RFC 6265, section 6.1."""

_BEARER = re.compile(r"[Bb]earer +([A-Za-z0-9._~+/=-]+)")
_COOKIE = re.compile(rf"(?:^|; ?){COOKIE}=([A-Za-z0-9._-]+)(?=;|$)")
_HERE = ("localhost", "127.0.0.1", "::1")


class TokenAuthority:
    """`--auth jwt`: a Bearer token, else the cookie of a session, else a ticket."""

    def __init__(self, keys: Sequence[VerificationKey], published: PublishedKeys | None, rules: TokenRules) -> None:
        self.tickets: Tickets | None = Tickets()
        self._keys = keys
        self._published = published
        self._rules = rules

    def principal_of(self, credentials: Credentials, now: float) -> Principal | None:
        """See `Authority`."""
        token = _bearer(credentials) or _cookie(credentials)
        if token is not None:
            return self._verified(token, now)
        if credentials.ticket and self.tickets is not None:
            return self.tickets.redeem(credentials.ticket, now)
        raise Unauthorized("There is no token: send it as Authorization: Bearer, or start a session with it.")

    def token_of(self, credentials: Credentials, now: float) -> tuple[str, Principal]:
        """See `Authority`."""
        token = _bearer(credentials)
        if token is None:
            raise Unauthorized("A session starts with a token: send it as Authorization: Bearer.")
        if len(COOKIE) + len(token) > MAX_COOKIE_BYTES:
            raise Forbidden("The token is too long for a cookie: browsers would not keep it.")
        return token, self._verified(token, now)

    async def run(self) -> None:
        """See `Authority`."""
        if self._published is not None:
            await self._published.run()

    async def look_again(self) -> bool:
        """See `Authority`."""
        if self._published is None or not self._published.may_look():
            return False
        await self._published.look()
        return True

    def _verified(self, token: str, now: float) -> Principal:
        published = () if self._published is None else self._published.keys
        try:
            return verify(token, (*self._keys, *published), self._rules, now)
        except Unauthorized as refusal:
            if not refusal.knows_key and self._published is not None and not self._published.is_known:
                raise Busy("The keys that tokens are signed with have not been fetched yet.") from refusal
            raise


def _bearer(credentials: Credentials) -> str | None:
    """The Bearer token. Raises Unauthorized when there is something else."""
    value = credentials.header("authorization")
    if value is None:
        return None
    found = _BEARER.fullmatch(value.strip())
    if found is None:
        raise Unauthorized("Authorization must be Bearer and a token.")
    return found[1]


def _cookie(credentials: Credentials) -> str | None:
    found = _COOKIE.search(credentials.header("cookie") or "")
    return found[1] if found else None


def token_authority(settings: Settings, clock: Callable[[], float]) -> TokenAuthority:
    """The one that the settings ask for. `clock` is monotonic seconds. Raises SettingsError."""
    published = published_keys(settings, clock)
    if not settings.jwt_keys and published is None:
        raise SettingsError("auth is jwt, and there is no key: name one with --jwt-keys or --jwt-jwks-url.")
    rules = TokenRules(
        settings.jwt_audience or None,
        settings.jwt_issuer or None,
        settings.jwt_leeway_seconds,
        settings.jwt_max_life_seconds,
        settings.jwt_user_claim,
        settings.jwt_strategies_claim,
    )
    return TokenAuthority([key for text in settings.jwt_keys for key in _keys(text)], published, rules)


def published_keys(settings: Settings, clock: Callable[[], float]) -> PublishedKeys | None:
    """The keys behind the URL that the settings name. Raises SettingsError."""
    url = settings.jwt_jwks_url
    if not url:
        return None
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise SettingsError("jwt_jwks_url has a name or a password in it, which would stand in the log. Leave it out.")
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _HERE):
        raise SettingsError(f"jwt_jwks_url is {url!r}: whoever can change the answer can let anybody in. Use https.")
    return PublishedKeys(url, fetch, clock)


def _keys(text: str) -> list[VerificationKey]:
    """Of one entry of `jwt_keys`."""
    algorithm, equals, file = text.partition("=")
    if not equals or algorithm not in ALGORITHMS:
        raise SettingsError(
            f"jwt_keys has {text!r}: write ALGORITHM=FILE, the algorithm one of {', '.join(ALGORITHMS)}."
        )
    try:
        return keys_of_file(algorithm, Path(file).read_bytes())
    except (OSError, KeyProblem) as error:
        raise SettingsError(f"the key {file} for {algorithm} cannot be used: {error}.") from error
