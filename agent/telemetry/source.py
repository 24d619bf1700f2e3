"""Which reader and which limits this computer gets, from its configuration."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from agent.config import ComputerConfig, Config
from agent.core.policy import Policy
from agent.telemetry.actuators import Devfreq, NvmlLimit
from agent.telemetry.jetson import JetsonSysfs
from agent.telemetry.limits import Actuator, PowerLimits, Tell, restore_left_over
from agent.telemetry.nvml import NvmlReader
from agent.telemetry.reader import Reader


def build_reader(config: Config) -> Reader:
    """The reader that the configuration names; raises ConfigError."""
    match config.computer.reader:
        case "jetson":
            return JetsonSysfs(config.path(config.computer.sysfs_root))
        case "nvml":
            return NvmlReader(config.computer.nvml_device)
        case "hwmon":
            from agent.telemetry.hwmon import Hwmon  # noqa: PLC0415 - psutil, which no vehicle needs for this

            return Hwmon()


def build_actuator(kind: str, device: str, computer: ComputerConfig, root: Path, policy: Policy) -> Actuator:
    """The means of this kind to hold `device` to a limit; raises ComputerError, or ConfigError."""
    if kind == "nvml":
        return NvmlLimit(device or computer.nvml_device)
    steps = computer.devfreq_steps
    return Devfreq(root, device or computer.devfreq_device, steps, policy.power_idle_w, policy.power_max_w)


def build_limits(config: Config, boot: str, tell: Tell) -> PowerLimits:
    """The limits that the configuration grants, after what a crashed run left has been put back."""
    computer, root = config.computer, config.path(config.computer.sysfs_root)
    file = config.path(config.state_dir) / "power-limit.json"

    def actuator(kind: str, device: str) -> Actuator:
        return build_actuator(kind, device, computer, root, config.policy)

    restore_left_over(file, boot, actuator)
    granted = None if computer.limits == "none" else partial(actuator, computer.limits, "")
    return PowerLimits(granted, file, boot, tell)
