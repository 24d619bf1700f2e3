"""The system call filter: what a worker never needs, and what would reach out of it, is refused.

A list of what is refused and not of what is allowed, because nobody outside NVIDIA knows what the next driver calls. A
refused call fails with EPERM, so that a library which merely tries goes on; `clone3`, whose flags a filter cannot
see, does not exist (ENOSYS), whereupon libc makes its threads with `clone`. The filter also covers what Landlock and
the namespaces do not: sockets with a path in the file system, changes of mode and owner, limits and scheduling of the
user's other processes, signals through the owner of a descriptor.

No socket can be made, of any family. A pair of streams can: it leads nowhere but to itself, and a driver may use one to
wake its threads; datagram pairs could be connected elsewhere. Threads may be made, processes may not.

Memory that is shared and of no file counts towards no limit of a process (RLIMIT_DATA is of private memory), only of a
group, which not every platform gives. Nothing but an accelerator's driver maps any: without one it is refused.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator

from agent.worker.sandbox import bpf
from agent.worker.sandbox.bpf import Rule
from agent.worker.sandbox.kernel import Kernel

_SET_MODE_FILTER, _FLAG_TSYNC = 1, 1
_CLONE_THREAD = 0x1_0000
_SOCK_TYPE_MASK, _SOCK_STREAM = 0xF, 1
_F_SETOWN, _F_SETSIG, _F_SETOWN_EX = 8, 10, 15
_FIOSETOWN, _SIOCSPGRP = 0x8901, 0x8902
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4
_MAP_SHARED_ANONYMOUS = 0x01 | 0x20

_NEW_PROGRAMS = ("execve", "execveat", "fork", "vfork")
_OTHER_PROCESSES = (
    "ptrace",
    "process_vm_readv",
    "process_vm_writev",
    "process_madvise",
    "process_mrelease",
    "pidfd_open",
    "pidfd_getfd",
    "pidfd_send_signal",
    "tkill",
    "kcmp",
    "setpriority",
    "ioprio_set",
)
_SOCKETS = ("socket", "connect", "bind", "listen", "accept", "accept4")
_LASTING_MEMORY = (
    *("shmget", "shmat", "shmctl"),
    *("msgget", "msgsnd", "msgrcv", "msgctl"),
    *("semget", "semop", "semtimedop", "semctl"),
    *("mq_open", "mq_unlink", "mq_timedsend", "mq_timedreceive", "mq_notify", "mq_getsetattr"),
    *("add_key", "request_key", "keyctl"),
)
"""What would outlive the process, and so carry one customer's data to the next; also by an id that was guessed."""
_WATCHING = (
    *("inotify_init", "inotify_init1", "inotify_add_watch", "inotify_rm_watch"),
    *("fanotify_init", "fanotify_mark"),
)
"""Seeing when others use which files: Landlock has no say in it before a path is opened."""
_FILE_ATTRIBUTES = (
    "chmod",
    "fchmod",
    "fchmodat",
    "fchmodat2",
    "chown",
    "fchown",
    "lchown",
    "fchownat",
    "utime",
    "utimes",
    "utimensat",
    "futimesat",
    "setxattr",
    "lsetxattr",
    "fsetxattr",
    "setxattrat",
    "removexattr",
    "lremovexattr",
    "fremovexattr",
    "removexattrat",
    "file_setattr",
    "name_to_handle_at",
    "open_by_handle_at",
)
_FILE_SYSTEMS = (
    "mount",
    "umount2",
    "move_mount",
    "open_tree",
    "open_tree_attr",
    "fsopen",
    "fsconfig",
    "fsmount",
    "fspick",
    "mount_setattr",
    "pivot_root",
    "chroot",
    "setns",
    "unshare",
    "quotactl",
    "quotactl_fd",
    "swapon",
    "swapoff",
    "acct",
)
_KERNEL = (
    "bpf",
    "perf_event_open",
    "userfaultfd",
    "io_uring_setup",
    "io_uring_enter",
    "io_uring_register",
    "kexec_load",
    "kexec_file_load",
    "init_module",
    "finit_module",
    "delete_module",
    "reboot",
    "personality",
    "syslog",
    "settimeofday",
    "clock_settime",
    "clock_adjtime",
    "adjtimex",
    "sethostname",
    "setdomainname",
    "iopl",
    "ioperm",
    "modify_ldt",
)
REFUSED = (
    *_NEW_PROGRAMS,
    *_OTHER_PROCESSES,
    *_SOCKETS,
    *_LASTING_MEMORY,
    *_WATCHING,
    *_FILE_ATTRIBUTES,
    *_FILE_SYSTEMS,
    *_KERNEL,
)
"""Refused whatever the arguments."""
_TO_ITSELF = ("kill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo")
_ON_ITSELF = ("prlimit64", "migrate_pages", "move_pages")
_ON_THIS_THREAD = ("sched_setscheduler", "sched_setparam", "sched_setattr", "sched_setaffinity")


def rules(pid: int, *, accelerator: bool = False) -> Iterator[Rule]:
    """All rules, for the process `pid`, which uses an accelerator or does not."""
    yield Rule("clone3", errno.ENOSYS)
    yield Rule("clone", errno.EPERM, argument=0, mask=_CLONE_THREAD, allowed=(_CLONE_THREAD,))
    yield Rule("socketpair", errno.EPERM, argument=1, mask=_SOCK_TYPE_MASK, allowed=(_SOCK_STREAM,))
    yield from (Rule(name, errno.EPERM) for name in REFUSED)
    yield from (Rule(name, errno.EPERM, argument=0, allowed=(pid,)) for name in _TO_ITSELF)
    yield from (Rule(name, errno.EPERM, argument=0, allowed=(0, pid)) for name in _ON_ITSELF)
    yield from (Rule(name, errno.EPERM, argument=0, allowed=(0,)) for name in _ON_THIS_THREAD)
    yield Rule("fcntl", errno.EPERM, argument=1, refused=(_F_SETOWN, _F_SETSIG, _F_SETOWN_EX))
    yield Rule("ioctl", errno.EPERM, argument=1, refused=(_FIOSETOWN, _SIOCSPGRP, _TIOCSTI, _TIOCLINUX))
    yield Rule("prctl", errno.EPERM, argument=0, refused=(_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE))
    if not accelerator:
        yield Rule("mmap", errno.EPERM, argument=3, mask=_MAP_SHARED_ANONYMOUS, refused=(_MAP_SHARED_ANONYMOUS,))


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("instructions", ctypes.c_ushort), ("code", ctypes.c_char_p))


def refuse_calls(kernel: Kernel, *, accelerator: bool) -> None:
    """Install the filter for this process, for good; raises OSError where the kernel has no such filters."""
    if kernel.processor is None:
        raise OSError(errno.ENOSYS, f"no system calls are known of {os.uname().machine}")
    code = bpf.assemble(list(rules(os.getpid(), accelerator=accelerator)), kernel.processor, foreign_error=errno.ENOSYS)
    program = _Program(len(code) // 8, code)
    thread = kernel.call("seccomp", _SET_MODE_FILTER, _FLAG_TSYNC, ctypes.byref(program))
    if thread:
        raise OSError(errno.EAGAIN, f"thread {thread} has a filter of its own")
