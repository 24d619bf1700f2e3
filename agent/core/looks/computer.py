"""Is the computer fit to work? Its heat, its disk, its own test, its network, and what is about to happen to it."""

from __future__ import annotations

from collections.abc import Iterator

from agent.core import signals
from agent.core.findings import Finding, GateState
from agent.core.world import Sight

UNKNOWN_AMBIENT_C = 60.0
"""An ambient sensor that has fallen silent is read as a car parked in the sun."""


def temperature(sight: Sight, was_open: bool) -> Iterator[Finding]:  # noqa: FBT001
    """The die is known to be cool enough; no reading counts as too hot."""
    policy, compute, now_ms = sight.policy, sight.world.compute, sight.now_ms
    if compute is None or compute.die_c is None:
        yield Finding("temperature_missing", "compute.die", None, policy.die_limit_c, "celsius")
        return
    stale_ms = compute.at_ms + policy.compute_stale_ms
    if now_ms > stale_ms:
        yield Finding("temperature_stale", "compute.die", compute.die_c, policy.die_limit_c, "celsius")
        return
    sight.stale_ms = min(sight.stale_ms, stale_ms + 1)
    if compute.die_c >= policy.die_limit_c:
        yield Finding("die_above_limit", "compute.die", compute.die_c, policy.die_limit_c, "celsius")
    elif was_open and compute.die_c >= policy.die_target_c:
        yield Finding("die_hot", "compute.die", compute.die_c, policy.die_target_c, "celsius", GateState.HOLD)
    elif not was_open and compute.die_c >= policy.die_start_c:
        yield Finding("die_hot", "compute.die", compute.die_c, policy.die_start_c, "celsius", GateState.HOLD)


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
    """The agent's own test of what it needs has passed."""
    if sight.world.self_test_problem:
        yield Finding("self_test_failed", "agent.self_test", sight.world.self_test_problem, None)


def update(sight: Sight, _was_open: bool) -> Iterator[Finding]:  # noqa: FBT001
    """No update of the agent waits for the computer to be idle."""
    if sight.world.update_pending:
        yield Finding("update_pending", "agent.update", True, False, "", GateState.HOLD)


def network(sight: Sight, _was_open: bool) -> Iterator[Finding]:  # noqa: FBT001
    """There is a broker, over a network that may be used. What is leased already goes on without."""
    world, policy = sight.world, sight.policy
    if world.leased:
        return
    if world.metered and not policy.metered_allowed:
        yield Finding("network_metered", "network.metered", True, False, "", GateState.HOLD)
    if world.offline_since_ms is not None:
        silent_ms, limit_ms = sight.now_ms - world.offline_since_ms, round(policy.offline_after_s * 1000)
        if silent_ms < limit_ms:
            sight.again(world.offline_since_ms + limit_ms)
        else:
            yield Finding("network_offline", "network.broker", False, True, "", GateState.HOLD)


def agent(sight: Sight, _was_open: bool) -> Iterator[Finding]:  # noqa: FBT001
    """The daemon is not about to end."""
    if sight.world.stopping:
        yield Finding("agent_stopping", "agent", True, False)
