from __future__ import annotations

from typing import NamedTuple

import psutil
import pytest

from agent.telemetry.hwmon import Hwmon, read_die_c


class Sensor(NamedTuple):
    """What psutil gives for one sensor, as far as it is read."""

    current: float


def show(monkeypatch: pytest.MonkeyPatch, sensors: dict[str, list[Sensor]]) -> None:
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: sensors)


def test_the_hottest_die_sensor_counts_and_no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    show(monkeypatch, {"coretemp": [Sensor(51.0), Sensor(57.5)], "nvme": [Sensor(80.0)]})
    assert read_die_c() == 57.5


def test_no_die_sensor_and_no_number_are_no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    show(monkeypatch, {"acpitz": [Sensor(40.0)], "k10temp": [Sensor(float("nan")), Sensor(-128.0)]})
    assert read_die_c() is None


def test_this_computer_can_be_read_and_its_power_is_unknown() -> None:
    seen = Hwmon().read(7)
    assert (seen.at_ms, seen.power_w, seen.die_error_c) == (7, None, 5.0)
    assert seen.die_c is None or -40 < seen.die_c < 150
