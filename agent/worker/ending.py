"""How the worker ends when it is told to by signal: the second rung, for one that no longer looks at its socket.

SIGTERM is heeded between two instructions of Python, so as soon as a call of the engine returns: the accelerator's
memory is freed in the driver's own order, which can be far quicker than what the kernel does for a killed process, and
the process ends without the interpreter's good-byes. A worker that hangs inside a call never gets here: it is killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from types import FrameType

from agent.wire import EXIT_TERMINATED

_to_free: list[Callable[[], None]] = []


def end_on_sigterm() -> None:
    """From now on SIGTERM frees what is to be freed and ends the process. Call on the main thread."""
    signal.signal(signal.SIGTERM, _end)


def free_at_end(free: Callable[[], None]) -> None:
    """Have `free` called when SIGTERM comes, whatever the program is doing then; what it raises does not count."""
    _to_free.append(free)


def _end(_number: int, _frame: FrameType | None) -> None:
    try:
        for free in _to_free:
            with contextlib.suppress(Exception):
                free()
    finally:
        os._exit(EXIT_TERMINATED)
