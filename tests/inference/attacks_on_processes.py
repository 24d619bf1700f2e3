"""What a worker that was taken over would try on programs, other processes and the kernel.

As in `tests.inference.attacks`, which runs them: each raises OSError when it is refused, and else returns.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import signal
import threading
from pathlib import Path

from agent.worker.sandbox.kernel import Kernel
from tests.inference.caged import Configuration

PR_SET_DUMPABLE, PR_SET_PDEATHSIG = 4, 1
PTRACE_SEIZE = 0x4206
SYSTEM = Kernel()
LIBC = ctypes.CDLL(None, use_errno=True)


def checked(result: int) -> int:
    """What a function of libc returned; raises its OSError."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


# --- programs and processes -----------------------------------------------------------------------------------


def fork(_on: Configuration) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def spawn(_on: Configuration) -> None:
    os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)


def outlive_the_daemon(_on: Configuration) -> None:
    checked(LIBC.prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0))


def become_readable(_on: Configuration) -> None:
    checked(LIBC.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0))


def trace(on: Configuration) -> None:
    checked(LIBC.ptrace(PTRACE_SEIZE, on.victim, None, None))


def read_memory(on: Configuration) -> None:
    with Path(f"/proc/{on.victim}/mem").open("rb"):
        pass


def read_environment(on: Configuration) -> None:
    assert Path(f"/proc/{on.victim}/environ").read_bytes()


def peek_at_memory(on: Configuration) -> None:
    """process_vm_readv of an address that is not mapped: EFAULT says that looking was allowed."""
    vector = (ctypes.c_size_t * 2)(4096, 1)
    local = ctypes.create_string_buffer(1)
    ours = (ctypes.c_size_t * 2)(ctypes.addressof(local), 1)
    try:
        checked(LIBC.process_vm_readv(on.victim, ours, 1, vector, 1, 0))
    except OSError as error:
        if error.errno != errno.EFAULT:
            raise


def signal_it(on: Configuration) -> None:
    os.kill(on.victim, signal.SIGCONT)


def signal_everybody(_on: Configuration) -> None:
    os.kill(-1, 0)


def signal_by_descriptor(on: Configuration) -> None:
    os.close(os.pidfd_open(on.victim))


def signal_by_owner(on: Configuration) -> None:
    one, other = os.pipe()
    try:
        fcntl.fcntl(one, fcntl.F_SETOWN, on.victim)
    finally:
        os.close(one)
        os.close(other)


def starve(on: Configuration) -> None:
    os.setpriority(os.PRIO_PROCESS, on.victim, 19)


def make_idle(on: Configuration) -> None:
    os.sched_setscheduler(on.victim, os.SCHED_BATCH, os.sched_param(0))


def pin(on: Configuration) -> None:
    os.sched_setaffinity(on.victim, os.sched_getaffinity(on.victim))


def limit(on: Configuration) -> None:
    resource.prlimit(on.victim, resource.RLIMIT_CORE, (0, 0))


# --- the kernel -----------------------------------------------------------------------------------------------


def make_a_namespace(_on: Configuration) -> None:
    """Only a process of one thread may, and a thread that was joined may still be ending."""
    while len(list(Path("/proc/self/task").iterdir())) > 1:
        os.sched_yield()
    SYSTEM.call("unshare", 0x1000_0000)


def keep_a_key(_on: Configuration) -> None:
    SYSTEM.call("add_key", ctypes.c_char_p(b"user"), ctypes.c_char_p(b"left"), ctypes.c_char_p(b"data"), 4, -2)


def change_personality(_on: Configuration) -> None:
    SYSTEM.call("personality", 0)


def open_a_ring(_on: Configuration) -> None:
    os.close(SYSTEM.call("io_uring_setup", 1, ctypes.create_string_buffer(120)))


def make_a_thread_that_a_filter_cannot_see(_on: Configuration) -> None:
    """clone3 with arguments that no kernel takes: EINVAL says that it is there."""
    try:
        SYSTEM.call("clone3", ctypes.create_string_buffer(8), 8)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def make_many_threads(_on: Configuration) -> None:
    done = threading.Event()
    made = []
    try:
        for _ in range(600):
            thread = threading.Thread(target=done.wait)
            thread.start()
            made.append(thread)
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, str(error)) from error
    finally:
        done.set()
        for thread in made:
            thread.join()


def run_a_shell(_on: Configuration) -> None:
    os.execv("/bin/sh", ["sh", "-c", "echo came off"])
