"""`driveway simulate` as a rig engineer uses it: the sample nights, a recording, and all that can be wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.cli import exits
from agent.cli.main import main
from agent.core import plan
from agent.core.events import EventType
from agent.core.findings import GateState
from agent.core.signals import ALIASES, LEAVES
from agent.core.walltime import UTC
from agent.simulate import recording
from agent.simulate.counterpart import Supposed
from agent.simulate.play import rehearse as rehearse_report
from agent.simulate.promises import PROMISES
from agent.simulate.recording import Header, Line
from agent.simulate.report import Report
from agent.simulate.table import NAMES, parse_table
from agent.simulate.text import render
from agent.simulate.truth import Truth
from tests.simulate.nights import HANDLE, POLICY, SPEED, Step, parked, rehearse

ROOT = Path(__file__).parent.parent.parent
DATA = Path(__file__).parent / "data"
DOCS = ROOT / "docs" / "simulate.md"
EVENING = [str(DATA / "tesla-evening.log"), "--policy", str(DATA / "demo.toml")]
EVENING += ["--profile", "tesla-model3", "--profile", "driveway-energy"]
EVENING += ["--bus", "can0=party", "--bus", "can1=vehicle", "--bus", "can2=energy", "--load-s", "2", "--slice-s", "1"]


class Ran(msgspec.Struct):
    code: int
    out: str
    told: str

    @property
    def json(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads(self.out)
        return loaded


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("DRIVEWAY_CONFIG", str(tmp_path / "none.toml"))

    def run(*arguments: object) -> Ran:
        code = main(["simulate", *map(str, arguments)])
        out, told = capsys.readouterr()
        return Ran(code, out, told)

    return run


@pytest.fixture
def night(tmp_path: Path) -> Path:
    """Parked at home; after three minutes somebody pulls the handle."""
    path = tmp_path / "night.csv"
    path.write_text(parked((180.3, HANDLE, "true"), end_s=200), "utf-8")
    return path


# --- the sample nights -----------------------------------------------------------------------------------------------


def test_the_night_at_home(run: Any) -> None:
    """Driving home, getting out, plugging in, waiting for cheap slots, the network, the grid, the driver."""
    ran = run(DATA / "home-night.csv", "--policy", DATA / "home.toml", "--json")
    assert (ran.code, ran.told) == (exits.FINE, "")
    report = ran.json
    codes = [line["code"] for line in report["timeline"]]
    story = ["moving", "gear_not_park", "door_open", "not_plugged_in", "tariff_waiting", "", "demand_response", ""]
    assert _in_order(story, codes), codes
    assert codes[-1] == "moving"
    assert report["started"] == "2026-03-28T21:40:00.000+01:00"
    assert report["timeline"][-1]["at"].startswith("2026-03-29T06:35:30")
    assert report["timeline"][-1]["at"].endswith("+02:00"), "the clocks went forward in between"
    assert report["hours"] == pytest.approx(7 + 55 / 60 + 30 / 3600, abs=0.01)
    minutes = report["open_minutes"] + report["hold_minutes"] + report["closed_minutes"]
    assert minutes == pytest.approx(report["hours"] * 60)
    work = report["work"]
    assert 180 < work["minutes"] <= report["open_minutes"]
    assert work["slices"] == pytest.approx(work["minutes"] * 60 / 5, rel=0.02), "nothing held the pace back"
    assert work["energy_wh"] == pytest.approx(work["minutes"] / 60 * 60, rel=0.05)
    assert work["net"] == pytest.approx(work["paid"] - work["cost"])
    assert work["cost"] > 0
    assert {one["cause"] for one in report["vacates"]} == {"demand_response", "door_handle_pulled"}
    assert max(one["idle_ms"] for one in report["vacates"]) < 100
    assert report["lowest_charge_percent"] == 58.2
    assert [one["name"] for one in report["promises"]] == list(PROMISES)
    assert report["held"]
    assert report["ever_parked"]
    assert report["never_seen"] == []


def _in_order(wanted: list[str], found: list[str]) -> bool:
    rest = iter(found)
    return all(one in rest for one in wanted)


def test_the_evening_of_a_tesla(run: Any) -> None:
    ran = run(*EVENING)
    assert (ran.code, ran.told) == (exits.FINE, "")
    lines = ran.out.splitlines()
    assert lines[0] == "tesla-evening.log: 119 s from Saturday 28 March 2026 20:30 (Europe/Berlin), against demo.toml"
    assert any(re.fullmatch(r"  20:30:\d\d  open   +\d+(\.\d)? s  Nothing stands in the way\.", line) for line in lines)
    assert re.search(r"^  20:30:24  closed +0\.5 s  .*handle.* Given back in 20 ms\.$", ran.out, re.MULTILINE)
    assert re.search(r"^  20:30:3\d  closed +8\d s  .*Vehicle\.Speed", ran.out, re.MULTILINE), "the bus is silent"
    assert re.search(r"^asleep   \d+ s$", ran.out, re.MULTILINE)
    assert f"promises all {len(PROMISES)} held" in ran.out


def test_the_same_night_gives_the_same_answer_byte_for_byte(run: Any) -> None:
    first, second = run(*EVENING, "--json"), run(*EVENING, "--json")
    assert first.out == second.out
    assert len(first.out) > 2_000


# --- policies --------------------------------------------------------------------------------------------------------


def test_a_policy_file_is_a_configuration_or_its_table_and_it_decides(run: Any, night: Path, tmp_path: Path) -> None:
    bare, table = tmp_path / "bare.toml", tmp_path / "table.toml"
    bare.write_text("parked_for_s = 10\nreserve_percent = 90\n", "utf-8")
    table.write_text('state_dir = "x"\n[policy]\nparked_for_s = 10\n', "utf-8")
    stays_shut, works = (run(night, "--policy", path, "--json").json for path in (bare, table))
    assert stays_shut["work"]["slices"] == 0
    assert "charge_below_reserve" in {one["code"] for one in stays_shut["reasons"]}
    assert works["work"]["slices"] > 20
    assert run(night, "--json").json["policy"] == "the built-in policy"


def test_what_is_supposed_can_be_said(run: Any, night: Path) -> None:
    supposed = ("--slice-s", "0.5", "--slice-price", "0.25", "--work-w", "40", "--load-s", "1")
    report = run(night, *supposed, "--json").json
    assert report["supposed"] == {
        "slice_s": 0.5,
        "slice_price_micro": 250_000,
        "work_w": 40.0,
        "load_s": 1.0,
        "micro_batch_ms": 20.0,
    }
    work = report["work"]
    assert work["paid"] == pytest.approx(0.25 * (work["slices"] - work["unsettled_slices"]))


def test_a_trace_without_a_date_says_so_and_start_gives_it_one(run: Any, night: Path) -> None:
    assert "The trace does not tell when it was" in run(night).out
    dated = run(night, "--start", "2026-03-28T22:00", "--policy", DATA / "home.toml", "--json").json
    assert dated["started"] == "2026-03-28T22:00:00.000+01:00"
    assert dated["remarks"] == []
    assert run(night, "--start", "2026-03-28T22:00Z", "--json").json["started"].startswith("2026-03-28T22:00:00.000")


def test_a_car_that_is_never_parked_says_so_and_what_was_never_seen(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "drive.csv"
    path.write_text(f"time,name,value\n0,{SPEED},50\n60,{SPEED},40\n", "utf-8")
    ran = run(path)
    assert ran.code == exits.FINE
    assert "parked   never: at no moment did every sign agree" in ran.out
    assert re.search(r"^unseen   Vehicle\.\S+, .* and \d+ more: the gates wait for them$", ran.out, re.MULTILINE)


# --- recordings and broken promises ----------------------------------------------------------------------------------


def _record(path: Path, steps: list[Step], person_at: int | None = None) -> None:
    """The steps of a rehearsal as a recording; from `person_at` on, somebody is in truth there."""
    lines = [Line(event, _truth(event, person_at)) for _, event, _, _ in steps]
    before = steps[0][0]
    header = Header(name=before.name, start_ms=0, policy=before.policy, offered=before.vehicle.offered)
    recording.write(path, header, lines)


def _truth(event: EventType, person_at: int | None) -> Truth | None:
    return Truth(event.at_ms, person=True) if person_at is not None and event.at_ms >= person_at else None


def test_a_recording_is_played_back_as_it_was(run: Any, night: Path, tmp_path: Path) -> None:
    _, steps = rehearse(night.read_text("utf-8"))
    path = tmp_path / "night.jsonl"
    _record(path, steps)
    policy = tmp_path / "policy.toml"
    policy.write_text(f"parked_for_s = {POLICY.parked_for_s}\n", "utf-8")
    report = run(path, "--json").json
    again = run(night, "--policy", policy, "--slice-s", "1", "--load-s", "2", "--json").json
    for key in ("timeline", "reasons", "vacates", "highest_die_c", "open_minutes", "promises"):
        assert report[key] == again[key], key
    assert (report["kind"], report["supposed"], report["held"]) == ("recording", None, True)
    assert report["work"]["slices"] == again["work"]["slices"] > 100


def test_a_promise_that_a_recording_breaks_is_told_with_its_time(run: Any, night: Path, tmp_path: Path) -> None:
    _, steps = rehearse(night.read_text("utf-8"), start_wall_ms=1_774_728_000_000)
    working_ms = next(after.now_ms for _, _, after, _ in steps if after.slices_kept > 5)
    path = tmp_path / "night.jsonl"
    _record(path, steps, person_at=working_ms)
    ran = run(path)
    assert ran.code == exits.FAILED
    assert f"of {len(PROMISES)} BROKEN" in ran.out
    assert re.search(r"^  20:\d\d:\d\d\.\d{3}  vacates_within_its_budget: .*somebody is there", ran.out, re.MULTILINE)


def test_a_core_that_does_not_vacate_is_found(run: Any, night: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check can fail: the same night with a bug in the core."""
    assert run(night).code == exits.FINE
    without = tuple(rule for rule in plan.RULES if rule not in {plan.vacate, plan.stop_for_ended_lease})
    monkeypatch.setattr(plan, "RULES", without)
    ran = run(night, "--json")
    assert ran.code == exits.FAILED
    broken = {one["name"]: one["broken"] for one in ran.json["promises"] if not one["held"]}
    assert broken["vacates_within_its_budget"][0]["at_ms"] == 180_300
    assert not ran.json["held"]


def test_a_recording_takes_no_other_policy(run: Any, night: Path, tmp_path: Path) -> None:
    _, steps = rehearse(night.read_text("utf-8"))
    path = tmp_path / "night.jsonl"
    _record(path, steps[:50])
    ran = run(path, "--policy", DATA / "home.toml")
    assert ran.code == exits.USAGE
    assert "it replays under its own policy" in ran.told


# --- what can be wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["none.csv"], "cannot read the trace none.csv: No such file or directory"),
        ([EVENING[0]], "add --profile and --bus"),
        ([EVENING[0], "--profile", "tesla-modl3", "--bus", "can0=party"], "did you mean 'tesla-model3'?"),
        ([EVENING[0], "--profile", "tesla-model3", "--bus", "can0=prty"], "did you mean 'party'?"),
        ([EVENING[0], "--profile", "tesla-model3", "--bus", "can0"], "is not INTERFACE=BUS"),
        ([EVENING[0], "--profile", "tesla-model3", "--bus", "a=party", "--bus", "a=vehicle"], "names a twice"),
        ([EVENING[0], "--profile", "tesla-model3", "--bus", "can9=party"], "the log's interfaces: can0, can1, can2"),
        ([EVENING[0], "--policy", "none.toml"], "cannot read the policy none.toml"),
        ([EVENING[0], "--start", "yesterday"], "--start 'yesterday' is no time"),
        ([EVENING[0], "--start", "9999-12-31T23:59-23:59"], "is not within 1970 and 2100"),
        ([str(DATA / "home-night.csv"), "--slice-s", "0"], "--slice-s is 0"),
        ([str(DATA / "home-night.csv"), "--slice-s", "nan"], "--slice-s is nan"),
        ([str(DATA / "home-night.csv"), "--slice-price", "-1"], "--slice-price is -1"),
    ],
)
def test_what_cannot_be_used_is_told_and_is_exit_code_2(run: Any, arguments: list[str], told: str) -> None:
    ran = run(*arguments)
    assert (ran.code, ran.out) == (exits.USAGE, "")
    assert ran.told.startswith("driveway: ")
    assert told in ran.told


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        ("reserve_percen = 3\n", "did you mean policy.reserve_percent?"),
        ("[policy]\nreserve_percent = 300\n", "policy.reserve_percent"),
        ('time_zone = "Europe/Berln"\n', "did you mean 'Europe/Berlin'?"),
        ("die_start_c = 94.0\n", "policy.die_start_c"),
        ("= 3\n", "is not TOML"),
    ],
)
def test_a_policy_that_cannot_be_used_is_told(run: Any, night: Path, tmp_path: Path, policy: str, told: str) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(policy, "utf-8")
    ran = run(night, "--policy", path)
    assert ran.code == exits.USAGE
    assert told in ran.told


NUMBERS = ["0", "1", "-1", "49", "56.5", "99", "-40", "126", "1e300", "NA"]
WORDS = {
    "network": ["up", "down", "metered"],
    "owner": ["auto", "paused", "finish", "consent 0"],
    "source": ["lost", "alive"],
    "clock": ["kept", "unkept", "-1e6", "3e9", "2"],
    "demand": ["0", "20"],
    "price_micro_per_kwh": ["-5000", "300000", "NA"],
    "compute.die_c": ["20", "87", "94", "120", "NA"],
    "compute.power_w": ["0", "8", "60", "400", "NA"],
    "ambient_c": ["-40", "10", "80", "NA"],
}


def values(name: str) -> list[str]:
    """What a row of this name may say, the absurd included."""
    path = ALIASES.get(name, name)
    if path not in LEAVES:
        return WORDS.get(name, NUMBERS)
    leaf = LEAVES[path]
    if leaf.kind is bool or name.endswith("IsOccupied"):
        return ["true", "false", "NA"]
    return NUMBERS if leaf.kind is float else [*sorted(leaf.allowed), "NA"]


row = st.sampled_from(sorted(NAMES)).flatmap(lambda name: st.tuples(st.just(name), st.sampled_from(values(name))))
anything = st.lists(st.tuples(st.integers(0, 90), row).map(lambda one: (one[0], *one[1])), max_size=10)


@settings(max_examples=40, deadline=None)
@given(anything)
def test_no_night_breaks_the_report(rows: list[tuple[int, str, str]]) -> None:
    """Whatever a car, a sensor or an owner says: there is a report, its numbers are numbers, and the promises hold."""
    trace = parse_table(parked(*rows, end_s=100), "night", 1_774_728_000_000)
    report = rehearse_report(trace, POLICY, "policy", UTC, Supposed(slice_s=1.0, load_s=2.0))
    assert render(report)
    assert msgspec.json.decode(msgspec.json.encode(report), type=Report) == report
    assert report.hours == pytest.approx(100 / 3600, abs=0.01)
    assert [one.name for one in report.promises if not one.held] == []


# --- the document ----------------------------------------------------------------------------------------------------


def test_the_example_in_the_document_plays_as_it_says(run: Any, tmp_path: Path) -> None:
    (example,) = re.findall(r"^```csv\n(.*?)^```", DOCS.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    path = tmp_path / "example.csv"
    path.write_text(example, "utf-8")
    report = run(path, "--json").json
    assert report["work"]["slices"] > 80
    assert [one["cause"] for one in report["vacates"]] == ["door_handle_pulled"]
    assert report["timeline"][-1]["state"] == GateState.CLOSED.value


def test_the_document_names_every_name_and_every_key(run: Any, night: Path) -> None:
    text = DOCS.read_text("utf-8")
    own = {name for name in NAMES if not name.startswith("Vehicle.")}
    assert [name for name in sorted(own) if f"`{name}`" not in text] == []
    report = run(night, "--json").json
    assert [key for key in report if f"`{key}`" not in text] == []
    for part in (report["work"], report["timeline"][0], report["vacates"][0], report["reasons"][0]):
        assert [key for key in part if f"`{key}`" not in text] == []
