"""What energy costs when: the calendar, a signed price curve while it is valid, and the cheapest slots that fit."""

from __future__ import annotations

import msgspec

from agent.core.events import PriceSlot


class Prices(msgspec.Struct, frozen=True):
    """The newest price curve."""

    issued_wall_ms: int = 0
    expires_wall_ms: int = 0
    slots: tuple[PriceSlot, ...] = ()
