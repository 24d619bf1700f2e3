"""`driveway config check | show`: a corpus of wrong files, each told with its key, its line and what to write."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import config_units
from agent.cli import config as verb
from agent.cli import exits
from agent.cli.main import main
from agent.config import Config, load
from agent.config_mistakes import doubts, mistakes, structs_in
from agent.core.policy import Policy
from agent.errors import ConfigError
from agent.toml import Layer
from agent.toml_lines import lines_of
from tests.test_config import GOOD

CORPUS = [
    # a key with another unit
    ("ambient_max_f = 140", "unknown key", "It is in degrees Celsius: 140 degrees Fahrenheit are 60"),
    ("die_limit_f = 203", "unknown key", "policy.die_limit_c? It is in degrees Celsius: 203 degrees Fahrenheit are 95"),
    ("power_max_kw = 0.06", "unknown key", "did you mean policy.power_max_w? It is in watts: 0.06 kW are 60"),
    ("battery_kwh = 75", "unknown key", "policy.battery_wh? It is in watt hours: 75 kWh are 75000"),
    ("parked_for_min = 2", "unknown key", "policy.parked_for_s? It is in seconds: 2 minutes are 120"),
    ("vacate_budget_s = 0.06", "unknown key", "policy.vacate_budget_ms? It is in milliseconds: 0.06 seconds are 60"),
    ("charge_efficiency_percent = 90", "unknown key", "did you mean policy.charge_efficiency?"),
    # a value with a unit of its own
    ('parked_for_s = "30 min"', "a number is wanted, not a text", "it is in seconds: write parked_for_s = 1800"),
    ('die_limit_c = "203 °F"', "a number is wanted", "it is in degrees Celsius: write die_limit_c = 95"),
    ('power_max_w = "0.06 kW"', "a number is wanted", "it is in watts: write power_max_w = 60"),
    ('reserve_percent = "60%"', "a number is wanted", "it is in percent: write reserve_percent = 60"),
    ('parked_for_s = "60"', "a number is wanted", "write it without quotes: parked_for_s = 60"),
    ('parked_for_s = "2 kW"', "a number is wanted", "write a number of seconds; 'kW' is no unit for it"),
    # a number of another unit, out of the range
    ("die_limit_c = 203", "203 is not at most 150", "203 degrees Fahrenheit would be die_limit_c = 95"),
    ("energy_price_micro_per_kwh = 0.27", "a whole number is wanted", "energy_price_micro_per_kwh = 270000"),
    ("ready_by_share = 85", "85 is not at most 1", "85 percent would be ready_by_share = 0.85"),
    ("slice_timeout_ms = 300", "300 is not at least 1000", "300 seconds would be slice_timeout_ms = 300000"),
    # other kinds of values
    ('plug_required = "yes"', "true or false is wanted", "without quotes"),
    ('low_voltage_chemistry = "lithum"', "did you mean 'lithium'?", "known here: lead, lithium"),
    ('currency = "dollars"', "policy.currency", ""),
    ("departures = 7", "a list is wanted", "write it as a list: departures = [7]"),
    ("time_zone = 2", "a text is wanted", "write it in quotes"),
    ("reserve_percent = 200", "200 is not at most 100", "it is in percent"),
]  # fmt: skip
DOUBTS = [
    ("power_max_w = 0.06", "if 0.06 kW is meant, write power_max_w = 60"),
    ("battery_wh = 75", "if 75 kWh is meant, write battery_wh = 75000"),
    ("ambient_stop_c = 140", "if 140 degrees Fahrenheit is meant, write ambient_stop_c = 60"),
    ("reserve_percent = 0.6", "if 0.6 a share of 1 is meant, write reserve_percent = 60"),
    ("energy_price_micro_per_kwh = 27", "hundredths of the currency per kWh is meant"),
    ("charger_w = 11", "if 11 kW is meant, write charger_w = 11000"),
]


def written(folder: Path, text: str) -> str:
    (folder / "agent.toml").write_text(text, "utf-8")
    return str(folder / "agent.toml")


def checked(path: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    code = main(["config", "check", "--json", "--config", path])
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    return code, said


@pytest.mark.parametrize(("line", "what", "hint"), CORPUS)
def test_each_wrong_line_is_told_with_its_mend(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, what: str, hint: str
) -> None:
    path = written(tmp_path, GOOD.replace("parked_for_s = 60", line))
    code, said = checked(path, capsys)
    (found,) = said["mistakes"]
    assert (code, said["result"], found["line"]) == (exits.FAILED, "failed", 19)
    assert what in found["what"]
    assert hint in found["hint"]
    with pytest.raises(ConfigError) as refused:  # the daemon says the same
        load(Path(path))
    assert f"agent.toml:19: {found['what']}" in str(refused.value)


@pytest.mark.parametrize(("line", "hint"), DOUBTS)
def test_a_number_that_looks_like_another_unit_is_asked_about(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, hint: str
) -> None:
    _, said = checked(written(tmp_path, GOOD.replace("parked_for_s = 60", line)), capsys)
    (found,) = said["doubts"]
    assert found["line"] == 19
    assert hint in found["hint"]


def test_defaults_and_the_example_raise_no_doubt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert checked(written(tmp_path, GOOD), capsys)[0] == exits.FINE
    assert checked("systemd/agent.example.toml", capsys) == (
        exits.FINE,
        {"v": 1, "file": "systemd/agent.example.toml", "drop_ins": [], "result": "ok", "mistakes": [], "doubts": []},
    )


def test_every_default_of_the_policy_is_usual() -> None:
    for name, value in msgspec.to_builtins(Policy()).items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            assert config_units.meant(f"policy.{name}", value) is None, name


def test_every_usual_range_is_of_a_key_that_is_there() -> None:
    def keys(kind: type[msgspec.Struct], prefix: str = "") -> set[str]:
        found = set()
        for field in msgspec.structs.fields(kind):
            found.add(prefix + field.name)
            for inner in structs_in(field.type):
                found |= keys(inner, f"{prefix}{field.name}.")
        return found

    assert set(config_units.USUAL) <= keys(Config)
    assert all(config_units.unit_of(key) is not None for key in config_units.USUAL)


def test_all_mistakes_are_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = GOOD.replace('interface = "socketcan"', 'interface = "socketcam"').replace("brokers", "hosts")
    path = written(tmp_path, text.replace("parked_for_s = 60", 'parked_for_s = "x"\nplug_required = 1'))
    said = checked(path, capsys)[1]
    assert [one["key"] for one in said["mistakes"]] == [
        "fleet.hosts", "vehicle.bus[0].interface", "fleet", "policy.parked_for_s", "policy.plug_required",
    ]  # fmt: skip


def test_limits_that_contradict_each_other_are_all_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = "die_target_c = 99\npack_stop_c = 39"
    said = checked(written(tmp_path, GOOD.replace("parked_for_s = 60", wrong)), capsys)[1]
    assert [(one["key"], one["line"]) for one in said["mistakes"]] == [
        ("policy.die_target_c", 19), ("policy.pack_start_max_c", 18),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"127.0.0.1:1883"', '"broker"', "'broker' is not host:port"),
        ('["tesla-model3"]', '["tesla-model4"]', "tesla-model4"),
        ('control_socket = "control.sock"', f'control_socket = "/{"x" * 120}"', "is longer than the 107 bytes"),
        ("[unit]", "[unit", "is not TOML"),
    ],
)
def test_what_is_found_besides_types(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, said: str
) -> None:
    path = written(tmp_path, GOOD.replace(old, new))
    assert main(["config", "check", "--config", path]) == exits.FAILED
    assert said in capsys.readouterr().out


def test_a_file_that_is_not_there_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "check", "--config", str(tmp_path / "no.toml")]) == exits.FAILED
    assert "No such file" in capsys.readouterr().out


def test_a_policy_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "night.toml").write_text("die_limit_c = 90\ndie_target_c = 91\n")
    assert main(["config", "check", "--policy", str(tmp_path / "night.toml")]) == exits.FAILED
    assert "night.toml:2: policy.die_target_c (91.0) is not below" in capsys.readouterr().out


# --- drop-ins and where values are from -----------------------------------------------------------------------------


def test_drop_ins_are_laid_over_in_the_order_of_their_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, GOOD)
    folder = tmp_path / "agent.toml.d"
    folder.mkdir()
    (folder / "20-garage.toml").write_text("[policy]\nparked_for_s = 90\n")
    (folder / "10-commissioning.toml").write_text("[policy]\nparked_for_s = 70\nsink_min_j_per_k = 310.0\n")
    (folder / "notes.txt").write_text("not TOML [")
    (folder / ".hidden.toml").write_text("not TOML [")
    assert load(Path(path)).policy.parked_for_s == 90.0
    found = {one.key: one for one in verb.values(Path(path), Path("/run/x.sock"))}
    assert [(found[key].value, str(found[key].origin)) for key in (
        "policy.parked_for_s", "policy.sink_min_j_per_k", "policy.die_limit_c", "unit.id", "control_socket",
        "vehicle.bus[0].channel",
    )] == [
        (90.0, f"drop-in {folder}/20-garage.toml:2"),
        (310.0, f"commissioning {folder}/10-commissioning.toml:3"),
        (95.0, "default"),
        ("car-0001", f"{path}:5"),
        ("/run/x.sock", "command line --socket"),
        ("can0", f"{path}:11"),
    ]  # fmt: skip
    (folder / "30-wrong.toml").write_text("\n[policy]\nparked_fr_s = 90\n")
    assert main(["config", "check", "--config", path]) == exits.FAILED
    assert "30-wrong.toml:3: unknown key 'policy.parked_fr_s'" in capsys.readouterr().out


def test_the_socket_may_be_named_by_a_drop_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, GOOD)
    (tmp_path / "agent.toml.d").mkdir()
    (tmp_path / "agent.toml.d/a.toml").write_text('control_socket = "elsewhere.sock"\n')
    assert main(["status", "--config", path]) == exits.UNREACHABLE
    assert "elsewhere.sock" in capsys.readouterr().err


def test_the_catalogues_policy_is_told(tmp_path: Path) -> None:
    catalogue = '\n[trust.catalogue]\nroot = "root.json"\nurl = "https://user:pw@c.example/"\npolicy = "night"\n'
    path = written(tmp_path, GOOD + catalogue)
    kept = tmp_path / "state/catalogue/night.toml"
    kept.parent.mkdir(parents=True)
    kept.write_text("parked_for_s = 45\n")
    found = {one.key: one for one in verb.values(Path(path))}
    assert (found["policy.parked_for_s"].value, str(found["policy.parked_for_s"].origin)) == (
        45.0,
        f"catalogue {kept}:1",
    )
    assert found["trust.catalogue.url"].value == "https://(hidden)c.example/"


def test_secrets_are_never_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, GOOD.replace("[fleet]", '[fleet]\nenrol_code = "s3cr3t"'))
    assert main(["config", "show", "--config", path]) == exits.FINE
    assert main(["config", "show", "--json", "--config", path]) == exits.FINE
    said = capsys.readouterr().out
    assert "s3cr3t" not in said
    assert 'fleet.enrol_code = "(hidden)"' in said


def test_values_are_chosen_by_key_and_by_being_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, GOOD)
    assert main(["config", "show", "--config", path, "policy", "--changed"]) == exits.FINE
    assert capsys.readouterr().out.split() == ["policy.parked_for_s", "=", "60.0", "#", "seconds;", f"{path}:19"]
    assert main(["config", "show", "--config", path, "polcy"]) == exits.USAGE


# --- parsers of what somebody wrote ---------------------------------------------------------------------------------


def test_lines_of_every_kind_of_statement() -> None:
    text = '''# about
a = 1
b.c = "x"
d = """
[not.a.table]
e = 1
"""
[t]  # comment
u = [
  1,
  { v = 2 },
]
[[rows]]
x = 1
[rows.inner]
y = 2
[[rows]]
x = { z = 3 }
'''
    found = lines_of(text)
    keys = ("a", "b.c", "d", "t", "t.u", "rows[0].x", "rows[0].inner.y", "rows[1].x.z")
    assert {key: found[key] for key in keys} == {
        "a": 2, "b.c": 3, "d": 4, "t": 8, "t.u": 9, "rows[0].x": 14, "rows[0].inner.y": 16, "rows[1].x.z": 18,
    }  # fmt: skip
    assert "e" not in found
    assert "not.a.table" not in found


JSONLIKE = st.recursive(
    st.booleans()
    | st.integers(-10, 10**6)
    | st.floats(allow_nan=False)
    | st.sampled_from(["30 min", "60", "x", "can0"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["bus", "name", "x"]), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["policy", "vehicle", "fleet", "unit", "state_dir", "trust", "computer", "polcy"]),
        st.dictionaries(
            st.sampled_from(
                ["parked_for_s", "die_limit_f", "bus", "brokers", "tls", "key", "tariff_zones", "schedule"]
            ),
            JSONLIKE,
            max_size=4,
        )
        | JSONLIKE,
        max_size=6,
    )
)
def test_whatever_is_written_is_told_and_nothing_breaks(table: dict[str, Any]) -> None:
    """A table that lacks most of what is required: something is wrong, each with words, and looking ends."""
    layers = [Layer(Path("agent.toml"), "", table)]
    found = mistakes(layers, Config)
    assert found
    assert all(one.what for one in found)
    assert len({(one.key, one.what) for one in found}) == len(found)
    doubts(layers)


@settings(max_examples=300, derandomize=True)
@given(st.text(st.sampled_from("ab.=[]{}\"'\n #1,\\"), max_size=40))
def test_lines_are_told_of_whatever_is_toml(text: str) -> None:
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    assert all(1 <= line <= text.count("\n") + 1 for line in lines_of(text).values())
