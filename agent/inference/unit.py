"""A worker that systemd starts: connecting to its socket unit starts one, in a unit and a sandbox of its own.

The daemon needs neither the accelerator's devices nor the right to start processes then. But it is not the process's
parent: it cannot wait for it, the kernel does not end it with its parent, and the connection's credentials are those of
who listens. So the worker brings, with Hello, three descriptors (`agent.worker.sandbox.activation`): its own process
descriptor, the end of its lifeline, and the pipe that its standard error goes into.

What it says of itself is held against what the kernel says of who sent it (SCM_CREDENTIALS): the user is ours, and the
process descriptor is the sender's own. It was opened before it was sent and still has that process id, so nobody else
can have had that id in between: no signal of ours can hit another process.

A worker that has not said Hello holds nothing and was given nothing that it read. It is given up by closing the
connection: its Hello then finds nobody, and closing the lifeline unread kills it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from agent.errors import WorkerError
from agent.wire import Confinement, Hello, WireError

DESCRIPTORS = 3
"""What a worker brings with Hello."""
CREDENTIALS = struct.Struct("3i")
"""struct ucred of unix(7): pid, uid, gid."""


class Sender(NamedTuple):
    """Who sent the first bytes, by the kernel's word."""

    pid: int
    uid: int


def connect(path: Path) -> socket.socket:
    """A connection to the workers' socket unit, which starts one; raises WorkerError where nobody listens.

    Whoever listens has to be systemd, or the daemon's own user.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        connection.connect(str(path))
        found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    except OSError as error:
        connection.close()
        hint = "systemctl status driveway-worker.socket"
        raise WorkerError(f"no worker is to be had on {path}: {error.strerror}", hint=hint) from error
    _, uid, _ = CREDENTIALS.unpack(found)
    if uid not in {0, os.getuid()}:
        connection.close()
        raise WorkerError(f"on {path} listens user {uid}, who is neither root nor the daemon's own")
    return connection


class UnitBody:
    """The process of a unit that has said Hello."""

    def __init__(self, hello: Hello, sender: Sender | None, descriptors: Sequence[int]) -> None:
        """Take over what came with Hello; raises WireError, and closes it, where it is not what it has to be."""
        try:
            _check(hello, sender, descriptors)
        except WireError:
            for descriptor in descriptors:
                os.close(descriptor)
            raise
        self.pid = hello.pid
        self.pidfd, self._lifeline, self.words = descriptors
        os.set_blocking(self.words, False)
        self._is_closed = False

    @property
    def confinement(self) -> tuple[Confinement, ...]:
        """It has looked at its unit itself."""
        return ()

    def kill_rest(self) -> None:
        """Is for systemd to do, once the process has ended: a unit's group is not the daemon's to kill."""

    def status(self) -> int | None:
        """Only its parent knows it, and it says it itself (`agent.wire.Ending`) where it can."""
        return None

    def leave(self, then: Callable[[], None]) -> None:
        """See `kill_rest`."""
        asyncio.get_running_loop().call_soon(then)

    def close(self) -> None:
        """Give the descriptors back; the lifeline too, which would kill what is left."""
        if not self._is_closed:
            self._is_closed = True
            for descriptor in (self.pidfd, self._lifeline, self.words):
                os.close(descriptor)


def _check(hello: Hello, sender: Sender | None, descriptors: Sequence[int]) -> None:
    """Raise WireError unless the sender is what it says."""
    if sender is None or len(descriptors) != DESCRIPTORS:
        raise WireError("its Hello came without its credentials and descriptors")
    if sender.uid != os.getuid():
        raise WireError(f"it runs as user {sender.uid}, and the daemon as {os.getuid()}")
    if hello.pid != sender.pid:
        raise WireError(f"it says that it is process {hello.pid}, and is {sender.pid}")
    if _process_of(descriptors[0]) not in {sender.pid, -1}:
        raise WireError("the process descriptor that it sent is not its own")
    if not all(stat.S_ISFIFO(os.fstat(one).st_mode) for one in descriptors[1:]):
        raise WireError("what it sent with Hello are no pipes")


def _process_of(descriptor: int) -> int | None:
    """Of which process this is a descriptor; -1 of one that has ended, None of something else. See pidfd_open(2)."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/self/fdinfo/{descriptor}").read_text("ascii").splitlines():
            name, _, number = line.partition(":")
            if name == "Pid":
                return int(number)
    return None
