from __future__ import annotations

from pathlib import Path

import pytest

from agent.telemetry.jetson import JetsonSysfs
from hil.car.sysfs import SensorTree


def test_the_agents_own_reader_reads_what_the_car_writes(tmp_path: Path) -> None:
    tree = SensorTree(tmp_path)
    reader = JetsonSysfs(tmp_path)
    for die_c, sink_c, power_w in ((26.8, 24.8, 8.0), (85.25, 70.0, 60.0), (-5.5, -6.0, 4.0)):
        tree.write(die_c, sink_c, power_w)
        seen = reader.read(0)
        assert seen.sensor == "simulated"
        assert seen.die_c == pytest.approx(die_c, abs=0.001)
        assert seen.power_w == pytest.approx(power_w, abs=0.01)
        assert 0.021 < seen.power_error_share < 0.12
    reader.close()


@pytest.mark.parametrize("garbage", [None, "", "nan", "hot"])
def test_a_sensor_that_breaks_is_no_reading(tmp_path: Path, garbage: str | None) -> None:
    SensorTree(tmp_path).write(40.0, 35.0, 20.0)
    broken = [*tmp_path.glob("sys/devices/virtual/thermal/*/temp"), *tmp_path.rglob("curr1_input")]
    assert len(broken) == 6
    for path in broken:
        path.unlink()
        if garbage is not None:
            path.write_text(garbage)
    reader = JetsonSysfs(tmp_path)
    seen = reader.read(0)
    reader.close()
    assert (seen.die_c, seen.power_w) == (None, None)


def test_nothing_half_written_is_left(tmp_path: Path) -> None:
    SensorTree(tmp_path).write(40.0, 35.0, 20.0)
    assert not list(tmp_path.rglob("*.new"))
