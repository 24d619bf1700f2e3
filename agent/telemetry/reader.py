"""One interface for everything that reads the computer, and how far each reading may be believed.

A `Reader` takes a reading when it is asked; `ReaderSource` asks it again and again and emits what it said. A reading
names its sensor, which is what gets signed, and carries its error bars. What cannot be read, and what cannot be true,
is None: never zero, never the last value. A sensor that is stuck on a plausible value is not found out here: only the
core, which sees temperature and power together, can tell.

How far off a healthy sensor may be (`ERRORS`):

    sensor      die                                        power
    ina3221     3.0 K   calibrated on-die sensors are      gain +-0.25 % of voltage and of current, drift 50 ppm/K over
                within 1..1.5 K; NVIDIA promises           60 K, shunt +-1 %: 2.1 %; besides +-80 uV across the shunt
                nothing for Tegra's, so doubled            and +-16 mV on the bus (TI SBOS576, table 7.5)
    ina238      3.0 K   as above                           0.7 % in all over temperature (TI SLYS025, "power total
                                                           measurement error"), shunt +-1 %: 1.7 %
    nvml        3.0 K   whole degrees, no promise:         5 % ("accurate to within +/- 5 % of current power draw", NVML
                        doubled                            reference, nvmlDeviceGetPowerUsage)
    hwmon       5.0 K   DTS is accurate near its trip      no reading: what hwmon shows of a PC's power is a part of it
                        point and drifts below it
    simulated   as ina3221: a rig goes through the same code and the same arithmetic
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, runtime_checkable

import msgspec

from agent.core.events import ComputeSeen
from agent.ports import Clock, Emit
from agent.telemetry.sampling import moments_s

PLAUSIBLE_DIE_C = (-40.0, 150.0)
"""Silicon is destroyed outside of this; a sensor that says so is broken."""
PLAUSIBLE_POWER_W = 5_000.0
"""No computer in a car draws more, and none that reads its own sensor draws nothing."""


class SensorError(msgspec.Struct, frozen=True):
    """How far a healthy sensor may be off: kelvins on the die, and a share of the power it shows."""

    die_c: float
    power_share: float


ERRORS = {
    "ina3221": SensorError(die_c=3.0, power_share=0.021),
    "ina238": SensorError(die_c=3.0, power_share=0.017),
    "simulated": SensorError(die_c=3.0, power_share=0.021),
    "nvml": SensorError(die_c=3.0, power_share=0.05),
    "hwmon": SensorError(die_c=5.0, power_share=0.05),
}
"""By the name that a reading carries; the docstring above says where each number comes from."""


class Reader(Protocol):
    """Something that measures this computer. Used by one thread at a time, not always the same one."""

    def read(self, at_ms: int) -> ComputeSeen:
        """A reading taken now, which is `at_ms` of CLOCK_BOOTTIME. Never raises: what fails is None."""
        ...

    def close(self) -> None:
        """Let go of files and libraries."""
        ...


@runtime_checkable
class SampledReader(Reader, Protocol):
    """A reader whose power sensor shows only this moment's power, so that it must be looked at between readings."""

    def sample(self) -> None:
        """Look at the power; the next reading's is the mean of all looks. Never raises."""
        ...


class ReaderSource:
    """A source (`agent.ports.Source`) of ComputeSeen events: one reading every `interval_ms`.

    Where the sensor needs it, power is sampled between two readings too, as long as `working` says that there is a
    worker: what idles draws the same all the time, and shall not be kept awake.

    A sensor waits for its bus, so the reading is taken beside the event loop. A reader that hangs sends no events, and
    the temperature gate takes silence for heat.
    """

    def __init__(
        self, reader: Reader, interval_ms: int, clock: Clock, working: Callable[[], bool] = lambda: False
    ) -> None:
        self._reader, self._interval_s, self._clock, self._working = reader, interval_ms / 1000, clock, working
        self._ended = threading.Event()

    async def run(self, emit: Emit) -> None:
        """Read and emit until cancelled."""
        loop = asyncio.get_running_loop()
        thread = ThreadPoolExecutor(1, "computer")
        try:
            while True:
                emit(await loop.run_in_executor(thread, self._reader.read, self._clock.boot_ms()))
                if isinstance(self._reader, SampledReader) and self._working():
                    await loop.run_in_executor(thread, self._sample, self._reader)
                else:
                    await asyncio.sleep(self._interval_s)
        finally:
            self._ended.set()
            thread.submit(self._reader.close)  # after a reading that is still being taken
            thread.shutdown(wait=False)

    def _sample(self, reader: SampledReader) -> None:
        """Sample until the next reading is due."""
        began_s = time.monotonic()
        for moment_s in moments_s():
            if moment_s >= self._interval_s or self._ended.wait(began_s + moment_s - time.monotonic()):
                break
            reader.sample()
        self._ended.wait(began_s + self._interval_s - time.monotonic())


def plausible_die_c(degrees: float | None) -> float | None:
    """The temperature if silicon can have it; NaN cannot."""
    low, high = PLAUSIBLE_DIE_C
    return degrees if degrees is not None and low <= degrees <= high else None


def plausible_power_w(watts: float | None) -> float | None:
    """The power if a running computer can draw it."""
    return watts if watts is not None and 0.0 < watts <= PLAUSIBLE_POWER_W else None
