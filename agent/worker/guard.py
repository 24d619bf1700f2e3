"""What the worker takes from itself before it touches a byte of a package.

It dies with the daemon, however that dies; nobody may look into its memory, which holds customers' data; it leaves
no core dump; it yields to everything else on the computer.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import struct

from agent.errors import WorkerError

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_NICENESS = 10
_UCRED = struct.Struct("3i")
"""struct ucred of unix(7): pid, uid, gid."""


def guard_process(channel: socket.socket) -> None:
    """Tie this process to the one that made `channel` and shut it off; raises WorkerError when it cannot.

    The parent may have died before the kernel knew that we want to die with it, so it is checked afterwards: the
    process that made the socket pair must still be our parent.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    creator, _, _ = _UCRED.unpack(channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    if os.getppid() != creator:
        raise WorkerError(f"the parent is process {os.getppid()}, not {creator}, which made the channel")
    _prctl(_PR_SET_DUMPABLE, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.setpriority(os.PRIO_PROCESS, 0, _NICENESS)


def limit_memory(memory_mb: int) -> None:
    """Cap this process's private writable memory in MiB; beyond it allocations fail, and with them a slice."""
    limit = memory_mb * 1024**2
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _prctl(option: int, value: int) -> None:
    """prctl(2) with one argument."""
    libc = ctypes.CDLL(None, use_errno=True)
    unused = ctypes.c_ulong(0)
    if libc.prctl(option, ctypes.c_ulong(value), unused, unused, unused) != 0:
        raise WorkerError(f"prctl({option}, {value}) failed: {os.strerror(ctypes.get_errno())}")
