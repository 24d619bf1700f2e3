"""How long will there be time to work? The first moment at which the gate is known to shut, and what a lease takes.

What the core knows of beforehand: the end of the owner's schedule window, of the hours chosen for their price (and with
them of the work hours of the stay), the departure, and the budgets that run down while the work goes on: the
low-voltage battery, the charge above the reserve and the departure's target, the day's wakefulness. A pause, a demand
order and everything else that shuts the gate at once is known only when it is there; then there is no time at all.
The ready-by guarantee shuts nothing before the departure as long as the charging that it counts on goes on, so it has
no moment of its own while the car charges. A driver who comes unannounced nobody knows of.

The operator is told the time in quarter-hours (`Outlook`), the car itself goes by the moment: a lease that would take
longer, at what the computer learned of its package and at the present thermal duty, is given back unopened.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from agent.core import signals
from agent.core.energy import MS_PER_HOUR
from agent.core.events import OwnerMode
from agent.core.findings import GateState
from agent.core.lease import Lease
from agent.core.model import Outlook
from agent.core.state import State, WorkerPhase
from agent.core.tariff import HOUR_MS, LONGEST_STAY_MS, Stay, break_even, price_at
from agent.core.thermal import duty_permille
from agent.core.walltime import DAY_MS, next_change

QUARTER_S = 900
LONGEST_S = 86_400
BUDGET_STEP_WH = 10
"""Budgets are told in steps, as the time is: what is left of them tells of the owner's habits."""
LEAST_DUTY_PERMILLE = 50
"""A computer that rests for its heat is taken to go on at this share of its time at least, not never."""


class Edge(msgspec.Struct, frozen=True):
    """A moment (boot time) from which on the gate is known to be shut, and what ends then."""

    at_ms: int
    what: str


class Budget(msgspec.Struct, frozen=True):
    """Energy that may still be spent, and at what power it goes down."""

    left_wh: float
    drain_w: float
    what: str

    def edge(self, now_ms: int) -> Edge:
        """When it is used up."""
        return Edge(now_ms + round(max(0.0, self.left_wh) / self.drain_w * MS_PER_HOUR), self.what)


def outlook(state: State) -> Outlook:
    """What the operator is told with a request for work."""
    ends = edge(state)
    known = ends is not None and not state.wall.problem and state.gates.state is GateState.OPEN
    left_s = max(0, ends.at_ms - state.now_ms) // 1000 if ends is not None and known else 0
    budgets = [one.left_wh for one in _budgets(state)]
    metered = state.metered is not False
    return Outlook(
        open_for_s=min(LONGEST_S, left_s) // QUARTER_S * QUARTER_S,
        budget_wh=int(max(0.0, min(budgets))) // BUDGET_STEP_WH * BUDGET_STEP_WH if budgets else None,
        budget_bytes=state.traffic.left_at(state.policy, state.now_ms) if metered else None,
    )


def edge(state: State) -> Edge | None:
    """The first moment at which the gate is known to shut; None where nothing of the kind is known."""
    edges = [one.edge(state.now_ms) for one in _budgets(state)]
    edges += _awake(state)
    edges += () if state.wall.problem else _by_the_clock(state)
    if state.owner.mode is not OwnerMode.AUTO:
        edges.append(Edge(state.now_ms, "the owner's pause"))
    if state.now_ms < state.demand_until_ms:
        edges.append(Edge(state.now_ms, "the grid's demand"))
    return min(edges, key=lambda one: one.at_ms, default=None)


def too_short(state: State, lease: Lease) -> str:
    """Why this lease cannot be finished in the time there is, in numbers; empty where it can, or nobody knows.

    A lease that can be renewed is not held to its time, which is only the first of several.
    """
    needs_ms = needed_ms(state, lease)
    if needs_ms is None:
        return ""
    ends = [] if lease.grant.renew_ms else [Edge(lease.expires_ms, "the lease")]
    known = edge(state)
    first = min([*ends, *([] if known is None else [known])], key=lambda one: one.at_ms, default=None)
    if first is None or state.now_ms + needs_ms <= first.at_ms:
        return ""
    left_s = max(0, first.at_ms - state.now_ms) // 1000
    return f"it takes about {round(needs_ms / 1000)} s, and {first.what} ends in {left_s} s"


def needed_ms(state: State, lease: Lease) -> float | None:
    """How long the wanted slices take at the present duty; None where neither this computer nor the dispatcher knows.

    What the computer learned itself counts before what the dispatcher expects.
    """
    grant = lease.grant
    item_ms = state.speeds.item_ms(grant.package_sha256, state.now_ms)
    items = sum(last - first for first, last in map(grant.span, grant.slices))
    at_full_pace_ms = grant.expected_ms if item_ms is None else items * item_ms
    if not at_full_pace_ms:
        return None
    return at_full_pace_ms * 1000 / max(LEAST_DUTY_PERMILLE, _duty_permille(state))


def _duty_permille(state: State) -> int:
    worker, heat = state.worker, state.heat
    micro_batch_ms = worker.micro_batch_ms if worker.phase is WorkerPhase.READY else 0.0
    return duty_permille(heat.cap_w, state.policy, micro_batch_ms, measured=heat.measured)


# --- by the clock -------------------------------------------------------------------------------------------------


def _by_the_clock(state: State) -> Iterator[Edge]:
    policy, stay, wall = state.policy, state.stay, state.wall
    wall_ms = wall.wall_ms(state.now_ms)
    if policy.schedule:
        change_ms = next_change(policy.schedule, state.zone, wall_ms)
        if change_ms is not None:
            yield Edge(wall.boot_ms(change_ms), "the owner's schedule")
    if stay.basis is None:
        return
    if stay.departures:
        leaves_ms = wall.boot_ms(stay.departures[0].wall_ms) - (wall.error_ms or 0)
        yield Edge(leaves_ms, "the time before the departure")
    chosen_ms = _chosen_until_ms(stay, wall_ms)
    if chosen_ms < stay.ends_ms or _chooses_anew(state):
        yield Edge(wall.boot_ms(chosen_ms), "the chosen hours")


def _chosen_until_ms(stay: Stay, wall_ms: int) -> int:
    """When the chosen slots that go on without a gap from this moment end, in wall time."""
    until_ms = wall_ms
    for slot in stay.chosen:
        if slot.start_wall_ms <= until_ms < slot.end_wall_ms:
            until_ms = slot.end_wall_ms
    return until_ms


def _chooses_anew(state: State) -> bool:
    """Whether the work may have to wait when this stay is over; else its end is nothing but a day's."""
    policy, stay = state.policy, state.stay
    if policy.work_hours_per_stay * HOUR_MS < LONGEST_STAY_MS:
        return True
    limit = break_even(policy, plugged=state.battery.plugged_since_ms is not None)
    return limit is not None and price_at(policy, state.zone, state.prices, stay.ends_ms) >= limit


# --- by what runs down --------------------------------------------------------------------------------------------


def _budgets(state: State) -> Iterator[Budget]:
    """The budgets that go down now, or will with the work."""
    battery = state.battery.low_voltage
    volts, amperes = battery.volts, battery.amperes
    carried_w = battery.taken_w if volts is None or amperes is None else -volts.value * amperes.value
    if carried_w > 0:
        left_wh = state.policy.low_voltage_budget_wh - battery.taken_wh_at(state.now_ms)
        yield Budget(left_wh, carried_w, "the low-voltage battery's budget")
    charge = state.vehicle.word(signals.CHARGE)
    drain_w = _drain_w(state)
    if isinstance(charge, int | float) and drain_w > 0:
        told_kwh = state.vehicle.word(signals.CAPACITY)
        capacity_wh = told_kwh * 1000 if isinstance(told_kwh, int | float) else state.policy.battery_wh
        left_wh = (charge - _floor_percent(state, float(charge))) / 100 * capacity_wh
        yield Budget(left_wh, drain_w, "the charge that may be used")


def _drain_w(state: State) -> float:
    """What goes out of the traction battery with the computer at full work; nothing while the charger brings more.

    It is asked for between two leases, so the computer's work is taken not to be in the measured power yet.
    """
    policy, pack = state.policy, state.battery.pack
    work_w = policy.power_max_w / policy.charge_efficiency
    if pack is not None:
        return max(0.0, work_w - pack.at(state.now_ms))
    return 0.0 if state.battery.plugged_since_ms is not None else work_w + policy.awake_overhead_w


def _floor_percent(state: State, charge: float) -> float:
    """The charge at which the work stops: the reserve, what a plugged-in car may sag by, a target that is reached."""
    policy, battery = state.policy, state.battery
    floors = [policy.reserve_percent + policy.reserve_stop_margin_percent]
    if battery.plugged_since_ms is not None:
        floors.append(battery.highest_at(state.now_ms) - policy.net_drain_percent)
    near_ms = state.wall.wall_ms(state.now_ms) + DAY_MS
    targets = [leaving.target_percent for leaving in state.stay.departures if leaving.wall_ms <= near_ms]
    floors += [target for target in targets if target is not None and target < charge]
    return max(floors)


def _awake(state: State) -> Iterator[Edge]:
    """When the day's budget of being kept awake is used up, where nothing else keeps the car awake."""
    policy, awake = state.policy, state.awake
    if not policy.keep_awake or state.charging or awake.refused:
        return
    left_ms = policy.keep_awake_budget_minutes * 60_000 - awake.used_ms
    if policy.awake_overhead_w > 0:
        left_wh = policy.keep_awake_budget_wh - awake.used_wh
        left_ms = min(left_ms, round(left_wh / policy.awake_overhead_w * MS_PER_HOUR))
    yield Edge(state.now_ms + max(0, left_ms), "the day's budget of being awake")
