"""A network of its own without any interface, where the platform lets a process have one.

Abstract Unix sockets belong to a network too, so those of the computer are out of reach as well; sockets with a path
are not: the system call filter refuses those. The user namespace is what lets an unprivileged process make the rest,
and in it a worker that was started by root has no power over anything outside. Its ids stay unmapped: nothing in the
worker asks who it is, and what it may open goes by who it really is.
"""

from __future__ import annotations

from agent.worker.sandbox.kernel import Kernel

_CLONE_NEWIPC = 0x0800_0000
_CLONE_NEWUSER = 0x1000_0000
_CLONE_NEWNET = 0x4000_0000


def leave_the_network(kernel: Kernel) -> None:
    """Enter a new user, network and IPC namespace; raises OSError where that is not permitted."""
    kernel.call("unshare", _CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC)
