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
    EffectType,
    EventType,
    GrantSeen,
    HandInFailed,
    HandInSettled,
    HandInStored,
    LeaseOpened,
    LeaseRefused,
    LinkChanged,
    OwnerSaid,
    Report,
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
from agent.core.state import State
from agent.core.thermal import power_cap_w

Step = tuple[State, tuple[EffectType, ...]]

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
