"""What goes over a network that costs by the byte, counted by the day against the owner's cap (`metered_daily_mb`).

Counted is what the shells say was moved (`BytesMoved`) while the network is metered, or nobody knows whether it is: a
computer without a default route may be behind anything. The day is one of boot time, which no clock change makes
longer, and outlives the agent with the other budgets (`agent.core.kept`).

A cap that is used up holds the network gate: nothing new is asked for, and no bulk transfer begins, until the day is
over or the network is free. What was earned is not held hostage: hand-ins still go, each at most 16 KiB, and an upload
that began under the cap goes on to its end. So the cap is overrun by one transfer and the messages of a day, no more.
"""

from __future__ import annotations

import msgspec

from agent.core.policy import Policy
from agent.core.walltime import DAY_MS

BYTES_PER_MB = 1_000_000


class Traffic(msgspec.Struct, frozen=True):
    """The bytes moved over a metered network in the day that began at boot time `day_ms`."""

    day_ms: int = 0
    used_bytes: int = 0

    def moved(self, moved_bytes: int, now_ms: int) -> Traffic:
        """After so many bytes more."""
        return Traffic(self._day_ms_at(now_ms), self.used_at(now_ms) + max(0, moved_bytes))

    def used_at(self, now_ms: int) -> int:
        """The bytes that count now."""
        return self.used_bytes if self._day_ms_at(now_ms) == self.day_ms else 0

    def left_at(self, policy: Policy, now_ms: int) -> int:
        """The bytes that may still go today."""
        return max(0, policy.metered_daily_mb * BYTES_PER_MB - self.used_at(now_ms))

    def day_ends_ms(self, now_ms: int) -> int:
        """When the next day brings the cap anew."""
        return self._day_ms_at(now_ms) + DAY_MS

    def _day_ms_at(self, now_ms: int) -> int:
        """When the day began that `now_ms` lies in; one that nothing was moved in yet begins with its first byte."""
        if not self.used_bytes:
            return now_ms
        return self.day_ms + (now_ms - self.day_ms) // DAY_MS * DAY_MS


def spent(traffic: Traffic, policy: Policy, now_ms: int, *, metered: bool | None) -> bool:
    """Whether the cap is used up, over a network that it counts for."""
    return metered is not False and traffic.left_at(policy, now_ms) == 0
