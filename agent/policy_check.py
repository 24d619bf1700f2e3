"""Limits that contradict each other would make a gate that never opens, or never shuts: they are errors, by name."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from agent.core.policy import Policy
from agent.errors import ConfigError
from agent.zones import zone_named

RISING = (
    ("die_start_c", "die_target_c", "die_limit_c"),
    ("ambient_min_c", "ambient_start_max_c"),
    ("pack_min_c", "pack_start_max_c"),
)
"""Each must be below the next."""
NOT_FALLING = (
    ("ambient_start_max_c", "ambient_stop_c"),
    ("pack_start_max_c", "pack_stop_c"),
    ("reserve_stop_margin_percent", "reserve_start_margin_percent"),
    ("die_to_sink_min_k_per_w", "die_to_sink_max_k_per_w"),
    ("die_min_j_per_k", "die_max_j_per_k"),
)
"""Each must not be above the next: two thresholds of one gate, or two bounds of one number."""


def check_policy(policy: Policy, path: Path) -> None:
    """Raise ConfigError for the first contradiction in the policy that was read from `path`."""
    wrong = next(contradictions(policy), None)
    if wrong is not None:
        what, hint = wrong
        raise ConfigError(f"{path}: {what}", hint=hint)
    try:
        zone_named(policy.time_zone)
    except ConfigError as error:
        raise ConfigError(f"{path}: policy.time_zone: {error.what}", hint=error.hint) from error


def contradictions(policy: Policy) -> Iterator[tuple[str, str]]:
    """(what is wrong, the mend) of everything that contradicts itself."""
    for low, high in itertools.chain.from_iterable(itertools.pairwise(names) for names in RISING):
        if getattr(policy, low) >= getattr(policy, high):
            yield f"policy.{low} ({getattr(policy, low)}) is not below policy.{high} ({getattr(policy, high)})", ""
    for low, high in NOT_FALLING:
        if getattr(policy, low) > getattr(policy, high):
            yield f"policy.{low} ({getattr(policy, low)}) is above policy.{high} ({getattr(policy, high)})", ""
    if policy.power_idle_w >= policy.power_max_w:
        yield f"policy.power_idle_w ({policy.power_idle_w}) is not below power_max_w", ""
    yield from _unproven(policy)
    yield from _never_open(policy)
    for name in ("schedule", "update_schedule", "tariff_zones", "departures"):
        if any(not entry.days for entry in getattr(policy, name)):
            yield f"policy.{name}: an entry is for no day at all", "leave `days` out for every day"


def _unproven(policy: Policy) -> Iterator[tuple[str, str]]:
    """What takes the ground from the thermal guard's proof (`agent.core.thermal_guard`, assumption A5)."""
    any_power_c = policy.die_limit_c - policy.die_to_sink_max_k_per_w * policy.power_max_w
    if any_power_c < policy.ambient_stop_c:
        what = f"{policy.power_max_w:g} W over {policy.die_to_sink_max_k_per_w:g} K/W"
        leaves = f"leaves the heatsink {any_power_c:.0f} C, below ambient_stop_c ({policy.ambient_stop_c:g} C)"
        hint = "power_max_w and die_to_sink_max_k_per_w belong together: `driveway bench --commission` measures both"
        yield f"policy.power_max_w: {what} {leaves}: the thermal guard cannot be trusted", hint


def _never_open(policy: Policy) -> Iterator[tuple[str, str]]:
    """Limits that would keep the work from ever beginning."""
    start_percent = policy.reserve_percent + policy.reserve_start_margin_percent
    if start_percent >= 100:
        yield f"policy.reserve_percent and its margin ask for more than {start_percent:g} %", "no battery has that"
    if policy.plug_required and policy.net_drain_percent == 0:
        yield "policy.net_drain_percent is 0: every full car sags a little", "leave it at 2"
    if policy.work_hours_per_stay == 0:
        yield "policy.work_hours_per_stay is 0: no work at all", "use `driveway pause` to stop the work"
    if policy.payout_micro_per_kwh and policy.price_floor_micro_per_kwh >= policy.payout_micro_per_kwh:
        floor, payout = policy.price_floor_micro_per_kwh, policy.payout_micro_per_kwh
        yield f"policy.price_floor_micro_per_kwh ({floor}) leaves nothing of the payout ({payout})", ""
    if policy.metered_allowed and policy.metered_daily_mb == 0:
        hint = "leave metered_allowed off, or allow some traffic"
        yield "policy.metered_allowed is on and policy.metered_daily_mb is 0", hint
    budgets = ("keep_awake_budget_minutes", "keep_awake_budget_wh", "keep_awake_budget_wakes")
    for budget in budgets:
        if policy.keep_awake and getattr(policy, budget) == 0:
            yield f"policy.keep_awake is on and policy.{budget} is 0", "raise the budget, or leave keep_awake off"
