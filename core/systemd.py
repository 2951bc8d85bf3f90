"""What a supervisor that speaks systemd's protocols hands over and is told: listening sockets, readiness, a watchdog.

See sd_listen_fds(3), sd_notify(3) and sd_watchdog_enabled(3). Variables are taken out of the environment when they are
read: a child process must not take them for its own. Without them nothing here does anything.
"""

import logging
import os
import socket
from collections.abc import Callable, MutableMapping
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from msgspec import Struct

from core.settings import SettingsError

FIRST_DESCRIPTOR = 3
"""The first one that is handed over; those before it are the standard streams."""

LISTENERS = ("public", "internal")

_INTERNET = frozenset({socket.AF_INET, socket.AF_INET6})
_FAMILIES = {"public": _INTERNET, "internal": _INTERNET | {socket.AF_UNIX}}
"""Nothing but a proxy could reach streams over a unix socket, and all of them would have one address."""

_log = logging.getLogger("tallywire.server")


class Inherited(Struct, frozen=True):
    """Listening sockets that were open before this process was: those of a listener that is not given are none."""

    public: tuple[socket.socket, ...] = ()
    internal: tuple[socket.socket, ...] = ()


NOTHING_INHERITED = Inherited()


def inherited_sockets(environment: MutableMapping[str, str], first: int = FIRST_DESCRIPTOR) -> Inherited:
    """The sockets that `environment` says we were given, by the names `public` and `internal`.

    Raises SettingsError for one that cannot be used, naming it and the fix.
    """
    taken = {name: environment.pop(f"LISTEN_{name}", "") for name in ("FDS", "PID", "FDNAMES", "PIDFDID")}
    if taken["PID"] != str(os.getpid()):
        return NOTHING_INHERITED
    if not (taken["FDS"].isascii() and taken["FDS"].isdigit()):
        raise SettingsError(f"LISTEN_FDS is {taken['FDS']!r}, which is no number of sockets.")
    count = int(taken["FDS"])
    names = taken["FDNAMES"].split(":") if taken["FDNAMES"] else []
    if len(names) != count:
        raise SettingsError(
            f"{count} sockets are inherited and LISTEN_FDNAMES has {len(names)} names. "
            "Name each of them with FileDescriptorName=public or FileDescriptorName=internal."
        )
    sockets: dict[str, list[socket.socket]] = {name: [] for name in LISTENERS}
    if unknown := set(names) - set(sockets):
        raise SettingsError(
            f"An inherited socket is named {min(unknown)!r}. Write FileDescriptorName=public or "
            "FileDescriptorName=internal in its unit."
        )
    with ExitStack() as if_refused:
        for descriptor, name in enumerate(names, first):
            sockets[name].append(if_refused.enter_context(_adopted(descriptor, name)))
            _check(sockets[name][-1], name)
        if_refused.pop_all()
    return Inherited(tuple(sockets["public"]), tuple(sockets["internal"]))


def _adopted(descriptor: int, name: str) -> socket.socket:
    try:
        os.set_inheritable(descriptor, False)
        return socket.socket(fileno=descriptor)
    except OSError as error:
        raise SettingsError(
            f"The inherited socket {name!r}, descriptor {descriptor}, is no socket: {error.strerror}."
        ) from error


def _check(sock: socket.socket, name: str) -> None:
    what = f"The inherited socket {name!r}, descriptor {sock.fileno()},"
    if sock.type != socket.SOCK_STREAM or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise SettingsError(f"{what} is not a listening stream socket. Use ListenStream= and Accept=no.")
    if sock.family not in _FAMILIES[name]:
        raise SettingsError(f"{what} is not one of TCP. Write an address and a port in ListenStream=.")


class Supervisor:
    """Who wants to know how this process is. `watchdog_seconds`: it expects a sign of life that often, None: it
    expects none.

    The socket is opened once: a server without a descriptor left is still alive, and must be able to say so.
    """

    def __init__(self, address: str, watchdog_seconds: float | None = None) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._watchdog_seconds = watchdog_seconds
        self._socket: socket.socket | None = None
        if address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> Self:
        """The one that `environment` names, or nobody."""
        address, microseconds, pid = (
            environment.pop(name, "") for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
        )
        is_ours = microseconds.isascii() and microseconds.isdigit() and pid in ("", str(os.getpid()))
        return cls(address, int(microseconds) / 1e6 if is_ours and int(microseconds) else None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def tell(self, what: str) -> None:
        """`READY=1`, `STOPPING=1` and the like. Never waits; that nobody hears it is no reason to end."""
        if self._socket is None:
            return
        try:
            self._socket.sendto(what.encode(), self._address)
        except OSError as error:
            _log.warning("Supervisor not told", extra={"what": what, "reason": str(error.strerror)})

    def begin_watchdog(self, call_later: Callable[[float, Callable[[], None]], object]) -> None:
        """Give signs of life from the loop, twice as often as they are expected: a loop that is stuck gives none."""
        if self._socket is None or self._watchdog_seconds is None:
            return
        seconds = self._watchdog_seconds / 2

        def beat() -> None:
            self.tell("WATCHDOG=1")
            call_later(seconds, beat)

        beat()
