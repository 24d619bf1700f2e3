"""What a process that attacks is shut in with, and what there is for it to attack."""

from __future__ import annotations

import errno
import os
from typing import Any

import msgspec

from agent.worker.sandbox.kernel import Kernel

NOBODY = 65_534
CALLS = {"own_network": "unshare", "landlock": "landlock_create_ruleset", "system_calls": "seccomp"}
"""The call without which a measure is absent."""


class Configuration(msgspec.Struct, frozen=True):
    """What the attacker is shut in with, and what it attacks."""

    measures: list[str]
    socket: int
    readable: str
    state: str
    """The daemon's state directory, with `key`, and a socket `control` that listens and one `notify` for datagrams."""
    victim: int
    """Another process of the same user."""
    tcp_port: int
    udp_port: int
    abstract: str
    landlock_abi: int | None = None


class LimitedKernel(Kernel):
    """A kernel that lacks some calls, or has an older Landlock."""

    def __init__(self, without: set[str], landlock_abi: int | None = None) -> None:
        super().__init__()
        self._without, self._landlock_abi = without, landlock_abi

    def call(self, name: str, *arguments: Any) -> int:
        if name in self._without:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        if name == "landlock_create_ruleset" and arguments[0] is None and self._landlock_abi is not None:
            return self._landlock_abi
        return super().call(name, *arguments)
