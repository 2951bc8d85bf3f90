"""What a reader asks beside its stream: a session, a ticket, its totals, its hours."""

from core import statistics
from core.errors import Forbidden
from core.hub import Wanted
from core.models import Session, Ticket, iso_timestamp
from core.principal import Principal
from handlers.base import BaseHandler
from handlers.credentials import COOKIE
from handlers.stream import parameters, readable

FROM_ELSEWHERE = "Authorization, Content-Type, X-Request-Id"


class SessionHandler(BaseHandler):
    """A token becomes a cookie: a native EventSource sets no headers, and reconnects with the same URL."""

    async def post(self) -> None:
        token, principal = await self.asked(self.services.authority.token_of)
        self.services.hub.check_granted(principal, ())
        now = self.services.hub.now_ms() / 1000
        expires_at = principal.expires_at or now
        self._set_cookie(token, int(expires_at - now))
        self.write_json(Session(iso_timestamp(int(expires_at * 1000))))

    def delete(self) -> None:
        """Forget it. Streams that are open stay so."""
        self._set_cookie("", 0)
        self.set_status(204)

    def options(self) -> None:
        self.preflight("POST, DELETE", FROM_ELSEWHERE)

    def _set_cookie(self, token: str, seconds: int) -> None:
        same_site = self.services.settings.session_same_site.capitalize()
        cookie = f"{COOKIE}={token}; Path=/; Max-Age={seconds}; Secure; HttpOnly; SameSite={same_site}"
        self.set_header("Set-Cookie", cookie)


class TicketHandler(BaseHandler):
    """A token becomes a ticket: for clients that can only give a URL, and make a new one for each attempt."""

    async def post(self) -> None:
        principal, tickets = await self.reader(), self.services.authority.tickets
        if principal is None or tickets is None:
            raise Forbidden("There are no tickets here: they stand for tokens (auth is not jwt).")
        now = self.services.hub.now_ms() / 1000
        ticket = tickets.issue(principal, now)
        self.write_json(Ticket(ticket, iso_timestamp(int(tickets.until(principal, now) * 1000))))

    def options(self) -> None:
        self.preflight("POST", FROM_ELSEWHERE)


class TotalsHandler(BaseHandler):
    """What was counted for the reader, and up to which position: where a client without sums of its own begins."""

    async def get(self) -> None:
        principal = await self.reader()
        user_id, strategies = readable(parameters(self.request.query), principal)
        self.write_json(await self.services.hub.totals(Wanted(user_id, strategies, None, principal)))

    def options(self) -> None:
        self.preflight("GET", FROM_ELSEWHERE)


class OwnHoursHandler(BaseHandler):
    """The reader's own counts by hour."""

    async def get(self) -> None:
        principal = await self.reader()
        hub = self.services.hub
        span = statistics.span(self.moment("from"), self.moment("to"), hub.now_ms())
        user_id, strategies = self._readable(principal)
        await hub.check_granted_now(Wanted(user_id, strategies, None, principal))
        self.write_json(await statistics.hourly(hub, user_id, strategies, span))

    def options(self) -> None:
        self.preflight("GET", FROM_ELSEWHERE)

    def _readable(self, principal: Principal | None) -> tuple[int, tuple[int, ...] | None]:
        given = parameters(self.request.query)
        return readable({"strategy_id": ["*"], **given}, principal)
