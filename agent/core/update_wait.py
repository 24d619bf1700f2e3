"""May the agent be replaced now? What an update waits for, by the owner's word, the car, and the work. Pure.

An update never interrupts a lease, never happens while somebody may use the car, and asks the owner's wishes first:
`policy.update_schedule`, and a deferral that ends `policy.update_defer_max_h` after the update was first told at the
latest. The owner may also say "now", which passes over both wishes, never over car and lease. While the owner's wishes
are what it waits for, work goes on; from then on nothing new is begun (`agent.core.looks.computer.update`).

Results that were finished and not yet handed in are in the store, and are handed in by the version after.
"""

from __future__ import annotations

import msgspec

from agent.core.gates import Gate
from agent.core.signals import CABLE
from agent.core.state import State, WorkerPhase
from agent.core.walltime import within

CAR_GATES = ("parked", "occupied")
HOUR_MS = 3_600_000


class Told(msgspec.Struct, frozen=True):
    """An update that waits, and the owner's word on it; as it is remembered. Times are wall time (ms).

    `until_wall_ms` is 0 without a deferral; `at_once`: the owner wants it now.
    """

    version: str
    first_wall_ms: int
    until_wall_ms: int = 0
    at_once: bool = False


class Waiting(msgspec.Struct, frozen=True):
    """What an update waits for, as a sentence (empty: nothing). `for_word`: for the owner's or the operator's alone."""

    why: str = ""
    for_word: bool = False


def waits_for(state: State, told: Told, wall_ms: int) -> Waiting:
    """What this update waits for at this moment; the owner's wishes are named before anything else."""
    if why := _owners_wish(state, told, wall_ms):
        return Waiting(why, for_word=True)
    return Waiting(_car(state) or _work(state))


def latest_ms(state: State, told: Told) -> int:
    """Until when (wall time) the owner may defer it at most."""
    return told.first_wall_ms + round(state.policy.update_defer_max_h * HOUR_MS)


def _owners_wish(state: State, told: Told, wall_ms: int) -> str:
    policy, clock = state.policy, state.wall.problem
    if told.at_once:
        return ""
    deferred = wall_ms < min(told.until_wall_ms, latest_ms(state, told))
    if deferred and (not clock or wall_ms >= told.first_wall_ms):
        return "the owner deferred it (`driveway update now` installs it)"
    if policy.update_schedule and clock:
        return "the owner's hours for updates cannot be told: the clock is not to be trusted"
    if policy.update_schedule and not within(policy.update_schedule, state.zone, wall_ms):
        return "it is outside the owner's hours for updates (policy.update_schedule)"
    return ""


def _car(state: State) -> str:
    """Why the car is in the way: what its gates found, or that it cannot tell yet."""
    for gate in state.gates.gates:
        if gate.name in CAR_GATES and not state.gates.is_open(gate.name):
            return f"the car is not parked and empty: {_finding(gate)}"
    if state.policy.update_plugged and state.vehicle.word(CABLE) is not True:
        return "the car is not plugged in (policy.update_plugged)"
    return ""


def _finding(gate: Gate) -> str:
    if not gate.reasons:
        return "it is only since a moment"
    reason = gate.reasons[0]
    return f"{reason.signal} is {'unknown' if reason.value is None else reason.value}"


def _work(state: State) -> str:
    if state.lease is not None:
        return f"lease {state.lease.key.job}/{state.lease.key.epoch} is being finished"
    if state.left_over:
        return "a lease of before is being ended"
    if state.vacating is not None or state.worker.phase is WorkerPhase.BUILDING:
        return "the worker is being stopped"
    return ""
