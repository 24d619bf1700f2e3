"""`step(state, event) -> (state, effects)`: the only way into the core.

An event is first folded into what is known (vehicle, computer, worker, lease, link), the gates take another look,
and then the rules of `agent.core.plan` name what is to be done. What answers a step of ours is in
`agent.core.outcomes`. The same events always give the same effects.
"""

from __future__ import annotations

from typing import assert_never

import msgspec

from agent.core import gates, outcomes, plan
from agent.core.events import (
    ComputeSeen,
    ConsentSeen,
    DemandSeen,
    EffectType,
    EventType,
    GrantSeen,
    HandInFailed,
    HandInSettled,
    HandInStored,
    HostSeen,
    LeaseOpened,
    LeaseRefused,
    LinkChanged,
    OwnerSaid,
    OwnerSet,
    PricesSeen,
    Report,
    SelfTested,
    SignalsSeen,
    SliceFailed,
    SliceStored,
    SourceChanged,
    SourceHeard,
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
from agent.core.findings import GateState
from agent.core.state import State
from agent.core.tariff import Prices
from agent.core.world import Owner, World

Step = tuple[State, tuple[EffectType, ...]]

REPLACE = msgspec.structs.replace


def step(state: State, event: EventType) -> Step:
    """Fold one event into the state, and name what is to be done about it.

    Most of what a daemon hears is that nothing has changed; until something is due, that decides nothing.
    """
    before = state.gates.state
    state, effects = fold(REPLACE(state, now_ms=max(state.now_ms, event.at_ms)), event)
    if isinstance(event, Tick | SourceHeard) and state.now_ms < state.due_ms:
        return state, effects
    state = REPLACE(state, gates=gates.evaluate(state.gates, world_of(state), state.policy))
    if state.gates.state is not before:
        effects = (*effects, _gate_report(state, before))
    state, more = plan.plan(state)
    return REPLACE(state, plan_due_ms=plan.due_ms(state)), effects + more


def fold(state: State, event: EventType) -> Step:  # noqa: C901, PLR0911, PLR0912 - one arm an event, each a line or two
    """What is known after the event, and effects that answer the event itself."""
    match event:
        case Tick():
            return state, ()
        case SignalsSeen():
            return REPLACE(state, vehicle=state.vehicle.seen(event)), ()
        case SourceHeard():
            return REPLACE(state, vehicle=state.vehicle.repeated(event)), ()
        case SourceChanged():
            fields: dict[str, str | int | float | bool] = {"source": event.source, "detail": event.detail}
            name = "source_up" if event.alive else "source_lost"
            return REPLACE(state, vehicle=state.vehicle.changed(event)), (Report(name=name, fields=fields),)
        case ComputeSeen():
            heat = state.heat.seen(event, state.policy)
            return REPLACE(state, compute=event, meter=state.meter.read(event), heat=heat), ()
        case HostSeen():
            return REPLACE(state, metered=event.metered, update_pending=event.update_pending), ()
        case SelfTested():
            return REPLACE(state, self_test_problem=event.problem), ()
        case PricesSeen():
            return REPLACE(state, prices=Prices(event.issued_wall_ms, event.expires_wall_ms, event.slots)), ()
        case DemandSeen():
            until_ms = event.at_ms + event.stop_for_ms
            return REPLACE(state, demand_until_ms=until_ms, demand_detail=event.detail), ()
        case LinkChanged():
            return outcomes.link_changed(state, event)
        case GrantSeen():
            return outcomes.grant_seen(state, event), ()
        case VerdictSeen():
            return outcomes.verdict_seen(state, event)
        case LeaseOpened() | LeaseRefused():
            return outcomes.lease_answered(state, event)
        case WorkerReady() | WorkerRefused() | WorkerIdle() | WorkerGone():
            return outcomes.worker_changed(state, event)
        case SliceStored():
            return outcomes.slice_stored(state, event), ()
        case SliceFailed():
            return outcomes.slice_failed(state, event)
        case HandInStored():
            return outcomes.hand_in_stored(state, event), ()
        case HandInFailed():
            return outcomes.hand_in_failed(state, event)
        case HandInSettled():
            return outcomes.hand_in_settled(state, event), ()
        case StoreFailed():
            return outcomes.store_failed(state, event)
        case StoreRecovered():
            return REPLACE(state, store_problem=""), (Report(name="store_recovered", fields={}),)
        case OwnerSaid():
            version = state.owner.consent_version
            return REPLACE(state, owner=Owner(event.mode, event.until_ms, event.until_wall_ms, version)), ()
        case OwnerSet():
            policy = REPLACE(
                state.policy,
                schedule=event.schedule,
                price_floor_micro_per_kwh=event.price_floor_micro_per_kwh,
                workload_classes=event.workload_classes,
            )
            return REPLACE(state, policy=policy), ()
        case ConsentSeen():
            return REPLACE(state, owner=REPLACE(state.owner, consent_version=event.version)), ()
        case Stopping():
            return REPLACE(state, stopping=True), ()
        case _:
            assert_never(event)


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
        demand_until_ms=state.demand_until_ms,
        demand_detail=state.demand_detail,
        owner=state.owner,
        metered=state.metered,
        update_pending=state.update_pending,
        offline_since_ms=state.offline_since_ms,
        leased=state.lease is not None,
        store_problem=state.store_problem,
        self_test_problem=state.self_test_problem,
        stopping=state.stopping,
    )


def _gate_report(state: State, before: GateState) -> Report:
    fields: dict[str, str | int | float | bool] = {"was": before.value, "state": state.gates.state.value}
    if state.gates.reasons:
        reason = state.gates.reasons[0]
        fields |= {"code": reason.code, "signal": reason.signal, "value": str(reason.value)}
    return Report(name="gate_changed", fields=fields)
