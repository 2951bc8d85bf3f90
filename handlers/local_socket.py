"""A listening unix socket in the file system, for callers that run as the same user on this machine."""

import errno
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path

PREFIX = "unix:"
MODE = 0o600


def local_path(address: str) -> str | None:
    """The path that an address of the form unix:PATH names, None for another address."""
    return address.removeprefix(PREFIX) if address.startswith(PREFIX) else None


def bind_local_socket(path: str, backlog: int) -> socket.socket:
    """A listening socket at this path, for its user only. The file that a server left there when it was killed is
    replaced. Raises OSError, also when a server listens there or something else has the name."""
    if not path:
        raise OSError(errno.EINVAL, "write unix:PATH, for example unix:/run/tallywire/internal.sock")
    _remove_abandoned(path)
    bound = socket.socket(socket.AF_UNIX)
    try:
        bound.bind(path)
        # Before it listens: until then nobody can connect, whatever the mode is.
        os.chmod(path, MODE)
        bound.listen(backlog)
        bound.setblocking(False)
    except BaseException:
        bound.close()
        raise
    return bound


def remove_local_socket(path: str) -> None:
    """Remove the file of a socket that has been closed; not that of another server, which may have taken the name."""
    with suppress(OSError):
        _remove_abandoned(path)


def _remove_abandoned(path: str) -> None:
    """Remove a socket that nobody listens on. Raises OSError when there is anything else."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, "a file of that name is there, and it is no socket")
    if _is_live(path):
        raise OSError(errno.EADDRINUSE, "a server listens on it already")
    Path(path).unlink(missing_ok=True)


def _is_live(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        except BlockingIOError:
            # Its queue is full.
            return True
    return True
