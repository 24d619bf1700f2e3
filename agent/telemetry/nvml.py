"""Reads an NVIDIA card through its driver's management library (NVML, with the bindings of `nvidia-ml-py`).

Each metric is asked for by itself: one that a card does not support, or that fails, is None and leaves the others. A
card that has fallen off the bus (NVML_ERROR_GPU_IS_LOST), a library that lost its driver: no reading, said once, and
the library is begun anew with growing waits, since a card may come back after a reset or a resume.

The die is the GPU's own temperature, or where a card only tells how far it is from slowing down (its margin), the
slowdown threshold less that. Power is that of the card, averaged over a second by newer cards; it is not the host's.
`energy_mj` is the card's own counter, the best there is for billing: nothing is lost between two readings.
`throttled` is heat or a power brake. A card at its power cap is not throttled: every busy card is there, by its maker's
cap or by ours.

On a Jetson the library loads and supports none of these: the reader for a Jetson is `jetson`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

from agent.core.events import ComputeSeen
from agent.errors import ConfigError
from agent.log import logger
from agent.telemetry.reader import ERRORS, PLAUSIBLE_POWER_W, plausible_die_c, plausible_power_w

FIRST_WAIT_MS = 1_000
LONGEST_WAIT_MS = 60_000
SLACK_MS = 1_000
"""Cards count their energy a few times a second."""


def library() -> ModuleType:
    """The bindings; raises ConfigError where they are not installed. Their library is loaded at `nvmlInit`."""
    try:
        import pynvml  # type: ignore[import-untyped]  # noqa: PLC0415 - an extra: most vehicles have no use for it
    except ImportError as error:
        raise ConfigError(
            "the bindings of NVML are not installed", hint="install driveway-agent[nvml], or use another reader"
        ) from error
    module: ModuleType = pynvml
    return module


def handle_of(nvml: ModuleType, device: str) -> Any:
    """The card of this index ("0") or UUID; the library must be initialised. Raises NVMLError."""
    return nvml.nvmlDeviceGetHandleByIndex(int(device)) if device.isdigit() else nvml.nvmlDeviceGetHandleByUUID(device)


class LostError(Exception):
    """The card, or its driver, does not answer at all any more."""


class NvmlReader:
    """A reader (`agent.telemetry.reader.Reader`) of one card: its index, or its UUID."""

    def __init__(self, device: str = "0") -> None:
        self._nvml = library()
        self._device = device
        self._handle: Any = None
        self._wait_ms = FIRST_WAIT_MS
        self._again_ms: int | None = None
        self._said_lost = False
        self._counted: tuple[int, int] | None = None
        nvml = self._nvml
        self._lost = {
            nvml.NVML_ERROR_GPU_IS_LOST,
            nvml.NVML_ERROR_UNINITIALIZED,
            nvml.NVML_ERROR_DRIVER_NOT_LOADED,
            nvml.NVML_ERROR_RESET_REQUIRED,
            nvml.NVML_ERROR_GPU_NOT_FOUND,
            nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
        }
        self._holds_down = (
            nvml.nvmlClocksEventReasonSwThermalSlowdown
            | nvml.nvmlClocksEventReasonHwThermalSlowdown
            | nvml.nvmlClocksEventReasonHwPowerBrakeSlowdown
            | nvml.nvmlClocksEventReasonHwSlowdown
        )

    def read(self, at_ms: int) -> ComputeSeen:
        """One reading, taken now."""
        error = ERRORS["nvml"]
        seen = ComputeSeen(
            at_ms=at_ms,
            die_c=None,
            power_w=None,
            sensor="nvml",
            die_error_c=error.die_c,
            power_error_share=error.power_share,
            power_promised=True,
        )
        if self._handle is None and not self._begin(at_ms):
            return seen
        try:
            measured = self._measured(seen)
        except LostError as lost:
            self._lose(at_ms, str(lost))
            return seen
        if self._said_lost:
            logger().info("nvml_back", device=self._device)
        self._said_lost, self._wait_ms, self._again_ms = False, FIRST_WAIT_MS, None
        return measured

    def close(self) -> None:
        """Let go of the library."""
        if self._handle is not None:
            self._handle = None
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()

    def _measured(self, seen: ComputeSeen) -> ComputeSeen:
        nvml = self._nvml
        milliwatts = self._ask(nvml.nvmlDeviceGetPowerUsage)
        reasons = self._ask(nvml.nvmlDeviceGetCurrentClocksEventReasons)
        return ComputeSeen(
            at_ms=seen.at_ms,
            die_c=self._die_c(),
            power_w=plausible_power_w(None if milliwatts is None else milliwatts / 1000),
            sensor=seen.sensor,
            die_error_c=seen.die_error_c,
            power_error_share=seen.power_error_share,
            throttled=reasons is not None and bool(reasons & self._holds_down),
            energy_mj=self._energy_mj(seen.at_ms),
            power_promised=True,
        )

    def _die_c(self) -> float | None:
        nvml = self._nvml
        degrees = self._ask(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU)
        if degrees is None:
            slowdown = self._ask(nvml.nvmlDeviceGetTemperatureThreshold, nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN)
            margin = None if slowdown is None else self._ask(nvml.nvmlDeviceGetMarginTemperature)
            degrees = None if slowdown is None or margin is None else slowdown - margin
        return plausible_die_c(None if degrees is None else float(degrees))

    def _energy_mj(self, at_ms: int) -> int | None:
        """The counter; None once when it leaps by more than a computer can use."""
        counted = self._ask(self._nvml.nvmlDeviceGetTotalEnergyConsumption)
        before, self._counted = self._counted, None if counted is None else (at_ms, counted)
        if counted is None or before is None:
            return counted
        span_s = (at_ms - before[0] + SLACK_MS) / 1000
        return counted if (counted - before[1]) / 1000 <= PLAUSIBLE_POWER_W * span_s else None

    def _ask(self, question: Callable[..., int], *arguments: Any) -> int | None:
        """One metric; None when this card cannot tell it. Raises LostError when the card is gone."""
        try:
            return question(self._handle, *arguments)
        except self._nvml.NVMLError as error:
            if error.value in self._lost:
                raise LostError(str(error)) from error
            return None

    def _begin(self, at_ms: int) -> bool:
        """Initialise the library and find the card, unless it is too soon to try again."""
        if self._again_ms is not None and at_ms < self._again_ms:
            return False
        nvml = self._nvml
        try:
            nvml.nvmlInit()
            try:
                self._handle = handle_of(nvml, self._device)
            except nvml.NVMLError:
                nvml.nvmlShutdown()
                raise
        except nvml.NVMLError as error:
            self._lose(at_ms, str(error))
            return False
        return True

    def _lose(self, at_ms: int, detail: str) -> None:
        """Note that the card is gone, say so once, and wait longer each time."""
        self.close()
        self._again_ms = at_ms + self._wait_ms
        self._wait_ms = min(2 * self._wait_ms, LONGEST_WAIT_MS)
        if not self._said_lost:
            self._said_lost = True
            logger().warning("nvml_lost", device=self._device, detail=detail)
