"""The whole HTTP surface on one screen."""

from tornado.web import Application, url

from handlers.base import BaseHandler, NotFoundHandler, Services, log_request
from handlers.console import ConsoleConfigHandler, ConsoleHandler, ConsoleRedirectHandler
from handlers.emit import EmitHandler
from handlers.files import BrowserClientHandler
from handlers.metrics import MetricsHandler
from handlers.openapi import OpenapiHandler
from handlers.operations import (
    BatchesHandler,
    ConnectionsHandler,
    KeyHandler,
    KeysHandler,
    LiveHandler,
    ReadyHandler,
    RevokeHandler,
    UserHandler,
)
from handlers.reader import OwnHoursHandler, SessionHandler, TicketHandler, TotalsHandler
from handlers.statistics import HourlyHandler
from handlers.stream import InternalStreamHandler, StreamHandler


def public(services: Services) -> Application:
    """What browsers reach. Anything internal is 404 here."""
    return _application(
        services,
        (r"/stream", StreamHandler),
        (r"/stream/session", SessionHandler),
        (r"/stream/ticket", TicketHandler),
        (r"/totals", TotalsHandler),
        (r"/statistics/hourly", OwnHoursHandler),
        (r"/tallywire\.js", BrowserClientHandler),
        (r"/healthz/live", LiveHandler),
        (r"/healthz/ready", ReadyHandler),
    )


def internal(services: Services) -> Application:
    """What order services and operators reach."""
    return _application(
        services,
        (r"/internal/emit", EmitHandler),
        (r"/internal/stream", InternalStreamHandler),
        (r"/internal/revoke", RevokeHandler),
        (r"/internal/connections", ConnectionsHandler),
        (r"/internal/statistics/hourly", HourlyHandler),
        (r"/internal/keys/([^/]+)", KeysHandler),
        (r"/internal/keys/([^/]+)/([^/]+)", KeyHandler),
        (r"/internal/batches", BatchesHandler),
        (r"/internal/users/([^/]+)", UserHandler),
        (r"/healthz/live", LiveHandler),
        (r"/healthz/ready", ReadyHandler),
        (r"/metrics", MetricsHandler),
        (r"/openapi\.json", OpenapiHandler),
        (r"/console", ConsoleRedirectHandler),
        (r"/console/config\.json", ConsoleConfigHandler),
        (r"/console/(.*)", ConsoleHandler),
    )


def _application(services: Services, *routes: tuple[str, type[BaseHandler]]) -> Application:
    given = {"services": services}
    return Application(
        [url(pattern, handler, given) for pattern, handler in routes],
        default_handler_class=NotFoundHandler,
        default_handler_args=given,
        log_function=log_request,
    )
