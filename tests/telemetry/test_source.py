"""What the `[computer]` table makes: the reader and the limits that the daemon gets."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from agent.config import Config, load
from agent.core.events import ComputeSeen
from agent.errors import ConfigError
from agent.telemetry.hwmon import Hwmon
from agent.telemetry.jetson import JetsonSysfs
from agent.telemetry.limits import PowerLimits, Remembered
from agent.telemetry.nvml import NvmlReader
from agent.telemetry.source import build_limits, build_reader
from hil.car.sysfs import SensorTree
from tests.telemetry.gpu import CLOCKS, Gpu
from tests.telemetry.stand_in import Card
from tests.telemetry.test_limits import BOOT

REST = """
state_dir = "state"
control_socket = "control.sock"
unit = { id = "car-1" }
vehicle = { profiles = ["tesla-model3"], bus = [{ name = "party", interface = "virtual", channel = "x" }] }
fleet = { brokers = ["127.0.0.1:1883"], dispatcher_key = "dispatcher.pub" }
inference = { packages_dir = "packages", publisher_key = "publisher.pub" }
"""


def configured(folder: Path, computer: str) -> Config:
    path = folder / "agent.toml"
    path.write_text(f"{REST}\n[computer]\n{computer}\n")
    (folder / "state").mkdir(exist_ok=True)
    return load(path)


def read(config: Config) -> ComputeSeen:
    reader = build_reader(config)
    try:
        return reader.read(0)
    finally:
        reader.close()


def limits_of(config: Config) -> PowerLimits:
    return build_limits(config, BOOT, lambda _name, _fields: None)


def test_each_reader_by_its_name(card: Card, tmp_path: Path) -> None:
    SensorTree(tmp_path / "tree").write(50.0, 45.0, 20.0)
    jetson = configured(tmp_path, 'reader = "jetson"\nsysfs_root = "tree"')
    nvml = configured(tmp_path, 'reader = "nvml"\nnvml_device = "GPU-stand-in"')
    hwmon = configured(tmp_path, 'reader = "hwmon"')
    assert isinstance(build_reader(jetson), JetsonSysfs)
    assert isinstance(build_reader(nvml), NvmlReader)
    assert isinstance(build_reader(hwmon), Hwmon)
    assert [read(one).sensor for one in (jetson, nvml, hwmon)] == ["simulated", "nvml", "hwmon"]
    assert read(nvml).power_w == 42.5
    assert card.done.count("init") == card.done.count("shutdown")


@pytest.mark.parametrize(
    ("computer", "said"),
    [
        ('reader = "nvlm"', "did you mean 'nvml'"),
        ('limits = "nvpmodel"', "limits"),
        ("devfreq_step = []", "did you mean computer.devfreq_steps"),
        ("devfreq_steps = [{ hz = 2, power_w = 9.0 }, { hz = 1, power_w = 10.0 }]", "does not rise"),
        ("devfreq_steps = [{ hz = 1, power_w = 0.0 }]", "power_w"),
    ],
)
def test_a_table_that_cannot_be_meant_is_explained(tmp_path: Path, computer: str, said: str) -> None:
    with pytest.raises(ConfigError, match="computer") as caught:
        configured(tmp_path, computer)
    assert said in str(caught.value)


def test_a_step_for_each_clock_holds_the_computer_to_what_was_measured(tmp_path: Path) -> None:
    gpu = Gpu(tmp_path / "tree")
    steps = ", ".join(f"{{ hz = {hz}, power_w = {watts} }}" for hz, watts in zip(CLOCKS, (12, 18, 30, 50), strict=True))
    config = configured(tmp_path, f'sysfs_root = "tree"\nlimits = "devfreq"\ndevfreq_steps = [{steps}]')

    async def main() -> None:
        limits = limits_of(config)
        limits.worker_here(True)
        limits.want(31.0)
        assert limits._task is not None
        await limits._task
        assert gpu.max_hz == CLOCKS[2]
        await limits.close()

    asyncio.run(main())
    assert gpu.max_hz == CLOCKS[3]


@pytest.mark.parametrize("kind", ["none", "devfreq"])
def test_what_a_crashed_run_left_is_put_back_at_the_start_whatever_is_configured_now(tmp_path: Path, kind: str) -> None:
    gpu = Gpu(tmp_path / "tree")
    gpu.max_freq.write_text(f"{CLOCKS[0]}\n")
    config = configured(tmp_path, f'sysfs_root = "tree"\nlimits = "{kind}"')
    note = tmp_path / "state" / "power-limit.json"
    note.write_bytes(msgspec.json.encode(Remembered(BOOT, "devfreq", gpu.folder.name, CLOCKS[3])))
    limits_of(config)
    assert gpu.max_hz == CLOCKS[3]
    assert not note.exists()


def test_a_cards_limit_that_a_crashed_run_left_is_put_back(card: Card, tmp_path: Path) -> None:
    card.says_also(limit="20000")
    note = tmp_path / "power-limit.json"
    config = msgspec.structs.replace(configured(tmp_path, ""), state_dir=str(tmp_path))
    note.write_bytes(msgspec.json.encode(Remembered(BOOT, "nvml", "0", 60_000)))
    limits_of(config)
    assert [line for line in card.done if line.startswith("set")] == ["set 60000"]
    assert not note.exists()
