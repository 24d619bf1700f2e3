"""Budgets that outlive the agent: what was spent is remembered, so that a restart hands none of it out again.

A crash loop, an update or a reboot would otherwise give the low-voltage battery, the day's wakefulness and metered
traffic, the work hours of the stay and the plugged-in car's drain a new budget each time. As in openpilot, what was
spent is written at most every ten seconds, and only when it has changed: a car in which nothing happens writes nothing.

Boot times mean something only next to `at_ms`, the boot time of writing: after a reboot they are moved to the new boot
with their age of then. How long the computer was off nobody knows before the wall clock can be trusted, if it could be
trusted at the time of writing too; until then it counts as no time at all. What the low-voltage battery gave is given
back by charging alone, never by time; and a plugged-in car may not drain anew (see `Battery.seen`).

What cannot be read counts as spent, each budget with its own way back: a charge, a day, the end of the stay.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

from agent.core.awake import Awake
from agent.core.effects import KeepBudgets
from agent.core.energy import Battery
from agent.core.events import PriceSlot
from agent.core.model import Kept
from agent.core.policy import Policy
from agent.core.tariff import HOUR_MS, LONGEST_STAY_MS, Stay
from agent.core.thermal_watch import REST_MAX_MS, Watch
from agent.core.traffic import BYTES_PER_MB, Traffic
from agent.core.walltime import DAY_MS, LATEST_WALL_MS, MAX_ERROR_MS

if TYPE_CHECKING:
    from agent.core.state import State

REPLACE = msgspec.structs.replace
WRITE_EVERY_MS = 10_000
"""openpilot's interval: what a crash may hand out again is what is spent within it."""
RESTS_MAX = 10
"""So many rests make the next one the longest there is."""
TRAFFIC_STEP_BYTES = 65_536
"""Traffic is written in steps of this, rounded up: a car that only waits for work writes nothing every ten seconds."""


class TimeOff(msgspec.Struct, frozen=True):
    """The agent wrote last at `wall_ms`, trusted then; `from_ms` is the boot time that was taken to be the same."""

    wall_ms: int
    from_ms: int


def after_reboot(kept: Kept, now_ms: int) -> Kept:
    """The same in the boot times of another boot, as if no time had passed since it was written."""
    moved_ms = now_ms - kept.at_ms
    return REPLACE(
        kept,
        at_ms=now_ms,
        awake_day_ms=kept.awake_day_ms + moved_ms,
        rests_until_ms=kept.rests_until_ms + moved_ms,
        metered_day_ms=kept.metered_day_ms + moved_ms,
    )


def same(one: Kept, other: Kept) -> bool:
    """Whether the same was spent, whenever that was written down."""
    return REPLACE(other, at_ms=one.at_ms, wall_ms=one.wall_ms) == one


def everything_spent(policy: Policy, now_ms: int) -> Kept:
    """What is taken to be spent where nobody can read what was."""
    return Kept(
        at_ms=now_ms,
        taken_wh=policy.low_voltage_budget_wh,
        highest_percent=100.0,
        awake_day_ms=now_ms,
        awake_used_ms=DAY_MS,
        awake_used_wh=policy.keep_awake_budget_wh,
        awake_wakes=policy.keep_awake_budget_wakes,
        stay_ends_ms=LATEST_WALL_MS,
        stay_used_ms=LONGEST_STAY_MS,
        rests=RESTS_MAX,
        rests_until_ms=now_ms,
        metered_day_ms=now_ms,
        metered_used_bytes=policy.metered_daily_mb * BYTES_PER_MB,
    )


def kept_of(state: State) -> Kept:
    """What has been spent now; rounded, so that noise does not wear out the disk, and never to less than was taken."""
    battery, awake, watch, stay = state.battery, state.awake, state.heat.watch, state.stay
    highest_percent = battery.kept_percent
    if battery.plugged_since_ms is not None:
        highest_percent = max(highest_percent, battery.highest_at(state.now_ms))
    used = awake.used_ms > 0 or awake.wakes > 0
    metered_bytes = -(-state.traffic.used_at(state.now_ms) // TRAFFIC_STEP_BYTES) * TRAFFIC_STEP_BYTES
    limited = _limited(state.policy)
    return Kept(
        at_ms=state.now_ms,
        wall_ms=None if state.wall.problem else state.wall.wall_ms(state.now_ms),
        taken_wh=math.ceil(battery.low_voltage.taken_wh_at(state.now_ms) * 100 - 1e-9) / 100,
        highest_percent=min(100.0, round(highest_percent, 1)),
        awake_day_ms=awake.day_ms if used else 0,
        awake_used_ms=awake.used_ms,
        awake_used_wh=awake.used_wh,
        awake_wakes=awake.wakes,
        stay_begins_ms=stay.begins_ms if limited else 0,
        stay_ends_ms=stay.ends_ms if limited else 0,
        stay_used_ms=stay.used_ms if limited else 0,
        stay_slots=tuple(map(msgspec.structs.astuple, stay.chosen)) if limited else (),
        rests=watch.rests,
        rests_until_ms=watch.rests_until_ms,
        allowed_w=watch.allowed_w,
        metered_day_ms=state.traffic.day_ends_ms(state.now_ms) - DAY_MS if metered_bytes else 0,
        metered_used_bytes=metered_bytes,
    )


def with_kept(state: State, kept: Kept) -> State:
    """The state at start, with what an earlier run had spent; the boot times of `kept` are of this boot."""
    low_voltage = REPLACE(state.battery.low_voltage, taken_wh=kept.taken_wh, taken_at_ms=state.now_ms)
    rests_until_ms = min(kept.rests_until_ms, state.now_ms + REST_MAX_MS)
    return REPLACE(
        state,
        battery=Battery(kept_percent=kept.highest_percent, low_voltage=low_voltage),
        awake=Awake(
            counted_ms=state.now_ms,
            day_ms=min(kept.awake_day_ms, state.now_ms),
            used_ms=kept.awake_used_ms,
            used_wh=kept.awake_used_wh,
            wakes=kept.awake_wakes,
        ),
        stay=_resumed(kept) if _limited(state.policy) else Stay(),
        heat=REPLACE(
            state.heat,
            watch=Watch(rests=min(kept.rests, RESTS_MAX), rests_until_ms=rests_until_ms, allowed_w=kept.allowed_w),
        ),
        traffic=Traffic(min(kept.metered_day_ms, state.now_ms), kept.metered_used_bytes),
        kept=kept,
        time_off=None if kept.wall_ms is None else TimeOff(kept.wall_ms, kept.at_ms),
    )


def _limited(policy: Policy) -> bool:
    """Whether the owner set work hours at all."""
    return policy.work_hours_per_stay * HOUR_MS < LONGEST_STAY_MS


def _resumed(kept: Kept) -> Stay:
    return Stay(
        begins_ms=kept.stay_begins_ms,
        ends_ms=kept.stay_ends_ms,
        chosen=tuple(PriceSlot(*slot) for slot in kept.stay_slots),
        used_ms=kept.stay_used_ms,
        resumed_until_ms=kept.stay_ends_ms,
    )


# --- the rules ----------------------------------------------------------------------------------------------------


def count_time_off(state: State) -> tuple[State, tuple[KeepBudgets, ...]]:
    """Once the wall clock can be trusted, the time for which the computer was off counts towards the day's end."""
    off = state.time_off
    if off is None or state.wall.problem:
        return state, ()
    unsure_ms = MAX_ERROR_MS + (state.wall.error_ms or 0)
    off_ms = max(0, state.wall.wall_ms(off.from_ms) - off.wall_ms - unsure_ms)
    awake = REPLACE(state.awake, day_ms=state.awake.day_ms - off_ms)
    traffic = REPLACE(state.traffic, day_ms=state.traffic.day_ms - off_ms)
    return REPLACE(state, awake=awake, traffic=traffic, time_off=None), ()


def keep_budgets(state: State) -> tuple[State, tuple[KeepBudgets, ...]]:
    """What was spent is written when it has changed, at most every ten seconds, and once more at the end.

    It has no deadline of its own: it is looked at when something else happens, and at work that is each second.
    """
    if state.now_ms < state.keep_due_ms and not state.stopping:
        return state, ()
    if state.store_problem:
        return (state if state.kept is None else REPLACE(state, kept=None)), ()  # it may not have been written
    kept, before = kept_of(state), state.kept
    due_ms = state.now_ms + WRITE_EVERY_MS
    if before is not None and same(kept, before):
        dated = before.wall_ms is not None or kept.wall_ms is None or same(kept, Kept()) or state.time_off is not None
        if dated:
            return REPLACE(state, keep_due_ms=due_ms), ()
    return REPLACE(state, kept=kept, keep_due_ms=due_ms), (KeepBudgets(kept=kept),)
