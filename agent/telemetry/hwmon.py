"""Reads a laptop's or a PC's die temperature through psutil. They measure no power that can be trusted: None."""

from __future__ import annotations

import asyncio
import math

import psutil

from agent.core.events import ComputeSeen
from agent.ports import Clock, Emit

DIE_DRIVERS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "soc_thermal")
"""hwmon drivers that measure a processor's die, by the names the Linux kernel gives them."""


class Hwmon:
    """A source (`agent.ports.Source`) of ComputeSeen events, one every `interval_ms`."""

    def __init__(self, interval_ms: int, clock: Clock) -> None:
        self._interval_s = interval_ms / 1000
        self._clock = clock

    async def run(self, emit: Emit) -> None:
        """Read and emit until cancelled."""
        while True:
            emit(await asyncio.to_thread(self.read))
            await asyncio.sleep(self._interval_s)

    def read(self) -> ComputeSeen:
        """One reading, taken now."""
        return ComputeSeen(at_ms=self._clock.boot_ms(), die_c=read_die_c(), power_w=None, sensor="hwmon")


def read_die_c() -> float | None:
    """The hottest die sensor in degrees Celsius; None when this computer has none, or a virtual machine hides it."""
    try:
        sensors = psutil.sensors_temperatures()
    except OSError:
        return None
    readings = [reading.current for driver in DIE_DRIVERS for reading in sensors.get(driver, [])]
    return max((float(degrees) for degrees in readings if math.isfinite(degrees)), default=None)
