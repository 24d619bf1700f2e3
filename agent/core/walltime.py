"""Wall time, which may be wrong: it decides prices and departures, read pessimistically, and never safety."""

from __future__ import annotations

import msgspec


class Zone(msgspec.Struct, frozen=True):
    """A time zone as data: from each `from_s` (UTC seconds) on, local time is UTC plus `offset_s`.

    Made by the shell from the IANA database, since the core reads no files.
    """

    name: str
    changes: tuple[tuple[int, int], ...]


UTC = Zone("UTC", ((0, 0),))


class WallClock(msgspec.Struct, frozen=True):
    """Wall time as an offset to CLOCK_BOOTTIME, and whether it may be believed; `problem` is empty then."""

    offset_ms: int = 0
    problem: str = "never_seen"
