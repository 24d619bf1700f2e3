"""Fewer faults that break the same invariant: delta debugging over a run's list of them.

A run is a function of its plan, and any part of a list of faults is one. What comes after the violation goes first;
then chunks are left out, large ones first, as long as the same invariant breaks. The result is one from which no single
fault can be left out, or the best found within a budget of events (not of time: the same failure shrinks to the same
list anywhere).
"""

from __future__ import annotations

import msgspec

from hil.sim.protocol.engine import play
from hil.sim.protocol.faults import Fault
from hil.sim.protocol.invariants import Violation
from hil.sim.protocol.plan import Plan

BUDGET_EVENTS = 600_000


def shrink(plan: Plan, violation: Violation, budget: int = BUDGET_EVENTS) -> Plan:
    """The plan with fewer faults, breaking the same invariant first; as it is where not even a replay of it does."""
    search = _Search(plan, violation.name, budget)
    earlier = tuple(one for one in plan.faults if one.at_ms <= violation.at_ms)
    faults = earlier if search.breaks(earlier) else plan.faults
    chunks = 2
    while faults and not search.spent:
        size = max(1, -(-len(faults) // chunks))
        shorter = search.without_one_chunk(faults, size)
        if shorter is not None:
            faults, chunks = shorter, max(2, chunks - 1)
        elif size == 1:
            break
        else:
            chunks = min(len(faults), chunks * 2)
    return msgspec.structs.replace(plan, faults=faults)


class _Search:
    """Plays candidates and counts what that costs."""

    def __init__(self, plan: Plan, name: str, budget: int) -> None:
        self._plan, self._name, self._budget = plan, name, budget

    @property
    def spent(self) -> bool:
        """No more runs."""
        return self._budget <= 0

    def breaks(self, faults: tuple[Fault, ...]) -> bool:
        """Whether the first invariant that these faults break is that one."""
        played = play(msgspec.structs.replace(self._plan, faults=faults))
        self._budget -= max(1, played.events)
        return played.violation is not None and played.violation.name == self._name

    def without_one_chunk(self, faults: tuple[Fault, ...], size: int) -> tuple[Fault, ...] | None:
        """The first list that is shorter by a chunk and breaks it still."""
        for first in range(0, len(faults), size):
            shorter = faults[:first] + faults[first + size :]
            if self.spent:
                return None
            if self.breaks(shorter):
                return shorter
        return None
