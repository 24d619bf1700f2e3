"""Has the memory come back? After a worker is gone, how much is free is compared with what was free before it came.

A process that has ended should leave nothing behind, but an accelerator's driver frees what it held in its own time,
seconds later at worst; a car's own programs count on it within one. So what is free is looked at before a worker is
started, when its package is loaded, and after its end until nine tenths of the difference are back.

What is free is asked of the accelerator's management library where that is configured (`nvml_free_bytes`), else of the
kernel: on a computer whose accelerator shares its memory that is the same, and elsewhere it is what a CPU's worker
takes. It is asked on a thread, since a driver in trouble may not answer. Other programs come and go as well, so this is
a measure and no proof, and nothing depends on it but a line in the log and in the status.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from agent.log import logger

FreeBytes = Callable[[], "int | None"]
WORTH_BYTES = 64 * 1024**2
"""Below that, what other programs do says more than what the worker did."""
BACK_PERMILLE = 900
PROMISED_MS = 1_000
LOOKS_MS = (0, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)
"""When it is looked, after the worker's end; after the last it is given up."""


class Held(msgspec.Struct, frozen=True):
    """What was free before a worker was started, and with its package loaded."""

    before_bytes: int
    loaded_bytes: int

    @property
    def worth_it(self) -> bool:
        """Whether the worker held enough to be seen coming back."""
        return self.before_bytes - self.loaded_bytes >= WORTH_BYTES

    def missing_bytes(self, free_bytes: int) -> int:
        """How much is still to come back; 0 when it is back."""
        enough = self.loaded_bytes + (self.before_bytes - self.loaded_bytes) * BACK_PERMILLE // 1000
        return max(0, enough - free_bytes)


class MemoryProbe:
    """Watches one worker at a time. Use on the event loop's thread."""

    def __init__(
        self,
        free_bytes: FreeBytes,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._free_bytes, self._sleep, self._now_s = free_bytes, sleep, now_s
        self._before: asyncio.Task[int | None] | None = None
        self._loaded: asyncio.Task[int | None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self.returned_ms: int | None = None
        """How long after its worker's end the memory was back, the last time that was seen."""

    def launched(self) -> None:
        """A worker is being started; whatever the one before left cannot be told from what this one takes."""
        self._cancel()
        self._before, self._loaded = self._ask(), None

    def loaded(self) -> None:
        """It holds its package."""
        self._loaded = self._ask()

    def gone(self) -> None:
        """It has ended: look until its memory is back."""
        if self._before is not None and self._loaded is not None and self._watching is None:
            watch = self._watch(self._now_s(), self._before, self._loaded)
            self._watching = asyncio.get_running_loop().create_task(watch)

    async def close(self) -> None:
        """Look no more."""
        tasks = [task for task in (self._before, self._loaded, self._watching) if task is not None]
        self._cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ask(self) -> asyncio.Task[int | None]:
        return asyncio.get_running_loop().create_task(asyncio.to_thread(self._free_bytes))

    def _cancel(self) -> None:
        for task in (self._before, self._loaded, self._watching):
            if task is not None:
                task.cancel()
        self._before = self._loaded = self._watching = None

    async def _watch(self, gone_s: float, before: asyncio.Task[int | None], loaded: asyncio.Task[int | None]) -> None:
        before_bytes, loaded_bytes = await before, await loaded
        if before_bytes is None or loaded_bytes is None:
            return
        held = Held(before_bytes, loaded_bytes)
        if not held.worth_it:
            return
        warned = False
        for look_ms in LOOKS_MS:
            await self._sleep(max(0.0, gone_s + look_ms / 1000 - self._now_s()))
            free_bytes = await asyncio.to_thread(self._free_bytes)
            if free_bytes is None:
                return
            after_ms, missing_bytes = round((self._now_s() - gone_s) * 1000), held.missing_bytes(free_bytes)
            if not missing_bytes:
                self.returned_ms = after_ms
                held_mb = (before_bytes - loaded_bytes) >> 20
                logger().info("memory_returned", after_ms=after_ms, held_mb=held_mb)
                return
            if after_ms >= PROMISED_MS and not warned:
                warned = True
                logger().warning("memory_not_returned", after_ms=after_ms, missing_mb=missing_bytes >> 20)


def available_bytes(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """What the kernel could give to a program now (MemAvailable of proc_meminfo(5)); None where it does not say."""
    try:
        for line in meminfo.read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def nvml_free_bytes(device: str) -> FreeBytes:
    """The free memory of an NVIDIA card (its index or UUID), as its management library tells it; None when it fails.

    Raises ConfigError where the library's bindings are not installed.
    """
    from agent.telemetry.nvml import handle_of, library  # noqa: PLC0415 - an extra, as there

    nvml = library()

    def ask() -> int | None:
        try:
            nvml.nvmlInit()
            try:
                return int(nvml.nvmlDeviceGetMemoryInfo(handle_of(nvml, device)).free)
            finally:
                nvml.nvmlShutdown()
        except nvml.NVMLError:
            return None

    return ask
