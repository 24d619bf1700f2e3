"""Snapshots of an agent at work, from the real core by the real view, and one in which the world says evil things."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from agent import view
from agent.core import signals
from agent.fleet.link import LinkStatus
from agent.ledger_view import LedgerView
from agent.metrics.collect import ProcessFigures, Snapshot
from agent.rows import Totals, VacateStats
from tests.core.stories import DOOR, ready
from tests.core.world import Shell, car

EVIL = 'a"b\\c\nd{}=,# é\u2028'


def status_of(shell: Shell) -> view.StatusView:
    """What the view says of a core."""
    return view.status(
        shell.state,
        wall_offset_ms=1_790_000_000_000,
        items_done_in_slice=3,
        pending=2,
        ledger=LedgerView(size=17, root="00", witnessed=12),
        totals=Totals(energy_micro_wh=1_500_000, paid_micro=2_500_000, cost_micro=300_000),
        vacate=VacateStats(7, 41, 83, 95),
        refused_messages={"grant": 2},
        refused_packages={"ocr-2": "its signature does not hold"},
        counts={"party": {"frames": 12_000, "checksum": 3}},
        link=LinkStatus(
            connected=True,
            broker="b:8883",
            detail="",
            attempts=0,
            connections=4,
            dropped={"flood": 5},
            sent_bytes=1_000,
            received_bytes=2_000,
        ),
    )


def shot_of(status: view.StatusView, *leaves: view.SignalView) -> Snapshot:
    """A snapshot with this status."""
    return Snapshot(
        status=status,
        signals=leaves,
        process=ProcessFigures(cpu_s=1.25, resident_bytes=45_000_000, descriptors=21, started_s=1_790_000_000.5),
        control_clients=1,
        control_refused=2,
        log_events={"info": 40, "warning": 3},
        log_held_back=9,
    )


def at_work() -> Snapshot:
    """A lease runs, and charge and temperatures are known."""
    shell = ready()
    shell.settle_down(4)
    leaves = [
        view.SignalView(signals.CHARGE, 81.5, "percent", 100, "party", ""),
        view.SignalView(signals.PACK_TEMPERATURE, 24, "celsius", 100, "party", ""),
        view.SignalView(signals.AMBIENT, -7.5, "celsius", 100, "party", "stale"),
    ]
    return shot_of(status_of(shell), *leaves)


def at_rest() -> Snapshot:
    """An agent that knows nothing yet."""
    return shot_of(status_of(Shell()))


def driver_back() -> Snapshot:
    """Somebody opens the door in the middle of a lease."""
    shell = ready()
    shell.settle_down(4)
    shell.tell(car(shell.now_ms + 1, {DOOR: True}))
    return shot_of(status_of(shell))


def under_attack() -> Snapshot:
    """Names from outside are hostile, and there are thousands of them."""
    many = {f"{EVIL}{number}": number for number in range(5_000)}
    shot = at_work()
    source = view.SourceView(EVIL, alive=True, detail="", since=None, counts=many)
    status = msgspec.structs.replace(
        shot.status,
        version=EVIL * 100,
        refused_messages=many,
        sources=[source],
        link=msgspec.structs.replace(shot.status.link, dropped=many),
        earnings=msgspec.structs.replace(shot.status.earnings, currency=EVIL),
    )
    return replace(shot, status=status, log_events=many)
