"""Tells the core how many bytes go over the network: every few seconds while something moves, and after a transfer.

Counted are the messages (as the link counts them) and the bulk data (`agent.fleet.channel.Moved`). Nothing moved is no
news, so an idle link costs no events.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agent.core.events import BytesMoved
from agent.fleet.channel import Moved
from agent.ports import Clock, Emit

TELL_EVERY_S = 5.0


class TrafficMeter:
    """A source (`agent.ports.Source`) of BytesMoved. `messages` is what the link has sent and received so far."""

    def __init__(self, clock: Clock, moved: Moved, messages: Callable[[], tuple[int, int]]) -> None:
        self._clock, self._moved, self._messages = clock, moved, messages
        self._told = (0, 0)
        self._emit: Emit | None = None

    async def run(self, emit: Emit) -> None:
        """Tell until cancelled."""
        self._emit = emit
        while True:
            self.tell()
            await asyncio.sleep(TELL_EVERY_S)

    def tell(self) -> None:
        """Say what has moved since this was said last, if something has."""
        if self._emit is None:
            return  # it is told with the first round
        both = zip(self._moved.total(), self._messages(), strict=True)
        sent, received = (bulk + messages for bulk, messages in both)
        (told_sent, told_received), self._told = self._told, (sent, received)
        more_sent, more_received = max(0, sent - told_sent), max(0, received - told_received)
        if more_sent or more_received:
            self._emit(BytesMoved(at_ms=self._clock.boot_ms(), sent=more_sent, received=more_received))
