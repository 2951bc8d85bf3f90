"""A proxy on loopback that does to streams what no client sees happen: withholds a frame, or falls silent."""

import re
import socket

from tests.e2e.proxy import CuttingProxy, end, received, sent

UPDATE_IN_A_CHUNK = re.compile(rb"[0-9a-f]+\r\nevent: order_batch_update\n[^\r]*\n\n\r\n")


class FaultProxy(CuttingProxy):
    """Passes bytes both ways; `withheld` are the frames that it kept for itself.

    It finds a frame in what one read brings: those of tests are small, and sent alone.
    """

    def __init__(self, target_port: int) -> None:
        super().__init__(target_port)
        self.withheld: list[bytes] = []
        self._is_withholding = False
        self._silent: set[socket.socket] = set()

    def withhold_one(self) -> None:
        """Keep the next frame with counts."""
        self._is_withholding = True

    def fall_silent(self) -> None:
        """Pass nothing more to whoever is connected now, and tell nobody: the machine at the other end is gone."""
        with self._lock:
            self._silent |= {client for client, _ in self._pairs}

    def _pass_down(self, server: socket.socket, client: socket.socket) -> None:
        while data := received(server):
            if self._is_withholding and (frame := UPDATE_IN_A_CHUNK.search(data)):
                self._is_withholding = False
                self.withheld.append(frame[0])
                data = data.replace(frame[0], b"", 1)
            if client not in self._silent and not sent(client, data):
                break
        end(server)
        end(client)
