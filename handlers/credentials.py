"""Who reads: finds what a request for streams has to show for itself, and asks `core.auth`.

Whichever HTTP front a request came through, it becomes a `Credentials`; an `Authority`, one for each way of
authentication, makes a principal of it.
"""

import re
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

from msgspec import Struct

from core.addresses import Networks, is_address_within
from core.auth import Principal, TokenRules, VerificationKey, digest, verify
from core.errors import Busy, Forbidden, Unauthorized
from core.models import MAX_ID
from handlers.jwks import PublishedKeys

COOKIE = "__Host-tallywire"
"""The prefix lets no other host, and nobody without TLS, set it: RFC 6265bis, section 4.1.3.2."""

TICKET_SECONDS = 30
MOST_TICKETS = 100_000
"""Tickets that wait to be used, of all users together: about 30 MiB."""

MOST_TICKETS_EACH = 32
"""Of one user: as many as it may have streams."""

_BEARER = re.compile(r"[Bb]earer +([A-Za-z0-9._~+/=-]+)")
_COOKIE = re.compile(rf"(?:^|[;,] ?){COOKIE}=([A-Za-z0-9._-]+)(?=[;,]|$)")
_USER = re.compile(r"[1-9][0-9]{0,15}")


class Credentials(Struct, frozen=True):
    """What a request has to show: `header` finds one by its name, `address` says where the connection comes from."""

    header: Callable[[str], str | None]
    address: Callable[[], str]
    ticket: str = ""


class Tickets:
    """Each starts one stream within TICKET_SECONDS. In memory: after a restart, get a new one."""

    def __init__(self) -> None:
        self._waiting: dict[bytes, tuple[Principal, float]] = {}
        """By the digest of the ticket: nothing in memory, or in a dump of it, can be used. The oldest come first."""
        self._of_user: Counter[int] = Counter()

    def issue(self, principal: Principal, now: float) -> str:
        """A new one. Raises Busy when too many wait."""
        self._forget(now)
        if self._of_user[principal.user_id] >= MOST_TICKETS_EACH or len(self._waiting) >= MOST_TICKETS:
            raise Busy(f"Too many tickets wait to be used; each can be used for {TICKET_SECONDS} seconds.")
        ticket = secrets.token_urlsafe(24)
        self._waiting[digest(ticket)] = principal, now + TICKET_SECONDS
        self._of_user[principal.user_id] += 1
        return ticket

    def redeem(self, ticket: str, now: float) -> Principal:
        """Whose it is; it cannot be used again. Raises Unauthorized."""
        key = digest(ticket)
        principal, until = self._waiting.get(key, (None, 0.0))
        if principal is not None:
            self._drop(key)
        if principal is None or until <= now:
            raise Unauthorized(
                f"The ticket has been used, or is older than {TICKET_SECONDS} seconds, or never was one."
            )
        return principal

    def _forget(self, now: float) -> None:
        """Those whose time is over."""
        while self._waiting:
            first = next(iter(self._waiting))
            if self._waiting[first][1] > now:
                return
            self._drop(first)

    def _drop(self, key: bytes) -> None:
        principal, _ = self._waiting.pop(key)
        self._of_user[principal.user_id] -= 1
        if not self._of_user[principal.user_id]:
            del self._of_user[principal.user_id]


class Authority(Protocol):
    """Says who reads. `now` is Unix seconds."""

    tickets: Tickets | None
    """None where there are none."""

    def principal_of(self, credentials: Credentials, now: float) -> Principal | None:
        """Whose request it is; None: whoever it says it is, since nobody asks. Raises Unauthorized, Forbidden, Busy."""

    def token_of(self, credentials: Credentials, now: float) -> tuple[str, Principal]:
        """The Bearer token itself, to be kept as a cookie. Raises as `principal_of`."""

    async def look_again(self) -> bool:
        """After a token with an unknown key: look where keys come from; False when that could not change anything."""


class Anybody:
    """`--auth none`."""

    tickets: Tickets | None = None

    def principal_of(self, credentials: Credentials, now: float) -> Principal | None:  # noqa: ARG002
        """See `Authority`."""
        return None

    def token_of(self, credentials: Credentials, now: float) -> tuple[str, Principal]:  # noqa: ARG002
        """See `Authority`."""
        raise Forbidden("There are no sessions here: the server does not ask who reads (auth is none).")

    async def look_again(self) -> bool:
        """See `Authority`."""
        return False


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
        return token, self._verified(token, now)

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


class ProxyAuthority:
    """`--auth proxy`: what a proxy in front says about whoever it has let through, in two headers."""

    tickets: Tickets | None = None

    def __init__(self, proxies: Networks, user_header: str, strategies_header: str) -> None:
        self._proxies = proxies
        self._user_header = user_header.lower()
        self._strategies_header = strategies_header.lower()

    def principal_of(self, credentials: Credentials, now: float) -> Principal | None:  # noqa: ARG002
        """See `Authority`."""
        if not is_address_within(credentials.address(), self._proxies):
            raise Unauthorized("Streams are opened through the proxy that says who reads, not around it.")
        user = credentials.header(self._user_header) or ""
        if _USER.fullmatch(user) is None or int(user) > MAX_ID:
            raise Unauthorized(f"The proxy did not say who reads: {self._user_header} must be a user id.")
        return Principal(int(user), _listed(credentials.header(self._strategies_header) or "", self._strategies_header))

    def token_of(self, credentials: Credentials, now: float) -> tuple[str, Principal]:  # noqa: ARG002
        """See `Authority`."""
        raise Forbidden("There are no sessions here: a proxy says who reads (auth is proxy).")

    async def look_again(self) -> bool:
        """See `Authority`."""
        return False


def _listed(value: str, name: str) -> frozenset[int] | None:
    """The strategies that a header lists, None: every one. Raises Unauthorized."""
    if value.strip() == "*":
        return None
    ids = [item.strip() for item in value.split(",")]
    if not all(_USER.fullmatch(item) and int(item) <= MAX_ID for item in ids):
        raise Unauthorized(f"The proxy did not say what may be read: {name} must be * or ids with commas between them.")
    return frozenset(map(int, ids))


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
