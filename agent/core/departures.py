"""When the car is to leave, and with how much charge: the owner's calendar, and the car's own charging timer.

VSS has one leaf that tells of a departure: `Charging.Timer.Time` while `Timer.Mode` is END_TIME. It names no charge;
what the car charges to by then is its own charge limit.
"""

from __future__ import annotations

import datetime as dt
import functools

import msgspec

from agent.core.policy import EVERY_DAY, Departure
from agent.core.walltime import EARLIEST_WALL_MS, EPOCH_WEEKDAY, LATEST_WALL_MS, Zone, minute_of

AHEAD_DAYS = 9
"""How far a calendar that repeats every week is laid out: a week, and a day on each side."""
EPOCH_ORDINAL = dt.date(1970, 1, 1).toordinal()


class Leaving(msgspec.Struct, frozen=True):
    """One departure as a moment, and the charge (percent) that must be there by then; None: the car's charge limit."""

    wall_ms: int
    target_percent: float | None


def coming(departures: tuple[Departure, ...], zone: Zone, wall_ms: int) -> tuple[Leaving, ...]:
    """Every departure of the coming nine days, soonest first."""
    first_day = zone.local(wall_ms).day
    found = [
        Leaving(moment, departure.target_percent)
        for departure in departures
        for day in range(first_day, first_day + AHEAD_DAYS)
        if EVERY_DAY[(day + EPOCH_WEEKDAY) % 7] in departure.days
        and (moment := zone.earliest(day, minute_of(departure.at))) > wall_ms
    ]
    return tuple(sorted(found, key=lambda leaving: leaving.wall_ms))


@functools.lru_cache(maxsize=256)
def timer_ends_ms(text: str, zone: Zone) -> int | None:
    """The moment that the car's timer names (ISO 8601; without an offset, in the car's zone); None if it names none."""
    try:
        told = dt.datetime.fromisoformat(text)
        if told.tzinfo is None:
            moment = zone.earliest(told.toordinal() - EPOCH_ORDINAL, told.hour * 60 + told.minute)
        else:
            moment = round(told.timestamp() * 1000)
    except (ValueError, OverflowError):
        return None
    return moment if EARLIEST_WALL_MS <= moment < LATEST_WALL_MS else None
