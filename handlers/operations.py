"""Health, connections, stream keys, batches and users: what an operator and a load balancer ask."""

from http import HTTPStatus

import msgspec

from core import reports
from core.access import LOCAL
from core.errors import InvalidBody, InvalidQuery, MalformedBody
from core.models import Health, Revocation
from handlers.base import BaseHandler, Services, identifier, message_and_path
from handlers.guard import Verdict

_decode_revocation = msgspec.json.Decoder(Revocation).decode


class HealthHandler(BaseHandler):
    """What load balancers ask, by whatever name they know us."""

    def verdict(self) -> Verdict:
        return LOCAL


class LiveHandler(HealthHandler):
    """The process runs and its loop turns."""

    def get(self) -> None:
        self.write_json(Health("ok"))

    head = get


class ReadyHandler(HealthHandler):
    """The server can serve streams; with `?for=emit` whether it takes emits."""

    def get(self) -> None:
        purpose = self.get_query_argument("for", "streams")
        if purpose not in ("streams", "emit"):
            raise InvalidQuery("for", "must be streams or emit")
        hub = self.services.hub
        status = "draining" if hub.is_draining or hub.is_leaving else "ok"
        refusal = hub.journal.refusal
        if status == "ok" and purpose == "emit" and refusal is not None:
            status = refusal.code
        self.set_status(HTTPStatus.OK if status == "ok" else HTTPStatus.SERVICE_UNAVAILABLE)
        self.write_json(Health(status))

    head = get


class ConnectionsHandler(BaseHandler):
    """Who is connected, how far behind, and why streams ended."""

    role = "read"

    def get(self) -> None:
        user_id = self.optional_identifier("user_id")
        self.write_json(reports.connections(self.services.hub, user_id, self.services.settings.max_connections))


class KeyHandler(BaseHandler):
    """What the journal knows of one stream key."""

    role = "read"

    async def get(self, user_id: str, strategy_id: str) -> None:
        key = identifier("user_id", user_id), identifier("strategy_id", strategy_id)
        self.write_json(await reports.key_facts(self.services.hub, *key))


class KeysHandler(BaseHandler):
    """The stream keys of one user."""

    role = "read"

    async def get(self, user_id: str) -> None:
        of_user, after = identifier("user_id", user_id), self.optional_identifier("after")
        self.write_json(await reports.keys_of_user(self.services.hub, of_user, after or 0))


class BatchesHandler(BaseHandler):
    """What was accepted: by stream key and time, or under an idempotency key."""

    role = "read"

    async def get(self) -> None:
        key = self.optional_argument("idempotency_key")
        if key is not None:
            self._stands_alone()
            self.write_json(await reports.batches_of_key(self.services.hub, key))
            return
        question = reports.BatchesQuestion(
            self.required_identifier("user_id"),
            self.required_identifier("strategy_id"),
            self.moment("from"),
            self.moment("to"),
            self.optional_argument("after"),
        )
        self.write_json(await reports.batches(self.services.hub, question))

    def _stands_alone(self) -> None:
        """A key says whose batch it is: anything beside it would be a question that is not answered."""
        if others := set(self.request.query_arguments) - {"idempotency_key"}:
            raise InvalidQuery("idempotency_key", f"stands alone, without {', '.join(sorted(others))}")


class RevokeHandler(BaseHandler):
    """Ends what readers have been granted, and their streams."""

    def initialize(self, services: Services) -> None:
        super().initialize(services)
        self._body = bytearray()

    def data_received(self, chunk: bytes) -> None:
        self._body += chunk

    async def post(self) -> None:
        try:
            revocation = _decode_revocation(self._body)
        except msgspec.ValidationError as error:
            raise InvalidBody(*message_and_path(error)) from error
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise MalformedBody("The body is not JSON.") from error
        if revocation.user_id is None and revocation.strategy_id is None:
            raise InvalidBody("one of user_id and strategy_id is required, or both", "$")
        self.write_json(await self.services.hub.revoke(revocation))


class UserHandler(BaseHandler):
    """Everything of one user."""

    role = "admin"

    async def delete(self, user_id: str) -> None:
        self.write_json(await self.services.hub.delete_user(identifier("user_id", user_id)))
