"""GET /metrics: what a monitoring system scrapes."""

import asyncio
from functools import cache
from importlib.metadata import version

from prometheus_client.exposition import choose_encoder

from core.metrics import Build, snapshot
from handlers import connection
from handlers.base import BaseHandler

OPENMETRICS = "application/openmetrics-text"


class MetricsHandler(BaseHandler):
    """All metrics, as Prometheus writes them or as OpenMetrics does."""

    role = "read"

    async def get(self) -> None:
        settings = self.services.settings
        build = Build(_version(), settings.http, settings.durability, connection.FAN_OUT)
        taken = await snapshot(self.services.hub, build, len(asyncio.all_tasks()))
        # Writing it down is a step of its own.
        await asyncio.sleep(0)
        # Not the header itself: the library repeats the version in it, whatever that is.
        encode, content_type = choose_encoder(
            OPENMETRICS if OPENMETRICS in self.request.headers.get("Accept", "") else ""
        )
        self.set_header("Content-Type", content_type)
        self.finish(encode(taken))


@cache
def _version() -> str:
    return version("tallywire")
