"""The two means by which a computer can be held to a power limit: the GPU's highest clock, and the card's own limit.

    sys/class/devfreq/<gpu>/{available_frequencies,max_freq,min_freq,cur_freq}     hertz
    sys/devices/virtual/thermal/cooling_device*/{type,cur_state}                   0: does not hold a clock down

What is read from `max_freq` is the lowest of what was written there and of what the kernel's thermal throttling allows
(since Linux 5.5). A card's limit is what was set, however hot it is.

A clock is no power: how much the computer draws at most at each clock is measured (`devfreq_steps`), or taken to grow
in a straight line with the clock from idle to full power. Since power grows faster than that (the voltage rises with
the clock), the line is above the truth between its ends, and the clock that it gives is too low, never too high.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec

from agent.errors import ComputerError, ConfigError
from agent.telemetry.jetson import COOLERS, THROTTLES
from agent.telemetry.nvml import handle_of, library
from agent.telemetry.sysfs import number, text

DEVFREQ = "sys/class/devfreq"
GPU_NAMES = ("gpu", "gpc", "ga10b", "gv11b", "gp10b")
"""What the GPU is called in devfreq on Thor, Orin, Xavier, TX2."""
NOT_GPU_NAMES = ("nvd", "nvenc", "nvdec")
"""Video engines that Thor lists under its GPU."""


class DevfreqStep(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The most that the whole computer draws while its GPU may clock up to `hz`."""

    hz: Annotated[int, msgspec.Meta(gt=0)]
    power_w: Annotated[float, msgspec.Meta(gt=0, le=5_000)]


class Devfreq:
    """The GPU's highest clock (`agent.telemetry.limits.Actuator`), in hertz."""

    kind = "devfreq"

    def __init__(
        self, root: Path, device: str, steps: Sequence[DevfreqStep], power_idle_w: float, power_max_w: float
    ) -> None:
        self._root = root
        self._folder = root / DEVFREQ / (device or _find_gpu(root))
        self.device = self._folder.name
        self._steps, self._power_idle_w, self._power_max_w = steps, power_idle_w, power_max_w

    def current(self) -> int:
        """The highest clock that is allowed now."""
        found = number(self._folder / "max_freq")
        if found is None:
            raise ComputerError(f"{self._folder}/max_freq cannot be read", hint="see computer.devfreq_device")
        return found

    def throttled(self) -> bool:
        """Whether a cooling device holds a clock down; which of them is the GPU's is not said by every kernel."""
        return any(
            number(cooler / "cur_state")
            for cooler in self._root.glob(COOLERS)
            if any(word in (text(cooler / "type") or "") for word in (*THROTTLES, self.device))
        )

    def taken_over(self, written: int) -> bool:
        """Only a higher clock is somebody else's doing: a lower one is what throttling looks like."""
        return self.current() > written

    def value_for(self, limit_w: float, found: int) -> int:
        """The highest available clock at which the computer stays under `limit_w`; else the lowest there is."""
        available = self._available()
        allowed_hz = self._allowed_hz(limit_w, max(available))
        within = [hz for hz in available if hz <= min(allowed_hz, found)]
        return max(within, default=min(available))

    def write(self, value: int) -> None:
        """Set the highest clock."""
        try:
            (self._folder / "max_freq").write_text(f"{value}\n", "ascii")
        except OSError as error:
            hint = "the service needs write access to it, or set computer.limits to none"
            raise ComputerError(f"cannot write {self._folder}/max_freq: {error.strerror}", hint=hint) from error

    def _available(self) -> list[int]:
        words = (text(self._folder / "available_frequencies") or "").split()
        available = [int(word) for word in words if word.isdigit()]
        least_hz = number(self._folder / "min_freq") or 0
        usable = [hz for hz in available if hz >= least_hz]
        if not usable:
            raise ComputerError(f"{self._folder} lists no clocks", hint="see computer.devfreq_device")
        return usable

    def _allowed_hz(self, limit_w: float, top_hz: int) -> float:
        if self._steps:
            return max((step.hz for step in self._steps if step.power_w <= limit_w), default=0)
        return top_hz * (limit_w - self._power_idle_w) / (self._power_max_w - self._power_idle_w)


class NvmlLimit:
    """The card's power limit (`agent.telemetry.limits.Actuator`), in milliwatts. Setting it takes root."""

    kind = "nvml"

    def __init__(self, device: str) -> None:
        self.device = device
        self._nvml = library()

    def current(self) -> int:
        """The limit in force."""
        return int(self._with_card(self._nvml.nvmlDeviceGetPowerManagementLimit))

    def throttled(self) -> bool:
        """Throttling does not change a card's limit."""
        return False

    def taken_over(self, written: int) -> bool:
        """Any other limit is somebody else's."""
        return self.current() != written

    def value_for(self, limit_w: float, found: int) -> int:
        """The limit itself, within what the card allows."""
        least, most = self._with_card(self._nvml.nvmlDeviceGetPowerManagementLimitConstraints)
        return int(min(max(round(limit_w * 1000), least), most, found))

    def write(self, value: int) -> None:
        """Set the limit."""
        self._with_card(self._nvml.nvmlDeviceSetPowerManagementLimit, value)

    def _with_card(self, do: Any, *arguments: int) -> Any:
        """Begin the library, do one thing with the card, and let go; limits change too rarely to hold it."""
        nvml = self._nvml
        try:
            nvml.nvmlInit()
            try:
                return do(handle_of(nvml, self.device), *arguments)
            finally:
                nvml.nvmlShutdown()
        except nvml.NVMLError as error:
            hint = "setting a card's limit needs root" if error.value == nvml.NVML_ERROR_NO_PERMISSION else ""
            raise ComputerError(f"NVML refused the power limit of card {self.device}: {error}", hint=hint) from error


def check_steps(steps: Sequence[DevfreqStep], where: str) -> None:
    """Raise ConfigError unless a higher clock always means more power."""
    for lower, higher in itertools.pairwise(steps):
        if lower.hz >= higher.hz or lower.power_w >= higher.power_w:
            raise ConfigError(
                f"{where}: {higher.hz} Hz at {higher.power_w} W does not rise over {lower.hz} Hz at {lower.power_w} W",
                hint="list the steps from the lowest clock to the highest, each with more power than the one before",
            )


def _find_gpu(root: Path) -> str:
    names = sorted(path.name for path in (root / DEVFREQ).glob("*"))
    gpus = [
        name
        for name in names
        if any(word in name for word in GPU_NAMES) and not any(word in name for word in NOT_GPU_NAMES)
    ]
    if len(gpus) != 1:
        found = f"none of {', '.join(names) or 'no devices'} is" if not gpus else f"{', '.join(gpus)} all are"
        raise ComputerError(f"which device in {root / DEVFREQ} is the GPU: {found}", hint="set computer.devfreq_device")
    return gpus[0]
