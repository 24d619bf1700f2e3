"""Is the driver away? Standing, switched off, empty, shut, and nobody else at the computer. One sign is enough."""

from __future__ import annotations

from collections.abc import Iterator

from agent.core import signals
from agent.core.contradictions import DRIVING_CONTRADICTIONS
from agent.core.findings import Finding
from agent.core.world import Sight


def parked(sight: Sight, _was_open: bool) -> Iterator[Finding]:  # noqa: FBT001
    """Standing, in Park, nobody on the brake, and the low-voltage system not switched on for a driver."""
    fast = sight.policy.standstill_kmh
    yield from sight.expect(signals.SPEED, "moving", lambda v: abs(float(v)) <= fast, fast)
    yield from sight.expect(signals.MOVING, "moving", lambda v: v is False, False)
    yield from sight.expect(signals.GEAR, "gear_not_park", lambda v: v == signals.GEAR_PARK, signals.GEAR_PARK)
    yield from sight.expect(signals.PARK_LOCK, "park_lock_open", lambda v: v is True, True)
    yield from sight.expect(signals.BRAKE, "brake_pressed", lambda v: v == 0, 0.0)
    yield from sight.expect(signals.LOW_VOLTAGE_STATE, "powered_for_driving", lambda v: v in {"LOCK", "OFF"}, "OFF")
    yield from sight.agree(DRIVING_CONTRADICTIONS)


def occupied(sight: Sight, _was_open: bool) -> Iterator[Finding]:  # noqa: FBT001
    """Nobody in or at the car; the earliest signs (handle, unlocking, door) are here."""
    yield from sight.expect(signals.DOOR_HANDLE, "door_handle_pulled", lambda v: v is False, False)
    yield from _locked(sight)
    for door in (*signals.DOORS, signals.TRUNK, signals.HOOD):
        yield from sight.expect(door, "door_open", lambda v: v is False, False)
    yield from sight.expect(signals.SEAT, "seat_occupied", lambda v: v == "EMPTY", "EMPTY")
    yield from sight.expect(signals.PASSENGER_SEAT, "seat_occupied", lambda v: v == "EMPTY", "EMPTY")
    yield from sight.expect(signals.BELT, "belt_fastened", lambda v: v is False, False)
    yield from sight.expect(signals.DRIVER_PRESENT, "driver_present", lambda v: v is False, False)


def _locked(sight: Sight) -> Iterator[Finding]:
    """A car that has just been unlocked is about to be opened; one that stands unlocked at home is not."""
    if sight.policy.lock_required:
        yield from sight.expect(signals.LOCK, "not_locked", lambda v: v is True, True)
        return
    yield from sight.expect(signals.LOCK, "not_locked", lambda _v: True, True)
    if not sight.reads(signals.LOCK):
        return
    reading = sight.read(signals.LOCK)
    quiet_ms = round(sight.policy.parked_for_s * 1000)
    if reading.value is False and sight.now_ms - reading.since_ms < quiet_ms:
        clears_ms = reading.since_ms + quiet_ms
        sight.again(clears_ms)
        yield Finding("unlocked", signals.LOCK, False, True, clears_at_ms=clears_ms)


def shared(sight: Sight, _was_open: bool) -> Iterator[Finding]:  # noqa: FBT001
    """Nobody else uses the computer, and the maker does not save power."""
    for user in signals.OTHER_USERS:
        yield from sight.expect(user, "computer_in_use", lambda v: v is False, False)
    stop = sight.policy.power_optimize_stop
    yield from sight.expect(signals.POWER_OPTIMIZE, "power_saving", lambda v: float(v) < stop, stop)
