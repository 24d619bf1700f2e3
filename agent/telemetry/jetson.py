"""Reads a Jetson's own sensors from sysfs: die temperature from thermal zones, power from INA3221 monitors.

    sys/devices/virtual/thermal/thermal_zone*/{type,temp}                           millidegrees Celsius
    sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*/{in,curr}[1-3]_{label,input}         millivolts, milliamperes

The die is as hot as its hottest zone: CPU, GPU, SoC, or the junction (`tj`), which is the hottest of all by design. A
zone may be unreadable while its unit is switched off, so the others count then. The PMIC zone is skipped: on many
boards it says 100 C for ever. Power is the rail VDD_IN, which feeds everything, or else the sum of all rails.

What cannot be read is no reading (None), never zero. A partial sum would be less than the truth, so one unreadable
rail makes the power unknown.

The root can be any folder. A tree that a rig's car model writes has a file `driveway-simulated` at its root, and its
readings are named `simulated` from here to what is signed.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from agent.core.events import ComputeSeen
from agent.ports import Clock, Emit

ZONES = "sys/devices/virtual/thermal/thermal_zone*"
MONITORS = "sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*"
SIMULATED_MARK = "driveway-simulated"
SIMULATED = "simulated"

DIE_ZONES = ("cpu", "gpu", "soc", "tj")
TOTAL_RAIL = "VDD_IN"
CHANNELS = (1, 2, 3)
PLAUSIBLE_DIE_C = (-40.0, 150.0)
"""Silicon is destroyed outside of this; a sensor that says so is broken."""


class JetsonSysfs:
    """A source (`agent.ports.Source`) of ComputeSeen events, one every `interval_ms`."""

    def __init__(self, root: Path, interval_ms: int, clock: Clock, sensor_name: str = "ina3221") -> None:
        self._root = root
        self._interval_s = interval_ms / 1000
        self._clock = clock
        self._sensor_name = sensor_name

    async def run(self, emit: Emit) -> None:
        """Read and emit until cancelled. Reading waits for the I2C bus, so it happens beside the loop."""
        while True:
            emit(await asyncio.to_thread(self.read))
            await asyncio.sleep(self._interval_s)

    def read(self) -> ComputeSeen:
        """One reading, taken now."""
        simulated = (self._root / SIMULATED_MARK).exists()
        return ComputeSeen(
            at_ms=self._clock.boot_ms(),
            die_c=read_die_c(self._root),
            power_w=read_power_w(self._root),
            sensor=SIMULATED if simulated else self._sensor_name,
        )


def read_die_c(root: Path) -> float | None:
    """The hottest of the die's readable zones, in degrees Celsius; None when there is none."""
    readings = []
    for zone in root.glob(ZONES):
        kind = _text(zone / "type")
        millidegrees = _number(zone / "temp")
        if kind is None or millidegrees is None or not kind.lower().startswith(DIE_ZONES):
            continue
        degrees = millidegrees / 1000
        if PLAUSIBLE_DIE_C[0] <= degrees <= PLAUSIBLE_DIE_C[1]:
            readings.append(degrees)
    return max(readings, default=None)


def read_power_w(root: Path) -> float | None:
    """What the computer draws, in watts; None when any rail that counts cannot be read."""
    rails = {(label, monitor, channel): _rail_w(monitor, channel) for monitor, channel, label in _rails(root)}
    totals = [watts for (label, _, _), watts in rails.items() if label == TOTAL_RAIL]
    counted = totals or list(rails.values())
    watts = [reading for reading in counted if reading is not None]
    return sum(watts) if watts and len(watts) == len(counted) else None


def _rails(root: Path) -> list[tuple[Path, int, str]]:
    """Every connected rail: its monitor, channel and label. An unreadable label is a rail of unknown name."""
    rails = []
    for monitor in root.glob(MONITORS):
        for channel in CHANNELS:
            label_file = monitor / f"in{channel}_label"
            if not label_file.exists():
                continue
            label = _text(label_file) or ""
            if label.upper() != "NC" and not label.lower().startswith("sum of shunt"):
                rails.append((monitor, channel, label))
    return rails


def _rail_w(monitor: Path, channel: int) -> float | None:
    millivolts = _number(monitor / f"in{channel}_input")
    milliamperes = _number(monitor / f"curr{channel}_input")
    return None if millivolts is None or milliamperes is None else millivolts * milliamperes / 1e6


def _text(path: Path) -> str | None:
    try:
        return path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None


def _number(path: Path) -> int | None:
    """The whole number in a sysfs file; None for a file that is gone, fails to read, or holds anything else."""
    text = _text(path)
    try:
        return int(text) if text is not None else None
    except ValueError:
        return None
