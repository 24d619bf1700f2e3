"""A fleet run, from an empty folder to the accounts: prefill, region, cars, sizes, outages, the end of all leases."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from agent.clock import SystemClock
from hil.bench.command import machine
from hil.fleet import prefill
from hil.fleet.accounts import balance, doubled_slices, settled_rows
from hil.fleet.cars import Standing
from hil.fleet.measuring import SETTLE_S, Empty, measure
from hil.fleet.outage import Outages
from hil.fleet.park import Park
from hil.fleet.plan import FleetPlan
from hil.fleet.region import Region
from hil.fleet.report import FleetReport, Outage, Step

LAST_HAND_INS_S = 120.0
JOBS_SPARE = 1.3
OUTAGES = 4
OUTAGE_JOBS_S = 90.0
"""For about so long the fleet works around an outage."""

Say = Callable[[str], None]


def run(plan: FleetPlan, folder: Path, say: Say) -> FleetReport:
    """Run the plan in `folder`, which is new and empty; `say` is told what happens. Raises DrivewayError."""
    began_s, seed = time.monotonic(), secrets.token_hex(8)
    with ExitStack() as closing:
        region = closing.enter_context(Region(folder, plan))
        book = region.open_book(SystemClock().wall_ms)
        closing.callback(book.close)
        say(f"enrolling {plan.cars:,} cars")
        cell = prefill.enrol(book, plan, seed)
        prefill.add_jobs(book, plan, _jobs_needed(plan))
        region.start()
        park = closing.enter_context(Park(plan, region, folder=folder, cell=cell, seed=seed))
        empty, steps, outages = Empty(region, park), list[Step](), list[Outage]()
        for cars in plan.sizes:
            say(f"{cars:,} cars: connecting, then {plan.seconds:g} s measured")
            steps.append(measure(plan, region, park, cars, empty))
            say(_line(steps[-1]))
        if plan.outage:
            disaster = Outages(plan, region, park, book, cell)
            for what in (disaster.broker, disaster.dispatchers):
                for paced in (False, True):
                    say(f"killing the {what.__name__} for {plan.outage_s:g} s, {'paced' if paced else 'bare'}")
                    outages.append(what(paced=paced))
        say("every car hands in what it has")
        park.stop()
        park.wait(_at_rest, LAST_HAND_INS_S)
        books = balance(
            park.look().made,
            park.look().owed,
            park.ledger(),
            settled_rows(book),
            twice_paid=doubled_slices(book),
        )
    return FleetReport(
        plan=plan,
        compression=plan.compression,
        steps=steps,
        outages=outages,
        books=books,
        held=not books.lost and not books.doubled and not books.owed and steps[-1].connected == plan.cars,
        machine=machine(),
        wall_s=round(time.monotonic() - began_s, 1),
    )


def _jobs_needed(plan: FleetPlan) -> int:
    """So many that no car is ever measured waiting; put up before the dispatchers run, since SQLite has one writer."""
    leases = 0.0
    for cars in plan.sizes:
        connecting_s = cars / plan.ramp_per_s if plan.ramp_per_s else 0.0
        leases += cars * (2 + (connecting_s + SETTLE_S + plan.seconds) / plan.lease_s)
    if plan.outage:
        leases += OUTAGES * plan.cars * (1 + (plan.outage_s + OUTAGE_JOBS_S) / plan.lease_s)
    return round(leases * JOBS_SPARE)


def _at_rest(now: Standing) -> bool:
    return not now.owed and not now.working


def _line(step: Step) -> str:
    def ms(value: float | None) -> str:
        return "-" if value is None else f"{value:.0f} ms"

    return (
        f"{step.connected:,} connected at {step.connects_per_s:.0f}/s, {step.jobs_per_s:.1f} jobs/s,"
        f" grant {ms(step.grant_p50_ms)}/{ms(step.grant_p99_ms)},"
        f" verdict {ms(step.verdict_p50_ms)}/{ms(step.verdict_p99_ms)};"
        f" cores: cars {step.car_cores:.2f}, dispatchers {step.dispatcher_cores:.2f},"
        f" broker {step.broker_cores:.2f}, database {step.database_cores:.2f}"
    )
