"""What the control socket is told: each verb's answer, from the core's state and the store."""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

from agent import view
from agent.control import ControlRequest
from agent.core.events import OwnerMode, OwnerSaid
from agent.core.state import State
from agent.fleet.desk import Desk
from agent.hands import Hands
from agent.inference.shelf import Shelf
from agent.ports import Clock, Emit
from agent.store import Store, StoreThread


class Answers:
    """Answers one request at a time; `state` gives the core's state as it is when asked."""

    def __init__(
        self,
        *,
        state: Callable[[], State],
        emit: Emit,
        clock: Clock,
        store: StoreThread,
        hands: Hands,
        desk: Desk,
        shelf: Shelf,
    ) -> None:
        self._state, self._emit, self._clock, self._store = state, emit, clock, store
        self._hands, self._desk, self._shelf = hands, desk, shelf

    async def answer(self, request: ControlRequest) -> object:  # noqa: PLR0911 - one answer a verb
        """The data of one answer; raises DrivewayError with what stands in the way."""
        offset_ms = self._clock.wall_ms() - self._clock.boot_ms()
        match request.verb:
            case "status":
                return await self._status(offset_ms)
            case "why":
                return view.reasons(self._state(), offset_ms)
            case "signals":
                return view.signal_list(self._state(), self._clock.boot_ms())
            case "leases":
                return await self._leases(request.limit)
            case "earnings":
                totals = await self._store.call(Store.totals)
                total = view.earnings(self._state(), totals)
                return view.EarningsList(await self._leases(request.limit), total, totals.energy_micro_wh / 1e6)
            case "ledger":
                return await self._store.call(Store.ledger, request.limit)
            case "pause" | "resume":
                mode = OwnerMode.PAUSED if request.verb == "pause" else OwnerMode.AUTO
                await self._store.call(Store.set_paused, request.verb == "pause")
                self._emit(OwnerSaid(at_ms=self._clock.boot_ms(), mode=mode))
                return view.reasons(self._state(), offset_ms)
            case _:
                assert_never(request.verb)

    async def _leases(self, limit: int) -> list[view.LeaseEarningsView]:
        rows = await self._store.call(Store.leases, limit)
        return [view.lease_earnings(self._state(), row) for row in rows]

    async def _status(self, offset_ms: int) -> view.StatusView:
        pending = len(await self._store.call(Store.outbox))
        ledger = await self._store.call(Store.ledger_head)
        totals = await self._store.call(Store.totals)
        vacate = await self._store.call(Store.vacate_stats)
        return view.status(
            self._state(),
            wall_offset_ms=offset_ms,
            items_done_in_slice=self._hands.items_done_in_slice,
            pending=pending,
            ledger=ledger,
            totals=totals,
            vacate=vacate,
            refused_messages=dict(self._desk.refused),
            refused_packages=self._shelf.refused,
        )
