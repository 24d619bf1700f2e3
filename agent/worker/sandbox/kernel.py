"""The system calls that Python's standard library lacks: by name, through libc's `syscall`.

All of the cage goes through one `Kernel`, so that a test can take single calls away and see that their absence is told.
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Any

from agent.worker.sandbox.syscalls import Processor, processor_here


class Kernel:
    """The kernel that this process runs on."""

    def __init__(self) -> None:
        self.processor: Processor | None = processor_here()
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.syscall.restype = ctypes.c_long

    def call(self, name: str, *arguments: Any) -> int:
        """Make a system call with integers and ctypes pointers; raises OSError, ENOSYS where it has no number here."""
        number = None if self.processor is None else self.processor.numbers.get(name)
        if number is None:
            raise OSError(errno.ENOSYS, f"no number is known for {name} on {os.uname().machine}")
        passed = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
        ctypes.set_errno(0)
        result: int = self._libc.syscall(ctypes.c_long(number), *passed)
        if result < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return result
