"""One bus's frames as events: samples when there is news, and one word each time the bus falls silent or is back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

from agent.core.events import SignalsSeen, SourceChanged
from agent.ports import Clock, Emit
from agent.vehicle.decoder import Decoder, Frame

SILENT_MS = 2_000
"""No frame of the profile for this long: the bus sleeps, is cut, or its gateway died. The gates' own age limits are
shorter; this is what lets the agent say why."""
WATCH_INTERVAL_S = 0.25


class BusListener:
    """Decodes what a source hands it and emits; use it on the event loop's thread only."""

    def __init__(self, name: str, decoder: Decoder, clock: Clock, emit: Emit) -> None:
        self.decoder = decoder
        self._name = name
        self._clock = clock
        self._emit = emit
        self._alive: bool | None = None
        self._heard_ms = clock.boot_ms()

    async def listen(self, keep_open: Callable[[BusListener], Coroutine[None, None, None]]) -> None:
        """Receive with `keep_open` (which hands over frames and losses) and watch for silence, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_silence(), name=f"{self._name} silence")
            group.create_task(keep_open(self), name=f"{self._name} frames")

    def frame(self, frame: Frame, at_ms: int) -> None:
        """Take one frame received at `at_ms`."""
        samples = self.decoder.decode(frame, at_ms)
        if samples is None:
            return
        self._heard_ms = at_ms
        if not self._alive:
            self._alive = True
            self._emit(SourceChanged(at_ms=at_ms, source=self._name, alive=True))
        if samples:
            self._emit(SignalsSeen(at_ms=at_ms, source=self._name, samples=samples))

    def lost(self, detail: str) -> None:
        """The bus cannot be heard, and why; said once until it is heard again."""
        if self._alive is not False:
            self._alive = False
            self._emit(SourceChanged(at_ms=self._clock.boot_ms(), source=self._name, alive=False, detail=detail))

    async def _watch_silence(self) -> None:
        """Say once when nothing has come for `SILENT_MS`; runs until cancelled."""
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            if self._clock.boot_ms() - self._heard_ms >= SILENT_MS:
                self.lost(f"no frames for {SILENT_MS / 1000:.0f} s")
