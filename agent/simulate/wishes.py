"""What the owner and the grid asked for, kept from their own words: pauses, consent, the car's switch, relief."""

from __future__ import annotations

from agent.core import signals
from agent.core.events import ConsentSeen, DemandSeen, EventType, HostSeen, OwnerMode, OwnerSaid, SignalsSeen
from agent.core.policy import Policy
from agent.core.world import Owner


class Wishes:
    """Whether somebody who may say so wants no work now."""

    def __init__(self, policy: Policy) -> None:
        self._consent_required = policy.consent_required_version
        self._consent = 0
        self._paused = False
        self._until_ms: int | None = None
        self._until_wall_ms: int | None = None
        self._wall_offset_ms: int | None = None
        self._switch = False
        self._relief_until_ms = 0

    def begin(self, owner: Owner) -> None:
        """What an earlier run left."""
        self._consent = owner.consent_version
        self._paused = owner.mode is OwnerMode.PAUSED
        self._until_ms, self._until_wall_ms = owner.until_ms, owner.until_wall_ms

    def against(self, event: EventType, now_ms: int) -> str:
        """Take note of the event, and say who is against working now; empty when nobody is."""
        self._note(event)
        if self._paused and self._ended(now_ms):
            self._paused = False
        if self._paused:
            return "the owner paused it"
        if self._consent < self._consent_required:
            return "the owner has not agreed"
        if self._switch:
            return "the car's own switch says pause"
        return "the grid asked for relief" if now_ms < self._relief_until_ms else ""

    def _note(self, event: EventType) -> None:
        match event:
            case OwnerSaid():
                self._paused = event.mode is OwnerMode.PAUSED
                self._until_ms, self._until_wall_ms = event.until_ms, event.until_wall_ms
            case ConsentSeen(version=version):
                self._consent = version
            case HostSeen(wall_ms=wall_ms, at_ms=at_ms):
                self._wall_offset_ms = wall_ms - at_ms
            case DemandSeen(at_ms=at_ms, stop_for_ms=stop_for_ms):
                self._relief_until_ms = at_ms + stop_for_ms
            case SignalsSeen():
                for sample in event.samples:
                    if sample.path == signals.PAUSE_REQUESTED:
                        self._switch = sample.value is True
            case _:
                pass

    def _ended(self, now_ms: int) -> bool:
        """A pause that was over once is over, also where the wall clock is set back later."""
        if self._until_ms is not None:
            return now_ms >= self._until_ms
        if self._until_wall_ms is None or self._wall_offset_ms is None:
            return False
        return now_ms + self._wall_offset_ms >= self._until_wall_ms
