"""What a person does to the car: doors, seat, pedal, gear selector, plug. Pure.

Each action takes the body as it is and gives the body after it, or refuses as a car does: no shifting without the
brake, no driving off on the cable.
"""

from __future__ import annotations

import enum

import msgspec

from agent.errors import DrivewayError
from hil.car.power_state import Cabin, PowerState, after_change

DRIVING_SPEED_KMH = 50.0


class Gear(enum.StrEnum):
    """The selector's positions."""

    PARK = "P"
    REVERSE = "R"
    NEUTRAL = "N"
    DRIVE = "D"


class Door(enum.StrEnum):
    """Everything with a latch that the profile knows."""

    ROW1_DRIVER = "row1_driver"
    ROW1_PASSENGER = "row1_passenger"
    ROW2_DRIVER = "row2_driver"
    ROW2_PASSENGER = "row2_passenger"
    TRUNK = "trunk"


class Action(enum.StrEnum):
    """One thing a person does."""

    ARRIVE = "arrive"
    PARK = "park"
    SHIFT = "shift"
    BRAKE = "brake"
    RELEASE_BRAKE = "release_brake"
    PULL_HANDLE = "pull_handle"
    OPEN_DOOR = "open_door"
    CLOSE_DOOR = "close_door"
    SIT = "sit"
    LEAVE = "leave"
    PLUG = "plug"
    UNPLUG = "unplug"


class Body(msgspec.Struct, frozen=True, kw_only=True):
    """The car as a person sees it."""

    gear: Gear = Gear.PARK
    speed_kmh: float = 0.0
    brake_pressed: bool = False
    open_doors: frozenset[Door] = frozenset()
    handle_pulled: bool = False
    seat_occupied: bool = False
    plugged_in: bool = False
    power_state: PowerState = PowerState.CONDITIONING

    def cabin(self) -> Cabin:
        """What the power state depends on."""
        return Cabin(
            doors_open=frozenset(self.open_doors - {Door.TRUNK}),
            seat_occupied=self.seat_occupied,
            brake_pressed=self.brake_pressed,
            in_park=self.gear is Gear.PARK,
            plugged_in=self.plugged_in,
        )


PARKED = Body(plugged_in=True)
"""Parked, plugged in, empty, closed."""
DRIVING = Body(gear=Gear.DRIVE, speed_kmh=DRIVING_SPEED_KMH, seat_occupied=True, power_state=PowerState.DRIVE)


def act(body: Body, action: Action, *, door: Door = Door.ROW1_DRIVER, gear: Gear = Gear.DRIVE) -> Body:
    """The body after the action, its power state included. Raises DrivewayError when the car refuses."""
    changed = _act(body, action, door, gear)
    return msgspec.structs.replace(changed, power_state=after_change(body.power_state, body.cabin(), changed.cabin()))


_PLAIN: dict[Action, dict[str, float | bool | Gear]] = {
    Action.ARRIVE: {"speed_kmh": 0.0, "brake_pressed": True},
    Action.PARK: {"speed_kmh": 0.0, "gear": Gear.PARK, "brake_pressed": False},
    Action.BRAKE: {"brake_pressed": True},
    Action.RELEASE_BRAKE: {"brake_pressed": False},
    Action.PULL_HANDLE: {"handle_pulled": True},
    Action.SIT: {"seat_occupied": True},
    Action.LEAVE: {"seat_occupied": False, "brake_pressed": False},
    Action.UNPLUG: {"plugged_in": False},
}
"""The actions that always succeed and always do the same."""


def _act(body: Body, action: Action, door: Door, gear: Gear) -> Body:
    replace = msgspec.structs.replace
    match action:
        case Action.SHIFT:
            return _shift(body, gear)
        case Action.OPEN_DOOR:
            handle_pulled = body.handle_pulled and door is not Door.ROW1_DRIVER
            return replace(body, open_doors=body.open_doors | {door}, handle_pulled=handle_pulled)
        case Action.CLOSE_DOOR:
            return replace(body, open_doors=body.open_doors - {door})
        case Action.PLUG:
            if body.gear is not Gear.PARK:
                raise DrivewayError("the charge port stays shut", hint="shift to P first")
            return replace(body, plugged_in=True)
        case _:
            return replace(body, **_PLAIN[action])


def _shift(body: Body, gear: Gear) -> Body:
    if gear is Gear.PARK:
        return msgspec.structs.replace(body, gear=gear, speed_kmh=0.0)
    if body.plugged_in:
        raise DrivewayError(f"the car does not shift to {gear}", hint="unplug it first")
    if not body.brake_pressed or body.power_state is not PowerState.DRIVE:
        raise DrivewayError(f"the car does not shift to {gear}", hint="sit down and press the brake first")
    return msgspec.structs.replace(body, gear=gear)
