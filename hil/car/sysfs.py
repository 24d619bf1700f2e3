"""Writes the computer's sensors as a Jetson shows them: thermal zones and an INA3221, in millidegrees, mV and mA.

Every value file is replaced by renaming, so that a reader never sees half a number. The mark at the root says that
nobody measured these.
"""

from __future__ import annotations

from pathlib import Path

from agent.telemetry.jetson import SIMULATED_MARK

SUPPLY_V = 19.0
"""A developer kit's power supply."""
ZONES = ("cpu-thermal", "gpu-thermal", "soc0-thermal", "tj-thermal", "PMIC-Die")
RAILS = ("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC")
RAIL_SHARES = (1.0, 0.7, 0.2)
"""Of what VDD_IN carries; the rest feeds memory and the board."""
SHUNT_MICRO_OHM = 5_000


class SensorTree:
    """The tree under `root`; made when it is constructed."""

    def __init__(self, root: Path) -> None:
        self._zones = [root / f"sys/devices/virtual/thermal/thermal_zone{index}" for index in range(len(ZONES))]
        self._monitor = root / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon0"
        for folder in (*self._zones, self._monitor):
            folder.mkdir(parents=True, exist_ok=True)
        for zone, kind in zip(self._zones, ZONES, strict=True):
            _replace(zone / "type", kind)
        for channel, label in enumerate(RAILS, start=1):
            _replace(self._monitor / f"in{channel}_label", label)
            _replace(self._monitor / f"in{channel}_input", f"{SUPPLY_V * 1000:.0f}")
            _replace(self._monitor / f"shunt{channel}_resistor", f"{SHUNT_MICRO_OHM}")
        _replace(root / SIMULATED_MARK, "written by the simulated car\n")

    def write(self, die_c: float, sink_c: float, power_w: float) -> None:
        """Show these temperatures and this power."""
        shown = (die_c, die_c - 0.5, (die_c + sink_c) / 2, die_c, 100.0)
        for zone, degrees in zip(self._zones, shown, strict=True):
            _replace(zone / "temp", f"{degrees * 1000:.0f}")
        for channel, share in enumerate(RAIL_SHARES, start=1):
            _replace(self._monitor / f"curr{channel}_input", f"{power_w * share / SUPPLY_V * 1000:.0f}")

    def take_away(self) -> None:
        """The sensors are gone: no file of a value is there until the next `write`."""
        for path in (*self._monitor.glob("curr*_input"), *(zone / "temp" for zone in self._zones)):
            path.unlink(missing_ok=True)


def _replace(path: Path, text: str) -> None:
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text, "ascii")
    fresh.replace(path)
