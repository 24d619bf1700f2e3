"""Every scenario that can be played in virtual time passes; each planted bug makes its scenario fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.core.gates import RULES
from agent.simulate.promises import Promise
from hil.rigs.faults import Fault
from hil.rigs.sim import SimRig
from hil.scenario.loader import load_all
from hil.scenario.model import RIG_NAMES, Scenario
from hil.scenario.output import in_line
from hil.scenario.run import Run, Verdict, play
from hil.scenario.table import markdown
from tests.hil.scenario_bugs import BUGS, ScenarioBug

SCENARIOS = {scenario.name: scenario for scenario in load_all()}
PLAYABLE = [one for one in SCENARIOS.values() if SimRig.why_not(one) is None]
TAGS = {kind.__struct_config__.tag for kind in Fault.__args__}
PROMISES_OF_DESIGN = 6


def missed(run: Run) -> list[str]:
    return [in_line(one) for one in run.measurements if not one.held]


@pytest.mark.parametrize("scenario", PLAYABLE, ids=lambda one: one.name)
def test_passes_in_virtual_time(scenario: Scenario, tmp_path: Path) -> None:
    run = play(scenario, SimRig, tmp_path / "run")
    assert (run.verdict, run.why, missed(run)) == (Verdict.PASSED, "", [])
    assert len(run.measurements) >= len(Promise) + 1


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_fails_its_scenario(bug: ScenarioBug, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bug.plant(monkeypatch)
    run = play(SCENARIOS[bug.scenario], SimRig, tmp_path / "run")
    assert run.verdict is Verdict.FAILED


def test_there_is_a_scenario_for_every_gate_promise_and_fault() -> None:
    proved = {what for one in SCENARIOS.values() for what in one.proves}
    gates = {f"gate:{name}" for name in RULES}
    promises = {f"promise:{number}" for number in range(1, PROMISES_OF_DESIGN + 1)}
    faults = {f"fault:{tag}" for tag in TAGS}
    assert (gates | promises | faults) - proved == set()
    assert proved - gates - promises - faults == {"fault:dst"}


def test_what_a_scenario_proves_is_in_it() -> None:
    """A fault that is proved is struck, and a gate that is proved is asked for by an expectation."""
    for one in SCENARIOS.values():
        struck = {fault.__struct_config__.tag for fault in one.faults} | {"dst"}
        assert {what.removeprefix("fault:") for what in one.proves if what.startswith("fault:")} <= struck, one.name


def test_every_scenario_can_be_played_somewhere_or_says_why_not() -> None:
    for one in SCENARIOS.values():
        assert set(one.not_on) <= set(RIG_NAMES)
        assert all(one.not_on.values())


def test_the_table_of_the_docs_is_what_is_here() -> None:
    text = Path("docs/scenarios.md").read_text("utf-8")
    assert text.endswith(markdown(list(SCENARIOS.values()))), "driveway-hil list --markdown"
