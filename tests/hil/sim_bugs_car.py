"""Bugs that harm the driver or the car: what a tired engineer might write in the core's looks and laws."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from agent.core import departures, energy, gates, plan, signals, tariff, thermal, thermal_guard
from agent.core.effects import StopWorker
from agent.core.events import Quality
from agent.core.findings import SEVERITY, Finding, GateState
from agent.core.looks import driver
from agent.core.looks import energy as energy_looks
from agent.core.policy import Policy
from agent.core.state import State, WorkerPhase
from agent.core.world import Sight
from tests.hil.sim_planting import REPLACE, Patch, look_at, without

# --- the driver first -------------------------------------------------------------------------------------------


def staleness_ignored_for_the_drivers_leaves(patch: Patch) -> None:
    slow = signals.Staleness.AMBIENT
    leaves = {
        path: REPLACE(leaf, staleness=slow) if leaf.staleness is signals.Staleness.GATE_EDGE else leaf
        for path, leaf in signals.LEAVES.items()
    }
    patch.setattr(signals, "LEAVES", leaves)


def unknown_means_as_before(patch: Patch) -> None:
    first = signals.Vehicle.seen

    def seen(self: signals.Vehicle, event: Any) -> signals.Vehicle:
        good = tuple(sample for sample in event.samples if sample.quality is Quality.GOOD)
        return first(self, REPLACE(event, samples=good))

    patch.setattr(signals.Vehicle, "seen", seen)


def nan_counts_as_standing(patch: Patch) -> None:
    first = signals.Leaf._judge_number
    patch.setattr(
        signals.Leaf,
        "_judge_number",
        lambda self, value: Quality.GOOD if isinstance(value, float) and math.isnan(value) else first(self, value),
    )

    def expect(self: Sight, path: str, code: str, good: Any, limit: Any) -> tuple[Finding, ...]:
        if code == "moving" and path == signals.SPEED:
            return expected(self, path, code, lambda speed: not abs(float(speed)) > limit, limit)
        return expected(self, path, code, good, limit)

    expected = Sight.expect
    patch.setattr(Sight, "expect", expect)


def the_trunk_is_forgotten(patch: Patch) -> None:
    def occupied(sight: Sight, was_open: bool) -> Iterator[Finding]:
        return (one for one in driver.occupied(sight, was_open) if one.signal != signals.TRUNK)

    look_at(patch, "occupied", occupied)


def the_handle_is_forgotten(patch: Patch) -> None:
    def occupied(sight: Sight, was_open: bool) -> Iterator[Finding]:
        return (one for one in driver.occupied(sight, was_open) if one.code != "door_handle_pulled")

    look_at(patch, "occupied", occupied)


def unlocking_is_no_sign(patch: Patch) -> None:
    def occupied(sight: Sight, was_open: bool) -> Iterator[Finding]:
        return (one for one in driver.occupied(sight, was_open) if one.code != "unlocked")

    look_at(patch, "occupied", occupied)


def no_patience_with_an_empty_car(patch: Patch) -> None:
    for name in ("parked", "occupied"):
        rule = gates.RULES[name]
        patch.setitem(gates.RULES, name, REPLACE(rule, timing=gates.Timing()))


def the_worker_is_not_stopped(patch: Patch) -> None:
    without(patch, plan.vacate)


def a_starting_worker_is_not_stopped(patch: Patch) -> None:
    def vacate(state: State) -> plan.Step:
        return (state, ()) if state.worker.phase is WorkerPhase.STARTING else plan.vacate(state)

    without(patch, plan.vacate, vacate)


def a_build_is_not_stopped(patch: Patch) -> None:
    def vacate(state: State) -> plan.Step:
        return (state, ()) if state.worker.phase is WorkerPhase.BUILDING else plan.vacate(state)

    without(patch, plan.vacate, vacate)


def not_stopped_from_hold_to_closed(patch: Patch) -> None:
    """Only the step from open to closed is acted on."""
    first = gates.evaluate

    def evaluate(before: gates.Gates, *rest: Any) -> gates.Gates:
        after = first(before, *rest)
        held = before.state is GateState.HOLD and after.state is GateState.CLOSED
        return REPLACE(after, state=GateState.HOLD) if held else after

    patch.setattr(gates, "evaluate", evaluate)


def a_budget_of_seconds(patch: Patch) -> None:
    first = plan._stop_worker

    def generous(state: State, why: str, *, failed: bool = False) -> plan.Step:
        state, effects = first(state, why, failed=failed)
        return state, tuple(REPLACE(one, budget_ms=5_000) if isinstance(one, StopWorker) else one for one in effects)

    patch.setattr(plan, "_stop_worker", generous)


def a_gate_is_left_out_of_the_sum(patch: Patch) -> None:
    first = gates.evaluate

    def evaluate(*given: Any) -> gates.Gates:
        after = first(*given)
        rest = [gate.state for gate in after.gates if gate.name != "occupied"]
        return REPLACE(after, state=max(rest, key=SEVERITY.__getitem__))

    patch.setattr(gates, "evaluate", evaluate)


# --- the batteries ----------------------------------------------------------------------------------------------


def _floor(margin: Callable[[Policy, bool], float], good: Callable[[float, float], bool]) -> gates.Look:
    def reserve(sight: Sight, was_open: bool) -> Iterator[Finding]:
        policy = sight.policy
        floor = policy.reserve_percent + margin(policy, was_open)
        yield from sight.expect(signals.CHARGE, "charge_below_reserve", lambda v: good(float(v), floor), floor)

    return reserve


def _margin(policy: Policy, was_open: bool) -> float:
    return policy.reserve_stop_margin_percent if was_open else policy.reserve_start_margin_percent


def reserve_is_compared_with_at_least(patch: Patch) -> None:
    look_at(patch, "reserve", _floor(_margin, lambda charge, floor: charge >= floor))


def reserve_margin_has_the_wrong_sign(patch: Patch) -> None:
    look_at(patch, "reserve", _floor(lambda policy, was_open: -_margin(policy, was_open), lambda v, floor: v > floor))


def reserve_forgotten_when_the_charge_is_unknown(patch: Patch) -> None:
    def reserve(sight: Sight, was_open: bool) -> Iterator[Finding]:
        return (one for one in energy_looks.reserve(sight, was_open) if not one.code.startswith("signal_"))

    look_at(patch, "reserve", reserve)


def thresholds_of_the_charge_are_equal(patch: Patch) -> None:
    look_at(
        patch, "reserve", _floor(lambda policy, _open: policy.reserve_stop_margin_percent, lambda v, floor: v > floor)
    )


def all_of_the_charging_power_is_counted_on(patch: Patch) -> None:
    first = energy_looks._in_time

    def in_time(sight: Sight, *rest: Any, was_open: bool) -> bool:
        sight.policy = REPLACE(sight.policy, ready_by_share=1.0)
        return first(sight, *rest, was_open=was_open)

    patch.setattr(energy_looks, "_in_time", in_time)
    patch.setattr(energy_looks, "READY_START_SHARE", 1.0)


def what_is_missing_has_the_wrong_sign(patch: Patch) -> None:
    first = energy_looks._in_time
    patch.setattr(energy_looks, "_in_time", lambda s, leaving, wh, *rest, **more: first(s, leaving, -wh, *rest, **more))


def the_departure_is_an_hour_later(patch: Patch) -> None:
    first = departures.coming

    def coming(*rest: Any) -> Any:
        return tuple(REPLACE(one, wall_ms=one.wall_ms + 3_600_000) for one in first(*rest))

    patch.setattr(tariff, "coming", coming)


def our_own_power_is_not_taken_off(patch: Patch) -> None:
    patch.setattr(energy_looks, "_charging_w", lambda sight: (11_000.0, 11_000.0))


def the_low_voltage_filter_never_moves(patch: Patch) -> None:
    patch.setattr(energy.LowPass, "seen", lambda self, _value, _at_ms: self)
    _only_filtered(patch)


def _only_filtered(patch: Patch) -> None:
    def low_voltage(sight: Sight, was_open: bool) -> Iterator[Finding]:
        return (one for one in energy_looks.low_voltage(sight, was_open) if one.code == "low_voltage_low")

    look_at(patch, "low_voltage", low_voltage)


def the_low_voltage_battery_is_not_looked_at(patch: Patch) -> None:
    look_at(patch, "low_voltage", lambda _sight, _was_open: ())


def lithium_is_taken_for_lead(patch: Patch) -> None:
    patch.setitem(energy.LOW_VOLTAGE_LIMITS, "lithium", energy.LOW_VOLTAGE_LIMITS["lead"])


# --- heat -------------------------------------------------------------------------------------------------------


def no_guard(patch: Patch) -> None:
    patch.setattr(thermal, "guard_w", lambda *_given, policy: policy.power_max_w)


def the_guard_forgets_the_readings_error_and_its_rise(patch: Patch) -> None:
    first = thermal_guard.guard_w

    def guard_w(die_c: float, low_w: float, _error_c: float, share: float, _span_s: float, *, policy: Any) -> float:
        return first(die_c, low_w, -1.0, share, -2.0, policy=policy)

    patch.setattr(thermal, "guard_w", guard_w)


def no_reading_means_go_on(patch: Patch) -> None:
    look_at(patch, "temperature", lambda _sight, _was_open: ())
    patch.setattr(thermal.Heat, "waited", lambda self, _now_ms, _policy: self)
