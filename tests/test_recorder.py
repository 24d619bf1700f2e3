"""What a daemon recorded replays to the same states and the same effects, from wherever the recording still reaches."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from agent.core.effects import EffectType, Report
from agent.core.events import EventType, Tick
from agent.core.machine import step
from agent.core.state import State
from agent.recorder import FILES_MAX, Recorder
from agent.simulate import recording
from agent.simulate.recording import Line
from hil.sim.world import build

HOURS = 8


class Night:
    """Some hours of a simulated car with all its faults: states, events and effects, step by step."""

    def __init__(self, number: int) -> None:
        car = build(7, number, 1)
        car.run(car.traits.start_ms + HOURS * 3_600_000)
        self.steps: list[tuple[State, EventType, State, tuple[EffectType, ...]]] = []
        state = car.witness.header.begin()
        for line in car.witness.lines:
            after, effects = step(state, line.event)
            self.steps.append((state, line.event, after, effects))
            state = after
        self.last = state

    def recorded(self, recorder: Recorder) -> Recorder:
        for before, event, after, effects in self.steps:
            recorder.saw(before, event, after, effects)
        return recorder


@pytest.fixture(scope="module", params=[0, 2, 3, 5])
def night(request: pytest.FixtureRequest) -> Night:
    return Night(request.param)


def plain(state: State) -> State:
    return msgspec.structs.replace(state, looked_at=None)


def replayed(recorder: Recorder, folder: Path) -> tuple[recording.Recording, recording.Outcome]:
    read = recording.read(recorder.taken().write(folder, 1_000))
    return read, recording.replay(read)


def test_a_whole_recording_replays_to_the_same(night: Night, tmp_path: Path) -> None:
    read, outcome = replayed(night.recorded(Recorder()), tmp_path)
    assert len(read.lines) == len(night.steps) > 50
    assert outcome.differs == ()
    assert plain(outcome.state) == plain(night.last)


def test_so_does_what_is_left_of_one_whose_beginning_was_dropped(night: Night, tmp_path: Path) -> None:
    recorder = night.recorded(Recorder(max_bytes=12_000, segment_bytes=2_000))
    read, outcome = replayed(recorder, tmp_path)
    assert 0 < len(read.lines) < len(night.steps)
    assert [line.event for line in read.lines] == [one[1] for one in night.steps[-len(read.lines) :]]
    assert outcome.differs == ()
    assert plain(outcome.state) == plain(night.last)


def test_it_is_bounded_whatever_is_recorded(night: Night) -> None:
    recorder, most = Recorder(max_bytes=60_000, segment_bytes=5_000), 0
    for _ in range(5):
        night.recorded(recorder)
        most = max(most, recorder.size)
    assert most < 60_000 + 5_000 + 20_000  # and the segment that is open, with its state


def test_a_version_that_decides_otherwise_is_told_from_which_line_on(night: Night, tmp_path: Path) -> None:
    read, _ = replayed(night.recorded(Recorder()), tmp_path)
    at = next(number for number, line in enumerate(read.lines) if line.effects)
    bent = (*read.lines[:at], Line(read.lines[at].event, effects=(Report(name="other", fields={}),)))
    assert recording.replay(msgspec.structs.replace(read, lines=bent)).differs == (at + 2,)


def test_a_state_that_came_from_elsewhere_begins_it_anew(tmp_path: Path) -> None:
    recorder = Recorder()
    one = build(7, 1, 1).witness.state
    other = msgspec.structs.replace(one, connected=True)
    for before in (one, other):
        tick = Tick(at_ms=before.now_ms + 1)
        after, effects = step(before, tick)
        recorder.saw(before, tick, after, effects)
    read, outcome = replayed(recorder, tmp_path)
    assert len(read.lines) == 1
    assert outcome.state.connected


def test_old_recordings_make_room(tmp_path: Path) -> None:
    recorder = Recorder()
    state = build(7, 1, 1).witness.state
    recorder.saw(state, Tick(at_ms=state.now_ms), state, ())
    for wall_ms in range(FILES_MAX + 3):
        recorder.taken().write(tmp_path, wall_ms)
    assert len(list(tmp_path.iterdir())) == FILES_MAX
    assert not (tmp_path / f"{0:013d}.jsonl").exists()
    assert recorder.taken().write(tmp_path, 99).stat().st_mode & 0o077 == 0
