"""Is the computer fit to work? Its heat, its disk, its own test, its network, and what is about to happen to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import assert_never

from agent.core import signals
from agent.core.findings import Finding, GateState
from agent.core.model import PaceState, Readiness
from agent.core.traffic import BYTES_PER_MB, spent
from agent.core.world import Sight

DIE, POWER = "compute.die", "compute.power"
LEASE_HORIZON_S = 30.0
"""A lease is not begun when the die would cross its limit within this; a slice, within the length of the last one."""
RISING_MARGIN_C = 3.0
"""Once refused for what was to come, a start needs so much more room than going on does."""
UNKNOWN_AMBIENT_C = 60.0
"""An ambient sensor that has fallen silent is read as a car parked in the sun."""


def temperature(sight: Sight, was_open: bool) -> Iterator[Finding]:  # noqa: FBT001
    """The die is known, cool enough, and stays so for a slice (or a lease) more; no reading counts as too hot."""
    policy, heat, now_ms = sight.policy, sight.world.heat, sight.now_ms
    if heat.die_c is None:
        yield Finding("temperature_missing", DIE, None, policy.die_limit_c, "celsius")
        return
    stale_ms = heat.die_ms + policy.compute_stale_ms
    if now_ms > stale_ms:
        silent = heat.seen_ms is None or now_ms > heat.seen_ms + policy.compute_stale_ms
        if heat.seen_ms is not None and not silent:
            sight.again(heat.seen_ms + policy.compute_stale_ms + 1)
        yield Finding("temperature_stale" if silent else "temperature_missing", DIE, heat.die_c, None, "celsius")
        return
    sight.ages(stale_ms + 1)
    if now_ms > heat.late_ms:
        yield Finding("temperature_late", DIE, heat.die_c, None, "celsius", GateState.HOLD)
    else:
        sight.ages(heat.late_ms + 1)
    yield from _watched(sight)
    yield from _hot(sight, was_open)


def _watched(sight: Sight) -> Iterator[Finding]:
    """What the thermal law's watchdog stops the work for."""
    heat, limit_c = sight.world.heat, sight.policy.die_limit_c
    watch = heat.watch
    match heat.problem:
        case "":
            pass
        case "die_above_limit":
            yield Finding("die_above_limit", DIE, heat.die_c, limit_c, "celsius")
        case "power_not_obeyed" as code:
            rests_ms = watch.rests_until_ms if watch.rests_until_ms > sight.now_ms else None
            yield Finding(code, POWER, heat.flow.power_w, round(watch.allowed_w, 1), "watt", clears_at_ms=rests_ms)
        case "power_missing" as code:
            yield Finding(code, POWER, None, None, "watt")
        case code:
            yield Finding(code, DIE, heat.die_c, None, "celsius")
    if sight.now_ms < watch.throttled_until_ms:
        sight.again(watch.throttled_until_ms)
        until_ms = watch.throttled_until_ms
        yield Finding("throttled", "compute.clocks", True, False, "", GateState.HOLD, clears_at_ms=until_ms)


def _hot(sight: Sight, was_open: bool) -> Iterator[Finding]:  # noqa: FBT001
    """Too warm to begin, so warm that the law cannot hold it, or about to get there within what would be begun."""
    policy, heat, world = sight.policy, sight.world.heat, sight.world
    warm_c = (policy.die_target_c + policy.die_limit_c) / 2 if was_open else policy.die_start_c
    if heat.smooth_c >= warm_c:
        yield Finding("die_hot", DIE, round(heat.smooth_c, 1), warm_c, "celsius", GateState.HOLD)
    horizon_s = LEASE_HORIZON_S
    if world.leased and world.slice_ms is not None:
        horizon_s = world.slice_ms / 1000
    forecast_c = heat.forecast_c(horizon_s, policy)
    limit_c = policy.die_limit_c - (0.0 if was_open else RISING_MARGIN_C)
    if forecast_c is not None and forecast_c >= limit_c:
        yield Finding("die_rising", DIE, round(forecast_c, 1), limit_c, "celsius", GateState.HOLD)


def ambient(sight: Sight, was_open: bool) -> Iterator[Finding]:  # noqa: FBT001
    """The air around the car is neither too hot nor too cold to begin with."""
    if not sight.reads(signals.AMBIENT):
        return
    policy = sight.policy
    limit_c = policy.ambient_stop_c if was_open else policy.ambient_start_max_c
    known_c = sight.number(signals.AMBIENT)
    air_c = UNKNOWN_AMBIENT_C if known_c is None else known_c
    if air_c >= limit_c:
        yield Finding("ambient_hot", signals.AMBIENT, air_c, limit_c, "celsius")
    elif air_c < policy.ambient_min_c:
        yield Finding("ambient_cold", signals.AMBIENT, air_c, policy.ambient_min_c, "celsius")


def storage(sight: Sight, _was_open: bool) -> Iterator[Finding]:  # noqa: FBT001
    """What is earned can be written down."""
    if sight.world.store_problem:
        yield Finding("storage_failed", "store", sight.world.store_problem, None, "", GateState.HOLD)


def self_test(sight: Sight, _was_open: bool) -> Iterator[Finding]:  # noqa: FBT001
    """The agent's own test of what it needs has passed, and the accelerator is ready.

    One that is being asked only holds back new work: a lease whose worker lost it goes on if it comes back. Without one
    a lease is given back.
    """
    if sight.world.self_test_problem:
        yield Finding("self_test_failed", "agent.self_test", sight.world.self_test_problem, None)
    detail = sight.world.accelerator.detail
    match sight.world.accelerator.state:
        case Readiness.READY:
            pass
        case Readiness.ABSENT:
            yield Finding("accelerator_absent", "accelerator", detail, None)
        case Readiness.STARTING:
            yield Finding("accelerator_starting", "accelerator", detail, None, "", GateState.HOLD)
        case Readiness.LOST:
            yield Finding("accelerator_lost", "accelerator", detail, None, "", GateState.HOLD)
        case _:
            assert_never(sight.world.accelerator.state)


def update(sight: Sight, _was_open: bool) -> Iterator[Finding]:  # noqa: FBT001
    """No update of the agent waits. A lease that is at work may come to its end before it, in `update_drain_s`."""
    world = sight.world
    if not world.update_pending:
        return
    ends_ms = world.update_since_ms + round(sight.policy.update_drain_s * 1000)
    if not world.leased:
        yield Finding("update_pending", "agent.update", True, False, "", GateState.HOLD)
    elif sight.now_ms >= ends_ms:
        yield Finding("update_overdue", "agent.update", True, False)
    else:
        sight.again(ends_ms)


def network(sight: Sight, _was_open: bool) -> Iterator[Finding]:  # noqa: FBT001
    """There is a broker, over a network that may be used, and a fleet that has work. What is leased goes on without."""
    world, policy = sight.world, sight.policy
    if world.leased:
        return
    if world.metered and not policy.metered_allowed:
        yield Finding("network_metered", "network.metered", True, False, "", GateState.HOLD)
    yield from _cap(sight)
    if world.pace.state is not PaceState.OPEN:
        said, stopped = world.pace.state, world.pace.state is PaceState.STOP
        yield Finding(
            "fleet_stopped" if stopped else "fleet_closed", "fleet.pace", said.value, "open", "", GateState.HOLD
        )
    if world.offline_since_ms is not None:
        silent_ms, limit_ms = sight.now_ms - world.offline_since_ms, round(policy.offline_after_s * 1000)
        if silent_ms < limit_ms:
            sight.again(world.offline_since_ms + limit_ms)
        else:
            yield Finding("network_offline", "network.broker", False, True, "", GateState.HOLD)


def _cap(sight: Sight) -> Iterator[Finding]:
    """What may go over a metered network in a day is not used up."""
    world, policy, now_ms = sight.world, sight.policy, sight.now_ms
    if not spent(world.traffic, policy, now_ms, metered=world.metered):
        return
    used_mb, ends_ms = world.traffic.used_at(now_ms) / BYTES_PER_MB, None
    if policy.metered_daily_mb:
        ends_ms = world.traffic.day_ends_ms(now_ms)
        sight.again(ends_ms)
    limit_mb = policy.metered_daily_mb
    yield Finding("network_cap", "network.metered_bytes", round(used_mb, 1), limit_mb, "MB", GateState.HOLD, ends_ms)


def agent(sight: Sight, _was_open: bool) -> Iterator[Finding]:  # noqa: FBT001
    """The daemon is not about to end."""
    if sight.world.stopping:
        yield Finding("agent_stopping", "agent", True, False)
