"""GET /internal/statistics/hourly: the counts of every hour."""

from core import statistics
from handlers.base import BaseHandler


class HourlyHandler(BaseHandler):
    """Counts by hour, strategy and order type of one user, exact up to the last commit."""

    role = "read"

    async def get(self) -> None:
        span = statistics.span(self.moment("from"), self.moment("to"), self.services.hub.now_ms())
        user_id, strategy_id = self.required_identifier("user_id"), self.optional_identifier("strategy_id")
        strategies = None if strategy_id is None else (strategy_id,)
        self.write_json(await statistics.hourly(self.services.hub, user_id, strategies, span))
