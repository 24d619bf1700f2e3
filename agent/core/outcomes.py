"""What came of it: answers of the fleet, the worker and the disk, folded into the state.

Nothing here asks for anything beyond a line in the log and the note of a vacate; what follows from the new state is for
`agent.core.plan`. Every step of a lease that can fail has its failure here, so that no phase waits for ever.
"""

from __future__ import annotations

from typing import assert_never

import msgspec

from agent.core.effects import EffectType, RecordVacate, Report, SettleHandIn
from agent.core.events import (
    GrantSeen,
    HandInFailed,
    HandInSettled,
    HandInStored,
    LeaseOpened,
    LeaseRefused,
    LinkChanged,
    SliceFailed,
    SliceStored,
    StoreFailed,
    Unwritten,
    VerdictSeen,
    WorkerGone,
    WorkerIdle,
    WorkerReady,
    WorkerRefused,
)
from agent.core.lease import Lease, Pending, Phase
from agent.core.model import Grant, HandInKind, Verdict, YieldReason
from agent.core.state import State, WorkerPhase, WorkerState

Step = tuple[State, tuple[EffectType, ...]]
Fields = dict[str, str | int | float | bool]

WORKER_RETRY_MS = 2_000
ASK_AGAIN_MIN_MS = 1_000
FRUITLESS_FIRST_MS = 5_000
FRUITLESS_MAX_MS = 300_000
UNWANTED_CLASS_MS = 10_000
REPLACE = msgspec.structs.replace


# --- the fleet ------------------------------------------------------------------------------------------------


def link_changed(state: State, event: LinkChanged) -> Step:
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
    since_ms = state.now_ms if state.offline_since_ms is None else state.offline_since_ms
    state = REPLACE(
        state,
        connected=event.connected,
        offline_since_ms=None if event.connected else since_ms,
        broker=event.broker,
        link_detail=event.detail,
        outbox=outbox,
        asking=None,
    )
    return state, news


def grant_seen(state: State, event: GrantSeen) -> State:
    """Only the answer to the question now open counts: of any other, we do not know when its lease began."""
    asking = state.asking
    if asking is None or asking.rid != event.rid:
        return state
    state = _answered(state, event.grant, event.retry_ms)
    if event.grant is None or state.lease is not None or event.grant.key in state.have:
        return state
    return _adopt(state, event.grant, asking.sent_ms)


def verdict_seen(state: State, event: VerdictSeen) -> Step:
    """A verdict settles its hand-in; what follows it may be the next lease."""
    pending = next((one for one in state.outbox if one.key == event.key), None)
    if pending is None or pending.verdict is not None:
        return state, ()
    if event.verdict is not Verdict.LATER and event.statement_sha256 != pending.statement_sha256:
        fields: Fields = {"lease": str(event.key), "verdict": event.verdict.value}
        return state, (Report(name="verdict_on_another_statement", fields=fields),)
    asking = state.asking
    answered = asking is not None and asking.rid == str(event.key)
    if answered:
        state = _answered(state, event.next_grant, event.retry_ms)
    if event.verdict is Verdict.LATER:
        pending = REPLACE(pending, next_ms=state.now_ms + max(event.retry_ms, ASK_AGAIN_MIN_MS))
    else:
        settle = SettleHandIn(
            key=event.key,
            verdict=event.verdict,
            reason=event.reason,
            paid_micro=event.paid_micro,
            envelope=event.envelope,
        )
        pending = REPLACE(pending, verdict=settle)
    state = REPLACE(state, outbox=tuple(pending if one.key == pending.key else one for one in state.outbox))
    grant = event.next_grant
    if grant is not None and asking is not None and answered and state.lease is None and grant.key not in state.have:
        state = _adopt(state, grant, asking.sent_ms)
    return state, ()


def _adopt(state: State, grant: Grant, sent_ms: int) -> State:
    """Take a grant as the lease; its time runs from when it was asked for.

    A class of work that the owner does not take is given back at once, for the owner's reason, so that nobody holds it
    against the package; and the next is not asked for at once, should the dispatcher go on like that.
    """
    lease = Lease(grant=grant, expires_ms=sent_ms + grant.ttl_ms)
    classes = state.policy.workload_classes
    if not classes or grant.workload_class in classes:
        return REPLACE(state, lease=lease)
    wait_ms = round(UNWANTED_CLASS_MS * (0.75 + 0.5 * state.jitter(1)))
    unwanted = lease.end(YieldReason.OWNER, f"the owner takes no work of class {grant.workload_class!r}")
    return REPLACE(state, lease=unwanted, ask_not_before_ms=max(state.ask_not_before_ms, state.now_ms + wait_ms))


def _answered(state: State, grant: Grant | None, retry_ms: int) -> State:
    """The open question is answered; the next comes when the dispatcher said, spread between cars, never at once."""
    state = REPLACE(state, asking=None)
    if grant is not None:
        return state
    wait_ms = round(max(retry_ms, ASK_AGAIN_MIN_MS) * (0.75 + 0.5 * state.jitter(0)))
    return REPLACE(state, ask_not_before_ms=max(state.ask_not_before_ms, state.now_ms + wait_ms))


# --- the lease and the disk -----------------------------------------------------------------------------------


def lease_answered(state: State, event: LeaseOpened | LeaseRefused) -> Step:
    """The lease can be worked on, or cannot."""
    lease = state.lease
    if lease is None or lease.key != event.key or lease.phase is not Phase.OPENING:
        return state, ()
    lease = REPLACE(
        lease,
        phase=Phase.RUNNING,
        started_ms=state.now_ms,
        energy_start_micro_wh=state.meter.total_micro_wh,
        cost_start_micro=state.meter.cost_micro,
    )
    if isinstance(event, LeaseOpened):
        return REPLACE(state, lease=lease), ()
    refused = Report(name="lease_refused", fields={"lease": str(event.key), "detail": event.detail})
    if event.replayed:
        return _fruitless(REPLACE(state, lease=None)), (refused,)
    return REPLACE(state, lease=lease.end(YieldReason.REFUSED, event.detail)), (refused,)


def slice_stored(state: State, event: SliceStored) -> State:
    """One more slice is on disk."""
    state = REPLACE(state, slices_kept=state.slices_kept + 1)
    lease = state.lease
    if lease is None or lease.key != event.key:
        return state
    worker = REPLACE(state.worker, idle_since_ms=state.now_ms)
    if lease.in_flight == event.outcome.index:
        state = REPLACE(state, slice_ms=state.now_ms - lease.in_flight_since_ms)
    return REPLACE(state, lease=lease.stored(event.outcome.index, event.output_bytes), worker=worker)


def slice_failed(state: State, event: SliceFailed) -> Step:
    """The slice in flight could not be computed; it is tried again, not for ever."""
    lease = state.lease
    if lease is None or lease.key != event.key or lease.in_flight != event.index:
        return state, ()
    fields: Fields = {"lease": str(event.key), "slice": event.index, "detail": event.detail}
    return REPLACE(state, lease=lease.failed()), (Report(name="slice_failed", fields=fields),)


def hand_in_stored(state: State, event: HandInStored) -> State:
    """The lease is over; its hand-in is owed to the fleet."""
    lease = state.lease
    if lease is None or lease.key != event.key:
        return state
    pending = Pending(event.key, event.kind, event.statement_sha256, state.now_ms)
    worker = REPLACE(state.worker, idle_since_ms=state.now_ms)
    state = REPLACE(state, lease=None, outbox=(*state.outbox, pending), worker=worker)
    if event.kind is HandInKind.RESULT:
        return REPLACE(state, fruitless=0)
    return _fruitless(state) if lease.ending in {YieldReason.REFUSED, YieldReason.FAULT} else state


def hand_in_failed(state: State, event: HandInFailed) -> Step:
    """The lease is let go without a hand-in; the next start of the daemon tries once more."""
    if state.lease is None or state.lease.key != event.key:
        return state, ()
    failed = Report(name="hand_in_failed", fields={"lease": str(event.key), "detail": event.detail})
    return _fruitless(REPLACE(state, lease=None)), (failed,)


def hand_in_settled(state: State, event: HandInSettled) -> State:
    """The verdict is on disk: nothing is owed any more."""
    return REPLACE(state, outbox=tuple(one for one in state.outbox if one.key != event.key))


def store_failed(state: State, event: StoreFailed) -> Step:
    """What could not be written is done again once the disk takes writes."""
    lease = state.lease
    if lease is not None and lease.key == event.key:
        match event.step:
            case Unwritten.LEASE:
                lease = REPLACE(lease, phase=Phase.GRANTED)
            case Unwritten.SLICE if lease.in_flight == event.index:
                lease = REPLACE(lease, in_flight=None)
            case Unwritten.HAND_IN:
                lease = REPLACE(lease, phase=Phase.RUNNING)
            case _:
                pass
    outbox = state.outbox
    if event.step is Unwritten.VERDICT:
        outbox = tuple(REPLACE(one, settling=False) if one.key == event.key else one for one in outbox)
    news = () if state.store_problem else (Report(name="store_failed", fields={"detail": event.detail}),)
    return REPLACE(state, store_problem=event.detail, lease=lease, outbox=outbox), news


def _fruitless(state: State) -> State:
    """A lease came to nothing by refusal or fault: the next is asked for later, and later still after the next."""
    wait_ms = min(FRUITLESS_MAX_MS, FRUITLESS_FIRST_MS * 2 ** min(state.fruitless, 10))
    wait_ms = round(wait_ms * (0.75 + 0.5 * state.jitter(1)))
    not_before_ms = max(state.ask_not_before_ms, state.now_ms + wait_ms)
    return REPLACE(state, fruitless=state.fruitless + 1, ask_not_before_ms=not_before_ms)


# --- the worker -----------------------------------------------------------------------------------------------


def worker_changed(state: State, event: WorkerReady | WorkerRefused | WorkerIdle | WorkerGone) -> Step:
    """The worker is ready, will not run its package, has stopped computing, or has ended."""
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
    lost = state.worker.failed or not event.expected
    if lease is not None:
        lease = lease.failed() if lost and lease.ending is None else REPLACE(lease, in_flight=None)
    if lost:
        effects += (Report(name="worker_lost", fields={"pid": event.pid, "detail": event.detail}),)
    if vacating is not None:
        idle_ms = state.now_ms if vacating.idle_ms is None else vacating.idle_ms
        idle, gone = idle_ms - vacating.sign_ms, state.now_ms - vacating.sign_ms
        effects += (RecordVacate(cause=vacating.cause, idle_ms=idle, gone_ms=gone),)
    not_before_ms = state.now_ms + (WORKER_RETRY_MS if lost else 0)
    worker = WorkerState(since_ms=state.now_ms, not_before_ms=not_before_ms)
    return REPLACE(state, worker=worker, lease=lease, vacating=None), effects
