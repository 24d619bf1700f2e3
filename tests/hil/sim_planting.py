"""How bugs are planted in the core for a test, and what one is."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from agent.core import gates, plan
from agent.simulate.promises import Promise
from hil.sim.world import Focus

Patch = pytest.MonkeyPatch
Plant = Callable[[Patch], None]
REPLACE = msgspec.structs.replace


class Bug(msgspec.Struct, frozen=True):
    """A planted bug, what it breaks, and the world and the seed in which it is met."""

    plant: Plant
    breaks: Promise
    focus: Focus
    seed: int = 1
    cars: int = 24
    """So many cars are tried."""

    @property
    def name(self) -> str:
        """For the test's report."""
        return f"{self.plant.__name__}-{self.breaks.name}"


def look_at(patch: Patch, gate: str, look: gates.Look) -> None:
    patch.setitem(gates.RULES, gate, REPLACE(gates.RULES[gate], look=look))


def without(patch: Patch, rule: plan.Rule, instead: plan.Rule | None = None) -> None:
    """The plan without a rule, or with another in its place."""
    rules = tuple(instead if one is rule else one for one in plan.RULES if one is not rule or instead is not None)
    patch.setattr(plan, "RULES", tuple(one for one in rules if one is not None))
