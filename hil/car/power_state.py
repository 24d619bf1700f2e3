"""The car's power state, as a Tesla Model 3 moves through it. Pure.

What was observed on a real car (discussed in commaai/panda, pull request 2153): opening a door gives ACCESSORY;
sitting down and closing it changes nothing; the brake pedal gives DRIVE; shifting to P afterwards stays in DRIVE;
leaving the seat with a door open gives CONDITIONING, and minutes later OFF. While it charges it stays awake.

Ours, where nothing was observed: the brake gives DRIVE from any awake state with somebody in the seat; ACCESSORY with
nobody inside falls back to CONDITIONING after a minute; plugging in wakes a sleeping car.
"""

from __future__ import annotations

import enum

import msgspec

SLEEP_AFTER_S = 600.0
LEAVE_ACCESSORY_AFTER_S = 60.0


class PowerState(enum.StrEnum):
    """`VCFRONT_vehiclePowerState`."""

    OFF = "OFF"
    CONDITIONING = "CONDITIONING"
    ACCESSORY = "ACCESSORY"
    DRIVE = "DRIVE"


class Cabin(msgspec.Struct, frozen=True, kw_only=True):
    """What the power state depends on; `doors_open` are the cabin's."""

    doors_open: frozenset[str]
    seat_occupied: bool
    brake_pressed: bool
    in_park: bool
    plugged_in: bool


def after_change(state: PowerState, before: Cabin, now: Cabin) -> PowerState:
    """The power state after something in the cabin changed."""
    braked = now.brake_pressed and not before.brake_pressed and now.seat_occupied
    opened = bool(now.doors_open - before.doors_open)
    left = before.seat_occupied and not now.seat_occupied and bool(now.doors_open) and now.in_park
    plugged = now.plugged_in and not before.plugged_in
    if braked and state is not PowerState.OFF:
        return PowerState.DRIVE
    if left and state in {PowerState.ACCESSORY, PowerState.DRIVE}:
        return PowerState.CONDITIONING
    if opened and state in {PowerState.OFF, PowerState.CONDITIONING}:
        return PowerState.ACCESSORY
    if plugged and state is PowerState.OFF:
        return PowerState.CONDITIONING
    return state


def after_quiet(state: PowerState, cabin: Cabin, quiet_s: float, *, charging: bool) -> PowerState:
    """The power state after `quiet_s` seconds in which nobody did anything."""
    if state is PowerState.ACCESSORY and not cabin.seat_occupied and not cabin.doors_open:
        return PowerState.CONDITIONING if quiet_s >= LEAVE_ACCESSORY_AFTER_S else state
    if state is PowerState.CONDITIONING and not charging and not cabin.seat_occupied:
        return PowerState.OFF if quiet_s >= SLEEP_AFTER_S else state
    if state is PowerState.OFF and charging:
        return PowerState.CONDITIONING
    return state
