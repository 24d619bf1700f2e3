"""What to do next: an ordered list of small rules, each from the state to (state, effects).

A rule looks at the state alone and, when it acts, writes down that it did, so asking again changes nothing. The
order is the order of the promises: the driver first, then what was earned, then new work.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from agent.core import asking, building, owed, transfers
from agent.core.asking import ask, renew
from agent.core.effects import (
    EffectType,
    EndPause,
    HandIn,
    KeepAwake,
    OpenLease,
    Report,
    RunSlice,
    SetPace,
    SetPowerLimit,
    StartWorker,
    StopWorker,
)
from agent.core.events import OwnerMode
from agent.core.findings import GateState
from agent.core.gates import RULES as GATES
from agent.core.kept import count_time_off, keep_budgets
from agent.core.lease import Lease, Phase
from agent.core.looks.owner import pause_ends_ms
from agent.core.model import HandInKind, LeaseFacts, YieldReason
from agent.core.owed import send_outbox, settle
from agent.core.state import State, Vacating, WorkerPhase, WorkerState
from agent.core.thermal import duty_permille
from agent.core.transfers import pause_transfers, upload
from agent.core.world import FAR_MS

Step = tuple[State, tuple[EffectType, ...]]
Rule = Callable[[State], Step]

REPLACE = msgspec.structs.replace
CLOCK_WRONG = "keep_awake_clock"
"""Why staying awake is not wished for, where it is not a budget."""


def plan(state: State) -> Step:
    """All rules once, in order."""
    effects: list[EffectType] = []
    for rule in RULES:
        state, more = rule(state)
        effects += more
    return state, tuple(effects)


def due_ms(state: State) -> int:
    """When a rule has something to do if nothing happens until then: the earliest of all deadlines still to come."""
    policy, lease, worker, now_ms = state.policy, state.lease, state.worker, state.now_ms
    times = [*owed.due_ms(state), *asking.due_ms(state), *transfers.due_ms(state), *building.due_ms(state)]
    if lease is not None:
        times += [lease.expires_ms, worker.not_before_ms]
        if lease.cancel_ms is not None:
            times.append(lease.cancel_ms)
        if lease.in_flight is not None:
            times.append(lease.in_flight_since_ms + policy.slice_timeout_ms + 1)
    times.append(state.awake.due_ms)
    if worker.phase is WorkerPhase.STARTING:
        times.append(worker.start_due_ms(policy.worker_start_timeout_ms) + 1)
    elif worker.phase is WorkerPhase.READY and lease is None:
        times.append(worker.idle_since_ms + round(policy.keep_warm_s * 1000) + 1)
    return min((at_ms for at_ms in times if at_ms > now_ms), default=FAR_MS)


def vacate(state: State) -> Step:
    """A closed gate gives the computer back, whatever the worker is doing."""
    if state.gates.state is not GateState.CLOSED or state.worker.phase in {WorkerPhase.ABSENT, WorkerPhase.STOPPING}:
        return state, ()
    cause = state.gates.reasons[0]
    # Since when the gate is closed: its reason may be older, from when it only held back new work.
    sign_ms = next(gate.since_ms for gate in state.gates.gates if gate.name == cause.gate)
    vacating = Vacating(cause=cause.code, sign_ms=sign_ms)
    return _stop_worker(REPLACE(state, vacating=vacating), cause.code)


def take_left_over(state: State) -> Step:
    """A lease that an earlier run left open is handed in before anything else is taken on."""
    if state.lease is not None or not state.left_over:
        return state, ()
    return REPLACE(state, lease=state.left_over[0], left_over=state.left_over[1:]), ()


def end_lease(state: State) -> Step:
    """A lease ends early when the gate closes, its time is up, the fleet wants it back, its worker keeps failing, or
    its hand-in is full.
    """
    lease = state.lease
    if lease is None or lease.ending is not None or lease.phase is Phase.HANDING_IN or lease.complete:
        return state, ()
    cause = _cause_to_end(state, lease)
    return (state if cause is None else REPLACE(state, lease=lease.end(*cause))), ()


def _cause_to_end(state: State, lease: Lease) -> tuple[YieldReason, str] | None:
    if state.gates.state is GateState.CLOSED:
        shut = state.gates.reasons[0]
        return GATES[shut.gate].why, shut.code
    called_back = asking.cause_to_end(state, lease)
    if called_back is not None:
        return called_back
    if lease.failures >= state.policy.worker_attempts:
        return YieldReason.FAULT, "its worker failed too often"
    if lease.full and lease.in_flight is None:
        return YieldReason.FULL, "more slices might not fit into one message"
    return None


def stop_for_ended_lease(state: State) -> Step:
    """An ended lease with a slice in flight does not wait for it."""
    lease = state.lease
    if lease is None or lease.ending is None or lease.in_flight is None or state.worker.phase is not WorkerPhase.READY:
        return state, ()
    return _stop_worker(state, lease.ending.value)


def hand_in(state: State) -> Step:
    """What a lease finished is signed and put in the outbox, once nothing of it is in flight any more."""
    lease = state.lease
    if lease is None or lease.phase in {Phase.OPENING, Phase.HANDING_IN} or lease.in_flight is not None:
        return state, ()
    if state.store_problem or (lease.ending is None and not lease.complete):
        return state, ()
    kind = HandInKind.RESULT if lease.complete else HandInKind.YIELD
    effect = HandIn(
        grant=lease.grant,
        kind=kind,
        why=None if lease.complete else lease.ending,
        detail=lease.ending_detail,
        facts=LeaseFacts(
            started_ms=state.now_ms if lease.started_ms is None else lease.started_ms,
            finished_ms=state.now_ms,
            energy_micro_wh=state.spent.energy_micro_wh,
            cost_micro=state.spent.cost_micro,
            sensor="none" if state.compute is None or state.compute.power_w is None else state.compute.sensor,
            gate_state=lease.gate_state,
        ),
        uploaded=lease.uploaded,
    )
    return REPLACE(state, lease=REPLACE(lease, phase=Phase.HANDING_IN)), (effect,)


def end_pause(state: State) -> Step:
    """A pause that has run out is over for good: a clock that is set back later does not begin it again."""
    said = state.owner
    ends_ms = pause_ends_ms(said, state.wall) if said.mode is OwnerMode.PAUSED else None
    if ends_ms is None or state.now_ms < ends_ms:
        return state, ()
    over = (
        EndPause(until_ms=said.until_ms, until_wall_ms=said.until_wall_ms),
        Report(name="pause_ended", fields={}),
    )
    return REPLACE(state, owner=REPLACE(said, mode=OwnerMode.AUTO, until_ms=None, until_wall_ms=None)), over


def keep_awake(state: State) -> Step:
    """While there is work that the gate lets go on, the car is kept awake, as far as the owner's budgets reach.

    Building a plan is such work: a computer that falls asleep loses it.

    A wish names a moment of wall time, so nothing is wished for while that may be wrong: five seconds could be a day.
    """
    policy, clock_wrong = state.policy, bool(state.wall.problem)
    if not (policy.keep_awake or state.awake.held):
        return state, ()
    at_work = state.lease is not None or state.worker.phase is WorkerPhase.BUILDING
    work = at_work and state.gates.state is not GateState.CLOSED
    allowed = REPLACE(policy, keep_awake=False) if clock_wrong else policy
    awake, for_ms = state.awake.step(allowed, state.now_ms, work=work, charging=state.charging)
    if clock_wrong and work and policy.keep_awake:
        awake = REPLACE(awake, refused=CLOCK_WRONG)
    effects: tuple[EffectType, ...] = () if for_ms is None else (KeepAwake(for_ms=for_ms),)
    if awake.refused and awake.refused != state.awake.refused:
        effects += (Report(name="keep_awake_refused", fields={"reason": awake.refused}),)
    return REPLACE(state, awake=awake), effects


def open_lease(state: State) -> Step:
    """A fresh grant becomes durable before anything else happens with it."""
    lease = state.lease
    if lease is None or lease.phase is not Phase.GRANTED or lease.ending is not None or state.store_problem:
        return state, ()
    return REPLACE(state, lease=REPLACE(lease, phase=Phase.OPENING)), (OpenLease(grant=lease.grant),)


def end_stale_worker(state: State) -> Step:
    """A worker that slept with the computer may have lost its accelerator: another is started, with a context anew."""
    if not state.worker.stale or state.worker.phase in {WorkerPhase.ABSENT, WorkerPhase.STOPPING}:
        return state, ()
    return _stop_worker(state, "the computer slept")


def start_worker(state: State) -> Step:
    """A running lease needs a worker of its own customer and package."""
    lease, worker = state.lease, state.worker
    if lease is None or lease.phase is not Phase.RUNNING or lease.ending is not None or lease.complete:
        return state, ()
    if state.gates.state is not GateState.OPEN:
        return state, ()
    wanted = (lease.grant.customer, lease.grant.package_sha256)
    if worker.phase is WorkerPhase.ABSENT and state.now_ms >= worker.not_before_ms:
        worker = WorkerState(WorkerPhase.STARTING, *wanted, since_ms=state.now_ms)
        return REPLACE(state, worker=worker), (StartWorker(grant=lease.grant),)
    if worker.phase is WorkerPhase.READY and (worker.customer, worker.package_sha256) != wanted:
        return _stop_worker(state, "another customer or package")
    if worker.phase is WorkerPhase.BUILDING:
        return _stop_worker(state, "a lease goes before a build")
    return state, ()


def build_plans(state: State) -> Step:
    """A missing engine plan is built before more work is asked for; an idle worker makes room for it."""
    package = building.wanted(state)
    if package is None or building.waits_for_answer(state):
        return state, ()
    worker = state.worker
    if worker.phase is WorkerPhase.READY:
        return _stop_worker(state, "a plan is to be built")
    if worker.phase is not WorkerPhase.ABSENT or state.now_ms < worker.not_before_ms:
        return state, ()
    return building.begun(state, package)


def run_slice(state: State) -> Step:
    """A ready worker gets the next slice while the gate is open."""
    lease, worker = state.lease, state.worker
    if lease is None or lease.phase is not Phase.RUNNING or lease.ending is not None or lease.in_flight is not None:
        return state, ()
    if worker.phase is not WorkerPhase.READY or state.gates.state is not GateState.OPEN or not lease.remaining:
        return state, ()
    if (worker.customer, worker.package_sha256) != (lease.grant.customer, lease.grant.package_sha256):
        return state, ()
    index = lease.remaining[0]
    first, last = lease.grant.span(index)
    began = lease.began(index, state.now_ms, state.gates.state.value)
    state = REPLACE(state, lease=began, slices_started=state.slices_started + 1)
    return state, (RunSlice(key=lease.key, index=index, first=first, last=last),)


def pace(state: State) -> Step:
    """The power cap becomes the worker's duty, and the platform's limit where power is measured.

    A worker that starts is paced already: loading a package computes. A build has no slices between which it could be
    held back, so on hold it rests.
    """
    state = REPLACE(state, heat=state.heat.waited(state.now_ms, state.policy))
    worker, heat = state.worker, state.heat
    builds = worker.phase is WorkerPhase.BUILDING
    if worker.phase in {WorkerPhase.ABSENT, WorkerPhase.STOPPING}:
        return state, ()
    effects: list[EffectType] = []
    duty = duty_permille(heat.cap_w, state.policy, worker.micro_batch_ms, measured=heat.measured)
    if builds and state.gates.state is not GateState.OPEN:
        duty = 0
    if duty != worker.duty_permille:
        state = building.timed(REPLACE(state, worker=worker.paced(state.now_ms, duty)))
        effects.append(SetPace(duty_permille=duty))
    if heat.measured and heat.cap_w != state.power_limit_w:
        state = REPLACE(state, power_limit_w=heat.cap_w)
        effects.append(SetPowerLimit(limit_w=heat.cap_w))
    return state, tuple(effects)


def retire_worker(state: State) -> Step:
    """A worker that does not come up, hangs, or has had nothing to do for long, is ended."""
    why, failed = building.cause_to_end(state)
    if why:
        return _stop_worker(state, why, failed=failed)
    worker, policy, lease = state.worker, state.policy, state.lease
    if worker.phase is WorkerPhase.STARTING and state.now_ms > worker.start_due_ms(policy.worker_start_timeout_ms):
        why = "it did not come up in time" if worker.load_due_ms is None else "it did not load its package in time"
        return _stop_worker(state, why, failed=True)
    if worker.phase is WorkerPhase.READY and lease is not None and lease.in_flight is not None:
        if state.now_ms - lease.in_flight_since_ms > policy.slice_timeout_ms:
            return _stop_worker(state, "it hangs in a slice", failed=True)
        return state, ()
    idle_ms = state.now_ms - worker.idle_since_ms
    if worker.phase is WorkerPhase.READY and state.lease is None and idle_ms > policy.keep_warm_s * 1000:
        return _stop_worker(state, "nothing to do")
    return state, ()


def _stop_worker(state: State, why: str, *, failed: bool = False) -> Step:
    worker = state.worker
    drains = not failed and worker.phase is WorkerPhase.READY and worker.micro_batch_ms <= state.policy.vacate_budget_ms
    budget_ms = state.policy.vacate_budget_ms if drains else 0
    state = REPLACE(state, worker=REPLACE(worker, phase=WorkerPhase.STOPPING, since_ms=state.now_ms, failed=failed))
    return state, (StopWorker(budget_ms=budget_ms, why=why),)


RULES: tuple[Rule, ...] = (
    vacate,
    take_left_over,
    end_lease,
    stop_for_ended_lease,
    pause_transfers,
    hand_in,
    settle,
    end_pause,
    count_time_off,
    keep_awake,
    renew,
    send_outbox,
    build_plans,
    ask,
    upload,
    open_lease,
    end_stale_worker,
    start_worker,
    run_slice,
    pace,
    retire_worker,
    keep_budgets,
)
