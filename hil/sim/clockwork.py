"""Virtual time: a queue of what happens when, in the order of time and then of asking. No clock, no threads."""

from __future__ import annotations

import heapq
from collections.abc import Callable

Action = Callable[[], None]


class Clockwork:
    """The agenda of one car."""

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms
        self._agenda: list[tuple[int, int, Action]] = []
        self._count = 0

    def at(self, at_ms: int, action: Action) -> None:
        """Do `action` then; in the past means now."""
        self._count += 1
        heapq.heappush(self._agenda, (max(at_ms, self.now_ms), self._count, action))

    def after(self, delay_ms: float, action: Action) -> None:
        """Do `action` so much later."""
        self.at(self.now_ms + round(delay_ms), action)

    @property
    def next_ms(self) -> int | None:
        """When the next thing happens."""
        return self._agenda[0][0] if self._agenda else None

    def pop(self) -> Action:
        """The next thing, taken off the agenda; time is then."""
        at_ms, _, action = heapq.heappop(self._agenda)
        self.now_ms = max(self.now_ms, at_ms)
        return action
