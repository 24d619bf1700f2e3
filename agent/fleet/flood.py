"""How much may come in: token buckets, one that turns away, and counts, and one that has its owner read more slowly.

A sender keeps what is not acknowledged above MQTT and sends it again, so turning a message away loses nothing, and
what a hostile broker can make this computer do has an upper bound.
"""

from __future__ import annotations

QUIET_S = 10.0
"""A flood is over when nothing was turned away for so long."""


class FloodGate:
    """Lets `per_s` units a second through on average (0: everything), and `burst` of them at once.

    Not for two threads at once; `dropped` may be read from any.
    """

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s, self._burst = per_s, burst
        self._level = burst
        self._at_s: float | None = None
        self._dropped_at_s: float | None = None
        self.dropped = 0

    def admits(self, now_s: float, units: float = 1.0) -> bool:
        """Whether something of this size may pass; if not, it is counted. `now_s` is any clock that only rises."""
        if self._per_s <= 0:
            return True
        passed_s = 0.0 if self._at_s is None else max(0.0, now_s - self._at_s)
        self._at_s = now_s
        self._level = min(self._burst, self._level + passed_s * self._per_s)
        if self._level >= units:
            self._level -= units
            return True
        self.dropped += 1
        self._dropped_at_s = now_s
        return False

    def flooded(self, now_s: float) -> bool:
        """Whether something was turned away within the last seconds."""
        return self._dropped_at_s is not None and now_s - self._dropped_at_s < QUIET_S

    def slowed(self, now_s: float) -> None:
        """Something else than what this gate counts comes too fast, and is a flood too."""
        self._dropped_at_s = now_s


class ReadingPace:
    """How fast a stream may be read: `per_s` units a second on average (0: any number), `burst` of them at once."""

    def __init__(self, per_s: float, burst: float, now_s: float) -> None:
        self._per_s, self._burst = per_s, burst
        self._level, self._at_s = burst, now_s

    def rest_s(self, now_s: float, units: float) -> float:
        """After so much was read: for how long nothing more may be. `now_s` is any clock that only rises."""
        if self._per_s <= 0:
            return 0.0
        self._level = min(self._burst, self._level + (now_s - self._at_s) * self._per_s) - units
        self._at_s = now_s
        return max(0.0, -self._level / self._per_s)
