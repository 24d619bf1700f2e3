"""What is wrong with messages, told in the log: a few lines a unit and minute, however much it says and however oddly.

A reason may be anything that a sender can bring about, so it is not the reasons that are counted but the lines. What
was not told is: with the next line of that unit, `untold` says how many there were. Strangers, of whom there may be any
number, share one unit's lines.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from agent.printable import printable

WINDOW_S = 60.0
LINES = 3
REMEMBERED = 1000
"""Units; beyond that, the one that was quiet for the longest is forgotten, and what it left untold with it."""
REASON_CHARACTERS = 300
STRANGERS = "strangers"

log = structlog.get_logger("dispatcher")


@dataclass(slots=True)
class _Told:
    since_s: float
    lines: int = 0
    untold: int = 0


class Complaints:
    """Use from one thread. `now_s` is a clock that does not go back."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._told: OrderedDict[str, _Told] = OrderedDict()

    def tell(self, who: str, reason: str) -> None:
        """Log what is wrong with a message of this unit, unless enough was said about it lately."""
        now_s = self._now_s()
        told = self._told.setdefault(who, _Told(now_s))
        self._told.move_to_end(who)
        if len(self._told) > REMEMBERED:
            self._told.popitem(last=False)
        if now_s - told.since_s >= WINDOW_S:
            told.since_s, told.lines = now_s, 0
        if told.lines >= LINES:
            told.untold += 1
            return
        told.lines += 1
        more = {"untold": told.untold} if told.untold else {}
        told.untold = 0
        log.warning("message_refused", who=who, reason=printable(reason)[:REASON_CHARACTERS], **more)
