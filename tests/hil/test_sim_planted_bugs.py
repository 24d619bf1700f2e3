"""The promises can be broken: every planted bug is found by the simulation, by name, from a stated seed."""

from __future__ import annotations

import pytest

from agent.simulate.promises import PROMISES
from hil.sim.engine import play
from hil.sim.world import Focus
from tests.hil.sim_bugs import BUGS
from tests.hil.sim_planting import Bug
from tests.hil.sim_worlds import EVERYTHING

CARS = 6


def found_in(bug: Bug) -> tuple[int, str] | None:
    """The first car that breaks the promise, and how."""
    for number in range(bug.cars):
        played = play(bug.seed, number, 1, bug.focus, looking_for=bug.breaks)
        if played.broken:
            return number, played.broken[0].detail
    return None


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_each_planted_bug_is_found(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    bug.plant(monkeypatch)
    assert found_in(bug) is not None


@pytest.mark.parametrize("focus", EVERYTHING, ids=lambda focus: focus.name)
def test_without_a_bug_nothing_is_found(focus: Focus) -> None:
    """The same worlds, the same seeds, the core as it is."""
    assert [play(1, number, 1, focus).broken for number in range(CARS)] == [()] * CARS


def test_every_promise_has_a_bug_that_breaks_it() -> None:
    assert {bug.breaks.value for bug in BUGS} == set(PROMISES)
