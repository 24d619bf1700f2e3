"""What came of it: answers of the link, the worker and the disk, folded into the state.

Nothing here asks for anything beyond a line in the log and the note of a vacate; what follows from the new state is for
`agent.core.plan`. Every step of a lease that can fail has its failure here (what the fleet answers is in
`agent.core.asking` and `agent.core.owed`), so that no phase waits for ever.
"""

from __future__ import annotations

from typing import assert_never

import msgspec

from agent.core import asking, building
from agent.core.effects import EffectType, RecordVacate, Report
from agent.core.events import (
    BytesMoved,
    ComputerSlept,
    LeaseOpened,
    LeaseRefused,
    LinkChanged,
    SliceFailed,
    SliceStored,
    StoreFailed,
    Unwritten,
    WorkerGone,
    WorkerIdle,
    WorkerLoading,
    WorkerReady,
    WorkerRefused,
)
from agent.core.lease import Phase
from agent.core.model import YieldReason
from agent.core.owed import offered_anew
from agent.core.state import State, WorkerPhase, WorkerState

Step = tuple[State, tuple[EffectType, ...]]
Fields = dict[str, str | int | float | bool]

WORKER_RETRY_MS = 2_000
ON_CPU = "onnxruntime"
LINK_TOLD_EVERY_MS = 60_000
"""So often at most the log hears that the link is down; what follows such a word is told at once."""
REPLACE = msgspec.structs.replace


# --- the link -------------------------------------------------------------------------------------------------


def link_changed(state: State, event: LinkChanged) -> Step:
    """After a reconnect everything owed is offered again; answers to old questions may be lost.

    A link that stays down is told of once, not with every attempt and every broker that it tries in turn; one that
    comes and goes, once a minute.
    """
    news: tuple[Report, ...] = ()
    told_lately = state.link_told is not None and state.now_ms < state.link_told_ms + LINK_TOLD_EVERY_MS
    if event.connected is not state.link_told and (event.connected or not told_lately):
        name = "link_up" if event.connected else "link_down"
        news = (Report(name=name, fields={"broker": event.broker, "detail": event.detail}),)
        told_ms = state.link_told_ms if event.connected else state.now_ms
        state = REPLACE(state, link_told=event.connected, link_told_ms=told_ms)
    since_ms = state.now_ms if state.offline_since_ms is None else state.offline_since_ms
    state = REPLACE(
        state,
        connected=event.connected,
        offline_since_ms=None if event.connected else since_ms,
        broker=event.broker,
        link_detail=event.detail,
        asking=None,
    )
    return offered_anew(state) if event.connected else state, news


def bytes_moved(state: State, event: BytesMoved) -> State:
    """What went over the network counts against the day's cap, unless the network is known to be free."""
    moved = max(0, event.sent) + max(0, event.received)
    if state.metered is False or not moved:
        return state
    return REPLACE(state, traffic=state.traffic.moved(moved, state.now_ms))


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
        return asking.fruitless(REPLACE(state, lease=None)), (refused,)
    if lease.ending is not None:
        return REPLACE(state, lease=lease), ()  # its fetch was stopped because it had ended
    why = YieldReason.FAULT if event.transient else YieldReason.REFUSED
    return REPLACE(state, lease=lease.end(why, event.detail)), (refused,)


def slice_stored(state: State, event: SliceStored) -> State:
    """One more slice is on disk."""
    state = REPLACE(state, slices_kept=state.slices_kept + 1)
    lease = state.lease
    if lease is None or lease.key != event.key:
        return state
    worker = REPLACE(state.worker, idle_since_ms=state.now_ms)
    if lease.in_flight == event.outcome.index:
        # Boot time goes on while the computer is suspended: the worker's own clock, which does not, says what it took.
        took_ms = min(state.now_ms - lease.in_flight_since_ms, state.policy.slice_timeout_ms)
        state = REPLACE(state, slice_ms=took_ms)
        if lease.ending is None:
            at_full_pace_ms = min(took_ms, event.outcome.compute_ms)
            package = lease.grant.package_sha256
            speeds = state.speeds.learned(package, event.outcome.items, at_full_pace_ms, state.now_ms)
            state = REPLACE(state, speeds=speeds)
    return REPLACE(state, lease=lease.stored(event.outcome.index, event.output_bytes), worker=worker)


def slice_failed(state: State, event: SliceFailed) -> Step:
    """The slice in flight could not be computed; it is tried again, not for ever."""
    lease = state.lease
    if lease is None or lease.key != event.key or lease.in_flight != event.index:
        return state, ()
    fields: Fields = {"lease": str(event.key), "slice": event.index, "detail": event.detail}
    return REPLACE(state, lease=lease.failed()), (Report(name="slice_failed", fields=fields),)


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


# --- the worker -----------------------------------------------------------------------------------------------


def worker_changed(state: State, event: WorkerLoading | WorkerReady | WorkerRefused | WorkerIdle | WorkerGone) -> Step:
    """The worker loads, is ready, will not run its package, has stopped computing, or has ended."""
    worker, lease = state.worker, state.lease
    match event:
        case WorkerLoading(pid=pid, load_ms=load_ms):
            if worker.phase is WorkerPhase.STARTING and worker.load_due_ms is None:
                state = REPLACE(state, worker=REPLACE(worker, pid=pid).loads(state.now_ms, load_ms))
            return state, ()
        case WorkerReady():
            if worker.phase is not WorkerPhase.STARTING:
                return state, ()
            ready = REPLACE(
                worker,
                phase=WorkerPhase.READY,
                load_due_ms=None,
                pid=event.pid,
                executor=event.executor,
                device=event.device,
                package=event.package,
                micro_batch_ms=event.micro_batch_ms,
                notes=event.notes,
                since_ms=state.now_ms,
                idle_since_ms=state.now_ms,
            )
            without: Fields = {"package": event.package, "notes": "; ".join(event.notes)}
            news = (Report(name="executor_notes", fields=without),) if event.notes else ()
            return REPLACE(state, worker=ready, builds=state.builds.proven(worker.package_sha256)), news
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


def computer_slept(state: State, event: ComputerSlept) -> Step:
    """An accelerator does not always survive that, so a worker that has one does not outlive it. A CPU is as it was."""
    slept = Report(name="computer_slept", fields={"slept_ms": event.slept_ms})
    if state.worker.phase is WorkerPhase.ABSENT or state.accelerator.executor == ON_CPU:
        return state, (slept,)
    return REPLACE(state, worker=REPLACE(state.worker, stale=True)), (slept,)


def _worker_gone(state: State, event: WorkerGone) -> Step:
    """The process has ended: what was in flight is lost, and a vacate is complete."""
    state, effects = building.gone(state, event)
    lease, vacating = state.lease, state.vacating
    lost = state.worker.failed or not event.expected
    works = state.worker.build is None
    if lease is not None and works:
        failed = lease.accelerator_lost() if event.lost_accelerator else lease.failed()
        lease = failed if lost and lease.ending is None else REPLACE(lease, in_flight=None)
    if lost and works:
        effects += (Report(name="worker_lost", fields={"pid": event.pid, "detail": event.detail}),)
    if vacating is not None:
        idle_ms = state.now_ms if vacating.idle_ms is None else vacating.idle_ms
        idle, gone = idle_ms - vacating.sign_ms, state.now_ms - vacating.sign_ms
        effects += (RecordVacate(cause=vacating.cause, idle_ms=idle, gone_ms=gone),)
    not_before_ms = state.now_ms + (WORKER_RETRY_MS if lost else 0)
    worker = WorkerState(since_ms=state.now_ms, not_before_ms=not_before_ms)
    return REPLACE(state, worker=worker, lease=lease, vacating=None), effects
