"""Time zones for the core: the IANA database, read once at start, becomes data that needs no file.

The span is fixed and wide, and does not hang on what this computer's clock shows: a clock without a battery starts at
1970, and a recording must replay to the same zone anywhere.
"""

from __future__ import annotations

import datetime as dt
import difflib
import functools
import zoneinfo

from agent.core.walltime import Zone
from agent.errors import ConfigError

FIRST_YEAR, LAST_YEAR = 2020, 2045
_DAY_S = 86_400


@functools.cache
def zone_named(name: str) -> Zone:
    """The zone with this IANA name; raises ConfigError, with the nearest name there is, for one that is not known."""
    try:
        info = zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        close = difflib.get_close_matches(name, sorted(zoneinfo.available_timezones()), n=1)
        hint = f"did you mean {close[0]!r}?" if close else 'write an IANA name such as "Europe/Berlin"'
        raise ConfigError(f"the time zone {name!r} is not known", hint=hint) from error
    first_s = round(dt.datetime(FIRST_YEAR, 1, 1, tzinfo=dt.UTC).timestamp())
    last_s = round(dt.datetime(LAST_YEAR + 1, 1, 1, tzinfo=dt.UTC).timestamp())
    changes = [(first_s, _offset_s(info, first_s))]
    for day_s in range(first_s, last_s, _DAY_S):
        if _offset_s(info, day_s + _DAY_S) != changes[-1][1]:
            changes.append(_change_within(info, day_s, day_s + _DAY_S))
    return Zone(name, tuple(changes))


def _change_within(info: zoneinfo.ZoneInfo, from_s: int, to_s: int) -> tuple[int, int]:
    """The one change of offset in (from_s, to_s], to the second, by halving."""
    before = _offset_s(info, from_s)
    low_s, high_s = from_s, to_s
    while high_s - low_s > 1:
        middle_s = (low_s + high_s) // 2
        if _offset_s(info, middle_s) == before:
            low_s = middle_s
        else:
            high_s = middle_s
    return high_s, _offset_s(info, high_s)


def _offset_s(info: zoneinfo.ZoneInfo, utc_s: int) -> int:
    offset = dt.datetime.fromtimestamp(utc_s, info).utcoffset()
    return 0 if offset is None else round(offset.total_seconds())
