"""When to try a broker again: full jitter, so that a fleet that lost its broker together does not come back together.

Every wait is drawn evenly from nothing to a ceiling, which doubles from one failure to the next ("full jitter", Marc
Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015). Three things set the ceiling besides:

* The first attempt after a link was lost comes within the spread that the fleet's operator told (`Link.spread`).
* A broker that says that it has too much to do is believed: the ceiling is the cap at once.
* A link that stood forgives: one doubling for each five seconds, and after a minute all of them.
"""

from __future__ import annotations

FIRST_S = 0.5
CAP_S = 900.0
FORGIVES_S = 5.0
"""One failure is forgotten for each of these that a link was up. A client that only fights for its name is never up."""
SETTLED_S = 60.0
"""A link that was up for this long was good."""

OVERLOAD_CODES = frozenset({0x88, 0x89, 0x97, 0x9F})
"""Server unavailable, server busy, quota exceeded, connection rate exceeded (MQTT 5, section 2.4)."""
TAKEN_OVER = 0x8E
"""Another client has our identifier. Two that both come back at once would throw each other out for ever."""


def settled(up_for_s: float | None) -> bool:
    """Whether a link that was up for so long (None: never) was good."""
    return up_for_s is not None and up_for_s > SETTLED_S


class Backoff:
    """The longest that the next wait may be. Pure: whoever uses it draws the wait."""

    def __init__(self, cap_s: float = CAP_S) -> None:
        self.spread_s, self._cap_s = 0.0, cap_s
        self._failures = 0

    def ceiling_s(self, *, up_for_s: float | None, code: int | None) -> float:
        """After a connection that was up for so long (None: never), and ended with this MQTT reason code (or none)."""
        forgiven = 0 if up_for_s is None else int(up_for_s / FORGIVES_S)
        self._failures = 1 if settled(up_for_s) else max(1, self._failures + 1 - forgiven)
        if code in OVERLOAD_CODES or code == TAKEN_OVER:
            return self._cap_s
        ceiling_s = min(self._cap_s, FIRST_S * float(2 ** min(self._failures, 16)))
        return ceiling_s if up_for_s is None else max(ceiling_s, self.spread_s)
