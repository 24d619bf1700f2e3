"""What the worker takes from its own process: its survival, its secrets' way out, its precedence, its privileges.

Nothing here depends on how the kernel was configured, except that an unprivileged process may not always lower its I/O
class. `nice` and not SCHED_IDLE: a worker that holds a lock of the accelerator's driver, or has been told to stop, has
to get the processor within milliseconds even when the car's own programs keep it busy.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import struct
from pathlib import Path

from agent.errors import WorkerError
from agent.wire import MAX_PLAN_BYTES
from agent.worker.sandbox.kernel import Kernel

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_CAPABILITY_VERSION_3 = 0x2008_0522
_IOPRIO_WHO_PROCESS = 1
_IOPRIO_CLASS_IDLE = 3 << 13
_NICENESS = 10
_OOM_SCORE_ADJ = 1000
"""Of all processes the kernel ends this one first: it can be started again, the car's own programs cannot."""
_UCRED = struct.Struct("3i")
"""struct ucred of unix(7): pid, uid, gid."""
MAX_OPEN_FILES = 1024
"""A Jetson's driver takes a descriptor for each block of memory."""
MAX_THREADS = 512
MAX_FILE_BYTES = 1024**2
"""It writes no file. A library's complaints go into a memfd, whose size is limited like a file's."""


def die_with_parent(kernel: Kernel, channel: socket.socket) -> None:
    """Have the kernel end this process with its parent, however that dies; raises WorkerError when it cannot.

    The parent may have died before the kernel knew, so it is checked afterwards: the process that made the socket pair
    must still be our parent.
    """
    kernel.call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    creator, _, _ = _UCRED.unpack(channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    if os.getppid() != creator:
        raise WorkerError(f"the parent is process {os.getppid()}, not {creator}, which made the channel")


def be_first_to_go(_kernel: Kernel) -> None:
    """When the computer runs out of memory, this process ends first."""
    Path("/proc/self/oom_score_adj").write_bytes(b"%d" % _OOM_SCORE_ADJ)


def yield_to_others(kernel: Kernel) -> None:
    """Everything else on the computer comes first, on the processor and at the disk."""
    os.setpriority(os.PRIO_PROCESS, 0, _NICENESS)
    kernel.call("ioprio_set", _IOPRIO_WHO_PROCESS, 0, _IOPRIO_CLASS_IDLE)


def hide_memory(kernel: Kernel) -> None:
    """Nobody may look into this process, which holds customers' data, and it leaves no core dump."""
    kernel.call("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def limit_files(_kernel: Kernel, *, accelerator: bool) -> None:
    """Bound the open files and their size, and close the ways to leave data in the kernel's message queues.

    With an accelerator a builder's plan has to fit in a memfd.
    """
    size = MAX_PLAN_BYTES if accelerator else MAX_FILE_BYTES
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = MAX_OPEN_FILES if most == resource.RLIM_INFINITY else min(MAX_OPEN_FILES, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    resource.setrlimit(resource.RLIMIT_MSGQUEUE, (0, 0))


def limit_threads() -> None:
    """Bound the threads. Only in a user namespace of its own: else the user's other processes would count too."""
    resource.setrlimit(resource.RLIMIT_NPROC, (MAX_THREADS, MAX_THREADS))


def limit_memory(memory_mb: int) -> None:
    """Cap this process's private writable memory in MiB; beyond it allocations fail, and with them a slice.

    A tighter cap that the process was started with stays.
    """
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = memory_mb * 1024**2 if most == resource.RLIM_INFINITY else min(memory_mb * 1024**2, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def gain_nothing(kernel: Kernel) -> None:
    """Give up every capability, and whatever running a setuid program would give."""
    kernel.call("prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    none = (ctypes.c_uint32 * 6)()
    kernel.call("capset", header, none)
    kernel.call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
