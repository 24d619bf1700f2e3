"""May we run? Every gate answers open, hold or closed, and says why in a form a person and a program can read.

`hold` starts no new slice and keeps the worker warm; `closed` gives the computer back. A gate closes at the first
finding against it and opens only after `open_after_ms` without one, so that it never opens on a glitch; thresholds
that move (charge, temperature) come in pairs for the same reason.

A finding is what one look shows; a reason is a finding with its history: since when it stands, and when it should
clear, where that can be known.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable

import msgspec

from agent.core import signals
from agent.core.events import ComputeSeen, SignalValue
from agent.core.policy import Policy
from agent.core.signals import Vehicle


class GateState(enum.StrEnum):
    """What a gate lets through, from everything to nothing."""

    OPEN = "open"
    HOLD = "hold"
    CLOSED = "closed"


SEVERITY = {GateState.OPEN: 0, GateState.HOLD: 1, GateState.CLOSED: 2}


class Finding(msgspec.Struct, frozen=True):
    """One thing that speaks against running, as seen now."""

    code: str
    signal: str
    value: SignalValue | None
    limit: SignalValue | None
    unit: str = ""
    state: GateState = GateState.CLOSED


class Reason(msgspec.Struct, frozen=True):
    """Why a gate is not open: the signal, its value, its limit, since when, and when it should clear if known."""

    code: str
    gate: str
    state: GateState
    signal: str
    value: SignalValue | None
    limit: SignalValue | None
    unit: str
    since_ms: int
    clears_at_ms: int | None = None


class Gate(msgspec.Struct, frozen=True):
    """One gate's present state; `clear_since_ms` is since when nothing was found against it."""

    name: str
    state: GateState
    since_ms: int
    clear_since_ms: int | None
    reasons: tuple[Reason, ...]


class World(msgspec.Struct, frozen=True):
    """What the gates look at."""

    vehicle: Vehicle
    compute: ComputeSeen | None
    owner_paused: bool
    store_problem: str
    stopping: bool
    now_ms: int


Look = Callable[[World, Policy, bool], Iterable[Finding]]
"""A gate's rule: what speaks against running; the flag says whether the gate is open now (for hysteresis)."""


def _expect(
    world: World, path: str, code: str, good: Callable[[SignalValue], bool], limit: SignalValue
) -> list[Finding]:
    """The leaf must be known and good; what is unknown counts against us under its own code."""
    reading = world.vehicle.read(path, world.now_ms)
    unit = signals.LEAVES.get(path, signals.DEFAULT_LEAF).unit
    if reading.value is None:
        return [Finding(f"signal_{reading.problem}", path, None, limit, unit)]
    return [] if good(reading.value) else [Finding(code, path, reading.value, limit, unit)]


def look_parked(world: World, policy: Policy, _was_open: bool) -> Iterable[Finding]:  # noqa: FBT001
    """Standing, in Park, nobody on the brake, and the low-voltage system not switched on for a driver."""
    fast = policy.standstill_kmh
    yield from _expect(world, signals.SPEED, "moving", lambda v: abs(float(v)) <= fast, fast)
    yield from _expect(world, signals.GEAR, "gear_not_park", lambda v: v == signals.GEAR_PARK, signals.GEAR_PARK)
    yield from _expect(world, signals.BRAKE, "brake_pressed", lambda v: v == 0, 0.0)
    yield from _expect(world, signals.LOW_VOLTAGE_STATE, "powered_for_driving", lambda v: v in {"LOCK", "OFF"}, "OFF")


def look_occupied(world: World, _policy: Policy, _was_open: bool) -> Iterable[Finding]:  # noqa: FBT001
    """Nobody in or at the car; the earliest signs (handle, door) are here."""
    yield from _expect(world, signals.DOOR_HANDLE, "door_handle_pulled", lambda v: v is False, False)
    for door in (*signals.DOORS, signals.TRUNK):
        yield from _expect(world, door, "door_open", lambda v: v is False, False)
    yield from _expect(world, signals.SEAT, "seat_occupied", lambda v: v == "EMPTY", "EMPTY")
    yield from _expect(world, signals.DRIVER_PRESENT, "driver_present", lambda v: v is False, False)


def look_plugged(world: World, policy: Policy, _was_open: bool) -> Iterable[Finding]:  # noqa: FBT001
    """The charging cable is in, where the policy asks for it."""
    if policy.plug_required:
        yield from _expect(world, signals.CABLE, "not_plugged_in", lambda v: v is True, True)


def look_reserve(world: World, policy: Policy, was_open: bool) -> Iterable[Finding]:  # noqa: FBT001
    """The traction battery holds more than the owner's reserve."""
    margin = policy.reserve_stop_margin_percent if was_open else policy.reserve_start_margin_percent
    floor = policy.reserve_percent + margin
    yield from _expect(world, signals.CHARGE, "charge_below_reserve", lambda v: float(v) > floor, floor)


def look_temperature(world: World, policy: Policy, was_open: bool) -> Iterable[Finding]:  # noqa: FBT001
    """The die is known to be cool enough; no reading counts as too hot."""
    compute = world.compute
    if compute is None or compute.die_c is None:
        yield Finding("temperature_missing", "compute.die", None, policy.die_limit_c, "celsius")
    elif world.now_ms - compute.at_ms > policy.compute_stale_ms:
        yield Finding("temperature_stale", "compute.die", compute.die_c, policy.die_limit_c, "celsius")
    elif compute.die_c >= policy.die_limit_c:
        yield Finding("die_above_limit", "compute.die", compute.die_c, policy.die_limit_c, "celsius")
    elif was_open and compute.die_c >= policy.die_target_c:
        yield Finding("die_hot", "compute.die", compute.die_c, policy.die_target_c, "celsius", GateState.HOLD)
    elif not was_open and compute.die_c >= policy.die_start_c:
        yield Finding("die_hot", "compute.die", compute.die_c, policy.die_start_c, "celsius", GateState.HOLD)


def look_owner(world: World, _policy: Policy, _was_open: bool) -> Iterable[Finding]:  # noqa: FBT001
    """The owner has not asked for the computer."""
    if world.owner_paused:
        yield Finding("owner_paused", "owner.paused", True, False)


def look_storage(world: World, _policy: Policy, _was_open: bool) -> Iterable[Finding]:  # noqa: FBT001
    """What is earned can be written down."""
    if world.store_problem:
        yield Finding("storage_failed", "store", world.store_problem, None, "", GateState.HOLD)


def look_agent(world: World, _policy: Policy, _was_open: bool) -> Iterable[Finding]:  # noqa: FBT001
    """The daemon is not about to end."""
    if world.stopping:
        yield Finding("agent_stopping", "agent", True, False)


LOOKS: dict[str, Look] = {
    "parked": look_parked,
    "occupied": look_occupied,
    "plugged": look_plugged,
    "reserve": look_reserve,
    "temperature": look_temperature,
    "owner": look_owner,
    "storage": look_storage,
    "agent": look_agent,
}
"""Every gate, in the order people are told about them."""

PATIENT = frozenset({"parked", "occupied"})
"""Gates that open only after `parked_for_s` without a finding."""


class Gates(msgspec.Struct, frozen=True):
    """All gates together: as open as the least open of them."""

    gates: tuple[Gate, ...]

    @property
    def state(self) -> GateState:
        """The worst state of all."""
        return max((gate.state for gate in self.gates), key=SEVERITY.__getitem__)

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """Why it is not open, most severe first."""
        reasons = [reason for gate in self.gates for reason in gate.reasons]
        return tuple(sorted(reasons, key=lambda reason: -SEVERITY[reason.state]))


def shut(now_ms: int) -> Gates:
    """All gates closed, as they are before anything is known."""
    return Gates(tuple(Gate(name, GateState.CLOSED, now_ms, None, ()) for name in LOOKS))


def evaluate(gates: Gates, world: World, policy: Policy) -> Gates:
    """The gates after another look at the world."""
    return Gates(tuple(_settle(gate, world, policy) for gate in gates.gates))


def _settle(gate: Gate, world: World, policy: Policy) -> Gate:
    now_ms = world.now_ms
    findings = tuple(LOOKS[gate.name](world, policy, gate.state is GateState.OPEN))
    if findings:
        state = max((finding.state for finding in findings), key=SEVERITY.__getitem__)
        clear_since_ms = None
    else:
        clear_since_ms = now_ms if gate.clear_since_ms is None else gate.clear_since_ms
        wait_ms = round(policy.parked_for_s * 1000) if gate.name in PATIENT else 0
        remaining_ms = clear_since_ms + wait_ms - now_ms
        state = GateState.OPEN if remaining_ms <= 0 else GateState.CLOSED
        if remaining_ms > 0:
            findings = (
                Finding(
                    f"{gate.name}_not_long_enough", gate.name, (wait_ms - remaining_ms) / 1000, wait_ms / 1000, "s"
                ),
            )
    since = {reason.code + reason.signal: reason.since_ms for reason in gate.reasons}
    reasons = tuple(
        Reason(
            code=finding.code,
            gate=gate.name,
            state=finding.state,
            signal=finding.signal,
            value=finding.value,
            limit=finding.limit,
            unit=finding.unit,
            since_ms=since.get(finding.code + finding.signal, now_ms),
            clears_at_ms=None if clear_since_ms is None else clear_since_ms + round(policy.parked_for_s * 1000),
        )
        for finding in findings
    )
    return Gate(gate.name, state, gate.since_ms if state is gate.state else now_ms, clear_since_ms, reasons)
