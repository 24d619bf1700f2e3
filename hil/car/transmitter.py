"""Sends the car's frames: each message at its period, and a change at once, before its period is due."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import can

from agent.ports import Clock
from hil.car.frames import Encoder, View
from hil.car.overlay import Overlay


class Transmitter:
    """One car's buses. `buses` may lack some of the encoders' buses; those are not sent."""

    def __init__(
        self,
        buses: Mapping[str, can.BusABC],
        encoders: Mapping[str, tuple[Encoder, ...]],
        clock: Clock,
        overlay: Overlay | None = None,
    ) -> None:
        self._clock = clock
        self.overlay = Overlay() if overlay is None else overlay
        self._outgoing = [_Outgoing(name, bus, encoder) for name, bus in buses.items() for encoder in encoders[name]]
        self._counts: Counter[tuple[int, str]] = Counter()

    def send_changes(self, view: View) -> int | None:
        """Send every at-once message that differs from what was last sent.

        Returns the CLOCK_BOOTTIME in milliseconds just before the first of these frames left; None when none did.
        """
        first_ms = None
        for outgoing in self._outgoing:
            if not outgoing.encoder.recipe.at_once:
                continue
            payload = outgoing.encoder.payload(view, self.overlay.lies(outgoing.where))
            if payload != outgoing.sent and not self.overlay.is_silent(outgoing.where):
                now_ms = self._clock.boot_ms()
                self._send(outgoing, payload, now_ms)
                first_ms = now_ms if first_ms is None else first_ms
        return first_ms

    def send_due(self, view: View) -> None:
        """Send every message whose period has passed."""
        now_ms = self._clock.boot_ms()
        for outgoing in self._outgoing:
            if now_ms >= outgoing.due_ms and not self.overlay.is_silent(outgoing.where):
                self._send(outgoing, outgoing.encoder.payload(view, self.overlay.lies(outgoing.where)), now_ms)

    def stick(self, path: str, view: View) -> None:
        """Let a signal stay at what it honestly says now. Raises DrivewayError for one that is not sent."""
        where = self.overlay.where(path)
        last: dict[str, object] = {}
        for outgoing in self._outgoing:
            if outgoing.where == where:
                last |= outgoing.encoder.recipe.values(view)
        self.overlay.stick(path, last)

    def _send(self, outgoing: _Outgoing, payload: bytes, now_ms: int) -> None:
        # Pages of a multiplexed message share its counter, as they share its id.
        counter = (id(outgoing.bus), outgoing.encoder.recipe.message)
        outgoing.bus.send(outgoing.encoder.frame(payload, self._counts[counter]))
        self._counts[counter] += 1
        outgoing.sent = payload
        period_ms = outgoing.encoder.recipe.period_ms
        # The next due time keeps the rhythm, unless the process was held up for longer than a period.
        outgoing.due_ms = max(outgoing.due_ms + period_ms, now_ms + period_ms // 2)


class _Outgoing:
    """One message on one bus: what was last sent, and when the next is due."""

    def __init__(self, name: str, bus: can.BusABC, encoder: Encoder) -> None:
        self.where = (name, encoder.recipe.message)
        self.bus = bus
        self.encoder = encoder
        self.sent = b""
        self.due_ms = 0
