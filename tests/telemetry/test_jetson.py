from __future__ import annotations

from pathlib import Path

import pytest

from agent.core.events import ComputeSeen
from agent.telemetry.jetson import RESCAN_MS, JetsonSysfs

ZONE = "sys/devices/virtual/thermal/thermal_zone{}"
MONITOR = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon{}"
INPUT_MONITOR = "sys/bus/i2c/drivers/ina238/2-0044/hwmon/hwmon7"
COOLER = "sys/devices/virtual/thermal/cooling_device{}"
GARBAGE = ["", "nan", "inf", "4x", "\x00", "-273151", "1e9", "45.5"]


def read(root: Path) -> ComputeSeen:
    reader = JetsonSysfs(root)
    try:
        return reader.read(0)
    finally:
        reader.close()


def held_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def read_die_c(root: Path) -> float | None:
    return read(root).die_c


def read_power_w(root: Path) -> float | None:
    return read(root).power_w


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


def put_cooler(root: Path, index: int, kind: str, state: str) -> None:
    put(root, f"{COOLER.format(index)}/type", f"{kind}\n")
    put(root, f"{COOLER.format(index)}/cur_state", f"{state}\n")


def test_the_input_monitor_of_a_thor_is_the_total_and_is_in_microwatts(tmp_path: Path) -> None:
    put_rail(tmp_path, 1, "VDD_GPU", "12000", "3000")
    put(tmp_path, f"{INPUT_MONITOR}/power1_input", "84250000\n")
    put(tmp_path, f"{INPUT_MONITOR}/in1_input", "20100\n")
    put(tmp_path, f"{INPUT_MONITOR}/curr1_input", "4190\n")
    seen = read(tmp_path)
    assert (seen.power_w, seen.sensor) == (84.25, "ina238")
    assert seen.power_error_share == pytest.approx(0.017)


def test_an_input_monitor_that_does_not_multiply_is_multiplied_here(tmp_path: Path) -> None:
    put(tmp_path, f"{INPUT_MONITOR}/in1_input", "20000\n")
    put(tmp_path, f"{INPUT_MONITOR}/curr1_input", "4000\n")
    assert read_power_w(tmp_path) == 80.0


def test_a_broken_input_monitor_is_not_replaced_by_a_part_of_the_truth(tmp_path: Path) -> None:
    put_rail(tmp_path, 1, "VDD_GPU", "12000", "3000")
    put(tmp_path, f"{INPUT_MONITOR}/power1_input", "-1\n")
    assert read_power_w(tmp_path) is None


def test_a_running_computer_does_not_draw_nothing(tmp_path: Path) -> None:
    put_rail(tmp_path, 1, "VDD_IN", "19000", "0")
    assert read_power_w(tmp_path) is None


@pytest.mark.parametrize(("milliamperes", "power_w"), [("-8", 11.4), ("-16", 11.4), ("-17", None)])
def test_an_unloaded_rail_may_show_the_monitors_offset_and_no_more(
    tmp_path: Path, milliamperes: str, power_w: float | None
) -> None:
    put_rail(tmp_path, 1, "VDD_GPU_SOC", "19000", "600")
    put_rail(tmp_path, 2, "VDD_CPU_CV", "19000", milliamperes)
    put(tmp_path, f"{MONITOR.format(0)}/shunt2_resistor", "5000\n")  # 80 uV over 5 milliohm are 16 mA
    assert read_power_w(tmp_path) == power_w


def test_the_error_grows_where_the_offset_is_a_large_part(tmp_path: Path) -> None:
    put(tmp_path, f"{MONITOR.format(0)}/shunt1_resistor", "5000\n")
    for milliamperes, share in (("400", 0.021 + 0.04), ("3200", 0.021 + 0.005)):
        put_rail(tmp_path, 1, "VDD_IN", "19000", milliamperes)
        assert read(tmp_path).power_error_share == pytest.approx(share)


@pytest.mark.parametrize(
    ("milliamperes", "throttled", "known"), [("3999", False, True), ("4000", True, True), ("8001", False, False)]
)
def test_at_its_critical_current_a_rail_is_throttled_and_far_above_it_is_broken(
    tmp_path: Path, milliamperes: str, throttled: bool, known: bool
) -> None:
    put_rail(tmp_path, 1, "VDD_IN", "19000", milliamperes)
    put(tmp_path, f"{MONITOR.format(0)}/curr1_crit", "4000\n")
    seen = read(tmp_path)
    assert (seen.throttled, seen.power_w is not None) == (throttled, known)


@pytest.mark.parametrize(
    ("kind", "state", "throttled"),
    [
        ("cpu-throttle", "1", True),
        ("thermal-devfreq-0", "3", True),
        ("gpu-throttle", "0", False),
        ("pwm-fan", "4", False),
    ],
)
def test_a_clock_that_is_held_down_is_throttled_and_a_fan_that_runs_is_not(
    tmp_path: Path, kind: str, state: str, throttled: bool
) -> None:
    put_zone(tmp_path, 0, "tj-thermal", "50000")
    put_cooler(tmp_path, 0, kind, state)
    assert read(tmp_path).throttled is throttled


def test_a_computer_without_these_sensors_has_no_reading(tmp_path: Path) -> None:
    seen = read(tmp_path / "nothing")
    assert (seen.die_c, seen.power_w, seen.sensor) == (None, None, "ina3221")


def test_a_tree_that_is_simulated_says_so(tmp_path: Path) -> None:
    reader = JetsonSysfs(tmp_path)
    assert reader.read(0).sensor == "ina3221"
    put(tmp_path, "driveway-simulated", "")
    assert reader.read(0).sensor == "simulated"


def test_files_are_kept_open_and_still_tell_what_is_new(tmp_path: Path) -> None:
    zone = put_zone(tmp_path, 0, "tj-thermal", "50000")
    put_rail(tmp_path, 1, "VDD_IN", "19000", "1500")
    reader = JetsonSysfs(tmp_path)
    assert reader.read(0).die_c == 50.0
    held = held_files()
    zone.write_text("51000\n")  # in place, as sysfs does
    assert reader.read(1).die_c == 51.0
    fresh = zone.with_name("new")
    fresh.write_text("52000\n")
    fresh.replace(zone)  # by renaming, as a rig does
    assert reader.read(2).die_c == 52.0
    assert held_files() == held
    reader.close()
    assert held_files() == held - 3


def test_a_sensor_that_goes_away_is_no_reading_and_another_is_found(tmp_path: Path) -> None:
    zone = put_zone(tmp_path, 0, "tj-thermal", "50000")
    reader = JetsonSysfs(tmp_path)
    assert reader.read(0).die_c == 50.0
    zone.unlink()
    assert reader.read(1).die_c is None, "the file that is still open tells of a sensor that is gone"
    put_zone(tmp_path, 1, "tj-thermal", "53000")
    assert reader.read(2).die_c is None, "nothing is looked for at each reading"
    assert reader.read(1 + RESCAN_MS).die_c == 53.0
    reader.close()


def test_a_zone_that_goes_away_beside_others_makes_it_look_around_at_once(tmp_path: Path) -> None:
    gone = put_zone(tmp_path, 0, "gpu-thermal", "60000")
    put_zone(tmp_path, 1, "cpu-thermal", "50000")
    reader = JetsonSysfs(tmp_path)
    assert reader.read(0).die_c == 60.0
    gone.unlink()
    put_zone(tmp_path, 2, "tj-thermal", "61000")
    assert reader.read(1).die_c == 61.0
    reader.close()


def test_a_sensor_whose_driver_comes_late_is_found(tmp_path: Path) -> None:
    reader = JetsonSysfs(tmp_path)
    assert reader.read(0).power_w is None
    put_zone(tmp_path, 0, "tj-thermal", "50000")
    put_rail(tmp_path, 1, "VDD_IN", "19000", "1500")
    seen = reader.read(RESCAN_MS)
    assert (seen.die_c, seen.power_w) == (50.0, 28.5)
    reader.close()


def test_a_reading_is_the_mean_of_what_was_sampled_since_the_one_before(tmp_path: Path) -> None:
    put_rail(tmp_path, 1, "VDD_IN", "10000", "800")
    reader = JetsonSysfs(tmp_path)
    assert reader.read(0).power_w == 8.0
    for milliamperes in ("6000", "6000", "unreadable"):
        put_rail(tmp_path, 1, "VDD_IN", "10000", milliamperes)
        reader.sample()
    put_rail(tmp_path, 1, "VDD_IN", "10000", "900")
    seen = reader.read(500)
    assert seen.power_w == pytest.approx((60.0 + 60.0 + 9.0) / 3)
    assert seen.power_error_share == pytest.approx(0.021 + 10 * 80e-6 / 0.002 / 43.0)
    assert reader.read(1_000).power_w == 9.0
    reader.close()


def test_no_power_is_a_fault_of_the_sensor_and_not_of_the_kind_of_computer(tmp_path: Path) -> None:
    seen = read(tmp_path / "nothing")
    assert (seen.power_w, seen.power_promised) == (None, True)
