"""Keeps this process's memory out of core dumps and out of others' sight: it holds keys, and customers' inputs pass."""

from __future__ import annotations

import ctypes
import os
import resource

from agent.log import logger

_PR_SET_DUMPABLE = 4


def stay_out_of_dumps() -> None:
    """No core file, and nobody but root may attach; where the kernel refuses, that is told and no more.

    A program that this one starts is dumpable again, so a worker sees to it itself (`agent.worker.sandbox.process`);
    the limit on core files goes on to all of them.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
        logger().warning("memory_not_hidden", error=os.strerror(ctypes.get_errno()))
