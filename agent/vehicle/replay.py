"""A recorded drive or night as a vehicle bus: a candump log, played at the speed at which it was recorded. For rigs.

The frames of one bus of the log come at their own distances in time, from when the source starts, drained every 20 ms
as from a real bus. Times that go backwards (a clock was set while recording) are played without a pause. After the last
frame the bus is lost, and says that the log has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

from agent.errors import ConfigError
from agent.ports import Clock
from agent.vehicle.candump import BadLines, CandumpFrame, read_candump
from agent.vehicle.decoder import Decoder, Frame
from agent.vehicle.drain import DRAIN_S, MAX_DATAGRAMS_PER_DRAIN
from agent.vehicle.listener import BusListener, BusSource

MAX_PAUSE_S = 3600.0


class ReplaySource(BusSource):
    """A vehicle source over a candump log; `interface` names the bus in the log, '' takes every frame."""

    def __init__(self, name: str, decoder: Decoder, clock: Clock, path: Path, interface: str = "") -> None:
        super().__init__(name, decoder, clock)
        self._path, self._interface = path, interface

    async def keep_open(self, listener: BusListener) -> None:
        """Play the log once, then stay silent until cancelled."""
        bad_lines = BadLines()
        try:
            await self._play(read_candump(self._path, bad_lines), listener)
            listener.lost(f"the log {self._path.name} has ended")
        except ConfigError as error:
            listener.lost(str(error))
        listener.counted["bad_lines"] = bad_lines.count
        await asyncio.Event().wait()

    async def _play(self, log: Iterator[CandumpFrame], listener: BusListener) -> None:
        batch: list[Frame] = []
        due_s = 0.0
        before_us: int | None = None
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        for logged in log:
            if self._interface and logged.interface != self._interface:
                continue
            pause_s = 0.0 if before_us is None else (logged.at_us - before_us) / 1e6
            before_us = logged.at_us
            due_s += min(max(pause_s, 0.0), MAX_PAUSE_S)
            if batch and start_s + due_s > loop.time() + DRAIN_S:
                batch = self._hand_over(batch, listener)
            if (wait_s := start_s + due_s - loop.time()) > DRAIN_S:
                await asyncio.sleep(wait_s)
            batch.append(logged.frame)
            if len(batch) >= MAX_DATAGRAMS_PER_DRAIN:
                batch = self._hand_over(batch, listener)
                await asyncio.sleep(0)
        self._hand_over(batch, listener)

    def _hand_over(self, batch: list[Frame], listener: BusListener) -> list[Frame]:
        listener.take(batch, self.clock.boot_ms())
        return []
