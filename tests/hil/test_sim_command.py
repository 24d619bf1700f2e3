"""`driveway-hil sim`: the same seed, the same nights; what breaks is told, shortened, and replays."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from agent.core import plan
from agent.errors import ConfigError
from agent.simulate.promises import PROMISES, Promise
from agent.simulate.recording import Recording, read, replay, write
from hil.cli import main
from hil.sim import engine
from hil.sim.engine import play, play_all
from hil.sim.shrink import shrink
from hil.sim.world import NIGHT, build
from tests.hil.sim_worlds import LEASES, PEOPLE

HALF_AN_HOUR_MS = 1_800_000


def test_the_same_seed_gives_the_same_night_in_any_number_of_processes() -> None:
    short = msgspec.structs.replace(NIGHT, name="short", night_ms=HALF_AN_HOUR_MS)
    one, two = list(play_all(range(3), 2, 9, 1, short)), list(play_all(range(3), 2, 9, 2, short))
    assert one == two
    assert len({played.events for played in one}) > 1, "the cars differ"


def test_a_night_of_a_car_replays_to_the_same_state() -> None:
    car = build(4, 0, 1, LEASES)
    car.run(car.traits.start_ms + LEASES.night_ms)
    outcome = replay(Recording(car.witness.header, tuple(car.witness.lines)))
    assert outcome.state == car.witness.state
    assert outcome.broken == ()
    assert outcome.state.slices_kept > 0


def test_a_recording_survives_its_file(tmp_path: Path) -> None:
    car = build(4, 0, 1, LEASES)
    car.run(car.traits.start_ms + LEASES.night_ms)
    recording = Recording(car.witness.header, tuple(car.witness.lines))
    write(tmp_path / "night.jsonl", recording.header, recording.lines)
    again = read(tmp_path / "night.jsonl")
    assert again.header == recording.header
    assert replay(again).state == car.witness.state


@pytest.mark.parametrize("text", ["", "{}\n", "[1]\n", '{"format": "driveway-recording/9"}\n'])
def test_what_is_no_recording_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(ConfigError):
        read(tmp_path / "x.jsonl")


def test_a_line_that_is_no_event_is_named(tmp_path: Path) -> None:
    car = build(4, 0, 1, LEASES)
    write(tmp_path / "x.jsonl", car.witness.header, ())
    with (tmp_path / "x.jsonl").open("a") as file:
        file.write('{"event": {"type": "Nothing"}}\n')
    with pytest.raises(ConfigError, match="line 2"):
        read(tmp_path / "x.jsonl")


def forget_to_vacate(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(plan, "RULES", tuple(rule for rule in plan.RULES if rule is not plan.vacate))


def test_a_failure_shrinks_to_a_few_events_that_still_show_it(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_to_vacate(monkeypatch)
    played = play(3, 0, 1, PEOPLE)
    assert played.header is not None
    short = shrink(Recording(played.header, played.lines), played.broken[0])
    assert len(short.lines) < min(40, len(played.lines) / 2)
    assert replay(short).broken[0].name == played.broken[0].name
    monkeypatch.undo()
    said = [broken.detail for broken in replay(short).broken]
    assert not any("no StopWorker" in one for one in said), "it is the bug that breaks it, not the shortening"


def test_the_command_says_what_broke_and_where(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forget_to_vacate(monkeypatch)
    monkeypatch.setattr(engine, "NIGHT", PEOPLE)
    monkeypatch.setattr(engine.play_all, "__defaults__", (1, PEOPLE))
    arguments = ["sim", "--cars", "1", "--seed", "3", "--trace-dir", str(tmp_path), "--json", str(tmp_path / "x.json")]
    assert main(arguments) == 1
    said = capsys.readouterr().out
    assert f"BROKEN {Promise.VACATES.value}: seed 3, car 0" in said
    trace = tmp_path / f"3-0-{Promise.VACATES.value}.jsonl"
    assert f"driveway simulate {trace}" in said
    assert replay(read(trace)).broken[0].name == Promise.VACATES
    figures = msgspec.json.decode((tmp_path / "x.json").read_bytes())
    assert figures["violations"][Promise.VACATES.value] == 1


def test_the_command_writes_every_promise_with_its_hours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engine.play_all, "__defaults__", (1, PEOPLE))
    assert main(["sim", "--cars", "2", "--seed", "1", "--json", str(tmp_path / "x.json")]) == 0
    figures = msgspec.json.decode((tmp_path / "x.json").read_bytes())
    wanted = {"cars", "nights", "seed", "car_hours", "events", "wall_s", "nights_s", "events_per_s"}
    assert wanted | {"car_nights_per_minute", "work_hours", "violations", "held_hours"} <= set(figures)
    assert figures["violations"] == dict.fromkeys(PROMISES, 0)
    assert figures["held_hours"] == pytest.approx(dict.fromkeys(PROMISES, figures["car_hours"]))
    assert "held" in capsys.readouterr().out


def test_a_fleet_of_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sim", "--cars", "0"]) == 1
    assert "at least one car" in capsys.readouterr().err
