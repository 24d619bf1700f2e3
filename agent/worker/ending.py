"""How the worker ends when it is told to: by Stop, or by SIGTERM when it no longer looks at its socket.

Either way in the same order: the executor is drained, so that nothing computes; Idle is said; what held items is
overwritten and freed in the driver's own order, which can be far quicker than what the kernel does for a killed
process; and the process ends without the interpreter's good-byes. Idle comes before the freeing because the daemon
waits for the one briefly and for the other longer (`agent.inference.ladder`).

SIGTERM is heeded between two instructions of Python, so as soon as a call of the engine returns. A worker that hangs
inside a call never gets here: it is killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import NoReturn, Protocol

from agent.wire import EXIT_TERMINATED


class Held(Protocol):
    """What holds an accelerator or items until the end: `agent.worker.executor.Executor`, as far as it matters here."""

    def drain(self) -> None:
        """Nothing computes when this returns."""
        ...

    def close(self) -> None:
        """Free everything, overwritten."""
        ...


_held: list[Held] = []
_ending = False
_say_status: Callable[[int], None] | None = None


def say_status_by(say: Callable[[int], None]) -> None:
    """Nobody waits for this process as for a child: `say` is told its exit status at the end, and must not wait."""
    global _say_status  # noqa: PLW0603 - of the process, as its status is
    _say_status = say


def say_status(status: int) -> None:
    """The process is about to end with this status."""
    if _say_status is not None:
        with contextlib.suppress(Exception):
            _say_status(status)


def heed_sigterm_no_more() -> None:
    """Stop has come: the program says Idle and ends by itself, and must not be made to say it twice."""
    global _ending  # noqa: PLW0603 - of the process, as its signal handler is
    _ending = True


def end_on_sigterm(say_idle: Callable[[], None]) -> None:
    """From now on SIGTERM ends the process, and has `say_idle` called when nothing computes. Call on the main thread.

    It must not wait, and is called whatever the program is doing just then.
    """

    def end(_number: int, _frame: FrameType | None) -> None:
        if _ending:
            return
        try:
            _drain()
            say_idle()
            _free()
        finally:
            say_status(EXIT_TERMINATED)
            os._exit(EXIT_TERMINATED)

    signal.signal(signal.SIGTERM, end)


def free_at_end(held: Held) -> None:
    """Have it drained and closed at the end, however that comes; what it raises does not count."""
    _held.append(held)


def end_after_idle() -> NoReturn:
    """Free what is held and end with status 0; Idle was said, and SIGTERM changes nothing any more."""
    try:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _free()
    finally:
        say_status(0)
        os._exit(0)


def _drain() -> None:
    for held in _held:
        with contextlib.suppress(Exception):
            held.drain()


def _free() -> None:
    while _held:
        with contextlib.suppress(Exception):
            _held.pop(0).close()
