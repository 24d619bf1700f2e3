"""From watts to a clock of the GPU, or to the limit of a card."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.config import ComputerConfig
from agent.core.policy import Policy
from agent.errors import ComputerError, ConfigError
from agent.telemetry.actuators import DevfreqStep, NvmlLimit, check_steps
from agent.telemetry.source import build_actuator
from tests.telemetry.gpu import CLOCKS, STEPS, Gpu, devfreq
from tests.telemetry.stand_in import Card


@pytest.mark.parametrize(
    ("limit_w", "hz"),
    [(60.0, CLOCKS[3]), (59.9, CLOCKS[2]), (47.0, CLOCKS[2]), (34.0, CLOCKS[1]), (20.9, CLOCKS[0]), (1.0, CLOCKS[0])],
)
def test_without_steps_the_clock_is_on_a_line_from_idle_to_full_power(
    tmp_path: Path, gpu: Gpu, limit_w: float, hz: int
) -> None:
    assert devfreq(tmp_path).value_for(limit_w, found=gpu.max_hz) == hz


@pytest.mark.parametrize(
    ("limit_w", "hz"),
    [(50.0, CLOCKS[3]), (49.9, CLOCKS[1]), (20.0, CLOCKS[1]), (19.9, CLOCKS[0]), (13.0, CLOCKS[0])],
)
def test_measured_steps_count(tmp_path: Path, gpu: Gpu, limit_w: float, hz: int) -> None:
    assert devfreq(tmp_path, STEPS).value_for(limit_w, found=gpu.max_hz) == hz


def test_a_higher_limit_never_gives_a_lower_clock_and_none_gives_more_than_was_found(tmp_path: Path, gpu: Gpu) -> None:
    assert gpu.max_hz == CLOCKS[3]
    for steps in ((), STEPS):
        values = [devfreq(tmp_path, steps).value_for(tenths / 10, CLOCKS[2]) for tenths in range(0, 1000, 3)]
        assert values == sorted(values)
        assert max(values) == CLOCKS[2]


def test_clocks_below_the_least_that_is_allowed_are_not_set(tmp_path: Path, gpu: Gpu) -> None:
    (gpu.folder / "min_freq").write_text(f"{CLOCKS[1]}\n")
    assert devfreq(tmp_path).value_for(1.0, CLOCKS[3]) == CLOCKS[1]


def test_the_gpu_is_found_by_its_name_and_no_video_engine(tmp_path: Path) -> None:
    Gpu(tmp_path, "gpu-gpc-0")
    Gpu(tmp_path, "gpu-nvd-0")
    Gpu(tmp_path, "15340000.vic")
    assert devfreq(tmp_path).device == "gpu-gpc-0"
    Gpu(tmp_path, "another.gpu")
    with pytest.raises(ComputerError, match=r"another\.gpu, gpu-gpc-0 all are"):
        devfreq(tmp_path)
    assert devfreq(tmp_path, device="another.gpu").device == "another.gpu"


def test_no_gpu_no_clocks_and_no_number_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ComputerError, match="none of no devices is"):
        devfreq(tmp_path)
    gpu = Gpu(tmp_path)
    (gpu.folder / "available_frequencies").write_text("\n")
    with pytest.raises(ComputerError, match="lists no clocks"):
        devfreq(tmp_path).value_for(20.0, CLOCKS[3])
    gpu.max_freq.write_text("many\n")
    with pytest.raises(ComputerError, match="max_freq cannot be read"):
        devfreq(tmp_path).current()


def test_steps_must_rise_in_both() -> None:
    check_steps(STEPS, "computer.devfreq_steps")
    check_steps((), "computer.devfreq_steps")
    for broken in ((STEPS[1], STEPS[0]), (STEPS[0], DevfreqStep(612_000_000, 14.0))):
        with pytest.raises(ConfigError, match="does not rise"):
            check_steps(broken, "computer.devfreq_steps")


def read_only(gpu: Gpu) -> None:
    """A file that nobody may write; since root may write any file of its own, a kernel's in its place."""
    if os.geteuid():
        gpu.max_freq.chmod(0o444)
        return
    gpu.max_freq.unlink()
    gpu.max_freq.symlink_to("/proc/sys/kernel/osrelease")


def test_a_read_only_file_is_an_explained_error(tmp_path: Path, gpu: Gpu) -> None:
    actuator = devfreq(tmp_path)
    read_only(gpu)
    with pytest.raises(ComputerError, match=r"cannot write .*max_freq") as caught:
        actuator.write(CLOCKS[0])
    assert "computer.limits to none" in str(caught.value)


@pytest.mark.parametrize(("limit_w", "milliwatts"), [(40.0, 40_000), (5.0, 15_000), (70.0, 60_000), (60.0, 60_000)])
def test_a_cards_limit_stays_within_what_it_allows_and_what_was_found(
    card: Card, limit_w: float, milliwatts: int
) -> None:
    assert NvmlLimit("0").value_for(limit_w, found=60_000) == milliwatts
    assert card.done.count("init") == card.done.count("shutdown")


def test_the_configuration_chooses_the_means(card: Card, tmp_path: Path, gpu: Gpu) -> None:
    computer = ComputerConfig(nvml_device="GPU-stand-in")
    assert build_actuator("nvml", "", computer, tmp_path, Policy()).device == "GPU-stand-in"
    assert build_actuator("devfreq", "", computer, tmp_path, Policy()).device == gpu.folder.name
    assert card.done == []
