"""A car that stands parked, plugged in and cool, with its gate open: what every car of the fleet begins as.

The opening is told to the core as a daemon would tell it (the bus falls quiet, a minute passes, the gates find nothing
against it), once a process; states are frozen values, so ten thousand cars share it until each goes its own way.
From then on a car repeats what it said: one `SourceHeard` and one reading before each event stand for all of those
since the last, as in `hil.sim`.
"""

from __future__ import annotations

import random

import msgspec

from agent.core.events import (
    ComputeSeen,
    ConsentSeen,
    EventType,
    HostSeen,
    LinkChanged,
    SelfTested,
    SignalsSeen,
    SourceHeard,
    Tick,
)
from agent.core.findings import GateState
from agent.core.machine import step
from agent.core.policy import Policy
from agent.core.state import State, initial
from agent.core.walltime import UTC
from agent.errors import DrivewayError
from agent.ports import Clock
from hil.car.body import Body
from hil.car.plant import PlantParameters
from hil.car.power_state import PowerState
from hil.sim.bus import GROUPS, MODELS, SOURCE
from hil.sim.chassis import Chassis, Traits

POLICY = Policy(parked_for_s=60.0)
"""The daemon's own defaults."""
CHARGE_PERCENT = 90.0
CHARGER_W = 7_400.0
DIE_C, POWER_W = 45.0, 12.0
WALL_ERROR_MS = 20
STEPS_MAX = 1_000
"""The gate opens after a few; more means that this car never will."""
HEARD = tuple(GROUPS)
REPEAT_MS = 100
READING_MS = 1_000


def parked_state(clock: Clock) -> State:
    """The state of a nameless car whose gate is open now; raises DrivewayError when the core would not open it."""
    now_ms, wall_ms = clock.boot_ms(), clock.wall_ms()
    at_ms = now_ms - round(2_000 * POLICY.parked_for_s)
    traits = Traits(name="parked", policy=POLICY, zone=UTC, model=MODELS[0], plant=PlantParameters())
    chassis = Chassis(msgspec.structs.replace(traits, charge_percent=CHARGE_PERCENT), random.Random(0))
    chassis.appear(Body(plugged_in=True, power_state=PowerState.CONDITIONING))
    chassis.set_charger(CHARGER_W)
    state = initial("parked", POLICY, at_ms)
    opening: tuple[EventType, ...] = (
        HostSeen(at_ms=at_ms, wall_ms=wall_ms - now_ms + at_ms, wall_error_ms=WALL_ERROR_MS, metered=False),
        SelfTested(at_ms=at_ms, problem=""),
        ConsentSeen(at_ms=at_ms, version=POLICY.consent_required_version),
        SignalsSeen(at_ms=at_ms, source=SOURCE, samples=chassis.bus.news()),
        reading(at_ms, None),
        LinkChanged(at_ms=at_ms, connected=True, broker=""),
    )
    for event in opening:
        state, _ = step(state, event)
    for _ in range(STEPS_MAX):
        since_ms, at_ms = at_ms, min(max(state.wakes_ms, at_ms + 1), now_ms)
        for repeated in (heard(at_ms, since_ms), reading(at_ms, since_ms), Tick(at_ms=at_ms)):
            state, _ = step(state, repeated)
        if at_ms == now_ms:
            break
    state, _ = step(state, LinkChanged(at_ms=now_ms, connected=False, broker=""))
    if state.gates.state is not GateState.OPEN:
        why = ", ".join(reason.code for reason in state.gates.reasons)
        raise DrivewayError(f"the gate of a car that is parked and plugged in stays {state.gates.state.value}: {why}")
    return state


def heard(at_ms: int, since_ms: int) -> SourceHeard:
    """The car has said the same all the time since then."""
    return SourceHeard(at_ms=at_ms, source=SOURCE, groups=HEARD, since_ms=since_ms)


def reading(at_ms: int, since_ms: int | None) -> ComputeSeen:
    """The computer is cool, and has been all the time since then."""
    return ComputeSeen(at_ms=at_ms, die_c=DIE_C, power_w=POWER_W, sensor="simulated", since_ms=since_ms)
