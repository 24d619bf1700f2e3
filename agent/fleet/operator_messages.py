"""What the fleet's operator has the dispatcher say to cars: payloads of signed envelopes, as grants are.

Cancel ends one lease; pace is for a whole cell, and retained; prices and demand come from the grid. Each names its
lease, or has a time of issue that rises, so that a copy which a broker kept can do no more than it did.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from agent.core.model import PaceState
from agent.core.policy import MicroPerKwh
from agent.fleet.messages import VERSION, Count, Identifier, Remark, WallMs

PRICES_TYPE = "application/vnd.driveway.prices+json"
DEMAND_TYPE = "application/vnd.driveway.demand+json"
CANCEL_TYPE = "application/vnd.driveway.cancel+json"
PACE_TYPE = "application/vnd.driveway.pace+json"

MAX_PRICE_SLOTS = 256
"""Two days of quarter-hours are 192, and 200 when the clocks go back on one of them; 256 still fit into a message."""
LONGEST_SLOT_MS = 24 * 3_600_000
LONGEST_CURVE_MS = 8 * LONGEST_SLOT_MS
LONGEST_STOP_S = 24 * 3_600


class CancelMessage(msgspec.Struct, frozen=True, kw_only=True):
    """The payload of a cancel: give this lease back within `grace_s` (0: at once), with what is finished.

    It names its lease, so a copy that a broker kept can do no more than it did.
    """

    v: int = VERSION
    unit: Identifier
    job: Identifier
    epoch: Count
    grace_s: Annotated[int, msgspec.Meta(ge=0, le=86_400)] = 0
    why: Remark = ""


class PaceMessage(msgspec.Struct, frozen=True, kw_only=True):
    """The payload of a cell's retained pace: whether there is work for it, and how far its cars spread their attempts.

    `issued_wall_ms` rises with every message to a cell, so that an older one that a broker kept counts no more.
    """

    v: int = VERSION
    cell: Identifier
    issued_wall_ms: WallMs
    state: PaceState
    spread_s: Annotated[int, msgspec.Meta(ge=0, le=3_600)]
    interval_permille: Annotated[int, msgspec.Meta(ge=100, le=100_000)] = 1000
    detail: Remark = ""


class PricesSlot(msgspec.Struct, frozen=True, array_like=True):
    """The price of energy at the plug within [start, end) of wall time, in millionths of the currency per kWh."""

    start_wall_ms: WallMs
    end_wall_ms: WallMs
    price_micro_per_kwh: MicroPerKwh


class PricesMessage(msgspec.Struct, frozen=True, kw_only=True):
    """The payload of a price curve: slots in order of time, without overlap; none of them takes the curve back.

    `issued_wall_ms` rises with every message to a unit: it is the dispatcher's clock and says which curve is newer.
    """

    v: int = VERSION
    unit: Identifier
    issued_wall_ms: WallMs
    expires_wall_ms: WallMs
    slots: Annotated[tuple[PricesSlot, ...], msgspec.Meta(max_length=MAX_PRICE_SLOTS)]

    def __post_init__(self) -> None:
        lasts_ms = self.expires_wall_ms - self.issued_wall_ms
        if not 0 < lasts_ms <= LONGEST_CURVE_MS:
            raise ValueError("a price curve expires after it was issued, and within eight days")
        before_ms = self.issued_wall_ms - LONGEST_SLOT_MS
        for slot in self.slots:
            if slot.start_wall_ms < before_ms:
                raise ValueError("price slots are in order of time, without overlap, and begin at most a day ago")
            if not 0 < slot.end_wall_ms - slot.start_wall_ms <= LONGEST_SLOT_MS:
                raise ValueError("a price slot ends after it begins, and within a day")
            before_ms = slot.end_wall_ms
        if before_ms > self.issued_wall_ms + LONGEST_CURVE_MS + LONGEST_SLOT_MS:
            raise ValueError("a price curve does not reach further than nine days")


class DemandMessage(msgspec.Struct, frozen=True, kw_only=True):
    """The payload of a demand-response order: stop for `stop_for_s` from when it is received; 0 takes it back.

    `issued_wall_ms` rises as in a price curve, so that an order that was kept back or recorded stops nobody again.
    """

    v: int = VERSION
    unit: Identifier
    issued_wall_ms: WallMs
    stop_for_s: Annotated[int, msgspec.Meta(ge=0, le=LONGEST_STOP_S)]
    detail: Remark = ""
