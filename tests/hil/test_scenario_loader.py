"""A scenario's file is read strictly: each mistake is named with its file, its line and its mend."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import ConfigError
from hil.rigs.stimuli import OpenDoor
from hil.scenario.loader import find, load

GOOD = """\
title = "t"
why = "w"
proves = ["fault:sensor_gone"]
ends_after_min = 2

[policy]
parked_for_s = 5

[[step]]
at_s = 10
do = "open_door"
mark = "door"

[[step]]
after_ms = 500
fault = "sensor_gone"
signal = "Speed"
lasts_s = 2.5

[[expect]]
see = { gate = "closed", reason = "occupied:door_open" }
after = "door"
within_ms = 100
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "one.toml"
    path.write_text(text, "utf-8")
    return path


def test_reads_times_with_their_units(tmp_path: Path) -> None:
    scenario = load(write(tmp_path, GOOD))
    assert (scenario.name, scenario.length_ms, scenario.policy.parked_for_s) == ("one", 120_000, 5)
    first, second = scenario.steps
    assert (first.at_ms, first.stimulus, first.line) == (10_000, OpenDoor(), 9)
    assert (second.at_ms, second.after_ms, second.lasts_ms) == (None, 500, 2_500)
    assert scenario.expectations[0].within_ms == 100


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ('do = "open_door"', 'do = "open_dor"', 11, "did you mean 'open_door'"),
        ('mark = "door"', 'makr = "door"', 12, "did you mean 'mark'"),
        ("at_s = 10", "at_sec = 10", 10, "unknown key 'at_sec'"),
        ("at_s = 10", "at_s = -1", 10, "not negative"),
        ("at_s = 10", "at_s = 10\nafter_s = 3", 9, "not both"),
        ('door_open" }', 'dor_open" }', 21, "did you mean 'door_open'"),
        ("occupied:", "ocupied:", 21, "did you mean 'occupied'"),
        ('gate = "closed"', 'gat = "closed"', 21, "did you mean 'gate'"),
        ('gate = "closed"', 'gate = "shut"', 21, "shut"),
        ('after = "door"', 'after = "dor"', 22, "did you mean 'door'"),
        ("within_ms = 100", "", 20, "go together"),
        ("within_ms = 100", 'within = "gate.ocupied"', 23, "no gate is called 'ocupied'"),
        ("within_ms = 100", 'within = "policy.reserve_percent"', 23, "no time 'reserve_percent'"),
        ("within_ms = 100", 'within = "soon"', 23, "'soon' is no time"),
        ("fault:sensor_gone", "gate:occupied", 3, "sees it open again"),
        ("fault:sensor_gone", "gate:parked", 3, "no expectation sees it shut"),
        ("fault:sensor_gone", "promise:3", 3, "counts what was kept"),
        ("fault:sensor_gone", "promise:5", 3, "explained = true"),
        ("fault:sensor_gone", "fault:bus_off", 3, "no step has the fault"),
        ("fault:sensor_gone", "fault:dst", 3, "clocks do not change"),
        ("fault:sensor_gone", "promise:7", 3, "neither"),
        ("parked_for_s = 5", "parked_for = 5", 7, "did you mean 'parked_for_s'"),
        ("parked_for_s = 5", 'parked_for_s = "5"', 7, "Expected `float`"),
        ('title = "t"', 'titel = "t"', 1, "did you mean 'title'"),
        ("ends_after_min = 2", "", 1, "nothing says when it ends"),
        ('signal = "Speed"', "", 14, "signal"),
        ('fault = "sensor_gone"', 'fault = "sensor_gone"\ndo = "sit"', 16, "one thing"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, old: str, new: str, line: int, said: str) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError) as error:
        load(write(tmp_path, GOOD.replace(old, new, 1)))
    assert f"one.toml:{line}:" in str(error.value)
    assert said in str(error.value)


def test_a_limit_follows_the_policy(tmp_path: Path) -> None:
    text = GOOD.replace("within_ms = 100", 'within = "gate.occupied + 500 ms"')
    assert load(write(tmp_path, text)).expectations[0].within_ms == 5_500
    assert load(write(tmp_path, text.replace("for_s = 5", "for_s = 60"))).expectations[0].within_ms == 60_500


def test_nothing_expected_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot fail"):
        load(write(tmp_path, GOOD[: GOOD.index("[[expect]]")]))


def test_an_unknown_name_is_helped() -> None:
    with pytest.raises(ConfigError, match="did you mean 'door_opens'"):
        find("door_open")


@given(text=st.text(max_size=200))
def test_any_text_is_a_scenario_or_a_config_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("any") / "x.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError):
        load(path)
