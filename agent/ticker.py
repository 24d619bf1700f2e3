"""Tells the core that time has passed: when something falls due, and not before.

The core says until when nothing can happen by itself (`State.due_ms`); one timer of the event loop is set to that, and
set anew when an event brings it forward. A tick that comes early decides nothing, so nothing depends on the timer being
exact. It comes at least once a second: boot time runs on while the computer sleeps and the loop's clock does not, so a
timer alone could be late by as long as it slept. That the computer slept is told first, since the two clocks show it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agent.clock import slept_s
from agent.core.events import ComputerSlept, Tick
from agent.ports import Clock, Emit

LONGEST_MS = 1_000
SLEPT_MS = 1_000
"""What counts as a sleep; the two clocks are not read in the same instant."""
SHORTEST_MS = 10
"""Between two ticks, so that something that is due and stays due cannot keep the loop busy."""


class Ticker:
    """Emits ticks. `due_ms` is asked after every event; use it on the event loop's thread only.

    `slept_s` is how long this computer has slept since it was started. `on_tick` is told of each tick when it was
    decided: the loop's time, and how much later that is than the tick was set for (a sleep of the computer is no
    lateness).
    """

    def __init__(
        self,
        emit: Emit,
        clock: Clock,
        due_ms: Callable[[], int],
        slept_s: Callable[[], float] = slept_s,
        on_tick: Callable[[float, float], None] = lambda _now_s, _late_s: None,
    ) -> None:
        self._emit, self._clock, self._due_ms, self._on_tick = emit, clock, due_ms, on_tick
        self._slept_s, self._asleep_s = slept_s, slept_s()
        self._timer: asyncio.TimerHandle | None = None
        self._at_ms = 0

    async def run(self) -> None:
        """Tick until cancelled."""
        self._tick()
        try:
            await asyncio.Event().wait()
        finally:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def settle(self) -> None:
        """Call after every event: what is due may have come forward."""
        if self._timer is not None and self._due_ms() < self._at_ms:
            self._timer.cancel()
            self._set()

    def _tick(self) -> None:
        loop, timer = asyncio.get_running_loop(), self._timer
        set_for_s = loop.time() if timer is None else timer.when()
        self._timer = None
        try:
            self._tell_sleep()
            self._emit(Tick(at_ms=self._clock.boot_ms()))
        finally:
            self._set()
        now_s = loop.time()
        self._on_tick(now_s, now_s - set_for_s)

    def _tell_sleep(self) -> None:
        before_s, self._asleep_s = self._asleep_s, self._slept_s()
        slept_ms = round((self._asleep_s - before_s) * 1000)
        if slept_ms >= SLEPT_MS:
            self._emit(ComputerSlept(at_ms=self._clock.boot_ms(), slept_ms=slept_ms))

    def _set(self) -> None:
        now_ms = self._clock.boot_ms()
        self._at_ms = min(max(self._due_ms(), now_ms + SHORTEST_MS), now_ms + LONGEST_MS)
        self._timer = asyncio.get_running_loop().call_later((self._at_ms - now_ms) / 1000, self._tick)
