"""Reads a laptop's or a PC's die temperature through psutil. They measure no power that can be trusted: None."""

from __future__ import annotations

import psutil

from agent.core.events import ComputeSeen
from agent.telemetry.reader import ERRORS, plausible_die_c

DIE_DRIVERS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "soc_thermal")
"""hwmon drivers that measure a processor's die, by the names the Linux kernel gives them."""


class Hwmon:
    """A reader (`agent.telemetry.reader.Reader`) of this computer's hwmon tree."""

    def read(self, at_ms: int) -> ComputeSeen:
        """One reading, taken now."""
        error = ERRORS["hwmon"]
        return ComputeSeen(
            at_ms=at_ms,
            die_c=read_die_c(),
            power_w=None,
            sensor="hwmon",
            die_error_c=error.die_c,
            power_error_share=error.power_share,
        )

    def close(self) -> None:
        """Nothing is held."""


def read_die_c() -> float | None:
    """The hottest die sensor in degrees Celsius; None when this computer has none, or a virtual machine hides it."""
    try:
        sensors = psutil.sensors_temperatures()
    except (OSError, ValueError):
        return None
    readings = [plausible_die_c(float(one.current)) for driver in DIE_DRIVERS for one in sensors.get(driver, [])]
    return max((degrees for degrees in readings if degrees is not None), default=None)
