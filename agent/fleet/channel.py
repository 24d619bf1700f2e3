"""What every transfer of bulk data is given: what it may reach, what cuts it off, what counts it, and how it fails.

A transfer runs on a thread of its own and blocks there. `Cut` ends it from another one, by its sockets; `Moved` is what
all of them add their bytes to.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from dataclasses import dataclass, field
from functools import cache

import msgspec

from agent.errors import FleetError
from agent.fleet.tls import FreshContext, TlsFilesError


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How slow a server may be: each wait, the least that moves in `progress_s`, and a whole connection."""

    wait_s: float = 10.0
    progress_s: float = 15.0
    progress_bytes: int = 15 * 1024
    connection_s: float = 600.0


class Web(msgspec.Struct, frozen=True):
    """What may be reached: HTTPS, by TLS of the unit's own (or as this computer believes anybody); plain HTTP to this
    machine if the configuration says so.
    """

    tls: FreshContext | None = None
    allow_loopback_http: bool = False
    limits: Limits = Limits()

    def context(self) -> ssl.SSLContext:
        """For the next connection; asked on the thread that makes it. Raises TransientError: files may be rotated."""
        try:
            return _everybody() if self.tls is None else self.tls.now()
        except TlsFilesError as error:
            raise TransientError(str(error)) from error


@cache
def _everybody() -> ssl.SSLContext:
    """Made once: it reads every authority that this computer knows."""
    return ssl.create_default_context()


class TransientError(FleetError):
    """It may go well if it is tried again; not before `retry_after_s`, where the server said so."""

    def __init__(self, what: str, *, hint: str = "", retry_after_s: float = 0.0) -> None:
        super().__init__(what, hint=hint)
        self.retry_after_s = retry_after_s


class PausedError(FleetError):
    """It was cut off from this side."""


class Moved:
    """How many bytes went over the network, counted by any thread; heads and handshakes by a flat estimate."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sent = self._received = 0

    def add(self, sent: int = 0, received: int = 0) -> None:
        """So many more."""
        with self._lock:
            self._sent += sent
            self._received += received

    def total(self) -> tuple[int, int]:
        """Sent and received so far."""
        with self._lock:
            return self._sent, self._received


class Cut:
    """Ends transfers from another thread: their sockets are shut down, and none is opened any more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._done = threading.Event()

    def now(self) -> None:
        """Cut, once and for all."""
        with self._lock:
            self._done.set()
            for one in self._sockets:
                shut(one)

    @property
    def done(self) -> bool:
        """Whether it was cut."""
        return self._done.is_set()

    def check(self) -> None:
        """Raise PausedError when it was cut."""
        if self.done:
            raise PausedError("the transfer was paused")

    def wait(self, seconds: float) -> bool:
        """Wait for so long, or until it is cut: True then."""
        return self._done.wait(seconds)

    def take(self, one: socket.socket) -> None:
        """Have this socket shut down; raises PausedError when it is too late."""
        with self._lock:
            if self._done.is_set():
                raise PausedError("the transfer was paused")
            self._sockets.add(one)

    def leave(self, one: socket.socket) -> None:
        """Let go of a socket."""
        with self._lock:
            self._sockets.discard(one)


@dataclass(frozen=True)
class Channel:
    """How one transfer goes: what may be reached, what cuts it off, and what counts its bytes."""

    web: Web
    cut: Cut = field(default_factory=Cut)
    moved: Moved = field(default_factory=Moved)


def shut(one: socket.socket) -> None:
    """End what another thread waits for on this socket.

    Not by the method of a TLS socket: that forgets its keys, and what is read next would be the encrypted bytes.
    """
    with contextlib.suppress(OSError):
        socket.socket.shutdown(one, socket.SHUT_RDWR)
