"""The registry of benchmarks, what it prints and writes; and the thermal one, small."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from agent.errors import ConfigError
from hil import cli
from hil.bench import BENCHMARKS, command, thermal
from hil.car.box import Box, BoxParameters
from hil.car.plant import PlantInputs, PlantParameters, initial_state, step


class Figures(msgspec.Struct, frozen=True):
    p50_ms: float
    cases: dict[str, dict[str, float]]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two benchmarks that take no time."""
    for name in ("one", "two"):
        module = ModuleType(f"hil.bench.{name}")
        module.run = lambda: Figures(p50_ms=1.5, cases={"a": {"x": 0.25}, "b": {"x": 0.5}})  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, f"hil.bench.{name}", module)
        monkeypatch.setitem(BENCHMARKS, name, "a test")


@pytest.mark.usefixtures("small")
def test_one_benchmark_writes_its_figures_at_the_top(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "one.json"
    assert cli.main(["bench", "one", "--json", str(file)]) == 0
    written = json.loads(file.read_text("utf-8"))
    assert written["p50_ms"] == 1.5
    assert written["benchmark"] == "one"
    assert written["machine"]["cores"] >= 1
    assert written["machine"]["python"].startswith("3.")
    printed = capsys.readouterr().out
    assert "p50_ms" in printed
    assert "0.25" in printed


@pytest.mark.usefixtures("small")
def test_several_are_written_by_name(tmp_path: Path) -> None:
    file = tmp_path / "both.json"
    assert command.bench(["one", "two"], file) == 0
    assert set(json.loads(file.read_text("utf-8"))["benchmarks"]) == {"one", "two"}


def test_a_file_that_cannot_be_written_is_said_before_anything_is_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no folder"):
        command.bench(["thermal"], tmp_path / "nowhere" / "x.json")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmarks_have_their_module(name: str) -> None:
    assert callable(importlib.import_module(f"hil.bench.{name}").run)


def test_an_unknown_benchmark_is_a_mistake_in_usage() -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["bench", "nonsense"])
    assert caught.value.code == 2


def test_the_thermal_law_does_the_work_of_the_ideal_cap_and_stays_under_the_limit() -> None:
    figures = thermal.run(boxes=3, minutes=30)
    assert figures.work_vs_ideal > 0.95
    assert figures.die_max_c < figures.die_limit_c
    assert figures.cases["air 60 C"].work_vs_on_off > 1.2


def test_the_fast_box_is_the_plant() -> None:
    parameters = PlantParameters()
    plant, box = initial_state(parameters, 70.0, 30.0), Box(BoxParameters(), 30.0)
    for second in range(900):
        working = second < 600
        inputs = PlantInputs(ambient_c=30.0, charger_w=0.0, utilisation=float(working), awake=True, speed_kmh=0.0)
        plant = step(plant, inputs, 1.0, parameters)
        box.advance(60.0 if working else 8.0, 30.0, 1.0)
        assert abs(plant.die_c - box.die_c) < 0.2
        assert abs(plant.sink_c - box.sink_c) < 0.2
