"""The time floor: a time that is certainly past, from what others have signed. It only rises.

A car's clock may be wrong, set back by a dead battery or by an owner who wants an old catalogue to count again. So
whoever asks whether something has expired asks `TimeFloor.now_ms`: the later one of the wall clock and the floor.

    floor = the newest of   when this version of the agent was made   (`BUILT_MS`)
                            the newest time that was signed for us    (the catalogue's timestamp, the fleet's orders)
                            what was kept of both from earlier runs
            + the boot time that has gone by since

The wall clock itself never raises the floor, so a clock that was once too far ahead does no lasting harm. A signed time
from more than a day ahead of a wall clock that can be trusted is not believed (`saw`). Nothing here is about safety:
what the floor can shut is earning. A wall clock behind the floor shows in `behind_ms`.

A dispatcher's key is online, so one that is stolen must not shut earning for good: its word alone carries the floor by
`DISPATCHER_MS` beyond the newest of the catalogue's times and the build, and no further (`told`).

Standard library only. The clock and where the floor is kept are given, as small ports.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

LEAST_BUILT_MS = 1_795_000_000_000
"""2026-11-18: no version that has this file is older. What counts where nobody wrote down when this one was made."""
BUILT_FILE = Path(__file__).with_name("built_s")
"""Packaging writes it (`.ci/build_time.py`): seconds since 1970. A checkout has none."""
AHEAD_MS = 24 * 3_600_000
"""A signed time so far ahead of a clock that can be trusted comes from a wrong clock, or from a stolen key."""
DISPATCHER_MS = 32 * 24 * 3_600_000
"""A day more than any timestamp of a catalogue is good for: enough to show that each one we have is over, which is what
such a word is for. A stolen key shuts earning for so long at most, once, after the newest catalogue."""
BEHIND_MS = 5 * 60_000
"""A wall clock so far behind the floor was set back; less is the drift between two computers."""
KEEP_STEP_MS = 3_600_000
"""What passes by itself is kept once in so long, so that the store is not written for every order."""


def built_ms(file: Path = BUILT_FILE) -> int:
    """When this version was made, as far as that is known; never later than it was, if packaging had the time right."""
    try:
        text = file.read_text("ascii")
    except (OSError, ValueError):
        return LEAST_BUILT_MS
    found = re.fullmatch(r"([0-9]{10})\n?", text)
    return LEAST_BUILT_MS if found is None else max(LEAST_BUILT_MS, 1000 * int(found[1]))


BUILT_MS = built_ms()


class FloorClock(Protocol):
    """The two clocks; `agent.ports.Clock` is one."""

    def boot_ms(self) -> int:
        """Milliseconds of CLOCK_BOOTTIME."""
        ...

    def wall_ms(self) -> int:
        """Milliseconds since 1970, not to be trusted."""
        ...


class TimeFloor:
    """`keep` is called with the floor (wall milliseconds) whenever it should be remembered. Use from one thread."""

    def __init__(self, clock: FloorClock, keep: Callable[[int], None], *, built_ms: int = BUILT_MS) -> None:
        self._clock, self._keep = clock, keep
        self._at_ms, self._floor_ms = clock.boot_ms(), built_ms
        self._kept_ms, self._anchor_ms = 0, built_ms

    def restore(self, kept_ms: int) -> None:
        """What an earlier run kept; called once, at the start."""
        self._kept_ms = kept_ms
        self._rise(kept_ms)

    def saw(self, signed_ms: int, *, clock_trusted: bool) -> bool:
        """A time that the catalogue's operator signed; False when it is from a future that nobody can know yet."""
        if clock_trusted and signed_ms > self._clock.wall_ms() + AHEAD_MS:
            return False
        self._anchor_ms = max(self._anchor_ms, signed_ms)
        self._rise(signed_ms)
        self.keep()
        return True

    def told(self, issued_ms: int, *, clock_trusted: bool) -> bool:
        """A time that a dispatcher signed; False when it is from the future, or counts only in part."""
        if clock_trusted and issued_ms > self._clock.wall_ms() + AHEAD_MS:
            return False
        most_ms = self._anchor_ms + DISPATCHER_MS
        self._rise(min(issued_ms, most_ms))
        self.keep()
        return issued_ms <= most_ms

    def keep(self) -> None:
        """Remember the floor where it has risen by more than is worth a write."""
        floor_ms = self.floor_ms
        if floor_ms >= self._kept_ms + KEEP_STEP_MS:
            self._kept_ms = floor_ms
            self._keep(floor_ms)

    @property
    def floor_ms(self) -> int:
        """The time that is certainly past, in wall milliseconds."""
        return self._floor_ms + max(0, self._clock.boot_ms() - self._at_ms)

    def now_ms(self) -> int:
        """What counts as now where something may have expired: the wall clock, and never less than the floor."""
        return max(self._clock.wall_ms(), self.floor_ms)

    def behind_ms(self) -> int:
        """How far the wall clock is behind the floor; 0 where that is less than clocks differ by."""
        behind_ms = self.floor_ms - self._clock.wall_ms()
        return behind_ms if behind_ms >= BEHIND_MS else 0

    def _rise(self, to_ms: int) -> None:
        if to_ms > self.floor_ms:
            self._at_ms, self._floor_ms = self._clock.boot_ms(), to_ms
