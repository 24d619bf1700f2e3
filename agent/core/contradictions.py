"""Pairs of leaves that cannot both be true: one of the two sensors is wrong, and nobody can tell which."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from agent.core.events import SignalValue
from agent.core.signals import (
    CABLE,
    CHARGE,
    CHARGE_DISPLAYED,
    CHARGING,
    CONTACTORS,
    GEAR,
    GEAR_PARK,
    MOVING,
    PACK_POWER,
    PARK_LOCK,
    SPEED,
)


class Contradiction(msgspec.Struct, frozen=True):
    """Two leaves that cannot both be true. `told` decides on their values; both are known when it is asked."""

    first: str
    second: str
    told: Callable[[SignalValue, SignalValue], bool]


WALKING_KMH = 5.0
"""A wheel sensor may shiver by less than this in a parked car; faster, one of two signals is wrong."""
CONNECTED_W = 500.0
"""More than this does not flow through open contactors."""
DISPLAY_PERCENT = 25.0
"""The charge shown to the driver leaves out buffers, but not this much."""


def _number(value: SignalValue) -> float:
    return float(value)


DRIVING_CONTRADICTIONS = (
    Contradiction(GEAR, SPEED, lambda gear, speed: gear == GEAR_PARK and abs(_number(speed)) > WALKING_KMH),
    Contradiction(MOVING, SPEED, lambda moving, speed: moving is False and abs(_number(speed)) > WALKING_KMH),
    Contradiction(PARK_LOCK, GEAR, lambda engaged, gear: engaged is False and gear == GEAR_PARK),
)
ENERGY_CONTRADICTIONS = (
    Contradiction(CHARGING, CABLE, lambda charging, cable: charging is True and cable is False),
    Contradiction(CONTACTORS[0], PACK_POWER, lambda on, power: on is False and abs(_number(power)) > CONNECTED_W),
    Contradiction(CHARGE, CHARGE_DISPLAYED, lambda one, two: abs(_number(one) - _number(two)) > DISPLAY_PERCENT),
)
