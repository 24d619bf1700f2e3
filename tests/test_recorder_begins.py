"""A recording replays to the same effects whichever event it begins with, also the first one after a suspend."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from agent.core.effects import EffectType, StopWorker
from agent.core.events import EventType, SourceHeard, Tick
from agent.core.state import State
from agent.recorder import Recorder
from agent.simulate import recording
from tests.core.world import Shell, car, computer

HOUR_MS = 3_600_000
FOLLOWED = 8
"""So many events are replayed from each beginning: enough to reach the first that finds anything out."""


@dataclass
class Sleeper(Shell):
    """A car at work that is suspended again and again; what wakes the agent first is something else each time."""

    steps: list[tuple[State, EventType, State, tuple[EffectType, ...]]] = field(default_factory=list)

    def tell(self, event: EventType) -> list[EffectType]:
        before = self.state
        effects = super().tell(event)
        self.steps.append((before, event, self.state, tuple(effects)))
        return effects

    def work(self, seconds: int) -> None:
        for _ in range(seconds * 5 // 2):
            self.now_ms += 400
            for event in (car(self.now_ms), computer(self.now_ms), Tick(at_ms=self.now_ms)):
                self.tell(event)
            self.settle_down(4)

    def live(self) -> None:
        self.connect()
        for wake in (car, computer, heard, Tick):
            self.work(65)
            self.now_ms += HOUR_MS
            self.tell(wake(at_ms=self.now_ms))
        self.work(5)


def heard(at_ms: int) -> SourceHeard:
    return SourceHeard(at_ms=at_ms, source="bus", groups=("",))


def test_a_recording_may_begin_with_any_event_of_a_night_with_suspends(tmp_path: Path) -> None:
    sleeper = Sleeper()
    sleeper.live()
    steps = sleeper.steps
    woken = [at for at, (before, event, _, _) in enumerate(steps) if event.at_ms - before.now_ms == HOUR_MS]
    assert len(woken) == 4
    assert all(any(isinstance(one, StopWorker) for one in steps[at][3]) for at in woken), "the gap is found at once"
    for first, (_, begun_with, _, _) in enumerate(steps):
        recorder = Recorder()
        for one in steps[first : first + FOLLOWED]:
            recorder.saw(*one)
        written = recorder.taken().write(tmp_path, 1_000, reserve_bytes=0)
        outcome = recording.replay(recording.read(written.path))
        assert outcome.events == min(FOLLOWED, len(steps) - first)
        assert outcome.differs == (), f"begun with event {first}: {begun_with}"
