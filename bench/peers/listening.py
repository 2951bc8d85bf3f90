"""The two addresses that each peer is given, and listening sockets of which none is crippled by a small backlog."""

from __future__ import annotations

import argparse
import socket
import tempfile

BACKLOG = 4096


class Listens(argparse.Namespace):
    """The command line of a peer, typed."""

    public_listen: str
    internal_listen: str
    scratch: str


def parse_listens(description: str) -> Listens:
    """Reads the two addresses from the command line, and a directory for what a peer has to write."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--public-listen", required=True, metavar="HOST:PORT")
    parser.add_argument("--internal-listen", required=True, metavar="HOST:PORT")
    parser.add_argument("--scratch", default=tempfile.gettempdir(), metavar="PATH")
    return parser.parse_args(namespace=Listens())


def listening(address: str) -> socket.socket:
    """A listening socket, whose connections inherit TCP_NODELAY."""
    host, _, port = address.rpartition(":")
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.bind((host, int(port)))
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener
