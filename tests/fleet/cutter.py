"""A TCP proxy that cuts connections: each after so many bytes in one direction, as a list of cuts says."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Literal
from urllib.parse import urlsplit

Direction = Literal["up", "down"]


class Cutter:
    """Stands before a server; connections beyond the list of `cuts` pass whole. `connections` counts them all."""

    def __init__(self, url: str, direction: Direction, cuts: list[int]) -> None:
        parts = urlsplit(url)
        self._server = (parts.hostname, parts.port)
        self._direction, self._cuts = direction, cuts
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept)]
        self._sockets: list[socket.socket] = []
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads[0].start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for one in (self._listener, *self._sockets):
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            allowed = self._cuts[self.connections] if self.connections < len(self._cuts) else None
            self.connections += 1
            server = socket.create_connection(self._server)
            self._sockets += [client, server]
            for source, target, direction in ((client, server, "up"), (server, client, "down")):
                most = allowed if direction == self._direction else None
                thread = threading.Thread(target=self._pump, args=(source, target, most))
                self._threads.append(thread)
                thread.start()

    def _pump(self, source: socket.socket, target: socket.socket, most: int | None) -> None:
        with contextlib.suppress(OSError):
            while most is None or most > 0:
                data = source.recv(16 * 1024 if most is None else min(most, 16 * 1024))
                if not data:
                    target.shutdown(socket.SHUT_WR)
                    return
                target.sendall(data)
                most = None if most is None else most - len(data)
            for one in (source, target):
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
