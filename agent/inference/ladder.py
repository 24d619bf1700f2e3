"""Ending a worker's process: rung by rung within one budget, of which the first and the last are always kept.

1. The Stop frame, which `agent.inference.launcher` writes: the worker ends its micro-batch, says Idle and frees.
2. At `TERM_PERMILLE` of the budget, when every drain that was promised is over: SIGTERM, for a worker that does not
   look at its socket. It drains, says Idle and frees as soon as the call that it is inside of returns
   (`agent.worker.ending`).
3. At the end of the budget: SIGKILL, through the pidfd, which cannot hit another process, and to its whole control
   group where it has one. It is the last rung because a driver frees a killed process's memory more slowly, and a
   kernel that was running may leave the device busy. With a budget of 0 it is the only one.

So of a budget of 60 ms the first 54 are for a drain after Stop, and the last 6 for one after SIGTERM to come as far as
Idle. Freeing is in neither: a worker that said Idle in time computes no more, and has until `FREED_MS` after the order
to free what it holds, so that memory is back within a second of the driver's sign. One that lies about it gains those
milliseconds and no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable

TERM_PERMILLE = 900
FREED_MS = 700


class Ladder:
    """One process's end. Use on the event loop's thread; `close` it once the process is gone.

    `kill_group` sees to whatever the process has started; it must not wait.
    """

    def __init__(self, pidfd: int, kill_group: Callable[[], None]) -> None:
        self._pidfd, self._kill_group = pidfd, kill_group
        self._loop = asyncio.get_running_loop()
        self._kill: asyncio.TimerHandle | None = None
        self._terminate: asyncio.TimerHandle | None = None
        self._asked_s: float | None = None
        self._idle = False
        self.signalled: signal.Signals | None = None
        """The last signal that it was sent."""

    def stop_within(self, budget_ms: int) -> None:
        """Climb to the end within `budget_ms` (0: at once). A looser budget than before changes nothing.

        Neither does any but 0 once the worker computes no more.
        """
        now_s = self._loop.time()
        self._asked_s = now_s if self._asked_s is None else self._asked_s
        if self._idle and budget_ms > 0:
            return
        term_s = now_s + budget_ms * TERM_PERMILLE / 1_000_000
        if budget_ms > 0 and (self._terminate is None or self._terminate.when() > term_s):
            if self._terminate is not None:
                self._terminate.cancel()
            self._terminate = self._loop.call_at(term_s, self._signal, signal.SIGTERM)
        self.kill_after(budget_ms)

    def kill_after(self, budget_ms: int) -> None:
        """The last rung alone, in `budget_ms` unless it comes sooner anyway."""
        when_s = self._loop.time() + budget_ms / 1000
        if budget_ms <= 0:
            self._kill_now()
        elif self._kill is None or self._kill.when() > when_s:
            if self._kill is not None:
                self._kill.cancel()
            self._kill = self._loop.call_at(when_s, self._kill_now)

    def computes_no_more(self) -> None:
        """The worker said so; if it was told to stop, it has time to free what it holds."""
        if self._asked_s is None or self._idle:
            return
        self._idle = True
        self._cancel()
        self._kill = self._loop.call_at(self._asked_s + FREED_MS / 1000, self._kill_now)

    def close(self) -> None:
        """The process is gone: nothing is signalled any more."""
        self._cancel()

    def _cancel(self) -> None:
        for timer in (self._kill, self._terminate):
            if timer is not None:
                timer.cancel()
        self._kill = self._terminate = None

    def _kill_now(self) -> None:
        self._cancel()
        self._signal(signal.SIGKILL)
        self._kill_group()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)
            self.signalled = number
