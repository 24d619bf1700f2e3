"""Is this the time for it? The owner's schedule, the price of energy, the grid's orders, and a clock to tell it by."""

from __future__ import annotations

from collections.abc import Iterator

from agent.core.findings import Finding, GateState
from agent.core.tariff import break_even, dearest, selective
from agent.core.walltime import MINUTE_MS, next_change, within
from agent.core.world import Sight

PRICE = "tariff.price"


def schedule(sight: Sight, _was_open: bool) -> Iterator[Finding]:  # noqa: FBT001
    """It is within the owner's windows. While nobody knows the time, the clock's gate says so."""
    world, windows = sight.world, sight.policy.schedule
    if not windows or world.wall.problem:
        return
    wall_ms = world.wall.wall_ms(sight.now_ms)
    change_ms = next_change(windows, world.zone, wall_ms)
    clears_ms = None if change_ms is None else world.wall.boot_ms(change_ms)
    if clears_ms is not None:
        sight.again(clears_ms)
    if not within(windows, world.zone, wall_ms):
        minute = world.zone.local(wall_ms).minute
        sight.again(sight.now_ms + MINUTE_MS - wall_ms % MINUTE_MS)
        shown, first = f"{minute // 60:02d}:{minute % 60:02d}", windows[0]
        yield Finding("outside_schedule", "clock.local", shown, f"{first.start}-{first.end}", clears_at_ms=clears_ms)


def tariff(sight: Sight, _was_open: bool) -> Iterator[Finding]:  # noqa: FBT001
    """Energy is as cheap as it gets before the departure, and work at its price pays."""
    world, policy, stay = sight.world, sight.policy, sight.world.stay
    unit = f"{policy.currency}/kWh"
    limit = break_even(policy, plugged=world.battery.plugged_since_ms is not None)
    if world.wall.problem:
        price = dearest(policy, world.prices)
        if limit is not None and price >= limit:
            yield Finding("unprofitable", PRICE, price / 1e6, limit / 1e6, unit)
        return
    wall_ms = world.wall.wall_ms(sight.now_ms)
    now = stay.slot_at(wall_ms)
    sight.again(world.wall.boot_ms(stay.ends_ms if now is None else now.end_wall_ms))
    if now is not None:
        return
    following = stay.next_slot(wall_ms)
    clears_ms = world.wall.boot_ms(stay.ends_ms if following is None else following.start_wall_ms)
    sight.again(clears_ms)
    piece = stay.price_at(wall_ms)
    price = policy.energy_price_micro_per_kwh
    if piece is not None:
        sight.again(world.wall.boot_ms(piece.end_wall_ms))
        price = piece.price_micro_per_kwh
    if limit is not None and price >= limit:
        yield Finding("unprofitable", PRICE, price / 1e6, limit / 1e6, unit, clears_at_ms=clears_ms)
    elif following is not None:
        coming = [slot.price_micro_per_kwh for slot in stay.chosen if slot.end_wall_ms > wall_ms]
        yield Finding("tariff_waiting", PRICE, price / 1e6, max(coming) / 1e6, unit, clears_at_ms=clears_ms)
    else:
        hours = stay.spent_ms(wall_ms) / (60 * MINUTE_MS)
        wanted = policy.work_hours_per_stay
        yield Finding("work_hours_used", "tariff.work_hours", hours, wanted, "h", clears_at_ms=clears_ms)


def demand(sight: Sight, _was_open: bool) -> Iterator[Finding]:  # noqa: FBT001
    """The grid has not asked for relief."""
    until_ms = sight.world.demand_until_ms
    if sight.now_ms < until_ms:
        sight.again(until_ms)
        yield Finding("demand_response", "grid.demand", sight.world.demand_detail, "", clears_at_ms=until_ms)


def clock(sight: Sight, _was_open: bool) -> Iterator[Finding]:  # noqa: FBT001
    """The time is known, where anything hangs on it. Prices and departures are read pessimistically besides."""
    world, policy = sight.world, sight.policy
    if not world.wall.problem:
        return
    if policy.schedule or selective(policy, world.prices):
        clears_ms = world.wall.distrusted_until_ms if world.wall.problem == "clock_jumped" else None
        yield Finding(world.wall.problem, "clock.wall", False, True, "", GateState.HOLD, clears_ms)
