"""A GPU in a devfreq tree of a test's own, with the kernel's thermal throttling.

As since Linux 5.5, `max_freq` shows the lowest of what was written there and of what throttling allows. A plain file
cannot do that by itself: `Gpu.throttle` and the writes of `devfreq` see to it.
"""

from __future__ import annotations

from pathlib import Path

from agent.telemetry.actuators import Devfreq, DevfreqStep

CLOCKS = (306_000_000, 612_000_000, 918_000_000, 1_224_000_000)
STEPS = (DevfreqStep(306_000_000, 14.0), DevfreqStep(612_000_000, 20.0), DevfreqStep(1_224_000_000, 50.0))


class Gpu:
    """A GPU's folder in devfreq."""

    def __init__(self, root: Path, name: str = "17000000.gpu", clocks: tuple[int, ...] = CLOCKS) -> None:
        self.folder = root / "sys/class/devfreq" / name
        self.folder.mkdir(parents=True)
        (self.folder / "available_frequencies").write_text(" ".join(map(str, clocks)) + "\n")
        (self.folder / "min_freq").write_text(f"{clocks[0]}\n")
        self.max_freq = self.folder / "max_freq"
        self.max_freq.write_text(f"{clocks[-1]}\n")
        self._cooling = root / "sys/devices/virtual/thermal/cooling_device3"

    @property
    def max_hz(self) -> int:
        """What is in force, and what `max_freq` says."""
        return int(self.max_freq.read_text())

    @property
    def set_hz(self) -> int:
        """What was written last, whatever throttling makes of it."""
        return _set_hz(self.folder)

    def throttle(self, hz: int | None, kind: str | None = None) -> None:
        """Too hot for more than `hz`; None: cool again. `kind`: the cooling device's, empty for none to be seen."""
        set_hz = self.set_hz
        cap = self.folder / CAP
        if hz is None:
            cap.unlink(missing_ok=True)
        else:
            cap.write_text(str(hz))
        _show(self.folder, set_hz)
        if kind != "":  # said after it is so, as by the kernel: who reads "cool" reads what was set, too
            self._cooling.mkdir(parents=True, exist_ok=True)
            (self._cooling / "type").write_text(f"{kind or f'devfreq-{self.folder.name}'}\n")
            (self._cooling / "cur_state").write_text(f"{0 if hz is None else 2}\n")


CAP, SET = "thermal_cap", "set_freq"
"""What this kernel remembers, in the GPU's folder: what throttling allows, and what was set while it throttled."""


def _set_hz(folder: Path) -> int:
    kept = folder / SET
    return int((kept if kept.exists() else folder / "max_freq").read_text())


def _show(folder: Path, set_hz: int) -> None:
    cap, kept = folder / CAP, folder / SET
    if cap.exists():
        kept.write_text(str(set_hz))
    else:
        kept.unlink(missing_ok=True)
    shown_hz = min(set_hz, int(cap.read_text())) if cap.exists() else set_hz
    (folder / "max_freq").write_text(f"{shown_hz}\n")


class ThrottledDevfreq(Devfreq):
    """The real actuator; the kernel below it throttles when its test says so."""

    def write(self, value: int) -> None:
        super().write(value)
        if (self._folder / CAP).exists():
            _show(self._folder, value)


def devfreq(root: Path, steps: tuple[DevfreqStep, ...] = (), device: str = "") -> Devfreq:
    return ThrottledDevfreq(root, device, steps, power_idle_w=8.0, power_max_w=60.0)
