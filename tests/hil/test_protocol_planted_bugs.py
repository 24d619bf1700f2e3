"""The invariants can be broken: every planted bug of the protocol is found, by name, within a few seeds."""

from __future__ import annotations

import pytest

from hil.sim.protocol.engine import Played, play
from hil.sim.protocol.invariants import INVARIANTS
from tests.hil.protocol_bugs import BUGS, Bug

SEEDS = 8
"""From the seed at which it was met, so that a change elsewhere in the code does not hide it by chance."""


def found_in(bug: Bug) -> Played | None:
    """The first run that breaks the invariant."""
    for plan in bug.runs(SEEDS):
        played = play(plan, bug.breaks)
        if played.violation is not None:
            return played
    return None


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_each_planted_bug_is_found_and_without_it_nothing(bug: Bug) -> None:
    with pytest.MonkeyPatch.context() as patch:
        bug.plant(patch)
        broken = found_in(bug)
    assert broken is not None
    assert broken.violation is not None
    assert broken.violation.name == bug.breaks
    assert play(broken.plan).violation is None, "the same run, the code as it is"


def test_every_invariant_has_a_bug_that_breaks_it() -> None:
    assert {bug.breaks.value for bug in BUGS} == set(INVARIANTS)
