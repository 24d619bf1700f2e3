from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agent.clock import SystemClock
from agent.core.events import ComputeSeen, EventType
from agent.telemetry.jetson import JetsonSysfs, read_die_c, read_power_w

ZONE = "sys/devices/virtual/thermal/thermal_zone{}"
MONITOR = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon{}"
GARBAGE = ["", "nan", "inf", "4x", "\x00", "-273151", "1e9", "45.5"]


def put(root: Path, name: str, text: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def put_zone(root: Path, index: int, kind: str, millidegrees: str) -> Path:
    put(root, f"{ZONE.format(index)}/type", f"{kind}\n")
    return put(root, f"{ZONE.format(index)}/temp", f"{millidegrees}\n")


def put_rail(root: Path, channel: int, label: str, millivolts: str, milliamperes: str, *, monitor: int = 0) -> None:
    folder = MONITOR.format(monitor)
    put(root, f"{folder}/in{channel}_label", f"{label}\n")
    put(root, f"{folder}/in{channel}_input", f"{millivolts}\n")
    put(root, f"{folder}/curr{channel}_input", f"{milliamperes}\n")


def test_the_hottest_zone_of_the_die_counts_and_no_other(tmp_path: Path) -> None:
    put_zone(tmp_path, 0, "cpu-thermal", "51500")
    put_zone(tmp_path, 1, "GPU-therm", "53250")
    put_zone(tmp_path, 2, "soc0-thermal", "49000")
    put_zone(tmp_path, 3, "PMIC-Die", "100000")
    put_zone(tmp_path, 4, "Tboard_tegra", "77000")
    assert read_die_c(tmp_path) == 53.25


def test_a_zone_that_cannot_be_read_leaves_the_others(tmp_path: Path) -> None:
    put_zone(tmp_path, 0, "tj-thermal", "61000")
    put_zone(tmp_path, 1, "gpu-thermal", "70000").unlink()
    assert read_die_c(tmp_path) == 61.0


@pytest.mark.parametrize("text", GARBAGE)
def test_a_temperature_that_is_no_temperature_is_no_reading(tmp_path: Path, text: str) -> None:
    put_zone(tmp_path, 0, "tj-thermal", text)
    assert read_die_c(tmp_path) is None


def test_power_is_the_total_rail_where_there_is_one(tmp_path: Path) -> None:
    put_rail(tmp_path, 1, "VDD_IN", "19000", "1500")
    put_rail(tmp_path, 2, "VDD_CPU_GPU_CV", "19000", "900")
    put_rail(tmp_path, 3, "NC", "garbage", "garbage")
    assert read_power_w(tmp_path) == pytest.approx(28.5)


def test_power_is_the_sum_of_the_rails_where_there_is_no_total(tmp_path: Path) -> None:
    put_rail(tmp_path, 1, "VDD_GPU_SOC", "12000", "1000")
    put_rail(tmp_path, 2, "VDD_CPU_CV", "12000", "500")
    put_rail(tmp_path, 1, "VIN_SYS_5V0", "5000", "2000", monitor=1)
    put_rail(tmp_path, 2, "sum of shunt voltages", "5000", "9000", monitor=1)
    assert read_power_w(tmp_path) == pytest.approx(28.0)


@pytest.mark.parametrize("text", ["", "nan", "12.5", "amps"])
@pytest.mark.parametrize("label", ["VDD_IN", "VDD_GPU_SOC"])
def test_a_partial_sum_is_no_reading(tmp_path: Path, label: str, text: str) -> None:
    put_rail(tmp_path, 1, label, "19000", text)
    put_rail(tmp_path, 2, "VDD_SOC", "19000", "300")
    assert read_power_w(tmp_path) is None


def test_a_rail_without_a_readable_label_counts_so_that_it_is_not_missed(tmp_path: Path) -> None:
    put_rail(tmp_path, 1, "VDD_SOC", "19000", "300")
    put_rail(tmp_path, 2, "x", "19000", "100")
    (tmp_path / MONITOR.format(0) / "in2_label").write_bytes(b"\xff\xfe")
    assert read_power_w(tmp_path) == pytest.approx(7.6)


def test_a_computer_without_these_sensors_has_no_reading(tmp_path: Path) -> None:
    seen = JetsonSysfs(tmp_path / "nothing", 1000, SystemClock()).read()
    assert (seen.die_c, seen.power_w, seen.sensor) == (None, None, "ina3221")


def test_a_tree_that_is_simulated_says_so(tmp_path: Path) -> None:
    source = JetsonSysfs(tmp_path, 1000, SystemClock())
    assert source.read().sensor == "ina3221"
    put(tmp_path, "driveway-simulated", "")
    assert source.read().sensor == "simulated"


def test_it_emits_again_and_again_until_it_is_cancelled(tmp_path: Path) -> None:
    zone = put_zone(tmp_path, 0, "tj-thermal", "50000")

    async def main() -> list[ComputeSeen]:
        events: asyncio.Queue[EventType] = asyncio.Queue()
        reading = asyncio.create_task(JetsonSysfs(tmp_path, 1, SystemClock()).run(events.put_nowait))
        received = [await asyncio.wait_for(events.get(), 5)]
        zone.unlink()
        while received[-1].die_c is not None if isinstance(received[-1], ComputeSeen) else False:
            received.append(await asyncio.wait_for(events.get(), 5))
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        return [event for event in received if isinstance(event, ComputeSeen)]

    readings = asyncio.run(main())
    assert readings[0].die_c == 50.0
    assert readings[-1].die_c is None
    assert readings[-1].at_ms >= readings[0].at_ms
