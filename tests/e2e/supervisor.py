"""What systemd does for a server: it has the sockets, and starts one process after the other on them."""

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.process import ServerProcess, running_server

HAND_OVER = """
import os, sys
descriptors, names, *command = sys.argv[1:]
# First out of the way: the places that they go to may be those of others.
apart = [os.dup2(int(descriptor), 100 + place) for place, descriptor in enumerate(descriptors.split(","))]
for place, descriptor in enumerate(apart, 3):
    os.dup2(descriptor, place)
    os.close(descriptor)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(apart)), "LISTEN_FDNAMES": names}
os.execv(command[0], command)
"""
"""Becomes the command, with descriptors where systemd puts them."""


class Supervisor:
    """What systemd does: it has the sockets, and starts servers on them."""

    def __init__(self, sockets: dict[str, socket.socket]) -> None:
        self.sockets = sockets

    def port(self, name: str) -> int:
        port: int = self.sockets[name].getsockname()[1]
        return port

    @contextmanager
    def started(self, *arguments: str) -> Iterator[ServerProcess]:
        descriptors = [sock.fileno() for sock in self.sockets.values()]
        listed = ",".join(map(str, descriptors)), ":".join(self.sockets)
        prefix = (sys.executable, "-c", HAND_OVER, *listed)
        with running_server(*arguments, command_prefix=prefix, pass_fds=descriptors) as server:
            yield server
