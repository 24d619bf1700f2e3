"""Reads a Jetson's own sensors from sysfs: die temperature from thermal zones, power from INA3221 and INA238 monitors.

    sys/devices/virtual/thermal/thermal_zone*/{type,temp}                             millidegrees Celsius
    sys/devices/virtual/thermal/cooling_device*/{type,cur_state}                      0: not cooling
    sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*/{in,curr}[1-3]_{label,input}           millivolts, milliamperes
                                              curr[1-3]_crit, shunt[1-3]_resistor     milliamperes, micro-ohms
    sys/bus/i2c/drivers/ina238/*/hwmon/hwmon*/power1_input                            microwatts
                                             {in1,curr1}_input                        where it does not multiply

The die is as hot as its hottest zone: CPU, GPU, SoC, or the junction (`tj`), which is the hottest of all by design. A
zone may be unreadable while its unit is switched off, so the others count then. The PMIC zone is skipped: on many
boards it says 100 C for ever.

Power is what feeds everything: the INA238 at the board's input (Thor), or the rail VDD_IN, or else the sum of all
rails. A rail that shows more than twice the current at which its board cuts it off is broken. What cannot be read is no
reading (None), never zero: a partial sum would be less than the truth, so one unreadable rail makes the power unknown.
The monitors show the power of a few milliseconds; a reading is the mean of all samples since the one before, where the
source takes any in between (`agent.telemetry.sampling`).

`throttled`: the kernel's thermal framework holds a clock down (by one of its cooling devices), or a rail is at its
critical current, where the hardware does.

The root can be any folder. A tree that a rig's car model writes has a file `driveway-simulated` at its root, and its
readings are named `simulated` from here to what is signed.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from agent.core.events import ComputeSeen
from agent.telemetry.reader import ERRORS, plausible_die_c, plausible_power_w
from agent.telemetry.sampling import PowerMean
from agent.telemetry.sysfs import ValueFile, number, text

ZONES = "sys/devices/virtual/thermal/thermal_zone*"
COOLERS = "sys/devices/virtual/thermal/cooling_device*"
MONITORS = "sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*"
INPUT_MONITORS = "sys/bus/i2c/drivers/ina238/*/hwmon/hwmon*"
SIMULATED_MARK = "driveway-simulated"
SIMULATED = "simulated"

DIE_ZONES = ("cpu", "gpu", "soc", "tj")
THROTTLES = ("throttle", "cpufreq", "devfreq")
"""In the names of the cooling devices that hold a clock down; others are fans, and alerts that the case is hot."""
TOTAL_RAILS = frozenset({"VDD_IN", "POM_5V_IN", "VIN"})
"""Rails that feed all others: Orin and Xavier NX, Nano, Thor."""
CHANNELS = (1, 2, 3)
SHUNT_OFFSET_V = 80e-6
"""INA3221: the most that its input may be off (TI SBOS576, table 7.5)."""
USUAL_SHUNT_OHM = 0.002
"""NVIDIA's boards have 1 to 10 milliohm; for a driver that does not say. The smaller, the larger the error."""
BROKEN_ABOVE_CRITICAL = 2.0
"""Thor's peaks of a millisecond reach twice its limit (330 W over 168 W); a mean does not."""
RESCAN_MS = 10_000
"""While something is missing, look around anew this often: drivers load late."""


class RailReading(msgspec.Struct, frozen=True):
    """One rail: what it draws and how far off that may be, in watts; `critical` when it is at its board's limit."""

    power_w: float
    error_w: float = 0.0
    critical: bool = False


class Rail:
    """One channel of a monitor: voltage and current, or power where the monitor multiplies itself (INA238)."""

    def __init__(self, folder: Path, channel: int, label: str) -> None:
        self.label = label
        self._power = ValueFile(folder / f"power{channel}_input")
        self._voltage = ValueFile(folder / f"in{channel}_input")
        self._current = ValueFile(folder / f"curr{channel}_input")
        self._multiplies = self._power.path.exists()
        critical_ma = number(folder / f"curr{channel}_crit")
        self._critical_ma = critical_ma if critical_ma is not None and critical_ma > 0 else None
        micro_ohm = number(folder / f"shunt{channel}_resistor")
        self._offset_a = SHUNT_OFFSET_V / (micro_ohm / 1e6 if micro_ohm and micro_ohm > 0 else USUAL_SHUNT_OHM)

    @property
    def files(self) -> tuple[ValueFile, ...]:
        """What is read each time."""
        return (self._power,) if self._multiplies else (self._voltage, self._current)

    def read(self) -> RailReading | None:
        """What it draws now; None when that cannot be read or cannot be true."""
        if self._multiplies:
            microwatts = self._power.number()
            return None if microwatts is None or microwatts < 0 else RailReading(microwatts / 1e6)
        millivolts, milliamperes = self._voltage.number(), self._current.number()
        if millivolts is None or milliamperes is None or millivolts < 0:
            return None
        if milliamperes < 0:  # an unloaded rail may show the monitor's offset, and no more than that
            milliamperes = 0 if -milliamperes / 1e3 <= self._offset_a else None
        critical_ma = self._critical_ma
        if milliamperes is None or (critical_ma and milliamperes > BROKEN_ABOVE_CRITICAL * critical_ma):
            return None
        return RailReading(
            power_w=millivolts * milliamperes / 1e6,
            error_w=millivolts / 1e3 * self._offset_a,
            critical=critical_ma is not None and milliamperes >= critical_ma,
        )


class JetsonSysfs:
    """A reader (`agent.telemetry.reader.Reader`) of the tree under `root`."""

    def __init__(self, root: Path) -> None:
        self._root, self._mark = root, root / SIMULATED_MARK
        self._scanned_ms: int | None = None
        self._zones: list[ValueFile] = []
        self._coolers: list[ValueFile] = []
        self._rails: list[Rail] = []
        self._sensor = "ina3221"
        self._mean = PowerMean()

    def read(self, at_ms: int) -> ComputeSeen:
        """One reading, taken now."""
        if self._scanned_ms is None:
            self._scan(at_ms)
        die_c, rails = self._read_die(), [rail.read() for rail in self._rails]
        missing = die_c is None or not rails or None in rails
        if any(file.lost for file in self._files()) or (missing and at_ms - (self._scanned_ms or 0) >= RESCAN_MS):
            self._scan(at_ms)
            die_c, rails = self._read_die(), [rail.read() for rail in self._rails]
        sensor = SIMULATED if self._mark.exists() else self._sensor
        error = ERRORS[sensor]
        power_w, error_w = total(rails)
        mean_w = self._mean.take(power_w)
        return ComputeSeen(
            at_ms=at_ms,
            die_c=die_c,
            power_w=mean_w,
            sensor=sensor,
            die_error_c=error.die_c,
            power_error_share=error.power_share + (error_w / mean_w if mean_w else 0.0),
            throttled=any(cooler.number() for cooler in self._coolers)
            or any(rail is not None and rail.critical for rail in rails),
            power_promised=True,
        )

    def sample(self) -> None:
        """Look at the power between two readings."""
        power_w, _ = total([rail.read() for rail in self._rails])
        self._mean.add(power_w)

    def close(self) -> None:
        """Let go of every file."""
        for file in self._files():
            file.close()

    def _files(self) -> list[ValueFile]:
        return [*self._zones, *self._coolers, *(file for rail in self._rails for file in rail.files)]

    def _read_die(self) -> float | None:
        """The hottest of the die's readable zones."""
        millidegrees = [zone.number() for zone in self._zones]
        read = [plausible_die_c(value / 1000) for value in millidegrees if value is not None]
        return max((degrees for degrees in read if degrees is not None), default=None)

    def _scan(self, at_ms: int) -> None:
        """Look around: which zones, coolers and rails there are."""
        self.close()
        self._scanned_ms = at_ms
        root = self._root
        self._zones = [
            ValueFile(zone / "temp")
            for zone in sorted(root.glob(ZONES))
            if (text(zone / "type") or "").lower().startswith(DIE_ZONES)
        ]
        self._coolers = [
            ValueFile(cooler / "cur_state")
            for cooler in sorted(root.glob(COOLERS))
            if any(word in (text(cooler / "type") or "").lower() for word in THROTTLES)
        ]
        inputs = [Rail(folder, 1, "VIN") for folder in sorted(root.glob(INPUT_MONITORS))]
        rails = connected_rails(root)
        totals = inputs or [rail for rail in rails if rail.label in TOTAL_RAILS]
        self._rails = totals or rails
        self._sensor = "ina238" if inputs else "ina3221"


def connected_rails(root: Path) -> list[Rail]:
    """Every connected channel of the INA3221s; one with an unreadable label is of unknown name, and not missed."""
    rails = []
    for folder in sorted(root.glob(MONITORS)):
        for channel in CHANNELS:
            label_file = folder / f"in{channel}_label"
            if label_file.exists():
                label = text(label_file) or ""
                if label.upper() != "NC" and not label.lower().startswith("sum of shunt"):
                    rails.append(Rail(folder, channel, label))
    return rails


def total(rails: list[RailReading | None]) -> tuple[float | None, float]:
    """All rails together, and by how much their offsets may be off, in watts; one unknown makes it unknown."""
    known = [rail for rail in rails if rail is not None]
    power_w = plausible_power_w(sum(rail.power_w for rail in known)) if len(known) == len(rails) else None
    return power_w, sum(rail.error_w for rail in known)
