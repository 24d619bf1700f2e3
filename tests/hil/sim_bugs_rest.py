"""Bugs of the gates' timing and reasons, of the owner's word, and of leases."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from agent.core import asking, building, gates, machine, outcomes, owed, plan, walltime
from agent.core.effects import StartBuild, StartWorker
from agent.core.events import OwnerMode
from agent.core.findings import Finding, GateState
from agent.core.lease import Lease, Pending
from agent.core.looks import market, owner
from agent.core.state import State, WorkerPhase
from agent.core.world import FAR_MS, Sight
from tests.hil.sim_planting import REPLACE, Patch, look_at, without

# --- gates ------------------------------------------------------------------------------------------------------


def minimum_times_are_ignored(patch: Patch) -> None:
    patch.setattr(gates, "_loosens_ms", lambda _gate, _timing, better_since_ms, _policy: better_since_ms)


def minimum_times_run_from_the_first_closing(patch: Patch) -> None:
    first = gates._loosens_ms
    times: dict[str, int] = {}

    def loosens(gate: gates.Gate, *rest: Any) -> int:
        if gate.tightened_ms is not None:
            gate = REPLACE(gate, tightened_ms=times.setdefault(gate.name, gate.tightened_ms))
        return first(gate, *rest)

    patch.setattr(gates, "_loosens_ms", loosens)


def the_settling_reason_is_lost(patch: Patch) -> None:
    first = gates._reasons

    def reasons(gate: gates.Gate, findings: tuple[Finding, ...], now_ms: int) -> Any:
        return first(gate, tuple(one for one in findings if one.code != "settling"), now_ms)

    patch.setattr(gates, "_reasons", reasons)


def a_stop_without_a_word(patch: Patch) -> None:
    first = plan._stop_worker
    patch.setattr(plan, "_stop_worker", lambda state, _why, **more: first(state, "", **more))


def reasons_name_no_signal(patch: Patch) -> None:
    first = gates._reasons

    def reasons(*given: Any) -> Any:
        return tuple(REPLACE(one, signal="") for one in first(*given))

    patch.setattr(gates, "_reasons", reasons)


def a_gate_stays_shut_for_good(patch: Patch) -> None:
    first = gates._loosens_ms

    def loosens(gate: gates.Gate, *rest: Any) -> int:
        return FAR_MS if gate.name == "network" else first(gate, *rest)

    patch.setattr(gates, "_loosens_ms", loosens)


def patience_begins_again_with_every_look(patch: Patch) -> None:
    first = gates._settle

    def settle(gate: gates.Gate, rule: gates.Rule, sight: Sight) -> gates.Gate:
        return first(REPLACE(gate, better_since_ms=None), rule, sight)

    patch.setattr(gates, "_settle", settle)


def the_grids_order_is_never_taken_back(patch: Patch) -> None:
    first = machine.fold

    def fold(state: State, event: Any) -> Any:
        after, effects = first(state, event)
        return REPLACE(after, demand_until_ms=max(state.demand_until_ms, after.demand_until_ms) + 600_000), effects

    patch.setattr(machine, "fold", fold)


def a_jump_of_the_clock_is_believed(patch: Patch) -> None:
    def seen(self: walltime.WallClock, event: Any) -> walltime.WallClock:
        return walltime.WallClock(event.wall_ms - event.at_ms, "", 20, event.at_ms, 0)

    patch.setattr(walltime.WallClock, "seen", seen)


def a_jump_of_the_clock_is_never_forgiven(patch: Patch) -> None:
    first = walltime.WallClock.seen

    def seen(self: walltime.WallClock, event: Any) -> walltime.WallClock:
        after = first(self, event)
        jumped = self.problem == "clock_jumped" or after.problem == "clock_jumped"
        return REPLACE(after, problem="clock_jumped") if jumped else after

    patch.setattr(walltime.WallClock, "seen", seen)


# --- the owner --------------------------------------------------------------------------------------------------


def a_pause_waits_for_the_lease(patch: Patch) -> None:
    def look(sight: Sight, was_open: bool) -> Iterator[Finding]:
        paused = sight.world.owner.mode is OwnerMode.PAUSED
        return iter(()) if paused and sight.world.leased else iter(owner.owner(sight, was_open))

    look_at(patch, "owner", look)


def consent_is_asked_for_once(patch: Patch) -> None:
    look_at(patch, "consent", lambda sight, was_open: () if was_open else owner.consent(sight, was_open))


def the_grid_waits_for_the_slice(patch: Patch) -> None:
    def look(sight: Sight, was_open: bool) -> Iterator[Finding]:
        return (REPLACE(one, state=GateState.HOLD) for one in market.demand(sight, was_open))

    look_at(patch, "demand", look)


# --- leases -----------------------------------------------------------------------------------------------------


def a_second_worker(patch: Patch) -> None:
    def start_worker(state: State) -> plan.Step:
        if state.worker.phase is WorkerPhase.READY and state.lease is not None and len(state.lease.done) == 2:
            return state, (StartWorker(grant=state.lease.grant),)
        return plan.start_worker(state)

    without(patch, plan.start_worker, start_worker)


def a_build_beside_a_worker(patch: Patch) -> None:
    def build_plans(state: State) -> plan.Step:
        package = building.wanted(state)
        if package is None or state.worker.phase is not WorkerPhase.READY:
            return plan.build_plans(state)
        return state, (StartBuild(package_sha256=package),)

    without(patch, plan.build_plans, build_plans)


def a_slice_for_a_worker_that_is_not_ready(patch: Patch) -> None:
    def run_slice(state: State) -> plan.Step:
        if state.worker.phase is not WorkerPhase.STARTING:
            return plan.run_slice(state)
        after, effects = plan.run_slice(REPLACE(state, worker=REPLACE(state.worker, phase=WorkerPhase.READY)))
        return REPLACE(after, worker=state.worker), effects

    without(patch, plan.run_slice, run_slice)


def a_verdict_is_settled_again(patch: Patch) -> None:
    def settle(state: State) -> plan.Step:
        after, effects = owed.settle(state)
        return REPLACE(after, outbox=tuple(REPLACE(one, settling=False) for one in after.outbox)), effects

    without(patch, owed.settle, settle)


def a_slice_that_is_stored_is_computed_again(patch: Patch) -> None:
    first = Lease.stored

    def stored(self: Lease, index: int, output_bytes: int) -> Lease:
        after = first(self, index, output_bytes)
        forgets = index == 2 and len(self.done) == 2
        return REPLACE(after, done=after.done[:-1], sizes=after.sizes[:-1]) if forgets else after

    patch.setattr(Lease, "stored", stored)


def a_hand_in_is_forgotten(patch: Patch) -> None:
    def forgetful(state: State, event: Any) -> State:
        return REPLACE(state, lease=None) if state.lease and state.lease.key == event.key else state

    patch.setattr(owed, "hand_in_stored", forgetful)


def a_full_disk_loses_the_lease(patch: Patch) -> None:
    first = outcomes.store_failed

    def store_failed(state: State, event: Any) -> Any:
        after, effects = first(state, event)
        return REPLACE(after, lease=None), effects

    patch.setattr(outcomes, "store_failed", store_failed)


def slices_count_before_they_are_stored(patch: Patch) -> None:
    def hasty(state: State) -> plan.Step:
        state, effects = plan.run_slice(state)
        if effects and state.lease is not None and state.lease.in_flight is not None:
            state = REPLACE(state, lease=state.lease.stored(state.lease.in_flight, 1))
        return state, effects

    without(patch, plan.run_slice, hasty)


def the_lease_begins_when_its_grant_arrives(patch: Patch) -> None:
    first = asking.adopt
    patch.setattr(asking, "adopt", lambda state, grant, _sent_ms: first(state, grant, state.now_ms))


def a_lease_never_expires(patch: Patch) -> None:
    first = asking.adopt
    patch.setattr(asking, "adopt", lambda state, grant, _sent_ms: first(state, grant, FAR_MS // 2))


def a_hand_in_goes_without_its_answers(patch: Patch) -> None:
    patch.setattr(Pending, "ready", property(lambda self: self.verdict is None))
