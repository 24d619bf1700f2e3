"""`step(state, event) -> (state, effects)`: the only way into the core.

An event is first folded into what is known (vehicle, computer, worker, lease, link), the gates take another look,
and then the rules of `agent.core.plan` name what is to be done. What answers a step of ours is in
`agent.core.outcomes`, `asking`, `building`, `owed` and `transfers`. The same events always give the same effects.
"""

from __future__ import annotations

from typing import assert_never

import msgspec

from agent.core import asking, building, gates, outcomes, owed, plan, signals, transfers
from agent.core.effects import EffectType, Report
from agent.core.energy import Rate
from agent.core.events import (
    AcceleratorSeen,
    BuildProgress,
    BuildRefused,
    BytesMoved,
    CancelSeen,
    ComputerSlept,
    ComputeSeen,
    ConsentSeen,
    DemandSeen,
    EventType,
    GrantSeen,
    HandInFailed,
    HandInNotSent,
    HandInSettled,
    HandInStored,
    HandInUndelivered,
    HostSeen,
    LeaseOpened,
    LeaseRefused,
    LeavesOffered,
    LinkChanged,
    OwnerSaid,
    OwnerSet,
    PaceSeen,
    PlanBuilt,
    PlanMade,
    PlanNotKept,
    PlansMissing,
    PlanUnusable,
    PricesSeen,
    SelfTested,
    SignalsSeen,
    SliceFailed,
    SliceStored,
    SliceUploaded,
    SourceChanged,
    SourceHeard,
    Stopping,
    StoreFailed,
    StoreRecovered,
    Tick,
    TransferFailed,
    VerdictSeen,
    WorkerGone,
    WorkerIdle,
    WorkerLoading,
    WorkerReady,
    WorkerRefused,
)
from agent.core.findings import GateState
from agent.core.policy import Policy
from agent.core.state import State, WorkerPhase
from agent.core.tariff import Basis, lay_out, price_now
from agent.core.thermal import plausible
from agent.core.world import Owner, World

Step = tuple[State, tuple[EffectType, ...]]

REPLACE = msgspec.structs.replace
LOOKED_AT = tuple(name for name in World.__struct_fields__ if name != "now_ms")
AGED = frozenset({"signal_stale", "signal_late"})


def step(state: State, event: EventType) -> Step:
    """Fold one event into the state, and name what is to be done about it.

    Most of what a daemon hears is that nothing has changed. That decides nothing; a tick does, once something is due.
    Before anything is heard again, the gates look at what had grown too old by then: after a gap (a suspend, a stalled
    process) the first word would make young again what nobody vouched for in between. Before the first look of all
    (`stale_ms` is 0) nothing can have grown old.
    """
    missed: tuple[EffectType, ...] = ()
    if isinstance(event, SignalsSeen | SourceHeard | ComputeSeen):
        gap_ends_ms = _gap_ends_ms(event)
        if 0 < state.gates.stale_ms <= gap_ends_ms:
            state, missed = step(state, Tick(at_ms=gap_ends_ms))
    before = state.gates.state
    state, effects = fold(REPLACE(state, now_ms=max(state.now_ms, event.at_ms)), event)
    if isinstance(event, SourceHeard):
        return _looked_at_soon(state), missed + effects
    if isinstance(event, Tick) and state.now_ms < state.due_ms:
        return state, effects
    state, more = _decided(state, before)
    return state, missed + effects + more


def _gap_ends_ms(event: SignalsSeen | SourceHeard | ComputeSeen) -> int:
    """When the time ends of which this event says nothing."""
    since_ms = None if isinstance(event, SignalsSeen) else event.since_ms
    return event.at_ms if since_ms is None else min(since_ms, event.at_ms)


def _looked_at_soon(state: State) -> State:
    """The next tick looks at a leaf that was found too old and has been heard again."""
    for reason in () if state.gates.state is GateState.OPEN else state.gates.reasons:
        if reason.code in AGED and state.now_ms < state.vehicle.read(reason.signal, state.now_ms).holds_ms:
            return REPLACE(state, gates=REPLACE(state.gates, look_ms=min(state.gates.look_ms, state.now_ms)))
    return state


def _decided(state: State, before: GateState) -> Step:
    """What the gates find now, and what the rules make of it; `before` is what the gates were last told to be."""
    effects: tuple[EffectType, ...] = ()
    state = _prepared(state)
    world = world_of(state)
    changed = _changed(world, state.policy, state.looked_at)
    if changed or state.now_ms >= state.gates.due_ms:
        looked = gates.evaluate(state.gates, world, state.policy, changed)
        state = REPLACE(state, gates=looked, looked_at=(world, state.policy))
    if state.gates.state is not before:
        effects = (_gate_report(state, before),)
    state, more = plan.plan(state)
    return REPLACE(state, plan_due_ms=plan.due_ms(state)), effects + more


def as_of(state: State, now_ms: int) -> State:
    """The state with every gate asked at `now_ms`, for those who want to see it: waits and ages are of this moment."""
    state = REPLACE(state, now_ms=max(state.now_ms, now_ms))
    return REPLACE(state, gates=gates.evaluate(state.gates, world_of(state), state.policy))


def fold(state: State, event: EventType) -> Step:  # noqa: C901, PLR0911, PLR0912 - one arm an event, each a line or two
    """What is known after the event, and effects that answer the event itself."""
    match event:
        case Tick():
            return state, ()
        case ComputerSlept():
            return outcomes.computer_slept(state, event)
        case SignalsSeen():
            vehicle = state.vehicle.seen(event)
            return REPLACE(state, vehicle=vehicle, battery=state.battery.seen(vehicle, state.policy, state.now_ms)), ()
        case SourceHeard():
            return REPLACE(state, vehicle=state.vehicle.repeated(event)), ()
        case SourceChanged():
            fields: dict[str, str | int | float | bool] = {"source": event.source, "detail": event.detail}
            name = "source_up" if event.alive else "source_lost"
            return REPLACE(state, vehicle=state.vehicle.changed(event)), (Report(name=name, fields=fields),)
        case LeavesOffered():
            vehicle = state.vehicle.offers(event)
            if vehicle.offered == state.vehicle.offered:
                return REPLACE(state, vehicle=vehicle), ()
            return REPLACE(state, vehicle=vehicle, gates=gates.begin_again(state.gates, state.now_ms)), ()
        case ComputeSeen():
            slice_runs = state.lease is not None and state.lease.in_flight is not None
            working = slice_runs or state.worker.phase is WorkerPhase.BUILDING
            reading = plausible(event)
            heat = state.heat.seen(reading, state.policy, working=working)
            return REPLACE(state, compute=reading, meter=state.meter.read(reading, _rate(state)), heat=heat), ()
        case HostSeen():
            return _host_seen(state, event), ()
        case SelfTested():
            return _self_tested(state, event)
        case (
            AcceleratorSeen()
            | PlansMissing()
            | BuildProgress()
            | PlanMade()
            | PlanBuilt()
            | PlanNotKept()
            | BuildRefused()
            | PlanUnusable()
        ):
            return building.heard(state, event)
        case PricesSeen():
            return REPLACE(state, prices=state.prices.seen(event, state.wall)), ()
        case DemandSeen():
            until_ms = event.at_ms + event.stop_for_ms
            return REPLACE(state, demand_until_ms=until_ms, demand_detail=event.detail), ()
        case LinkChanged():
            return outcomes.link_changed(state, event)
        case GrantSeen() | VerdictSeen() | CancelSeen() | PaceSeen() | HandInUndelivered() | HandInNotSent():
            return _fleet_said(state, event)
        case SliceUploaded():
            return transfers.slice_uploaded(state, event)
        case TransferFailed():
            return transfers.transfer_failed(state, event)
        case BytesMoved():
            return outcomes.bytes_moved(state, event), ()
        case LeaseOpened() | LeaseRefused():
            return outcomes.lease_answered(state, event)
        case WorkerLoading() | WorkerReady() | WorkerRefused() | WorkerIdle() | WorkerGone():
            return outcomes.worker_changed(state, event)
        case SliceStored():
            return outcomes.slice_stored(state, event), ()
        case SliceFailed():
            return outcomes.slice_failed(state, event)
        case HandInStored():
            return owed.hand_in_stored(state, event), ()
        case HandInFailed():
            return owed.hand_in_failed(state, event)
        case HandInSettled():
            return owed.hand_in_settled(state, event), ()
        case StoreFailed():
            return outcomes.store_failed(state, event)
        case StoreRecovered():
            return REPLACE(state, store_problem=""), (Report(name="store_recovered", fields={}),)
        case OwnerSaid():
            version = state.owner.consent_version
            said = Report(name="owner_said", fields={"mode": event.mode.value, "ends": event.until_ms is not None})
            return REPLACE(state, owner=Owner(event.mode, event.until_ms, event.until_wall_ms, version)), (said,)
        case OwnerSet():
            policy = REPLACE(
                state.policy,
                schedule=event.schedule,
                price_floor_micro_per_kwh=event.price_floor_micro_per_kwh,
                workload_classes=event.workload_classes,
            )
            news = () if policy == state.policy else (Report(name="owner_set", fields={}),)
            return REPLACE(state, policy=policy), news
        case ConsentSeen():
            seen = Report(name="consent_seen", fields={"version": event.version})
            return REPLACE(state, owner=REPLACE(state.owner, consent_version=event.version)), (seen,)
        case Stopping():
            return REPLACE(state, stopping=True), ()
        case _:
            assert_never(event)


def _fleet_said(
    state: State, event: GrantSeen | VerdictSeen | CancelSeen | PaceSeen | HandInUndelivered | HandInNotSent
) -> Step:
    """What comes from the dispatcher, or of the way to it."""
    match event:
        case GrantSeen():
            return asking.grant_seen(state, event)
        case VerdictSeen():
            return owed.verdict_seen(state, event)
        case CancelSeen():
            return asking.cancel_seen(state, event)
        case PaceSeen():
            return asking.pace_seen(state, event)
        case HandInUndelivered():
            return owed.undelivered(state, event)
        case HandInNotSent():
            return owed.not_sent(state, event), ()
        case _:
            assert_never(event)


def _self_tested(state: State, event: SelfTested) -> Step:
    """A failure is told of once, and so is its end."""
    if event.problem == state.self_test_problem:
        return state, ()
    name = "self_test_failed" if event.problem else "self_test_passed"
    return REPLACE(state, self_test_problem=event.problem), (Report(name=name, fields={"problem": event.problem}),)


def _rate(state: State) -> Rate:
    """What a kWh costs now; the car counts as kept awake by us while there is a lease and it does not charge."""
    price = price_now(state.policy, state.zone, state.prices, state.wall, state.now_ms)
    overhead = state.lease is not None and not state.charging
    plugged = state.battery.plugged_since_ms is not None
    return Rate.of(state.policy, price, plugged=plugged, overhead=overhead)


def _prepared(state: State) -> State:
    """What the gates look at and what is worked out only when something about it has changed."""
    working = state.worker.phase is not WorkerPhase.ABSENT
    battery = state.battery.works(state.policy, state.now_ms, working=working)
    if battery is not state.battery:
        state = REPLACE(state, battery=battery)
    if state.wall.problem:
        return state
    timer = _timer(state)
    basis = Basis(state.policy, state.zone, state.prices, timer, battery.plugged_since_ms)
    wall_ms = state.wall.wall_ms(state.now_ms)
    if state.stay.holds(basis, wall_ms):
        return state
    return REPLACE(state, stay=lay_out(state.stay, basis, wall_ms))


def _timer(state: State) -> str:
    """The departure that the car's own timer names; the last known while the car does not say."""
    mode, time = state.vehicle.word(signals.TIMER_MODE), state.vehicle.word(signals.TIMER_TIME)
    if mode is None or time is None:
        return "" if state.stay.basis is None else state.stay.basis.timer
    return str(time) if mode == "END_TIME" else ""


def _changed(world: World, policy: Policy, looked_at: tuple[World, Policy] | None) -> frozenset[str]:
    """What the gates have not seen yet; most steps of a lease are none of their business."""
    if looked_at is None or looked_at[1] is not policy:
        return gates.EVERYTHING
    before = looked_at[0]
    changed = [name for name in LOOKED_AT if getattr(world, name) is not getattr(before, name)]
    if "vehicle" in changed and world.vehicle.says_as(before.vehicle):
        changed.remove("vehicle")
    return frozenset(changed)


def world_of(state: State) -> World:
    """What the gates look at."""
    return World(
        now_ms=state.now_ms,
        vehicle=state.vehicle,
        compute=state.compute,
        heat=state.heat,
        battery=state.battery,
        wall=state.wall,
        zone=state.zone,
        prices=state.prices,
        stay=state.stay,
        demand_until_ms=state.demand_until_ms,
        demand_detail=state.demand_detail,
        owner=state.owner,
        metered=state.metered,
        traffic=state.traffic,
        pace=state.pace,
        update_pending=state.update_pending,
        update_since_ms=state.update_since_ms,
        offline_since_ms=state.offline_since_ms,
        leased=state.lease is not None,
        slice_ms=state.slice_ms,
        store_problem=state.store_problem,
        self_test_problem=state.self_test_problem,
        accelerator=state.accelerator,
        stopping=state.stopping,
    )


def _host_seen(state: State, event: HostSeen) -> State:
    since_ms = state.update_since_ms if state.update_pending else event.at_ms
    return REPLACE(
        state,
        wall=state.wall.seen(event),
        metered=event.metered,
        update_pending=event.update_pending,
        update_since_ms=since_ms if event.update_pending else 0,
    )


def _gate_report(state: State, before: GateState) -> Report:
    fields: dict[str, str | int | float | bool] = {"was": before.value, "state": state.gates.state.value}
    if state.gates.reasons:
        reason = state.gates.reasons[0]
        fields |= {"code": reason.code, "signal": reason.signal, "value": str(reason.value)}
    return Report(name="gate_changed", fields=fields)
