"""What all rigs have in common: states, the latch of a broken one, and the timeline that plays on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest

from agent.errors import DrivewayError
from hil.rigs.faults import Fault, PowerCut
from hil.rigs.interface import BrokenRigError, Reached, Rig, RigState
from hil.rigs.observation import Evidence, Observation
from hil.rigs.stimuli import OpenDoor, Stimulus
from hil.scenario.loader import find
from hil.scenario.model import Condition, RigName, Scenario, Step
from hil.scenario.output import Figures, figures, junit, read_figures, write_summary
from hil.scenario.run import Verdict, play
from hil.scenario.timeline import days_of

SCENARIO = find("door_opens")


class Paper(Rig):
    """A rig of paper: it notes what is done to it, and its gate opens after a second."""

    name: ClassVar[RigName] = "sil"
    about: ClassVar[str] = "paper"
    refuses: ClassVar[bool] = False

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        super().__init__(scenario, folder)
        self.log: list[str] = []
        self._now_ms = 0

    @classmethod
    def cannot(cls, what: Stimulus | Fault) -> str | None:
        return "paper has no power" if isinstance(what, PowerCut) else None

    @property
    def now_ms(self) -> int:
        return self._now_ms

    def install(self) -> None:
        self.log.append("install")

    def begin(self) -> None:
        self.log.append("begin")
        self._look()

    def end(self) -> None:
        self.log.append("end")

    def remove(self) -> None:
        self.log.append("remove")

    def do(self, stimulus: Stimulus) -> int:
        if self.refuses:
            raise DrivewayError("paper tears")
        self.log.append(type(stimulus).__name__)
        return self._now_ms

    def strike(self, fault: Fault) -> Callable[[], None]:
        self.log.append(f"{type(fault).__name__} at {self._now_ms}")
        return lambda: self.log.append(f"mended at {self._now_ms}")

    def advance(self, until_ms: int, reached: Reached | None) -> bool:
        while self._now_ms < until_ms:
            self._now_ms += 100
            self._look()
            if reached is not None and reached(self.last):
                return True
        return False

    def _look(self) -> None:
        opened = self._now_ms >= 1_000
        self.observations.append(
            Observation(at_ms=self._now_ms, gate="open" if opened else "closed", computing=opened, slices_kept=9)
        )

    def evidence(self) -> Evidence:
        return Evidence(versions={"paper": "1"})


class Torn(Paper):
    """It breaks at the first touch."""

    refuses: ClassVar[bool] = True


def test_transitions_walk_in_order(tmp_path: Path) -> None:
    rig = Paper(SCENARIO, tmp_path)
    rig.transition("running")
    rig.transition("running")
    rig.transition("installed")
    rig.transition("off")
    assert rig.log == ["install", "begin", "end", "remove"]
    assert rig.state is RigState.OFF


def test_only_a_running_rig_does_things(tmp_path: Path) -> None:
    rig = Paper(SCENARIO, tmp_path)
    with pytest.raises(DrivewayError, match="not running"):
        rig.apply(OpenDoor())


def test_a_broken_rig_refuses_until_it_is_built_anew(tmp_path: Path) -> None:
    with Torn(SCENARIO, tmp_path) as rig:
        rig.transition("running")
        with pytest.raises(DrivewayError, match="paper tears"):
            rig.apply(OpenDoor())
        for use in (lambda: rig.wait(10), lambda: rig.apply(OpenDoor()), lambda: rig.transition("installed")):
            with pytest.raises(BrokenRigError, match="paper tears"):
                use()
        rig.transition("off")
        assert (rig.broken, rig.log[-1]) == ("", "remove")
        rig.transition("running")
        assert rig.wait(2_000, lambda seen: seen.gate == "open")


def test_a_rig_that_breaks_is_an_error_and_no_failure(tmp_path: Path) -> None:
    run = play(SCENARIO, Torn, tmp_path / "run")
    assert (run.verdict, run.why) == (Verdict.ERROR, "paper tears")


def test_what_a_rig_cannot_do_is_skipped_with_its_reason(tmp_path: Path) -> None:
    cut = msgspec.structs.replace(SCENARIO, steps=(Step(fault=PowerCut()),))
    run = play(cut, Paper, tmp_path / "run")
    assert (run.verdict, run.why) == (Verdict.SKIPPED, "paper has no power")
    not_here = msgspec.structs.replace(SCENARIO, not_on={"sil": "for another"})
    assert Paper.why_not(not_here) == "for another"


def test_a_wait_in_vain_fails_the_run_and_says_where(tmp_path: Path) -> None:
    never = Step(when=Condition(state="fault"), timeout_ms=500, line=7)
    run = play(msgspec.structs.replace(SCENARIO, steps=(never,)), Paper, tmp_path / "run")
    assert run.verdict is Verdict.FAILED
    assert "line 7: waited 0.5 s in vain for state fault" in run.measurements[0].detail


def test_faults_are_mended_in_their_time(tmp_path: Path) -> None:
    rig = Paper(SCENARIO, tmp_path)
    from hil.rigs.faults import BusOff  # noqa: PLC0415 - of this test alone
    from hil.scenario.timeline import Timeline  # noqa: PLC0415 - as above

    steps = (Step(at_ms=300, fault=BusOff(), lasts_ms=1_000), Step(at_ms=2_000, stimulus=OpenDoor()))
    with rig:
        rig.transition("running")
        Timeline(msgspec.structs.replace(SCENARIO, steps=steps, length_ms=3_000), rig).play()
        assert rig.log[2:] == ["BusOff at 300", "mended at 1300", "OpenDoor"]


def test_days_keep_their_local_time_over_a_change_of_clocks() -> None:
    week = find("commuter_week")
    at_h = [(step.at_ms or 0) / 3_600_000 for step in days_of(week, week.daily[0])]
    assert at_h[:2] == [13.5, 37.5]
    sunday = msgspec.structs.replace(week.daily[0], days=("sun",))
    assert [(step.at_ms or 0) / 3_600_000 for step in days_of(week, sunday)] == [5 * 24 + 13.5 - 1]


def test_a_run_leaves_files_that_say_the_same(tmp_path: Path) -> None:
    runs = [play(SCENARIO, Torn, tmp_path / "torn"), play(find("power_cut"), Paper, tmp_path / "paper")]
    write_summary(runs, tmp_path)
    assert read_figures(tmp_path) == figures(runs)
    text = (tmp_path / "junit.xml").read_text()
    assert 'errors="1"' in text
    assert "paper tears" in text
    assert "paper has no power" in text
    assert junit(Figures(runs=())).endswith(b"/>")
