from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent.core.events import ComputeSeen
from agent.errors import ConfigError
from agent.telemetry.nvml import FIRST_WAIT_MS, LONGEST_WAIT_MS, NvmlReader
from agent.telemetry.reader import ERRORS
from tests.telemetry.stand_in import HEALTHY, Card

GPU_IS_LOST = "!15"
NOT_SUPPORTED = "!3"


@pytest.fixture
def reader(card: Card) -> Iterator[NvmlReader]:
    one = NvmlReader()
    yield one
    one.close()
    assert card.done.count("init") == card.done.count("shutdown"), "the library is let go as often as it was begun"


def test_a_healthy_card(reader: NvmlReader) -> None:
    assert reader.read(5) == ComputeSeen(
        at_ms=5,
        die_c=61.0,
        power_w=42.5,
        sensor="nvml",
        die_error_c=ERRORS["nvml"].die_c,
        power_error_share=0.05,
        throttled=False,
        energy_mj=123456789,
        power_promised=True,
    )


@pytest.mark.parametrize("code", ["!3", "!4", "!10", "!999"])
@pytest.mark.parametrize(("metric", "field"), [("power", "power_w"), ("temperature", "die_c"), ("energy", "energy_mj")])
def test_a_metric_that_fails_is_no_reading_and_leaves_the_others(
    card: Card, reader: NvmlReader, metric: str, field: str, code: str
) -> None:
    card.says_also(**{metric: code})
    seen = reader.read(0)
    assert getattr(seen, field) is None
    assert [seen.power_w, seen.die_c, seen.energy_mj].count(None) == 1


def test_a_card_that_supports_nothing_is_no_reading_at_all(card: Card, reader: NvmlReader) -> None:
    card.says(card="1")  # as on a Jetson: the library answers, and supports no metric
    seen = reader.read(0)
    assert (seen.die_c, seen.power_w, seen.energy_mj, seen.throttled) == (None, None, None, False)


def test_the_margin_counts_where_there_is_no_temperature(card: Card, reader: NvmlReader) -> None:
    card.says_also(temperature=NOT_SUPPORTED, slowdown="95", margin="33")
    assert reader.read(0).die_c == 62.0
    card.says_also(temperature=NOT_SUPPORTED, margin="33")
    assert reader.read(0).die_c is None, "a margin to an unknown threshold is no temperature"
    card.says_also(temperature=NOT_SUPPORTED, slowdown="95", margin="-8")
    assert reader.read(0).die_c == 103.0


@pytest.mark.parametrize("temperature", ["151", "255", "4294967295"])
def test_a_temperature_that_silicon_cannot_have_is_no_reading(card: Card, reader: NvmlReader, temperature: str) -> None:
    card.says_also(temperature=temperature)
    assert reader.read(0).die_c is None


@pytest.mark.parametrize("power", ["0", "5000001", "4294967295"])
def test_a_power_that_cannot_be_true_is_no_reading(card: Card, reader: NvmlReader, power: str) -> None:
    card.says_also(power=power)
    assert reader.read(0).power_w is None


def test_an_energy_counter_that_leaps_is_no_reading_and_counts_on_from_there(card: Card, reader: NvmlReader) -> None:
    assert reader.read(0).energy_mj == 123456789
    for at_ms, energy, said in (
        (500, 123456789 + 21_000, 123456789 + 21_000),
        (1000, 10**15, None),
        (1500, 10**15 + 21_000, 10**15 + 21_000),
        (2000, 5, 5),  # a driver that was loaded anew begins at zero
    ):
        card.says_also(energy=str(energy))
        assert reader.read(at_ms).energy_mj == said


@pytest.mark.parametrize(
    ("reasons", "throttled"), [(0x1, False), (0x4, False), (0x20, True), (0x44, True), (0x80, True)]
)
def test_heat_and_a_power_brake_throttle_and_a_power_cap_does_not(
    card: Card, reader: NvmlReader, reasons: int, throttled: bool
) -> None:
    card.says_also(reasons=str(reasons))
    assert reader.read(0).throttled is throttled


@pytest.mark.parametrize("metric", ["power", "temperature", "energy", "reasons"])
def test_a_lost_card_is_said_once_and_looked_for_with_growing_waits(
    card: Card, reader: NvmlReader, metric: str
) -> None:
    assert reader.read(0).die_c == 61.0
    card.says_also(**{metric: GPU_IS_LOST})
    with capture_logs() as logs:
        assert reader.read(1000).power_w is None
        card.says(card=GPU_IS_LOST)
        tries = []
        for at_ms in range(2000, 200_000, 500):
            begun = card.done.count("init")
            seen = reader.read(at_ms)
            assert (seen.die_c, seen.power_w) == (None, None)
            if card.done.count("init") > begun:
                tries.append(at_ms)
        assert [log["event"] for log in logs] == ["nvml_lost"]
        waits = [later - sooner for sooner, later in itertools.pairwise(tries)]
        assert tries[0] == 1000 + FIRST_WAIT_MS
        assert waits[:6] == [2 * FIRST_WAIT_MS, 4000, 8000, 16000, 32000, LONGEST_WAIT_MS]
        assert set(waits[5:]) == {LONGEST_WAIT_MS}
        card.says(**HEALTHY)
        assert reader.read(tries[-1] + LONGEST_WAIT_MS).die_c == 61.0
        assert [log["event"] for log in logs] == ["nvml_lost", "nvml_back"]


def test_a_driver_that_is_not_there_yet(card: Card, reader: NvmlReader) -> None:
    card.says_also(init="!9")
    assert reader.read(0).die_c is None
    card.says(**HEALTHY)
    assert reader.read(FIRST_WAIT_MS - 1).die_c is None
    assert reader.read(FIRST_WAIT_MS).die_c == 61.0


def test_a_card_is_named_by_its_index_or_its_uuid(card: Card) -> None:
    for device, die_c in (("GPU-stand-in", 61.0), ("GPU-another", None), ("0", 61.0), ("1", None)):
        reader = NvmlReader(device)
        assert reader.read(0).die_c == die_c
        reader.close()
    assert card.done.count("init") == card.done.count("shutdown") == 4


def test_without_the_bindings_the_configuration_is_at_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(ConfigError, match="driveway-agent\\[nvml\\]"):
        NvmlReader()


def test_the_bindings_find_the_library_by_its_name(nvml_library: Path, tmp_path: Path) -> None:
    card = Card(tmp_path / "card")
    script = "from agent.telemetry.nvml import NvmlReader; print(NvmlReader().read(0).power_w)"
    environment = os.environ | {"LD_LIBRARY_PATH": str(nvml_library.parent), "NVML_STAND_IN": str(card.file)}
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "42.5"


def test_a_computer_without_the_library_has_no_reading(tmp_path: Path) -> None:
    script = "from agent.telemetry.nvml import NvmlReader; print(NvmlReader().read(0).power_w)"
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=True)
    if "nvml_lost" not in done.stderr + done.stdout:
        pytest.skip("this computer has the library")
    assert "None" in done.stdout
