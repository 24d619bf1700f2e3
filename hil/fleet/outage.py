"""A region goes down and comes back: the broker, or all dispatchers, killed without warning and started again.

Once bare (no spread in the cell's pace, no ramp at the dispatchers) and once paced. What counts is the time from the
moment that what was killed is up again: until a car's link is back, and until it was answered by a dispatcher.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from agent.core.model import PaceState
from hil.dispatcher.book import Book
from hil.dispatcher.paces import PaceOrder
from hil.fleet.figures import best_second, per_second, time_to_share_s
from hil.fleet.park import Park
from hil.fleet.plan import FleetPlan
from hil.fleet.region import Region
from hil.fleet.report import Outage

PACE_HEARD_S = 4.0
"""Dispatchers see a new pace within a second, and cars a moment later."""
RECOVERY_MAX_S = 300.0
LAST_SHARE = 0.99


class Outages:
    """Use within a region that is up, with its cars at work."""

    def __init__(self, plan: FleetPlan, region: Region, park: Park, book: Book, cell: str) -> None:
        self._plan, self._region, self._park, self._book, self._cell = plan, region, park, book, cell

    def broker(self, *, paced: bool) -> Outage:
        """The broker is killed, and back after `outage_s`."""
        self._set_pace(paced=paced)
        return self._happen("broker", self._region.broker.kill, self._region.broker.start, paced=paced)

    def dispatchers(self, *, paced: bool) -> Outage:
        """All dispatchers are killed, and back after `outage_s`; the broker acknowledges and forgets meanwhile."""
        self._set_pace(paced=paced)
        ramp_per_s = self._plan.restart_per_s if paced else 0.0

        def start() -> None:
            self._region.start_dispatchers(ramp_per_s=ramp_per_s)

        return self._happen("dispatchers", self._region.kill_dispatchers, start, paced=paced)

    def _set_pace(self, *, paced: bool) -> None:
        """What the cell's cars know when it happens; dispatchers with the ramp that goes with it."""
        spread_s = self._plan.spread_s if paced else 0
        self._book.paces.set(self._cell, PaceOrder(state=PaceState.OPEN, spread_s=spread_s))
        if paced and not self._region.ramp_per_s:
            self._region.kill_dispatchers()
            self._region.start_dispatchers(ramp_per_s=self._plan.restart_per_s)
        time.sleep(PACE_HEARD_S)

    def _happen(self, what: str, kill: Callable[[], None], start: Callable[[], None], *, paced: bool) -> Outage:
        plan, park = self._plan, self._park
        park.take()
        killed_s = time.monotonic()
        kill()
        time.sleep(plan.outage_s)
        park.mark()
        standing, tally = park.look(), park.take()
        cars, away = standing.cars, standing.cars - standing.connected
        start()
        restored_s = time.monotonic()
        deadline_s = restored_s + RECOVERY_MAX_S
        while sum(tally.served.values()) < cars * LAST_SHARE and time.monotonic() < deadline_s:
            time.sleep(1.0)
            tally.merge(park.take())
        seconds = int(time.monotonic() - killed_s) + 1
        return Outage(
            what=what,
            paced=paced,
            down_s=plan.outage_s,
            restored_at_s=round(restored_s - killed_s, 1),
            cars=cars,
            back_p50_s=time_to_share_s(tally.back, restored_s, away, 0.5) if away else None,
            back_p99_s=time_to_share_s(tally.back, restored_s, away, LAST_SHARE) if away else None,
            served_p50_s=time_to_share_s(tally.served, restored_s, cars, 0.5),
            served_p99_s=time_to_share_s(tally.served, restored_s, cars, LAST_SHARE),
            connects_best_s=best_second(tally.ups),
            connects=per_second(tally.ups, killed_s, seconds),
            served=per_second(tally.served, killed_s, seconds),
            asked_again=tally.events.get("asked_again", 0),
            handed_in_again=tally.events.get("handed_in_again", 0),
        )
