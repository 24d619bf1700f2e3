"""What the work drew, and what that cost: measured power integrated over time, never a constant.

What is signed (energy in micro-watt-hours, payment in millionths of the currency) is whole; costs are for people.
"""

from __future__ import annotations

import msgspec

from agent.core.events import ComputeSeen

MS_PER_HOUR = 3_600_000
LONGEST_GAP_MS = 5_000
"""Readings further apart than this say nothing about the time between them: that time is counted as unmeasured."""


class Meter(msgspec.Struct, frozen=True):
    """The energy of the computer by the trapezoid rule over its power readings."""

    last_ms: int | None = None
    last_w: float | None = None
    total_micro_wh: float = 0.0
    unmeasured_ms: int = 0

    def read(self, seen: ComputeSeen) -> Meter:
        """The meter after one more reading; a missing reading adds time that was not measured, not zero energy."""
        if self.last_ms is None:
            return msgspec.structs.replace(self, last_ms=seen.at_ms, last_w=seen.power_w)
        span_ms = max(0, seen.at_ms - self.last_ms)
        total, unmeasured = self.total_micro_wh, self.unmeasured_ms
        if self.last_w is None or seen.power_w is None or span_ms > LONGEST_GAP_MS:
            unmeasured += span_ms
        else:
            total += (self.last_w + seen.power_w) / 2 * span_ms / MS_PER_HOUR * 1e6
        return Meter(seen.at_ms, seen.power_w, total, unmeasured)


def cost_micro(micro_wh: int, price_micro_per_kwh: int, charge_efficiency: float) -> float:
    """What energy measured at the computer costs at the plug, in millionths of the currency.

    Not rounded, so that the sum of the leases' costs is the cost of the sum.
    """
    return micro_wh * price_micro_per_kwh / (1e9 * charge_efficiency)


class Battery(msgspec.Struct, frozen=True):
    """What the traction and the low-voltage battery did lately, as far as one reading does not tell."""
