"""A short run, once for each boundary that it passes: the power fails exactly there, in a car or in a dispatcher.

Chance meets a narrow gap now and then; this meets each of them once. What a run passes before its fault is the same
every time, so the numbers of the boundaries are.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from hil.sim.protocol.engine import Played, play
from hil.sim.protocol.faults import Fault
from hil.sim.protocol.plan import Plan

SHORT = Plan(cars=1, dispatchers=1, jobs=4, seed=194, faults_ms=40_000)
"""One job of each package."""
DOWN_MS = 1_500
KINDS = {"crash": "car", "reboot": "car", "kill": "replica"}


def boundaries(plan: Plan = SHORT) -> dict[str, int]:
    """How many boundaries the first car and the first replica pass in an undisturbed run."""
    undisturbed = play(msgspec.structs.replace(plan, faults=()))
    return {"car": undisturbed.car_boundaries, "replica": undisturbed.replica_boundaries}


def sweep(kind: str, plan: Plan = SHORT, step: int = 1) -> Iterator[Played]:
    """The run with a `crash`, a `reboot` or a `kill` at each boundary (or each `step`th)."""
    for number in range(0, boundaries(plan)[KINDS[kind]], step):
        fault = Fault(at_ms=0, kind=kind, for_ms=DOWN_MS, amount=number)
        yield play(msgspec.structs.replace(plan, faults=(fault,)))
