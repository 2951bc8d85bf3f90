"""Health, connections and stream keys: what an operator and a load balancer ask."""

from http import HTTPStatus

from core import reports
from core.errors import InvalidQuery
from core.models import Health
from handlers.base import BaseHandler, identifier


class LiveHandler(BaseHandler):
    """The process runs and its loop turns."""

    def get(self) -> None:
        self.write_json(Health("ok"))

    head = get


class ReadyHandler(BaseHandler):
    """The server can serve streams; with `?for=emit` whether it takes emits."""

    def get(self) -> None:
        purpose = self.get_query_argument("for", "streams")
        if purpose not in ("streams", "emit"):
            raise InvalidQuery("for", "must be streams or emit")
        draining = self.services.hub.is_draining
        self.set_status(HTTPStatus.SERVICE_UNAVAILABLE if draining else HTTPStatus.OK)
        self.write_json(Health("draining" if draining else "ok"))

    head = get


class ConnectionsHandler(BaseHandler):
    """Who is connected, how far behind, and why streams ended."""

    def get(self) -> None:
        values = self.get_query_arguments("user_id")
        if len(values) > 1:
            raise InvalidQuery("user_id", "may stand only once")
        user_id = identifier("user_id", values[0]) if values else None
        self.write_json(reports.connections(self.services.hub, user_id))


class KeyHandler(BaseHandler):
    """What the journal knows of one stream key."""

    async def get(self, user_id: str, strategy_id: str) -> None:
        key = identifier("user_id", user_id), identifier("strategy_id", strategy_id)
        self.write_json(await reports.key_facts(self.services.hub, *key))
