"""Log events that come in storms: so many of a name are written, the rest is counted, and the count is told.

Of each name BURST may come at once and one in EVERY_S after that. What comes faster is held back; the next one that is
written carries `held_back=N`, and where none follows, an event `events_held_back` of its own tells the number once the
storm is over, or the process ends. So nothing is ever dropped in silence, and a broker, a bus or a disk that fails a
thousand times a second costs neither the journal nor the flash.

Names are constants of the code, so there are few; should there be more than NAMES, the rest share one pace.
"""

from __future__ import annotations

from dataclasses import dataclass

BURST = 20
EVERY_S = 3.0
TELL_AFTER_S = 30.0
"""A storm is over when nothing was held back for so long."""
NAMES = 512
OTHERS = "others"


@dataclass
class _Name:
    level: float
    at_s: float
    held: int = 0
    held_at_s: float = 0.0


class Storms:
    """Who is held back; takes the time as a value. `held_back` counts over all names."""

    def __init__(self, burst: int = BURST, every_s: float = EVERY_S) -> None:
        self._burst, self._every_s = burst, every_s
        self._names: dict[str, _Name] = {}
        self._holding: set[str] = set()
        self.held_back = 0

    def forget(self) -> None:
        """Begin anew."""
        self._names.clear()
        self._holding.clear()
        self.held_back = 0

    def admit(self, name: str, now_s: float) -> int | None:
        """None: hold this one back. Else: write it, and say that so many were held back before it."""
        name = name if name in self._names or len(self._names) < NAMES else OTHERS
        one = self._names.setdefault(name, _Name(self._burst, now_s))
        one.level = min(self._burst, one.level + max(0.0, now_s - one.at_s) / self._every_s)
        one.at_s = max(one.at_s, now_s)
        if one.level < 1:
            one.held, one.held_at_s = one.held + 1, one.at_s
            self._holding.add(name)
            self.held_back += 1
            return None
        one.level -= 1
        return self._told(name)

    def over(self, now_s: float, *, ending: bool = False) -> list[tuple[str, int]]:
        """(name, how many) of the storms that are over, and of all when the process is ending. Each is told once."""
        done = [name for name in tuple(self._holding) if ending or now_s - self._names[name].held_at_s >= TELL_AFTER_S]
        return [(name, self._told(name)) for name in sorted(done)]

    @property
    def is_quiet(self) -> bool:
        """Whether there is nothing to tell."""
        return not self._holding

    def _told(self, name: str) -> int:
        self._holding.discard(name)
        held, self._names[name].held = self._names[name].held, 0
        return held
