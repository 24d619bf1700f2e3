"""What happens to the car and the fleet of the rig with processes; each answers when it showed first on a bus."""

from __future__ import annotations

import datetime as dt
import json
from typing import TYPE_CHECKING, assert_never

from hil import orders
from hil.dispatcher.paces import PaceOrder
from hil.rig import UNIT, Rig
from hil.rigs import car_orders
from hil.rigs import stimuli as s

if TYPE_CHECKING:
    from hil.rigs.sil import SilRig

MICRO = 1_000_000


def do(rig: SilRig, stimulus: s.Stimulus) -> int | None:
    """Let it happen now; when its first frame was sent (CLOCK_BOOTTIME), None where there was none."""
    room = rig.room
    match stimulus:
        case (
            s.Prices()
            | s.DemandOrder()
            | s.PaceOrder()
            | s.Work()
            | s.OwnerPauses()
            | s.OwnerResumes()
            | s.OwnerFinishes()
            | s.Consent()
            | s.UpdatePending()
            | s.StopAgent()
            | s.StartAgent()
        ):
            _words(rig, stimulus)
            return None
        case _:
            return car_orders.do(room.car, stimulus)


Word = (
    s.Prices
    | s.DemandOrder
    | s.PaceOrder
    | s.Work
    | s.OwnerPauses
    | s.OwnerResumes
    | s.OwnerFinishes
    | s.Consent
    | s.UpdatePending
    | s.StopAgent
    | s.StartAgent
)


def _words(rig: SilRig, stimulus: Word) -> None:  # noqa: C901, PLR0912 - one arm a stimulus
    room = rig.room
    match stimulus:
        case s.Prices():
            _prices(room, stimulus)
        case s.DemandOrder(stop_for_s=stop_for_s):
            orders.demand(room.folder, UNIT, round(stop_for_s), "the grid")
        case s.PaceOrder(state=state):
            orders.pace(room.folder, "all", PaceOrder(state=state))
        case s.Work(jobs=jobs):
            rig.submit(jobs)
        case s.OwnerPauses(pause_s=pause_s):
            room.ask("pause", pause={} if pause_s is None else {"for_ms": round(pause_s * 1000)})
        case s.OwnerResumes():
            room.ask("resume")
        case s.OwnerFinishes():
            room.ask("finish")
        case s.Consent(version=version):
            if version:
                room.ask("consent_accept", version=version)
            else:
                room.ask("consent_withdraw")
        case s.UpdatePending(pending=pending):
            flag = room.folder / "state" / "update-pending"
            if pending:
                flag.touch()
            else:
                flag.unlink(missing_ok=True)
        case s.StopAgent():
            room.stop("daemon")
        case s.StartAgent():
            room.start_daemon()
        case _:
            assert_never(stimulus)


def _prices(room: Rig, stimulus: s.Prices) -> None:
    slot = dt.timedelta(minutes=stimulus.slot_min)
    now = dt.datetime.now(dt.UTC)
    first = now - (now - now.replace(hour=0, minute=0, second=0, microsecond=0)) % slot
    slots = [
        {
            "start": (first + number * slot).isoformat(),
            "end": (first + (number + 1) * slot).isoformat(),
            "price": price / MICRO,
        }
        for number, price in enumerate(stimulus.micro_per_kwh)
    ]
    file = room.folder / "prices.json"
    file.write_text(json.dumps(slots), "utf-8")
    orders.prices(room.folder, UNIT, file, round(stimulus.valid_for_s))
