"""An asyncio loop whose time is virtual: it never waits, it leaps to when the next callback is due.

So the daemon's own coroutines (its hands, its orders, its owner's desk) run as they are, with `asyncio.sleep` and all,
and a night takes seconds. There are no sockets and no threads: what a coroutine hands to an executor is done on the
loop itself, a moment later. With the same callbacks the loop runs them in the same order, always.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

EXECUTOR_S = 0.001
"""How long a thread takes to be given something to do."""


class Stuck(RuntimeError):  # noqa: N818 - a state of the loop, not of a value
    """Nothing is due any more, and the run has not come to its end."""


class _Leap:
    """Stands where a loop has its selector: instead of waiting, time is moved on."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def select(self, timeout_s: float | None) -> list[object]:
        """Let `timeout_s` pass."""
        if timeout_s is None:
            raise Stuck("nothing is due any more")
        self._loop.now_s += timeout_s
        return []


class VirtualLoop(asyncio.BaseEventLoop):
    """Begins at 0 s. `now_s` is the true time of the simulated world; its clocks show something else."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self._selector = _Leap(self)
        self._clock_resolution = 1e-6  # floats of days, in seconds, are exact to less than that
        self.set_exception_handler(_raise)
        self.fault: BaseException | None = None
        """What a callback raised that nobody caught: a bug in the simulation, or in what it runs."""

    @property
    def now_ms(self) -> int:
        """True time, in whole milliseconds since the beginning."""
        return int(self.now_s * 1000 + 1e-3)

    def time(self) -> float:
        """The loop's clock."""
        return self.now_s

    def after(self, delay_ms: float, action: Callable[[], object]) -> asyncio.TimerHandle:
        """Do `action` so much later in true time."""
        return self.call_later(max(0.0, delay_ms) / 1000, action)

    def run_in_executor(  # type: ignore[override]  # the same at run time, and nobody awaits more of it
        self, _executor: Executor | None, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """`func`, a moment later, on the loop itself."""
        future: asyncio.Future[Any] = self.create_future()

        def run() -> None:
            if future.done():
                return
            try:
                result = func(*args)
            except Exception as error:  # noqa: BLE001 - it belongs to whoever awaits the future
                future.set_exception(error)
            else:
                future.set_result(result)

        self.call_later(EXECUTOR_S, run)
        return future

    def _process_events(self, _events: list[object]) -> None:
        """There are none: no sockets."""

    def _write_to_self(self) -> None:
        """Nobody sleeps who would have to be woken."""


def _raise(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    if isinstance(loop, VirtualLoop) and loop.fault is None:
        loop.fault = error if isinstance(error, BaseException) else RuntimeError(str(context.get("message")))
        loop.stop()
