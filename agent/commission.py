"""The step test: lets the computer stand idle, work at full power, and stand again, and writes down what it felt.

From the temperatures and powers of those three parts `agent.core.commissioning.fit` finds the bounds that the thermal
guard's proof needs. The test heats the computer on purpose, so it watches its limits itself: it ends the work at once
when the die comes within `MARGIN_C` of its limit, when a sensor falls silent, when the work fails, or when it is
cancelled because the driver came back. The sensor is read beside the event loop: one that hangs is silent too, and
hides no driver. The test changes nothing on the computer and writes no configuration.

Time is injected, so that the same test runs against a plant model in seconds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable

import msgspec

from agent.beside import Beside
from agent.core.commissioning import StepSample
from agent.core.events import ComputeSeen
from agent.errors import ComputerError
from agent.load import Load
from agent.ports import Clock
from agent.telemetry.reader import Reader

MARGIN_C = 5.0
"""So far under the die's limit the work ends: a die cools within seconds once nothing heats it."""
SILENT_MS = 3_000
"""Without a whole reading for this long the work ends."""
CLOSE_S = 0.5

Sleep = Callable[[float], Awaitable[None]]
Tell = Callable[[str], None]


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """How long each part takes, in seconds, and how often is measured."""

    soak_s: float
    work_s: float
    cool_s: float
    interval_s: float = 0.5

    @classmethod
    def of_minutes(cls, minutes: float) -> Schedule:
        """A fifth idle, three fifths at full power, a fifth idle again."""
        return cls(soak_s=minutes * 12, work_s=minutes * 36, cool_s=minutes * 12)


class StepTest:
    """One run of the test, which lets go of its reader at the end."""

    def __init__(
        self,
        schedule: Schedule,
        *,
        reader: Reader,
        load: Load,
        clock: Clock,
        sleep: Sleep,
        tell: Tell,
        die_limit_c: float,
    ) -> None:
        self._schedule, self._reader, self._load, self._clock = schedule, reader, load, clock
        self._sleep, self._tell = sleep, tell
        self._die_limit_c = die_limit_c
        self._beside = Beside()
        self._samples: list[StepSample] = []
        self._read_ms = 0
        self.sensor = ""

    async def run(self) -> list[StepSample]:
        """All samples in order; raises ComputerError when the test had to end early."""
        try:
            return await self._run()
        finally:
            with contextlib.suppress(TimeoutError):
                await self._beside.run(self._reader.close, CLOSE_S)

    async def _run(self) -> list[StepSample]:
        schedule = self._schedule
        self._read_ms = self._clock.boot_ms()
        self._tell(f"idle for {schedule.soak_s / 60:.0f} min")
        await self._measure(schedule.soak_s)
        self._tell(f"full power for {schedule.work_s / 60:.0f} min")
        try:
            await self._load.start()
            await self._measure(schedule.work_s)
        finally:
            await self._load.stop()
        self._tell(f"idle again for {schedule.cool_s / 60:.0f} min")
        await self._measure(schedule.cool_s)
        return self._samples

    async def _measure(self, duration_s: float) -> None:
        ends_ms = self._clock.boot_ms() + round(duration_s * 1000)
        while self._clock.boot_ms() < ends_ms:
            if fault := self._load.fault():
                raise ComputerError(f"the work that heats the computer ended: {fault}")
            await self._take()
            await self._sleep(self._schedule.interval_s)

    async def _read(self, now_ms: int) -> ComputeSeen:
        """One reading; a sensor that answers nothing at all has been silent long enough."""
        try:
            return await self._beside.run(lambda: self._reader.read(now_ms), SILENT_MS / 1000)
        except TimeoutError:
            raise ComputerError(
                f"the sensor hangs: it has not answered for {SILENT_MS / 1000:.0f} s",
                hint="look at its bus and its driver; see [computer] in the configuration",
            ) from None

    async def _take(self) -> None:
        """One sample; a reading that lacks temperature or power is left out for a while, and then ends the test."""
        now_ms = self._clock.boot_ms()
        seen = await self._read(now_ms)
        self.sensor = seen.sensor
        if seen.die_c is None or seen.power_w is None:
            lacking = "temperature" if seen.die_c is None else "power"
            if now_ms - self._read_ms >= SILENT_MS:
                raise ComputerError(
                    f"the sensor {seen.sensor} has told no {lacking} for {(now_ms - self._read_ms) / 1000:.0f} s",
                    hint="the test needs both; see [computer] in the configuration",
                )
            return
        self._read_ms = now_ms
        if seen.die_c > self._die_limit_c - MARGIN_C:
            raise ComputerError(
                f"the die reached {seen.die_c:.1f} C, within {MARGIN_C:.0f} K of its limit; the work was ended",
                hint="let the computer cool down, and test it in cooler air",
            )
        self._samples.append(StepSample(at_ms=now_ms, die_c=seen.die_c, power_w=seen.power_w))
