"""The composition root: settings, journal, hub, two applications, listeners, and the way out.

Run `python server.py serve`, or `tallywire serve` once installed.
"""

import asyncio
import errno
import gc
import ipaddress
import logging
import os
import resource
import shlex
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import click
from msgspec import Struct
from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop
from tornado.netutil import bind_sockets
from tornado.web import Application

from core import settings as known_settings
from core.addresses import parse_networks
from core.cli import tallywire
from core.commands.config import FurtherChecks
from core.commands.demo import demo_command
from core.commands.options import given_flags, setting_options
from core.hub import Hub, HubLimits
from core.journal import memory
from core.journal.base import HOUR_MS, Journal, JournalError, JournalFailed, JournalLimits
from core.journal.memory import MemoryJournal
from core.journal.sqlite.driver import SqliteJournal
from core.logs import start_logging
from core.pace import Pace
from core.settings import Settings, SettingsError
from core.statistics import HourlyNotices
from core.systemd import NOTHING_INHERITED, Inherited, Supervisor, inherited_sockets
from handlers import dispatch, routes
from handlers.authorities import authority_of
from handlers.base import Services
from handlers.credentials import Anybody, Authority
from handlers.dispatch import HotRoutes
from handlers.front import Front, FrontLimits
from handlers.guard import Guard, internal_guard
from handlers.local_socket import PREFIX, bind_local_socket, local_path, remove_local_socket
from handlers.readiness import readiness

BACKLOG = 4096
"""Connections that may wait to be accepted: a crowd that reconnects is not turned away."""

MAX_PORT = 65535

RESERVED_DESCRIPTORS = 128
"""For everything that is no stream: listeners, emits, health checks, the log, requests that are being refused."""

INSTEAD = {
    "public": "ask with --auth=jwt or --auth=proxy, ",
    "internal": "or on unix:PATH, ask for keys with --internal-auth=keys, ",
}
"""Of listening off loopback: what else a listener offers."""

MAX_HEADER_BYTES = 16 * 1024
HEADER_SECONDS = 10
"""For the head of a request, once it has begun. Tornado's server has one time for this and for idling."""

PUBLIC_IDLE_SECONDS = 10
"""Until a request comes, and between two: a browser's stream needs one request."""

INTERNAL_IDLE_SECONDS = 75
"""The same for order services, which keep connections open between emits; longer than most clients' own limit."""

BODY_SECONDS = 5

CLOSE_SECONDS = 10
"""For the journal to work off its log at the end. If it takes longer, the next start does it."""

KEEPALIVE_IDLE_SECONDS, KEEPALIVE_EVERY_SECONDS, KEEPALIVE_PROBES = 30, 10, 3

GC_THRESHOLDS = (10_000, 50, 100)
"""Collections are rare and short: a connection leaves no cycles behind, and the default would walk thousands of them
every few hundred requests."""

_log = logging.getLogger("tallywire.server")


class Address(Struct, frozen=True):
    """HOST:PORT of a listener."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Raises ValueError, saying what is wrong."""
        host, colon, port = text.rpartition(":")
        if not colon or not host or not port.isdigit():
            raise ValueError("write HOST:PORT, for example 127.0.0.1:8080")
        if int(port) > MAX_PORT:
            raise ValueError(f"a port is at most {MAX_PORT}")
        return cls(host.removeprefix("[").removesuffix("]"), int(port))

    @property
    def is_loopback(self) -> bool:
        """Only this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


class Listeners(Struct, frozen=True):
    """The bound sockets of both listeners."""

    public: list[socket.socket]
    internal: list[socket.socket]


async def serve(settings: Settings, *, on_ready: Callable[[str, str], None]) -> None:
    """Serve until SIGTERM or SIGINT, then leave in order. `on_ready` gets both base URLs.

    Raises SettingsError when an address cannot be used, JournalError when the journal cannot, and JournalFailed, after
    the streams have been told to go, when it cannot be trusted any more.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    inherited = inherited_sockets(os.environ)
    # Ahead of the journal: what is refused leaves none behind.
    for refusal in refused(settings, inherited):
        raise refusal
    guard = internal_guard(settings)
    if settings.internal_auth == "keys":
        loop.add_signal_handler(signal.SIGHUP, guard.reload)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _leave_or_quit, stop)
    with Supervisor.from_environment(os.environ) as supervisor:
        journal = open_journal(settings, loop)
        try:
            await _serve_on(journal, settings, guard, stop, on_ready, supervisor, inherited)
        finally:
            await _close(journal)


async def _serve_on(
    journal: Journal,
    settings: Settings,
    guard: Guard,
    stop: asyncio.Event,
    on_ready: Callable[[str, str], None],
    supervisor: Supervisor,
    inherited: Inherited,
) -> None:
    listeners = bind(settings, inherited)
    hub = build_hub(settings, journal, asyncio.get_running_loop())
    failures: list[JournalFailed] = []
    has_failed = asyncio.Event()

    def end(failed: JournalFailed) -> None:
        failures.append(failed)
        has_failed.set()
        stop.set()

    authority = authority_of(settings, hub.clock)
    servers = start_servers(settings, hub, listeners, authority=authority, guard=guard)
    hub.start(end)
    background = [asyncio.create_task(work) for work in (HourlyNotices(hub).run(), authority.run())]
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    on_ready(base_url(listeners.public), base_url(listeners.internal))
    _log.info(
        "Ready",
        extra={
            "public": base_url(listeners.public),
            "internal": base_url(listeners.internal),
            "max_connections": hub.limits.max_connections,
            "auth": settings.auth,
            "internal_auth": settings.internal_auth,
            "durability": settings.durability,
            "epoch": journal.epoch,
        },
    )
    supervisor.tell("READY=1")
    supervisor.begin_watchdog(asyncio.get_running_loop().call_later)
    await stop.wait()
    supervisor.tell("STOPPING=1")
    await _let_balancers_notice(settings, hub, has_failed)
    for task in background:
        task.cancel()
    await asyncio.gather(*background, return_exceptions=True)
    _log.info("Stopping", extra={"connections": len(hub.registry)})
    for server in servers:
        server.stop()
    if (path := local_path(settings.internal_listen)) is not None:
        remove_local_socket(path)
    await leave(settings, hub, servers)
    if failures:
        raise failures[0]
    _log.info("Stopped")


async def _let_balancers_notice(settings: Settings, hub: Hub, has_failed: asyncio.Event) -> None:
    """Not ready, and still at work for whoever has not heard of it; a journal that fails is not waited with."""
    hub.is_leaving = True
    if settings.shutdown_delay_seconds and not has_failed.is_set():
        _log.info("Not ready any more", extra={"seconds": settings.shutdown_delay_seconds})
        with suppress(TimeoutError):
            async with asyncio.timeout(settings.shutdown_delay_seconds):
                await has_failed.wait()


def open_journal(settings: Settings, loop: asyncio.AbstractEventLoop) -> Journal:
    """The journal that the settings ask for. Raises JournalError."""
    path = known_settings.journal_path(settings, os.environ)
    if settings.durability == "none":
        if path.is_file():
            _log.warning("Journal not used", extra={"journal": str(path.absolute()), "durability": "none"})
        return MemoryJournal(loop.call_soon, _journal_limits(settings, most_rows=memory.MOST_ROWS))
    return SqliteJournal(path, settings.durability, _journal_limits(settings), loop)


def _journal_limits(settings: Settings, most_rows: int = sys.maxsize) -> JournalLimits:
    return JournalLimits(
        max_rows=min(settings.keep_rows, most_rows),
        max_age_ms=settings.keep_hours * HOUR_MS,
        idempotency_window_ms=settings.idempotency_hours * HOUR_MS,
        max_bytes=settings.keep_bytes,
    )


def build_hub(settings: Settings, journal: Journal, loop: asyncio.AbstractEventLoop) -> Hub:
    """The use cases on a journal."""
    max_connections = min(settings.max_connections, available_connections())
    limits = HubLimits(
        settings.heartbeat_seconds,
        settings.retry_ms,
        settings.coalesce_ms,
        max_connections,
        max_streams_per_user=settings.max_streams_per_user,
        max_streams_per_address=settings.max_streams_per_address,
        max_accepts_per_second=settings.max_accepts_per_second,
        reconnects_per_second=settings.reconnects_per_second,
        max_age_seconds=settings.max_age_seconds,
        expiring_seconds=settings.expiring_seconds,
        grant_seconds=settings.jwt_max_life_seconds + settings.jwt_leeway_seconds,
        grant_leeway_seconds=settings.jwt_leeway_seconds,
    )
    return Hub(journal, limits, call_soon=loop.call_soon, call_later=loop.call_later, spawn=loop.create_task)


def available_connections() -> int:
    """How many streams the descriptor limit leaves room for, after raising it as far as this process may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard not in (soft, resource.RLIM_INFINITY):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return sys.maxsize if soft == resource.RLIM_INFINITY else max(1, soft - RESERVED_DESCRIPTORS)


def bind(settings: Settings, inherited: Inherited = NOTHING_INHERITED) -> Listeners:
    """Both listeners, with inherited sockets where there are any. Raises SettingsError, naming the setting and the
    fix."""
    public = _take_over("public", inherited.public, settings) or _bind("public", settings.public_listen, settings)
    internal = _take_over("internal", inherited.internal, settings)
    _bound_kernel_buffers(public, settings)
    return Listeners(public, internal or _bind("internal", settings.internal_listen, settings))


def start_servers(
    settings: Settings,
    hub: Hub,
    listeners: Listeners,
    *,
    authority: Authority | None = None,
    guard: Guard | None = None,
) -> list[HTTPServer | Front]:
    """Accept on both listeners. `authority`: of the public one, `guard`: of the internal one; None: a new one by the
    settings.

    Raises SettingsError when nobody could say who reads, or who calls.
    """
    authority = authority or authority_of(settings, hub.clock)
    guard = guard or internal_guard(settings)
    guard.stand_behind(listeners.internal)
    is_local = settings.auth == "none" and all(is_on_loopback(sock) for sock in listeners.public)
    loop: asyncio.AbstractEventLoop = IOLoop.current().asyncio_loop  # type: ignore[attr-defined]  # the only kind
    ready = readiness(loop)
    origins = frozenset(settings.cors_origins)
    proxies = parse_networks(settings.proxy_addresses)
    public = Services(hub, settings, ready, authority, origins, allows_loopback_origins=is_local, proxies=proxies)
    # On another machine our loopback address is the reader's own; and none of IPv6 can stand in a policy.
    is_within_reach = is_local and all(is_on_loopback(sock) for sock in listeners.internal)
    is_nameable = is_within_reach and listeners.public[0].family == socket.AF_INET
    public_url = base_url(listeners.public) if is_nameable else None
    internal = Services(hub, settings, ready, Anybody(), public_url=public_url, guard=guard)
    descriptors = available_connections()
    public_hot = dispatch.public_hot(public)
    servers = [
        _server(
            public,
            routes.public(public),
            public_hot,
            PUBLIC_IDLE_SECONDS,
            loop,
            hub.accepts,
            # What is reserved stays for the others, whoever connects here and says nothing.
            lambda: descriptors - len(hub.registry),
        ),
        _server(internal, routes.internal(internal), dispatch.internal_hot(internal), INTERNAL_IDLE_SECONDS, loop),
    ]
    servers[0].add_sockets(listeners.public)
    servers[1].add_sockets(listeners.internal)
    return servers


def _server(
    services: Services,
    application: Application,
    hot: HotRoutes,
    idle_seconds: float,
    loop: asyncio.AbstractEventLoop,
    accepts: Pace | None = None,
    room: Callable[[], int] = lambda: sys.maxsize,
) -> HTTPServer | Front:
    """The HTTP front that the settings ask for; without sockets yet."""
    if services.settings.http == "tornado":
        return HTTPServer(
            application,
            max_header_size=MAX_HEADER_BYTES,
            idle_connection_timeout=idle_seconds,
            body_timeout=BODY_SECONDS,
        )
    limits = FrontLimits(MAX_HEADER_BYTES, HEADER_SECONDS, idle_seconds, BODY_SECONDS)
    return Front(
        dispatch.dispatcher(application, hot), limits, loop, services.readiness, accepts, room, services.hub.counters
    )


async def leave(settings: Settings, hub: Hub, servers: list[HTTPServer | Front]) -> None:
    """Finish what is in flight, tell every stream, and go; cut what is left after `drain_seconds`."""
    await hub.drain(settings.drain_seconds)
    await _close(hub.journal)
    for server in servers:
        await server.close_all_connections()


async def _close(journal: Journal) -> None:
    """Harmless when it has been closed."""
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            await journal.close()
    except TimeoutError:
        _log.warning("Journal not left in order", extra={"reason": f"not closed within {CLOSE_SECONDS} s"})


def base_url(sockets: list[socket.socket]) -> str:
    """Where a listener can be reached; unix:PATH for a unix socket."""
    if sockets[0].family == socket.AF_UNIX:
        return f"{PREFIX}{sockets[0].getsockname()}"
    host, port = sockets[0].getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _bind(listener: str, text: str, settings: Settings) -> list[socket.socket]:
    path = local_path(text)
    if path is not None and listener == "internal":
        try:
            return [bind_local_socket(path, BACKLOG)]
        except OSError as error:
            raise _unusable(listener, text, error) from error
    address = _check_address(listener, text, settings)
    try:
        sockets = bind_sockets(
            address.port, "127.0.0.1" if address.host == "localhost" else address.host, backlog=BACKLOG
        )
        if address.host == "localhost":
            sockets += _also_over_ipv6(sockets)
        for sock in sockets:
            _answer_at_once(sock)
    except OSError as error:
        raise _unusable(listener, text, error) from error
    return sockets


def _check_address(listener: str, text: str, settings: Settings) -> Address:
    try:
        address = Address.parse(text)
    except ValueError as error:
        raise SettingsError(f"{listener}_listen is {text!r}: {error}") from error
    if not address.is_loopback:
        _refuse_reach(listener, f"{listener}_listen is {text}", settings)
    return address


def _asks_who(listener: str, settings: Settings) -> bool:
    """Whether callers of a listener must show who they are."""
    return (settings.internal_auth if listener == "internal" else settings.auth) != "none"


def _unusable(listener: str, text: str, error: OSError) -> SettingsError:
    return SettingsError(
        f"{listener}_listen {text}: {error.strerror or error}. Choose another address with --{listener}-listen or "
        f"TALLYWIRE_{listener.upper()}_LISTEN."
    )


def _take_over(listener: str, inherited: Sequence[socket.socket], settings: Settings) -> list[socket.socket]:
    """The sockets of a listener that are inherited, made like our own; none when there are none."""
    for sock in inherited:
        if not is_on_loopback(sock):
            _refuse_reach(listener, f"the inherited socket {listener!r} listens on {base_url([sock])}", settings)
        sock.setblocking(False)
        sock.listen(BACKLOG)
        if sock.family != socket.AF_UNIX:
            _answer_at_once(sock)
    return list(inherited)


def is_on_loopback(listener: socket.socket) -> bool:
    """Only this machine can connect to this socket."""
    return listener.family == socket.AF_UNIX or Address(*listener.getsockname()[:2]).is_loopback


def _refuse_reach(listener: str, what: str, settings: Settings) -> None:
    """Others can reach a listener: raises SettingsError unless they are asked who they are, or the settings say that
    they may."""
    if not (_asks_who(listener, settings) or listener in settings.insecure):
        raise SettingsError(
            f"{what}, which others can reach, and nobody would be asked who they are. "
            f"Listen on 127.0.0.1, {INSTEAD[listener]}or say --insecure={listener} if the network is closed otherwise."
        )


def _answer_at_once(listener: socket.socket) -> None:
    # Connections inherit it. Without it each second one of two pipelined answers waits 40 ms for an ACK.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _also_over_ipv6(sockets: list[socket.socket]) -> list[socket.socket]:
    """`localhost` on the port of these sockets over IPv6, which many resolvers try first; nothing without IPv6."""
    try:
        return bind_sockets(sockets[0].getsockname()[1], "::1", backlog=BACKLOG)
    except OSError as error:
        if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            return []
        raise


def _bound_kernel_buffers(sockets: list[socket.socket], settings: Settings) -> None:
    """Options of the listening sockets, which accepted connections inherit.

    Without a bound the kernel hides thousands of frames of a client that reads nothing; without the time-outs a
    peer that vanished stays for hours.
    """
    options = (
        ("SOL_SOCKET", "SO_SNDBUF", settings.send_buffer_bytes),
        ("SOL_SOCKET", "SO_KEEPALIVE", 1),
        ("IPPROTO_TCP", "TCP_KEEPIDLE", KEEPALIVE_IDLE_SECONDS),
        ("IPPROTO_TCP", "TCP_KEEPINTVL", KEEPALIVE_EVERY_SECONDS),
        ("IPPROTO_TCP", "TCP_KEEPCNT", KEEPALIVE_PROBES),
        ("IPPROTO_TCP", "TCP_USER_TIMEOUT", settings.stall_seconds * 1000),
    )
    for level, name, value in options:
        try:
            for sock in sockets:
                sock.setsockopt(getattr(socket, level), getattr(socket, name), value)
        except (AttributeError, OSError) as error:
            _log.warning("Socket option not available", extra={"option": name, "reason": str(error)})


def _leave_or_quit(stop: asyncio.Event) -> None:
    """The first signal leaves in order, the second ends at once."""
    if stop.is_set():
        os._exit(1)
    stop.set()


def main() -> None:
    """The `tallywire` command."""
    tallywire.add_command(_serve_command())
    tallywire.add_command(demo_command(serve))
    tallywire(prog_name="tallywire", obj=FurtherChecks(refused))


def refused(settings: Settings, inherited: Inherited = NOTHING_INHERITED) -> list[SettingsError]:
    """What a start would refuse of settings that are each in order, as far as it can be said without starting; each
    names the setting and the fix."""
    checks: list[Callable[[], object]] = [
        lambda: internal_guard(settings),
        lambda: authority_of(settings, time.monotonic),
        lambda: _loop_factory(settings),
    ]
    if not inherited.public:
        checks.append(lambda: _check_address("public", settings.public_listen, settings))
    if not inherited.internal and local_path(settings.internal_listen) is None:
        checks.append(lambda: _check_address("internal", settings.internal_listen, settings))
    found = []
    for check in checks:
        try:
            check()
        except SettingsError as error:
            found.append(error)
    return found


def _serve_command() -> click.Command:
    options: list[click.Parameter] = [
        click.Option(["--config"], type=click.Path(path_type=Path), help="TOML file with settings."),
        click.Option(["--examples"], is_flag=True, help="Print lines to paste once the server is ready."),
        *setting_options(),
    ]
    return click.Command("serve", callback=_run, params=options, help="Run the server.")


def _run(config: Path | None, examples: bool, **flags: object) -> None:
    try:
        settings = known_settings.load(known_settings.read_file(config), os.environ, given_flags(flags))
        with _logging(settings), asyncio.Runner(loop_factory=_loop_factory(settings)) as runner:
            runner.run(serve(settings, on_ready=_print_examples if examples else lambda _public, _internal: None))
    except (SettingsError, JournalError) as error:
        raise click.ClickException(str(error)) from error
    except JournalFailed as error:
        click.echo(f"Error: {error}. Start the server again; it will do so.", err=True)
        # Not by the usual way out: that would close the connection to a journal that cannot be trusted.
        os._exit(1)


def _loop_factory(settings: Settings) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Raises SettingsError when the loop that is asked for is not installed."""
    if settings.loop == "asyncio":
        return None
    try:
        import uvloop  # only where it is asked for
    except ImportError as error:
        raise SettingsError(
            "loop is 'uvloop', which is not installed. Install it with pip install uvloop, or leave the setting out."
        ) from error
    return uvloop.new_event_loop


@contextmanager
def _logging(settings: Settings) -> Iterator[None]:
    handler = start_logging(settings.log_level, settings.log_format, sys.stderr)
    try:
        yield
    finally:
        handler.close()


def _print_examples(public: str, internal: str) -> None:
    batch = (
        '{"user_id": 7, "strategy_id": 3, "batch_results": ['
        '{"order_type": "LIMIT", "event_type": "order_created", "success": true}, '
        '{"order_type": "STOP_LIMIT", "event_type": "order_cancelled", "success": true}]}'
    )
    path = local_path(internal)
    to_internal = internal if path is None else f"--unix-socket {shlex.quote(path)} http://localhost"
    # No browser opens a page of a unix socket.
    console = f"{internal}/console/    # look, in a browser\n" if path is None else ""
    click.echo(
        f"curl -N '{public}/stream?user_id=7&strategy_id=3'    # watch a stream\n"
        f"curl {to_internal}/internal/emit -H 'Content-Type: application/json' -d '{batch}'    # emit a batch\n"
        f"{console}"
        f"kill {os.getpid()}    # stop"
    )


if __name__ == "__main__":
    main()
