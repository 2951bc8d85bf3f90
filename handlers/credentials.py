"""Who reads: what a request for streams has to show for itself, and who makes a principal of it.

Whichever HTTP front a request came through, it becomes a `Credentials`; an `Authority`, one for each way of
authentication, makes a principal of it.
"""

import math
import re
import secrets
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from typing import Protocol

from msgspec import Struct

from core.addresses import Networks, is_address_within
from core.errors import Busy, Forbidden, Unauthorized
from core.models import MAX_ID
from core.principal import Principal

COOKIE = "__Host-tallywire"
"""The prefix lets no other host, and nobody without TLS, set it: RFC 6265bis, section 4.1.3.2."""

TICKET_SECONDS = 30
MOST_TICKETS = 100_000
"""Tickets that wait to be used, of all users together."""

MOST_TICKETS_EACH = 32
"""Of one user: as many as it may have streams."""

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
        self._waiting[_digest(ticket)] = principal, self.until(principal, now)
        self._of_user[principal.user_id] += 1
        return ticket

    @staticmethod
    def until(principal: Principal, now: float) -> float:
        """Until when one counts that is issued now: no longer than what it stands for."""
        return min(now + TICKET_SECONDS, principal.expires_at or math.inf)

    def redeem(self, ticket: str, now: float) -> Principal:
        """Whose it is; it cannot be used again. Raises Unauthorized."""
        key = _digest(ticket)
        principal, until = self._waiting.get(key, (None, 0.0))
        if principal is not None:
            self._drop(key)
        if principal is None or until <= now:
            raise Unauthorized(
                f"The ticket has been used, or is older than {TICKET_SECONDS} seconds, or never was one."
            )
        return principal

    def _forget(self, now: float) -> None:
        """Those whose time is over, from the oldest on; one that ends with its token waits for those before it."""
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


def _digest(ticket: str) -> bytes:
    return sha256(ticket.encode("latin-1", "replace")).digest()


class Authority(Protocol):
    """Says who reads. `now` is Unix seconds."""

    tickets: Tickets | None
    """None where there are none."""

    def principal_of(self, credentials: Credentials, now: float) -> Principal | None:
        """Whose request it is; None: whoever it says it is, since nobody asks. Raises Unauthorized, Forbidden, Busy."""

    def token_of(self, credentials: Credentials, now: float) -> tuple[str, Principal]:
        """The Bearer token itself, to be kept as a cookie. Raises as `principal_of`."""

    async def run(self) -> None:
        """Look after the keys, if any, for ever; to be cancelled."""

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

    async def run(self) -> None:
        """See `Authority`."""

    async def look_again(self) -> bool:
        """See `Authority`."""
        return False


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

    async def run(self) -> None:
        """See `Authority`."""

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
