"""Is there energy to spare? The plug, the owner's charge, the next departure, and both batteries' health.

The charge at a departure is guarded by an inequality: what is missing must be no more than a share of what the charger
will still bring, work going on. It is looked at again when the time alone could turn it.
"""

from __future__ import annotations

from collections.abc import Iterator

from agent.core import signals
from agent.core.contradictions import ENERGY_CONTRADICTIONS
from agent.core.departures import Leaving, timer_ends_ms
from agent.core.energy import LOW_VOLTAGE_LIMITS, MS_PER_HOUR, LowPass
from agent.core.findings import Finding, GateState
from agent.core.walltime import DAY_MS
from agent.core.world import Sight

CABLE_CONTRADICTIONS, CONTACTOR_CONTRADICTIONS, CHARGE_CONTRADICTIONS = (
    tuple(one for one in ENERGY_CONTRADICTIONS if one.first == path)
    for path in (signals.CHARGING, signals.CONTACTORS[0], signals.CHARGE)
)
NET_DRAIN_START_SHARE = 0.5
"""Work begins again once the charge is back within this share of the drain that stopped it."""
PACK_COLD_MARGIN_C = 2.0
"""A pack that was warm enough to start may cool by this much."""


def plugged(sight: Sight, was_open: bool) -> Iterator[Finding]:  # noqa: FBT001
    """The charging cable is in, where the policy asks for it, and feeds: plugged in but draining is not plugged in.

    Draining is judged by the charge, not by the power out of the battery: a full car draws on its battery for hours
    (1 % of 75 kWh at 250 W takes three) before it tops up by itself, so power says too little too soon, and counted
    until it says enough it says no more than the charge does.
    """
    policy = sight.policy
    if not policy.plug_required:
        return
    yield from sight.expect(signals.CABLE, "not_plugged_in", lambda v: v is True, True)
    yield from sight.agree(CABLE_CONTRADICTIONS)
    charge = sight.number(signals.CHARGE)
    if charge is None or sight.world.battery.plugged_since_ms is None:
        return
    drain = policy.net_drain_percent * (1.0 if was_open else NET_DRAIN_START_SHARE)
    floor = sight.world.battery.highest_at(sight.now_ms) - drain
    if charge < floor:
        yield Finding("net_drain", signals.CHARGE, charge, floor, "%")


def reserve(sight: Sight, was_open: bool) -> Iterator[Finding]:  # noqa: FBT001
    """The traction battery holds more than the owner's reserve."""
    policy = sight.policy
    margin = policy.reserve_stop_margin_percent if was_open else policy.reserve_start_margin_percent
    floor = policy.reserve_percent + margin
    yield from sight.expect(signals.CHARGE, "charge_below_reserve", lambda v: float(v) > floor, floor)
    yield from sight.agree(CHARGE_CONTRADICTIONS)


def pack(sight: Sight, was_open: bool) -> Iterator[Finding]:  # noqa: FBT001
    """The traction battery is neither too hot nor too cold, where the car tells."""
    policy, path = sight.policy, signals.PACK_TEMPERATURE
    hot_c = policy.pack_stop_c if was_open else policy.pack_start_max_c
    cold_c = policy.pack_min_c - (PACK_COLD_MARGIN_C if was_open else 0.0)
    yield from sight.expect(path, "pack_hot", lambda v: float(v) < hot_c, hot_c)
    known_c = sight.number(path)
    if known_c is not None and known_c < cold_c:
        yield Finding("pack_cold", path, known_c, cold_c, "celsius")


def powered(sight: Sight, _was_open: bool) -> Iterator[Finding]:  # noqa: FBT001
    """The high-voltage contactors are closed, where the car tells: else the small battery carries the computer."""
    for contactor in signals.CONTACTORS:
        yield from sight.expect(contactor, "contactors_open", lambda v: v is True, True)
    yield from sight.agree(CONTACTOR_CONTRADICTIONS)


# --- the low-voltage battery --------------------------------------------------------------------------------------

LOW_FOR_MS = 2_000
"""A voltage below the hold threshold for less than this is a window motor."""
START_CURRENT_A, DRAIN_CURRENT_A = -0.5, -2.0
"""Filtered current, positive into the battery: start above the one (a full battery's sensor is noisy around zero);
below the other the battery and not the converter carries the car."""
BUDGET_START_SHARE = 0.5
"""Work begins again once so much of the budget has been given back."""


def low_voltage(sight: Sight, was_open: bool) -> Iterator[Finding]:  # noqa: FBT001
    """The DC-DC converter feeds the low-voltage battery, which the work does not empty; where the car tells."""
    if not sight.reads(signals.LOW_VOLTAGE):
        return
    limits = LOW_VOLTAGE_LIMITS[sight.policy.low_voltage_chemistry]
    yield from sight.expect(
        signals.LOW_VOLTAGE, "low_voltage_empty", lambda v: float(v) >= limits.at_once_v, limits.at_once_v
    )
    battery, volts = sight.world.battery.low_voltage, sight.number(signals.LOW_VOLTAGE)
    if volts is None or battery.volts is None:
        return
    filtered_v = _filtered(sight, battery.volts, limits.stop_v)
    if filtered_v < limits.stop_v:
        yield Finding("low_voltage_low", signals.LOW_VOLTAGE, filtered_v, limits.stop_v, "V")
    elif not was_open and volts < limits.run_v:
        yield Finding("low_voltage_not_fed", signals.LOW_VOLTAGE, volts, limits.run_v, "V", GateState.HOLD)
    elif battery.low_since_ms is not None:
        holds_ms = battery.low_since_ms + LOW_FOR_MS
        if sight.now_ms < holds_ms:
            sight.again(holds_ms)
        else:
            yield Finding("low_voltage_sags", signals.LOW_VOLTAGE, volts, limits.hold_v, "V", GateState.HOLD)
    yield from _current(sight, was_open=was_open)
    yield from _budget(sight, was_open=was_open)


def _current(sight: Sight, *, was_open: bool) -> Iterator[Finding]:
    path, amperes = signals.LOW_VOLTAGE_CURRENT, sight.world.battery.low_voltage.amperes
    yield from sight.expect(path, "low_voltage_drains", lambda _v: True, DRAIN_CURRENT_A)
    if sight.number(path) is None or amperes is None:
        return
    limit_a = DRAIN_CURRENT_A if was_open else START_CURRENT_A
    filtered_a = _filtered(sight, amperes, limit_a)
    if filtered_a < limit_a:
        yield Finding("low_voltage_drains", path, filtered_a, limit_a, "A", GateState.HOLD)


def _budget(sight: Sight, *, was_open: bool) -> Iterator[Finding]:
    battery, budget_wh = sight.world.battery.low_voltage, sight.policy.low_voltage_budget_wh
    taken_wh = battery.taken_wh_at(sight.now_ms)
    for limit_wh in (budget_wh, budget_wh * BUDGET_START_SHARE):
        if battery.taken_w and (limit_wh - taken_wh) * battery.taken_w > 0:
            sight.again(sight.now_ms + int((limit_wh - taken_wh) / battery.taken_w * MS_PER_HOUR))
    limit_wh = budget_wh * (1.0 if was_open else BUDGET_START_SHARE)
    if taken_wh > limit_wh:
        state = GateState.CLOSED if taken_wh > budget_wh else GateState.HOLD
        yield Finding("low_voltage_budget", "battery.low_voltage_taken", taken_wh, limit_wh, "Wh", state)


def _filtered(sight: Sight, low_pass: LowPass, limit: float) -> float:
    """A filtered value now; looked at again while it is on its way over the limit."""
    if low_pass.will_cross(limit, sight.now_ms):
        sight.again(low_pass.next_ms(sight.now_ms))
    return low_pass.at(sight.now_ms)


# --- ready by the departure ---------------------------------------------------------------------------------------

TOP_UP_PERCENT = 1.0
"""A full car lets its charge sag by this before it tops up by itself; while plugged in it still counts as there."""
READY_START_SHARE = 0.9
"""Work begins only with this much to spare over what lets it go on."""
COUNTED_ON = (signals.PACK_POWER, signals.CHARGING, signals.CAPACITY)
"""What the inequality is worked out from: where the car tells them they must be known, for a guess may be too good."""
DEFAULT_LIMIT_PERCENT = 100.0
"""VSS's own default of a car's charge limit."""


def ready_by(sight: Sight, was_open: bool) -> Iterator[Finding]:  # noqa: FBT001
    """The charge that is wanted at the next departure will be there, although the work goes on."""
    yield from _timer_known(sight)
    world = sight.world
    departures = _departures(sight)
    if not departures:
        return
    charge = sight.number(signals.CHARGE)
    if charge is None:
        return  # the reserve gate says so
    behind = [leaving for leaving in departures if not _there(sight, charge, leaving, was_open=was_open)]
    if not behind:
        return
    limit = (signals.CHARGE_LIMIT,) if any(leaving.target_percent is None for leaving in behind) else ()
    unknown = [finding for path in (*limit, *COUNTED_ON) for finding in _known(sight, path)]
    yield from unknown
    if any(finding.state is GateState.CLOSED for finding in unknown):
        return
    power_w = _charging_w(sight)
    for leaving in behind:
        target = _target_percent(sight, leaving)
        missing_wh = max(0.0, target - charge) / 100 * _capacity_wh(sight)
        if world.wall.problem or not _in_time(sight, leaving, missing_wh, power_w, was_open=was_open):
            yield Finding("ready_by", signals.CHARGE, charge, target, "%")
            return


def _timer_known(sight: Sight) -> Iterator[Finding]:
    """A car that has a timer must tell of it: one that fell silent may hide a departure."""
    yield from sight.expect(signals.TIMER_MODE, "ready_by", lambda _v: True, "END_TIME")
    if sight.reads(signals.TIMER_MODE) and sight.read(signals.TIMER_MODE).value == "END_TIME":
        zone = sight.world.zone
        yield from sight.expect(
            signals.TIMER_TIME, "signal_invalid", lambda v: timer_ends_ms(str(v), zone) is not None, "ISO 8601"
        )


def _departures(sight: Sight) -> list[Leaving]:
    """Departures of the coming day, else the next one; of any day while nobody knows what day it is."""
    world = sight.world
    timed = sight.reads(signals.TIMER_MODE) and sight.read(signals.TIMER_MODE).value == "END_TIME"
    any_time = [Leaving(0, None)] if timed else []
    if world.wall.problem:
        return [Leaving(0, departure.target_percent) for departure in sight.policy.departures] + any_time
    wall_ms = world.wall.wall_ms(sight.now_ms)
    coming = [one for one in world.stay.departures if one.wall_ms > wall_ms]
    near = [one for one in coming if one.wall_ms <= wall_ms + DAY_MS]
    if len(near) < len(coming):
        sight.again(world.wall.boot_ms(coming[len(near)].wall_ms - DAY_MS))
    return (near or coming[:1]) + ([] if sight.reads(signals.TIMER_TIME) else any_time)


def _known(sight: Sight, path: str) -> tuple[Finding, ...]:
    """The leaf must be known, where the car has it, whatever it says."""
    return sight.expect(path, "signal_invalid", lambda _v: True, "known")


def _target_percent(sight: Sight, leaving: Leaving) -> float:
    """The charge wanted by then; the car's own timer means its charge limit, else the most that any departure asks."""
    if leaving.target_percent is not None:
        return leaving.target_percent
    limit = sight.number(signals.CHARGE_LIMIT)
    if limit is not None:
        return limit
    return max((departure.target_percent for departure in sight.policy.departures), default=DEFAULT_LIMIT_PERCENT)


def _capacity_wh(sight: Sight) -> float:
    told_kwh = sight.number(signals.CAPACITY)
    return sight.policy.battery_wh if told_kwh is None else told_kwh * 1000


def _there(sight: Sight, charge: float, leaving: Leaving, *, was_open: bool) -> bool:
    """The target is reached, and work does not take it away: plugged in the car tops up, unplugged nothing does."""
    if leaving.target_percent is None and _known(sight, signals.CHARGE_LIMIT):
        return False
    target = _target_percent(sight, leaving)
    if sight.world.battery.plugged_since_ms is not None:
        return charge >= target - (TOP_UP_PERCENT if was_open else 0.0)
    return charge > target + (0.0 if was_open else TOP_UP_PERCENT)


def _charging_w(sight: Sight) -> tuple[float, float]:
    """Net power into the traction battery while work goes on at full power: the filter's output, and where it tends.

    What is measured has the computer's present power in it already; the rest of its full power is taken off.
    """
    world, policy = sight.world, sight.policy
    if world.battery.plugged_since_ms is None:
        return 0.0, 0.0
    drawn_w = 0.0 if world.compute is None or world.compute.power_w is None else world.compute.power_w
    charging = sight.read(signals.CHARGING).value if sight.reads(signals.CHARGING) else None
    measured = world.battery.pack if sight.number(signals.PACK_POWER) is not None else None
    if measured is None or charging is False:
        expected_w = max(0.0, policy.charger_w - policy.power_max_w / policy.charge_efficiency)
        return expected_w, expected_w
    more_w = max(0.0, policy.power_max_w - drawn_w) / policy.charge_efficiency
    now_w = max(0.0, measured.at(sight.now_ms) - more_w)
    return now_w, max(0.0, measured.value - more_w)


def _in_time(
    sight: Sight, leaving: Leaving, missing_wh: float, power_w: tuple[float, float], *, was_open: bool
) -> bool:
    """Whether the charger brings what is missing by then. Looked at again as soon as this could come out otherwise."""
    wall = sight.world.wall
    share = sight.policy.ready_by_share * (1.0 if was_open else READY_START_SHARE)
    leaves_ms = wall.boot_ms(leaving.wall_ms) - (wall.error_ms or 0)
    now_w, tends_w = power_w

    def latest_ms(charging_w: float) -> int:
        """Until when this power is enough."""
        if charging_w <= 0:
            return sight.now_ms - 1
        return leaves_ms - round(missing_wh / (charging_w * share) * MS_PER_HOUR)

    enough = sight.now_ms <= latest_ms(now_w)
    pack = sight.world.battery.pack
    if pack is not None and enough is not (sight.now_ms <= latest_ms(tends_w)):
        sight.again(pack.next_ms(sight.now_ms))
    elif enough:
        sight.again(latest_ms(min(now_w, tends_w)) + 1)
    return enough
