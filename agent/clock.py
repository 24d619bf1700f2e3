"""Time, in one place: CLOCK_BOOTTIME for every decision, wall time only for what people read.

Boot time counts while the car sleeps (CLOCK_MONOTONIC does not) and never jumps (wall time does).
"""

from __future__ import annotations

import time
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class SystemClock:
    """The clock of this computer; see `agent.ports.Clock`."""

    def boot_ms(self) -> int:
        """Milliseconds since boot, sleep included."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000

    def wall_ms(self) -> int:
        """Milliseconds since 1970 as this computer believes; never decides anything."""
        return time.time_ns() // 1_000_000


def boot_s() -> float:
    """Seconds since boot, sleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def slept_s() -> float:
    """How many of them this computer has slept."""
    return boot_s() - time.clock_gettime(time.CLOCK_MONOTONIC)


def boot_id() -> str:
    """A name for this boot, so that boot times of two boots are never compared; '' where the kernel has none."""
    try:
        return BOOT_ID.read_text("ascii").strip().replace("-", "")
    except OSError:
        return ""
