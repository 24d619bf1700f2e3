"""`step(state, event) -> (state, effects)`: the only way into the core.

An event is first folded into what is known (vehicle, computer, worker, lease, link), the gates take another look,
and then the rules of `agent.core.plan` name what is to be done. The same events always give the same effects.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

import msgspec

from agent.core import gates, plan
from agent.core.events import (
    ComputeSeen,
    EffectType,
    EventType,
    GrantSeen,
    HandInStored,
    LeaseOpened,
    LeaseRefused,
    LinkChanged,
    OwnerSaid,
    RecordVacate,
    Report,
    SettleHandIn,
    SignalsSeen,
    SliceFailed,
    SliceStored,
    SourceChanged,
    Stopping,
    StoreFailed,
    StoreRecovered,
    Tick,
    VerdictSeen,
    WorkerGone,
    WorkerIdle,
    WorkerReady,
    WorkerRefused,
)
from agent.core.gates import GateState, World
from agent.core.lease import Lease, Pending, Phase
from agent.core.model import Grant, JobKey, Verdict, YieldReason
from agent.core.state import State, WorkerPhase, WorkerState
from agent.core.thermal import power_cap_w

Step = tuple[State, tuple[EffectType, ...]]

WORKER_RETRY_MS = 2_000
AGAIN_FROM = {Phase.HANDING_IN: Phase.RUNNING, Phase.OPENING: Phase.GRANTED}
"""Where a lease goes back to when the disk refused a step of it."""
REPLACE = msgspec.structs.replace


def step(state: State, event: EventType) -> Step:
    """Fold one event into the state, and name what is to be done about it."""
    before = state.gates.state
    state, effects = fold(REPLACE(state, now_ms=max(state.now_ms, event.at_ms)), event)
    state = REPLACE(state, gates=gates.evaluate(state.gates, world_of(state), state.policy))
    if state.gates.state is not before:
        effects = (*effects, _gate_report(state, before))
    state, more = plan.plan(state)
    return state, effects + more


def fold(state: State, event: EventType) -> Step:  # noqa: C901, PLR0911, PLR0912 - one arm an event, each a line or two
    """What is known after the event, and effects that answer the event itself."""
    match event:
        case Tick():
            return state, ()
        case SignalsSeen():
            return REPLACE(state, vehicle=state.vehicle.seen(event)), ()
        case SourceChanged():
            fields: dict[str, str | int | float | bool] = {"source": event.source, "detail": event.detail}
            name = "source_up" if event.alive else "source_lost"
            return REPLACE(state, vehicle=state.vehicle.changed(event)), (Report(name=name, fields=fields),)
        case ComputeSeen():
            cap_w = power_cap_w(event.die_c, state.policy)
            return REPLACE(state, compute=event, meter=state.meter.read(event), power_cap_w=cap_w), ()
        case LinkChanged():
            return _link_changed(state, event)
        case GrantSeen():
            return _grant_seen(state, event), ()
        case VerdictSeen():
            return _verdict_seen(state, event)
        case LeaseOpened() | LeaseRefused():
            return _lease_answered(state, event)
        case WorkerReady() | WorkerRefused() | WorkerIdle() | WorkerGone():
            return _worker_changed(state, event)
        case SliceStored():
            state = REPLACE(state, slices_kept=state.slices_kept + 1)
            return _with_lease(state, event.key, lambda lease: lease.stored(event.outcome.index)), ()
        case SliceFailed():
            return _with_lease(state, event.key, Lease.lost_worker), ()
        case HandInStored():
            return _hand_in_stored(state, event), ()
        case StoreFailed():
            return _store_failed(state, event)
        case StoreRecovered():
            return REPLACE(state, store_problem=""), (Report(name="store_recovered", fields={}),)
        case OwnerSaid():
            return REPLACE(state, owner_paused=event.paused), ()
        case Stopping():
            return REPLACE(state, stopping=True), ()
        case _:
            assert_never(event)


def world_of(state: State) -> World:
    """What the gates look at."""
    return World(
        vehicle=state.vehicle,
        compute=state.compute,
        owner_paused=state.owner_paused,
        store_problem=state.store_problem,
        stopping=state.stopping,
        now_ms=state.now_ms,
    )


def _gate_report(state: State, before: GateState) -> Report:
    fields: dict[str, str | int | float | bool] = {"was": before.value, "state": state.gates.state.value}
    if state.gates.reasons:
        reason = state.gates.reasons[0]
        fields |= {"code": reason.code, "signal": reason.signal, "value": str(reason.value)}
    return Report(name="gate_changed", fields=fields)


def _store_failed(state: State, event: StoreFailed) -> Step:
    """What could not be written is done again once the disk takes writes: the slice, or the hand-in."""
    lease = state.lease
    if lease is not None and lease.phase in AGAIN_FROM:
        lease = REPLACE(lease, phase=AGAIN_FROM[lease.phase])
    if lease is not None and event.slice_index is not None and lease.in_flight == event.slice_index:
        lease = REPLACE(lease, in_flight=None)
    news = () if state.store_problem else (Report(name="store_failed", fields={"detail": event.detail}),)
    return REPLACE(state, store_problem=event.detail, lease=lease), news


def _with_lease(state: State, key: JobKey, change: Callable[[Lease], Lease]) -> State:
    lease = state.lease
    if lease is None or lease.key != key:
        return state
    worker = REPLACE(state.worker, idle_since_ms=state.now_ms)
    return REPLACE(state, lease=change(lease), worker=worker)


def _link_changed(state: State, event: LinkChanged) -> Step:
    """After a reconnect everything owed is offered again; answers to old questions may be lost.

    A link that stays down is told of once, not with every attempt.
    """
    outbox = state.outbox
    news: tuple[Report, ...] = ()
    if event.connected != state.connected or event.detail != state.link_detail:
        name = "link_up" if event.connected else "link_down"
        news = (Report(name=name, fields={"broker": event.broker, "detail": event.detail}),)
    if event.connected:
        outbox = tuple(REPLACE(pending, next_ms=state.now_ms) for pending in outbox)
    state = REPLACE(
        state, connected=event.connected, broker=event.broker, link_detail=event.detail, outbox=outbox, asking=None
    )
    return state, news


def _adopt(state: State, grant: Grant, sent_ms: int) -> State:
    """Take a grant as the lease; its time runs from when it was asked for."""
    return REPLACE(state, lease=Lease(grant=grant, expires_ms=sent_ms + grant.ttl_ms))


def _answered(state: State, retry_ms: int) -> State:
    """The open question is answered; the next comes when the dispatcher said, spread spread between cars."""
    wait_ms = round(retry_ms * (0.75 + 0.5 * state.jitter(0)))
    return REPLACE(state, asking=None, ask_not_before_ms=state.now_ms + wait_ms)


def _grant_seen(state: State, event: GrantSeen) -> State:
    """Only the answer to the question now open counts: of any other, we do not know when its lease began."""
    asking = state.asking
    if asking is None or asking.rid != event.rid:
        return state
    state = _answered(state, 0 if event.grant else event.retry_ms)
    if event.grant is None or state.lease is not None or event.grant.key in state.have:
        return state
    return _adopt(state, event.grant, asking.sent_ms)


def _verdict_seen(state: State, event: VerdictSeen) -> Step:
    """A verdict settles its hand-in; what follows it may be the next lease."""
    pending = next((one for one in state.outbox if one.key == event.key), None)
    if pending is None:
        return state, ()
    if event.verdict is not Verdict.LATER and event.statement_sha256 != pending.statement_sha256:
        fields: dict[str, str | int | float | bool] = {"lease": str(event.key), "verdict": event.verdict.value}
        return state, (Report(name="verdict_on_another_statement", fields=fields),)
    answered = state.asking is not None and state.asking.rid == str(event.key)
    if answered:
        state = _answered(state, 0 if event.next_grant else event.retry_ms)
    if event.verdict is Verdict.LATER:
        later = REPLACE(pending, next_ms=state.now_ms + max(event.retry_ms, 1_000))
        return REPLACE(state, outbox=tuple(later if one is pending else one for one in state.outbox)), ()
    outbox = tuple(one for one in state.outbox if one is not pending)
    state = REPLACE(state, outbox=outbox)
    settle = SettleHandIn(key=event.key, verdict=event.verdict, reason=event.reason, paid_micro=event.paid_micro)
    grant = event.next_grant
    if grant is not None and answered and state.lease is None and pending.first_sent_ms is not None:
        state = _adopt(state, grant, pending.first_sent_ms)
    return state, (settle,)


def _lease_answered(state: State, event: LeaseOpened | LeaseRefused) -> Step:
    lease = state.lease
    if lease is None or lease.key != event.key or lease.phase is not Phase.OPENING:
        return state, ()
    lease = plan.lease_ready(lease, state.now_ms, state.meter.total_micro_wh)
    if isinstance(event, LeaseOpened):
        return REPLACE(state, lease=lease), ()
    refused = Report(name="lease_refused", fields={"lease": str(event.key), "detail": event.detail})
    return REPLACE(state, lease=lease.end(YieldReason.REFUSED, event.detail)), (refused,)


def _worker_changed(state: State, event: WorkerReady | WorkerRefused | WorkerIdle | WorkerGone) -> Step:
    worker, lease = state.worker, state.lease
    match event:
        case WorkerReady():
            if worker.phase is not WorkerPhase.STARTING:
                return state, ()
            ready = REPLACE(
                worker,
                phase=WorkerPhase.READY,
                pid=event.pid,
                executor=event.executor,
                device=event.device,
                package=event.package,
                micro_batch_ms=event.micro_batch_ms,
                since_ms=state.now_ms,
                idle_since_ms=state.now_ms,
            )
            return REPLACE(state, worker=ready), ()
        case WorkerRefused():
            if lease is not None and lease.grant.package_sha256 == worker.package_sha256:
                lease = lease.end(YieldReason.REFUSED, event.detail)
            refused = Report(name="package_refused", fields={"package": event.package, "detail": event.detail})
            return REPLACE(state, lease=lease), (refused,)
        case WorkerIdle():
            vacating = state.vacating
            if vacating is not None and vacating.idle_ms is None:
                state = REPLACE(state, vacating=REPLACE(vacating, idle_ms=state.now_ms))
            return state, ()
        case WorkerGone():
            return _worker_gone(state, event)
        case _:
            assert_never(event)


def _worker_gone(state: State, event: WorkerGone) -> Step:
    """The process has ended: what was in flight is lost, and a vacate is complete."""
    effects: tuple[EffectType, ...] = ()
    lease, vacating = state.lease, state.vacating
    if lease is not None and lease.ending is None and not event.expected:
        lease = lease.lost_worker()
    elif lease is not None:
        lease = REPLACE(lease, in_flight=None)
    if not event.expected:
        effects += (Report(name="worker_lost", fields={"pid": event.pid, "detail": event.detail}),)
    if vacating is not None:
        idle_ms = state.now_ms if vacating.idle_ms is None else vacating.idle_ms
        idle, gone = idle_ms - vacating.sign_ms, state.now_ms - vacating.sign_ms
        effects += (RecordVacate(cause=vacating.cause, idle_ms=idle, gone_ms=gone),)
    not_before_ms = state.now_ms + (0 if event.expected else WORKER_RETRY_MS)
    worker = WorkerState(since_ms=state.now_ms, not_before_ms=not_before_ms)
    return REPLACE(state, worker=worker, lease=lease, vacating=None), effects


def _hand_in_stored(state: State, event: HandInStored) -> State:
    if state.lease is None or state.lease.key != event.key:
        return state
    pending = Pending(event.key, event.kind, event.statement_sha256, state.now_ms)
    worker = REPLACE(state.worker, idle_since_ms=state.now_ms)
    return REPLACE(state, lease=None, outbox=(*state.outbox, pending), worker=worker)
