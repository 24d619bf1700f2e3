"""Is there energy to spare? The plug, the owner's charge, the next departure, and both batteries' health."""

from __future__ import annotations

from collections.abc import Iterator

from agent.core import signals
from agent.core.findings import Finding
from agent.core.world import Sight


def plugged(sight: Sight, _was_open: bool) -> Iterator[Finding]:  # noqa: FBT001
    """The charging cable is in, where the policy asks for it."""
    if sight.policy.plug_required:
        yield from sight.expect(signals.CABLE, "not_plugged_in", lambda v: v is True, True)


def reserve(sight: Sight, was_open: bool) -> Iterator[Finding]:  # noqa: FBT001
    """The traction battery holds more than the owner's reserve."""
    policy = sight.policy
    margin = policy.reserve_stop_margin_percent if was_open else policy.reserve_start_margin_percent
    floor = policy.reserve_percent + margin
    yield from sight.expect(signals.CHARGE, "charge_below_reserve", lambda v: float(v) > floor, floor)
