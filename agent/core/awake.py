"""Keeping the car awake, as a lease of its own: short, renewed, counted, and let go as soon as there is nothing to do.

A parked car wants to sleep. Where the owner allows it, the platform is asked to stay awake for five seconds at a time,
again every two, the rhythm in which Android's Garage Mode postpones the sleep of a car. An agent that dies therefore
lets the car sleep within five seconds, whatever state it died in.

What this costs is counted and bounded per day of boot time, which no clock change makes longer: minutes, watt-hours of
awake overhead, and how often it was begun. While the car charges it is awake anyway, and nothing is counted. A budget
that is used up is told as `refused`, and nothing else: a car that is awake for its own reasons goes on working.
"""

from __future__ import annotations

import msgspec

from agent.core.policy import Policy
from agent.core.walltime import DAY_MS
from agent.core.world import FAR_MS

LEASE_MS = 5_000
RENEW_MS = 2_000
LINGER_MS = 10_000
"""Between two leases the fleet is asked for the next: that short a pause is not worth letting go for."""


class Awake(msgspec.Struct, frozen=True):
    """What is held of the car's wakefulness, and what was used of the day's budgets.

    The day began at boot time `day_ms`. Counted until `counted_ms`, as free of charge or not, as it was then. `refused`
    names the budget that is used up.
    """

    held: bool = False
    renewed_ms: int = 0
    worked_ms: int = 0
    counted_ms: int = 0
    free: bool = False
    day_ms: int = 0
    used_ms: int = 0
    used_wh: float = 0.0
    wakes: int = 0
    refused: str = ""

    @property
    def due_ms(self) -> int:
        """When it has to be thought of again: to renew, or because a new day brings new budgets."""
        if self.held:
            return self.renewed_ms + RENEW_MS
        return self.day_ms + DAY_MS if self.refused else FAR_MS

    def step(self, policy: Policy, now_ms: int, *, work: bool, charging: bool) -> tuple[Awake, int | None]:
        """What is held from now on, and for how long the platform is to be asked now: 0 lets go, None asks nothing.

        `work`: there is something to be done and the gate lets it; `charging`: the car is awake by itself.
        """
        awake = self._counted(policy, now_ms, charging=charging)
        if work:
            awake = msgspec.structs.replace(awake, worked_ms=now_ms)
        lingers = awake.held and now_ms - awake.worked_ms < LINGER_MS
        wanted = policy.keep_awake and (work or lingers)
        begins = not charging and not (self.held and not self.free)
        refused = _used_up(awake, policy, begins=begins) if wanted and not charging else ""
        if not wanted or refused:
            let_go = 0 if awake.held else None
            return msgspec.structs.replace(awake, held=False, refused=refused), let_go
        wakes = awake.wakes + (1 if begins else 0)
        if awake.held and now_ms < awake.renewed_ms + RENEW_MS:
            return msgspec.structs.replace(awake, wakes=wakes, refused=""), None
        return msgspec.structs.replace(awake, held=True, renewed_ms=now_ms, wakes=wakes, refused=""), LEASE_MS

    def _counted(self, policy: Policy, now_ms: int, *, charging: bool) -> Awake:
        """What was used until now."""
        used_ms, used_wh, wakes = self.used_ms, self.used_wh, self.wakes
        day_ms = self.day_ms + (now_ms - self.day_ms) // DAY_MS * DAY_MS
        if day_ms != self.day_ms:
            used_ms, used_wh, wakes = 0, 0.0, 0
        if self.held and not self.free:
            span_ms = now_ms - max(self.counted_ms, day_ms)
            used_ms += span_ms
            used_wh += policy.awake_overhead_w * span_ms / 3_600_000
        return msgspec.structs.replace(
            self, day_ms=day_ms, used_ms=used_ms, used_wh=used_wh, wakes=wakes, counted_ms=now_ms, free=charging
        )


def _used_up(awake: Awake, policy: Policy, *, begins: bool) -> str:
    """The budget that leaves nothing, '' while all of them do. A wake that has begun may use the others up."""
    if awake.used_ms >= policy.keep_awake_budget_minutes * 60_000:
        return "keep_awake_minutes"
    if awake.used_wh >= policy.keep_awake_budget_wh:
        return "keep_awake_energy"
    return "keep_awake_wakes" if begins and awake.wakes >= policy.keep_awake_budget_wakes else ""
