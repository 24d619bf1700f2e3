"""Wall time, which may be wrong: it decides prices and departures, read pessimistically, and never safety.

The wall clock is kept as an offset to CLOCK_BOOTTIME, so that every time the core compares stays boot time. It is
believed only while the kernel's clock discipline gives a bound for its error. An offset that changes by more than both
bounds (and the drift between two words) allow is a jump: for ten minutes nobody knows which of the two was right, and
the new one is believed when it has stood still for that long. Until then `problem` is a reason code; it clears by
itself with the next word from the host.

A time zone comes as data (`agent.zones` makes it), since the core reads no files. Local time is not one to one: an
hour is skipped in spring and told twice in autumn. Whether a moment lies in a window is therefore asked of the moment
and never of the local time, and a departure that could mean two moments means the earlier one.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Iterable, Iterator

import msgspec

from agent.core.events import HostSeen
from agent.core.policy import EVERY_DAY, Window

MINUTE_MS = 60_000
DAY_MINUTES = 1_440
DAY_MS = DAY_MINUTES * MINUTE_MS
EPOCH_WEEKDAY = 3
"""1970-01-01 was a Thursday; Monday is 0."""

EARLIEST_WALL_MS = 1_735_689_600_000
"""2025-01-01: a clock that shows less was never set (a battery-less RTC starts at 1970 or at its build date)."""
LATEST_WALL_MS = 4_102_444_800_000
"""2100-01-01: nor does a clock beyond this mean what it says."""
MAX_ERROR_MS = 60_000
"""A bound wider than this is no help; the kernel gives up its clock at 16 s (NTP_PHASE_LIMIT) by itself."""
JUMP_SLACK_MS = 1_500
"""Two words may differ by this without a jump: a leap second, and the time between reading the two clocks."""
DRIFT_SHARE = 500e-6
"""How fast a clock may run away between two words: the 500 ppm to which the kernel's discipline is limited."""
DISTRUST_MS = 600_000
"""So long after a jump the clock must have stood still to be believed again."""


class Zone(msgspec.Struct, frozen=True):
    """A time zone as data: from each `from_s` (UTC seconds) on, local time is UTC plus `offset_s`.

    Sorted by time; before the first entry its offset counts.
    """

    name: str
    changes: tuple[tuple[int, int], ...]

    def offset_ms(self, wall_ms: int) -> int:
        """Local time less UTC at this moment."""
        if len(self.changes) == 1:
            return self.changes[0][1] * 1000
        index = bisect.bisect_right(self.changes, wall_ms // 1000, key=_from_s)
        return self.changes[max(0, index - 1)][1] * 1000

    def local(self, wall_ms: int) -> Local:
        """The local day and minute of this moment."""
        days, rest_ms = divmod(wall_ms + self.offset_ms(wall_ms), DAY_MS)
        return Local(days, rest_ms // MINUTE_MS)

    def moments(self, day: int, minute: int) -> tuple[int, ...]:
        """The moments (wall ms) at which clocks here show this: none in a skipped hour, two in one told twice."""
        shown_ms = day * DAY_MS + minute * MINUTE_MS
        return tuple(
            shown_ms - offset_ms
            for offset_ms in self._offsets_around(shown_ms)
            if self.offset_ms(shown_ms - offset_ms) == offset_ms
        )

    def earliest(self, day: int, minute: int) -> int:
        """The first moment that this local time can mean; in a skipped hour as if the clocks had gone forward before.

        For a departure that is the safe reading: sooner, and never later, than its owner meant it.
        """
        shown_ms = day * DAY_MS + minute * MINUTE_MS
        return min(self.moments(day, minute), default=shown_ms - max(self._offsets_around(shown_ms)))

    def changes_between(self, from_ms: int, to_ms: int) -> Iterator[int]:
        """The moments in (from_ms, to_ms] at which the offset changes."""
        first = bisect.bisect_right(self.changes, from_ms // 1000, key=_from_s)
        for from_s, _ in self.changes[first:]:
            if from_s * 1000 > to_ms:
                return
            yield from_s * 1000

    def _offsets_around(self, shown_ms: int) -> list[int]:
        """The offsets within a day of this local time, largest (and so earliest moment) first."""
        return sorted({self.offset_ms(shown_ms - DAY_MS), self.offset_ms(shown_ms + DAY_MS)}, reverse=True)


def _from_s(change: tuple[int, int]) -> int:
    return change[0]


UTC = Zone("UTC", ((0, 0),))


class Local(msgspec.Struct, frozen=True):
    """Local time: days since 1970-01-01 there, and the minute of that day."""

    day: int
    minute: int

    @property
    def weekday(self) -> int:
        """Monday is 0."""
        return (self.day + EPOCH_WEEKDAY) % 7


class WallClock(msgspec.Struct, frozen=True):
    """Wall time as an offset to CLOCK_BOOTTIME, and whether it may be believed; `problem` is empty then.

    `error_ms` is the bound of the last word, None where there was none; `at_ms` is when that came.
    """

    offset_ms: int = 0
    problem: str = "clock_unset"
    error_ms: int | None = None
    at_ms: int = 0
    distrusted_until_ms: int = 0

    def seen(self, event: HostSeen) -> WallClock:
        """The clock after one more word of the host."""
        offset_ms, error_ms = event.wall_ms - event.at_ms, event.wall_error_ms
        until_ms = self.distrusted_until_ms
        if self.error_ms is not None and error_ms is not None:
            drift_ms = DRIFT_SHARE * max(0, event.at_ms - self.at_ms)
            if abs(offset_ms - self.offset_ms) > self.error_ms + error_ms + drift_ms + JUMP_SLACK_MS:
                until_ms = event.at_ms + DISTRUST_MS
        problem = ""
        if not EARLIEST_WALL_MS <= event.wall_ms < LATEST_WALL_MS:
            problem, error_ms = "clock_unset", None
        elif error_ms is None or error_ms > MAX_ERROR_MS:
            problem = "clock_unsynchronised"
        elif event.at_ms < until_ms:
            problem = "clock_jumped"
        return WallClock(offset_ms, problem, error_ms, event.at_ms, until_ms)

    def wall_ms(self, boot_ms: int) -> int:
        """The wall time at this boot time, believed or not."""
        return boot_ms + self.offset_ms

    def boot_ms(self, wall_ms: int) -> int:
        """The boot time at this wall time."""
        return wall_ms - self.offset_ms


# --- windows of the week ------------------------------------------------------------------------------------------


@functools.cache
def minute_of(time_of_day: str) -> int:
    """The minute of the day that "07:30" names."""
    return int(time_of_day[:2]) * 60 + int(time_of_day[3:])


def contains(window: Window, local: Local) -> bool:
    """Whether the window is on at this local time; after midnight it still belongs to the day on which it began."""
    start, end, minute = minute_of(window.start), minute_of(window.end), local.minute
    today, yesterday = EVERY_DAY[local.weekday], EVERY_DAY[local.weekday - 1]
    if start < end:
        return today in window.days and start <= minute < end
    return (today in window.days and minute >= start) or (yesterday in window.days and minute < end)


def edges(windows: Iterable[Window], zone: Zone, from_ms: int, to_ms: int) -> list[int]:
    """Every moment in (from_ms, to_ms] at which one of the windows may begin or end, sorted.

    Inside of one offset a window changes only where the clock shows its start or its end, or midnight; the rest happens
    where the offset itself changes.
    """
    minutes = {0} | {minute_of(time) for window in windows for time in (window.start, window.end)}
    moments = set(zone.changes_between(from_ms, to_ms))
    for day in range(zone.local(from_ms).day - 1, zone.local(to_ms).day + 2):
        for minute in minutes:
            moments.update(moment for moment in zone.moments(day, minute) if from_ms < moment <= to_ms)
    return sorted(moments)


def next_change(windows: tuple[Window, ...], zone: Zone, wall_ms: int) -> int | None:
    """The next moment at which 'within any of the windows' changes; None if it does not within eight days."""
    day = wall_ms // DAY_MS
    moments = _changes(windows, zone, day)
    index = bisect.bisect_right(moments, wall_ms)
    return moments[index] if index < len(moments) else None


def within(windows: tuple[Window, ...], zone: Zone, wall_ms: int) -> bool:
    """Whether any of the windows is on at this moment."""
    local = zone.local(wall_ms)
    return any(contains(window, local) for window in windows)


@functools.lru_cache(maxsize=1024)
def _changes(windows: tuple[Window, ...], zone: Zone, day: int) -> tuple[int, ...]:
    """All changes of 'within any of the windows' from this UTC day on for nine days; worked out once a day."""
    start_ms = day * DAY_MS
    inside = within(windows, zone, start_ms)
    changes = []
    for moment in edges(windows, zone, start_ms, start_ms + 9 * DAY_MS):
        if within(windows, zone, moment) is not inside:
            inside = not inside
            changes.append(moment)
    return tuple(changes)
