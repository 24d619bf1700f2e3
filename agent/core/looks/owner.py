"""Does the owner want it? Pause, finish, the car's own switch, and consent to the terms in force."""

from __future__ import annotations

from collections.abc import Iterator

from agent.core import signals
from agent.core.events import OwnerMode
from agent.core.findings import Finding
from agent.core.walltime import WallClock
from agent.core.world import Owner, Sight


def owner(sight: Sight, _was_open: bool) -> Iterator[Finding]:  # noqa: FBT001
    """The owner has not asked for the computer."""
    said = sight.world.owner
    yield from sight.expect(signals.PAUSE_REQUESTED, "owner_paused", lambda v: v is False, False)
    if said.mode is OwnerMode.FINISH and not sight.world.leased:
        yield Finding("owner_finished", "owner.mode", said.mode.value, OwnerMode.AUTO.value)
    if said.mode is OwnerMode.PAUSED:
        ends_ms = pause_ends_ms(said, sight.world.wall)
        if ends_ms is None or sight.now_ms < ends_ms:
            if ends_ms is not None:
                sight.again(ends_ms)
            yield Finding("owner_paused", "owner.mode", said.mode.value, OwnerMode.AUTO.value, clears_at_ms=ends_ms)


def pause_ends_ms(said: Owner, wall: WallClock) -> int | None:
    """When a pause ends, in boot time; None for one without end, or while the wall clock that tells it is wrong."""
    if said.until_ms is not None:
        return said.until_ms
    return None if said.until_wall_ms is None or wall.problem else said.until_wall_ms - wall.offset_ms


def consent(sight: Sight, _was_open: bool) -> Iterator[Finding]:  # noqa: FBT001
    """The owner agreed to the terms that are in force."""
    wanted, given = sight.policy.consent_required_version, sight.world.owner.consent_version
    if given < wanted:
        yield Finding("consent_missing", "owner.consent_version", given, wanted)
