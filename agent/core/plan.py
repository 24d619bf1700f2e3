"""What to do next: an ordered list of small rules, each from the state to (state, effects).

A rule looks at the state alone and, when it acts, writes down that it did, so asking again changes nothing. The
order is the order of the promises: the driver first, then what was earned, then new work.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from agent.core.events import (
    EffectType,
    HandIn,
    OpenLease,
    RunSlice,
    SendHandIn,
    SendRequest,
    SetPace,
    StartWorker,
    StopWorker,
)
from agent.core.gates import GateState
from agent.core.lease import Lease, Phase
from agent.core.model import HandInKind, LeaseFacts, YieldReason
from agent.core.state import Asking, State, Vacating, WorkerPhase, WorkerState
from agent.core.thermal import duty_permille

Step = tuple[State, tuple[EffectType, ...]]
Rule = Callable[[State], Step]

REPLACE = msgspec.structs.replace

WHY_BY_GATE = {
    "parked": YieldReason.DRIVER,
    "occupied": YieldReason.DRIVER,
    "plugged": YieldReason.ENERGY,
    "reserve": YieldReason.ENERGY,
    "temperature": YieldReason.THERMAL,
    "owner": YieldReason.OWNER,
    "agent": YieldReason.SHUTDOWN,
}


def plan(state: State) -> Step:
    """All rules once, in order."""
    effects: list[EffectType] = []
    for rule in RULES:
        state, more = rule(state)
        effects += more
    return state, tuple(effects)


def vacate(state: State) -> Step:
    """A closed gate gives the computer back, whatever the worker is doing."""
    if state.gates.state is not GateState.CLOSED or state.worker.phase in {WorkerPhase.ABSENT, WorkerPhase.STOPPING}:
        return state, ()
    cause = state.gates.reasons[0]
    vacating = Vacating(cause=cause.code, sign_ms=cause.since_ms)
    return _stop_worker(REPLACE(state, vacating=vacating), cause.code)


def end_lease(state: State) -> Step:
    """A lease ends early when the gate closes, its time is up, or its worker keeps dying."""
    lease = state.lease
    if lease is None or lease.ending is not None or lease.phase is Phase.HANDING_IN:
        return state, ()
    if lease.complete:
        return state, ()
    if state.gates.state is GateState.CLOSED:
        cause = state.gates.reasons[0]
        return REPLACE(state, lease=lease.end(WHY_BY_GATE.get(cause.gate, YieldReason.FAULT), cause.code)), ()
    if state.now_ms >= lease.expires_ms:
        return REPLACE(state, lease=lease.end(YieldReason.EXPIRED)), ()
    if lease.worker_losses >= state.policy.worker_attempts:
        return REPLACE(state, lease=lease.end(YieldReason.FAULT, "the worker was lost too often")), ()
    return state, ()


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
        key=lease.key,
        kind=kind,
        why=None if lease.complete else lease.ending,
        detail=lease.ending_detail,
        facts=LeaseFacts(
            started_ms=state.now_ms if lease.started_ms is None else lease.started_ms,
            finished_ms=state.now_ms,
            energy_micro_wh=round(state.meter.total_micro_wh - lease.energy_start_micro_wh),
            sensor="" if state.compute is None else state.compute.sensor,
            gate_state=state.gates.state.value,
        ),
    )
    return REPLACE(state, lease=REPLACE(lease, phase=Phase.HANDING_IN)), (effect,)


def send_outbox(state: State) -> Step:
    """One hand-in at a time, oldest due first; a result asks for the next grant when the gate is open."""
    if not state.connected:
        return state, ()
    due = [pending for pending in state.outbox if pending.next_ms <= state.now_ms]
    if not due:
        return state, ()
    pending = min(due, key=lambda one: one.next_ms)
    credit = (
        pending.kind is HandInKind.RESULT
        and state.lease is None
        and state.asking is None
        and state.gates.state is GateState.OPEN
    )
    sent = pending.sent(state.now_ms, state.jitter(pending.tries), credit=credit)
    outbox = tuple(sent if one.key == pending.key else one for one in state.outbox)
    state = REPLACE(state, outbox=outbox)
    if credit and sent.first_sent_ms is not None:
        state = REPLACE(state, asking=Asking(rid=str(pending.key), sent_ms=sent.first_sent_ms))
    return state, (SendHandIn(key=pending.key, credit=int(credit), have=state.have),)


def ask(state: State) -> Step:
    """An open gate with nothing to do asks for work; an unanswered question is asked again."""
    if state.gates.state is not GateState.OPEN or not state.connected or state.lease is not None:
        return state, ()
    if state.now_ms < state.ask_not_before_ms or state.worker.phase is WorkerPhase.STOPPING:
        return state, ()
    if state.asking is not None and state.now_ms - state.asking.sent_ms < state.policy.request_timeout_ms:
        return state, ()
    asked = state.asked + 1
    rid = f"{state.name}-{asked}"
    state = REPLACE(state, asked=asked, asking=Asking(rid=rid, sent_ms=state.now_ms))
    return state, (SendRequest(rid=rid, have=state.have, open_for_s=0),)


def open_lease(state: State) -> Step:
    """A fresh grant becomes durable before anything else happens with it."""
    lease = state.lease
    if lease is None or lease.phase is not Phase.GRANTED or lease.ending is not None or state.store_problem:
        return state, ()
    return REPLACE(state, lease=REPLACE(lease, phase=Phase.OPENING)), (OpenLease(grant=lease.grant),)


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
    return state, ()


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
    state = REPLACE(state, lease=REPLACE(lease, in_flight=index), slices_started=state.slices_started + 1)
    return state, (RunSlice(key=lease.key, index=index, first=first, last=last),)


def pace(state: State) -> Step:
    """The power cap becomes the worker's duty."""
    worker = state.worker
    duty = duty_permille(state.power_cap_w, state.policy)
    if worker.phase is not WorkerPhase.READY or duty == worker.duty_permille:
        return state, ()
    return REPLACE(state, worker=REPLACE(worker, duty_permille=duty)), (SetPace(duty_permille=duty),)


def retire_worker(state: State) -> Step:
    """A worker that does not come up, or has had nothing to do for long, is ended."""
    worker, policy = state.worker, state.policy
    if worker.phase is WorkerPhase.STARTING and state.now_ms - worker.since_ms > policy.worker_start_timeout_ms:
        return _stop_worker(state, "it did not come up in time")
    idle_ms = state.now_ms - worker.idle_since_ms
    if worker.phase is WorkerPhase.READY and state.lease is None and idle_ms > policy.keep_warm_s * 1000:
        return _stop_worker(state, "nothing to do")
    return state, ()


def _stop_worker(state: State, why: str) -> Step:
    worker = state.worker
    drains = worker.phase is WorkerPhase.READY and worker.micro_batch_ms <= state.policy.vacate_budget_ms
    budget_ms = state.policy.vacate_budget_ms if drains else 0
    state = REPLACE(state, worker=REPLACE(worker, phase=WorkerPhase.STOPPING, since_ms=state.now_ms))
    return state, (StopWorker(budget_ms=budget_ms, why=why),)


def lease_ready(lease: Lease, now_ms: int, energy_micro_wh: float) -> Lease:
    """The lease once its input is here: it starts to run, and its energy to count."""
    return REPLACE(lease, phase=Phase.RUNNING, started_ms=now_ms, energy_start_micro_wh=energy_micro_wh)


RULES: tuple[Rule, ...] = (
    vacate,
    end_lease,
    stop_for_ended_lease,
    hand_in,
    send_outbox,
    ask,
    open_lease,
    start_worker,
    run_slice,
    pace,
    retire_worker,
)
