"""How hard may we run? The power cap for a die temperature, and the pace that obeys it.

First form: between `die_derate_c` and `die_target_c` the cap falls in a straight line from full power to idle. It
needs no model of the plant, and it holds the die near the target because power is what heats it; what it does not
give is a proof for a heatsink that fails. Below idle power nothing can be saved by pacing, so the pace is the share
of the power above idle.
"""

from __future__ import annotations

import msgspec

from agent.core.events import ComputeSeen
from agent.core.policy import Policy

PACE_STEP_PERMILLE = 50
"""Paces are rounded down to this, so that sensor noise does not become a message to the worker each second."""


def power_cap_w(die_c: float | None, policy: Policy) -> float:
    """The power (W) the computer may draw at this die temperature; idle when there is no reading."""
    if die_c is None:
        return policy.power_idle_w
    span_c = policy.die_target_c - (policy.die_target_c - 8)
    room = 1.0 if span_c <= 0 and die_c < policy.die_target_c else (policy.die_target_c - die_c) / max(span_c, 1e-9)
    share = min(1.0, max(0.0, room))
    return policy.power_idle_w + share * (policy.power_max_w - policy.power_idle_w)


def duty_permille(cap_w: float, policy: Policy) -> int:
    """The share of time, in thousandths, for which a worker may compute so that the mean stays under the cap."""
    share = (cap_w - policy.power_idle_w) / (policy.power_max_w - policy.power_idle_w)
    steps = int(min(1.0, max(0.0, share)) * 1000 / PACE_STEP_PERMILLE)
    return max(PACE_STEP_PERMILLE, steps * PACE_STEP_PERMILLE)


class Heat(msgspec.Struct, frozen=True):
    """What the thermal law remembers from one reading to the next: the power cap (W) and what is wrong, if anything."""

    cap_w: float = 0.0
    problem: str = ""

    def seen(self, event: ComputeSeen, policy: Policy) -> Heat:
        """The law after one more reading."""
        return Heat(power_cap_w(event.die_c, policy))
