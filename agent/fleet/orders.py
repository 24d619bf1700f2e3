"""The fleet's standing orders: this car's price curve, the grid's demand for relief, and the pace of its cell.

They come signed, the first two on `…/config`, the pace retained for the whole cell. What counts is the newest:
`issued_wall_ms`, the dispatcher's own clock, must rise with every order of a kind, over restarts too, so an order that
a broker recorded or kept back is not obeyed a second time. The same order again (a broker's duplicate, or one that it
retains) is no offence. It makes no stop longer; where the dispatcher says that less is left of one than this car
believes, that counts.

The newest of each is kept in the store, with when a stop ends: a daemon that starts again goes on where it was, without
waiting for the dispatcher. After a reboot boot time begins anew; then what is left of a stop is told by the wall clock,
which may be wrong, so it is never longer than the stop itself was; could the clock not be trusted when the stop was
heard, the stop begins anew. Either is a guess until the dispatcher sends the order again and so says what is left.

The last known pace counts from the start, a stop above all: the broker may be out of reach for long, and what is at
work goes on until somebody stops it. A pace of another cell, to which this car belonged once, is none.

If the disk refuses, the order counts all the same. A curve or a pace in the store that cannot be understood is
forgotten (the broker retains the pace), and a stop of the grid's that cannot be is taken for the longest there is: no
row of the fleet's may keep the daemon from starting.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TypeVar

import msgspec

from agent.background_rows import BackgroundRows
from agent.core.events import DemandSeen, PaceSeen, PriceSlot, PricesSeen
from agent.core.model import Pace
from agent.core.tariff import AHEAD_MS
from agent.errors import NotUnderstoodError, StoreError
from agent.fleet.messages import MessageError
from agent.fleet.operator_messages import LONGEST_STOP_S, DemandMessage, PaceMessage, PricesMessage
from agent.fleet.refusals import Refusal
from agent.log import logger
from agent.ports import Clock
from agent.store import Store, StoreThread

CLOSE_S = 2.0
PRICES_ROW, DEMAND_ROW, PACE_ROW = "prices", "demand", "pace"
NOT_UNDERSTOOD = "an order that this version does not understand"

Order = TypeVar("Order", PricesMessage, PaceMessage)


class StandingDemand(msgspec.Struct, frozen=True):
    """The newest demand order, and when its stop ends: in boot time of the boot `boot`, and in wall time.

    `until_wall_ms` is None where the clock could not be trusted then.
    """

    order: DemandMessage
    boot: str
    until_ms: int
    until_wall_ms: int | None

    def of(self, boot: str) -> bool:
        """Whether the boot time in it is this boot's."""
        return bool(boot) and boot == self.boot

    def left_ms(self, boot: str, now_ms: int, wall_ms: int) -> int:
        """How much of the stop is left now; all of it where nobody knows."""
        whole_ms = self.order.stop_for_s * 1000
        if self.of(boot):
            return max(0, self.until_ms - now_ms)
        return whole_ms if self.until_wall_ms is None else min(max(0, self.until_wall_ms - wall_ms), whole_ms)


class Orders:
    """Takes orders whose signature holds, in the order of their issue. Use from the event loop's thread.

    `trusted` says whether the wall clock can be believed now. `pace` is the newest of the cell's. `on_issued` hears the
    time of each order that was taken.
    """

    def __init__(
        self,
        store: StoreThread,
        clock: Clock,
        boot: str,
        trusted: Callable[[], bool],
        cell: str = "00",
        *,
        on_issued: Callable[[int], None] = lambda _wall_ms: None,
    ) -> None:
        self._on_issued = on_issued
        self._store, self._clock, self._boot, self._trusted, self._cell = store, clock, boot, trusted, cell
        self.pace = Pace()
        self._issued_ms: dict[str, int] = {}
        self._curve_ends_ms = 0
        self._stop_ends_ms: int | None = None
        """When the stop ends at the latest, in boot time; None while only the wall clock tells."""
        self._rows = BackgroundRows(store, "order_not_kept")

    async def restore(self) -> list[PricesSeen | DemandSeen | PaceSeen]:
        """The orders of an earlier run that still stand; raises StoreError when the disk does not give them."""
        standing: list[PricesSeen | DemandSeen | PaceSeen] = []
        pace = await self._recall_or_forget(PACE_ROW, PaceMessage)
        if pace is not None and pace.cell == self._cell:
            self._issued_ms[PACE_ROW] = pace.issued_wall_ms
            standing.append(self._pace_seen(pace))
        prices = await self._recall_or_forget(PRICES_ROW, PricesMessage)
        if prices is not None:
            self._issued_ms[PRICES_ROW], self._curve_ends_ms = prices.issued_wall_ms, prices.expires_wall_ms
            standing.append(_prices_seen(prices, self._clock.boot_ms()))
        demand = await self._recall_demand()
        if demand is not None:
            self._issued_ms[DEMAND_ROW] = demand.order.issued_wall_ms
            now_ms = self._clock.boot_ms()
            left_ms = demand.left_ms(self._boot, now_ms, self._clock.wall_ms())
            if demand.of(self._boot):
                self._stop_ends_ms = now_ms + left_ms
            elif demand.until_wall_ms is None:
                self._stop_ends_ms = now_ms + left_ms  # begun anew, and that only once a boot
                await self._rows.write(DEMAND_ROW, self._standing(demand.order, now_ms + left_ms))
            standing.append(DemandSeen(at_ms=now_ms, stop_for_ms=left_ms, detail=demand.order.detail))
        return standing

    async def _recall_or_forget(self, row: str, kind: type[Order]) -> Order | None:
        try:
            return await self._store.call(Store.recall, row, kind)
        except NotUnderstoodError as error:
            logger().warning("order_not_understood", order=row, error=error.what)
        with contextlib.suppress(StoreError):
            await self._store.call(Store.forget, row)
        return None

    async def _recall_demand(self) -> StandingDemand | None:
        try:
            return await self._store.call(Store.recall, DEMAND_ROW, StandingDemand)
        except NotUnderstoodError as error:
            logger().warning("order_not_understood", order=DEMAND_ROW, error=error.what)
        unknown = DemandMessage(unit="unknown", issued_wall_ms=0, stop_for_s=LONGEST_STOP_S, detail=NOT_UNDERSTOOD)
        lasts_ms = unknown.stop_for_s * 1000
        # By wall time, whatever the clock: perhaps nobody sends this order again, and then it must come to an end.
        stop = StandingDemand(unknown, self._boot, self._clock.boot_ms() + lasts_ms, self._clock.wall_ms() + lasts_ms)
        await self._rows.write(DEMAND_ROW, stop)
        return stop

    def prices(self, message: PricesMessage) -> PricesSeen | None:
        """Take a price curve; None for the one that is known. Raises MessageError for an older one."""
        if self._trusted() and self._curve_ends_ms <= self._clock.wall_ms() < message.expires_wall_ms:
            self._issued_ms.pop(PRICES_ROW, None)  # a curve that has expired stands in nobody's way
        if not self._newer(PRICES_ROW, message.issued_wall_ms):
            return None
        self._curve_ends_ms = message.expires_wall_ms
        self._rows.keep(PRICES_ROW, message)
        return _prices_seen(message, self._clock.boot_ms())

    def demand(self, message: DemandMessage) -> DemandSeen | None:
        """Take a demand order; None where it is known and says nothing new. Raises MessageError for an older one."""
        now_ms, stop_for_ms = self._clock.boot_ms(), message.stop_for_s * 1000
        ends_ms = now_ms + stop_for_ms
        newer = self._newer(DEMAND_ROW, message.issued_wall_ms)
        if not newer and self._stop_ends_ms is not None and ends_ms >= self._stop_ends_ms:
            return None
        self._stop_ends_ms = ends_ms
        self._rows.keep(DEMAND_ROW, self._standing(message, ends_ms))
        return DemandSeen(at_ms=now_ms, stop_for_ms=stop_for_ms, detail=message.detail)

    def take_pace(self, message: PaceMessage) -> PaceSeen | None:
        """Take the cell's pace; None for the one that is known. Raises MessageError for an older one."""
        if not self._newer(PACE_ROW, message.issued_wall_ms):
            return None
        self._rows.keep(PACE_ROW, message)
        return self._pace_seen(message)

    def _pace_seen(self, message: PaceMessage) -> PaceSeen:
        self.pace = Pace(message.state, message.spread_s * 1000, message.interval_permille)
        return PaceSeen(at_ms=self._clock.boot_ms(), pace=self.pace, detail=message.detail)

    def _standing(self, order: DemandMessage, ends_ms: int) -> StandingDemand:
        wall_ms = ends_ms + self._clock.wall_ms() - self._clock.boot_ms() if self._trusted() else None
        return StandingDemand(order, self._boot, ends_ms, wall_ms)

    async def close(self) -> None:
        """Wait for what is being written, though not for a broken disk."""
        await self._rows.finished(CLOSE_S)

    def _newer(self, kind: str, issued_wall_ms: int) -> bool:
        known_ms, latest_ms = self._issued_ms.get(kind, -1), self._clock.wall_ms() + AHEAD_MS
        if self._trusted() and issued_wall_ms > latest_ms:
            what = f"a {kind} order from the future (issued {issued_wall_ms}): somebody's clock is wrong"
            raise MessageError(what, Refusal.REPLAY)
        if self._trusted() and known_ms > latest_ms:
            known_ms = -1  # taken while this computer's clock told nothing; it must not lock out all later ones
        if issued_wall_ms < known_ms:
            what = f"an old {kind} order (issued {issued_wall_ms}, the newest is {known_ms}): a replay"
            raise MessageError(what, Refusal.REPLAY)
        self._issued_ms[kind] = issued_wall_ms
        self._on_issued(issued_wall_ms)
        return issued_wall_ms > known_ms


def _prices_seen(message: PricesMessage, at_ms: int) -> PricesSeen:
    slots = tuple(PriceSlot(one.start_wall_ms, one.end_wall_ms, one.price_micro_per_kwh) for one in message.slots)
    return PricesSeen(
        at_ms=at_ms, issued_wall_ms=message.issued_wall_ms, expires_wall_ms=message.expires_wall_ms, slots=slots
    )
