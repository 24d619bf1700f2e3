"""What came of a night, for people and for programs: the gate's timeline, the sums, the promises.

The JSON is `Report`, field by field (docs/simulate.md). Both say what was measured, what was modelled and what was
supposed, so that nobody takes a rehearsal for a record.
"""

from __future__ import annotations

import datetime as dt

import msgspec

from agent.core.findings import GateState
from agent.core.walltime import Zone
from agent.simulate.counterpart import Supposed
from agent.simulate.night import Account
from agent.simulate.promises import PROMISES

MINUTE_MS, HOUR_MS = 60_000, 3_600_000


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the timeline. `at` is local time (RFC 3339), None where the trace does not tell when it was."""

    at_ms: int
    at: str | None
    seconds: float
    state: str
    gate: str
    code: str
    text: str


class ReasonTime(msgspec.Struct, frozen=True, kw_only=True):
    """How long one reason stood in the way, and how long nothing else did; `gates` are those that said it."""

    code: str
    gates: tuple[str, ...]
    minutes: float
    alone_minutes: float


class WorkDone(msgspec.Struct, frozen=True, kw_only=True):
    """The work, its energy, its money. Energy is the leases' own (`energy_wh`) and the whole computer's."""

    minutes: float
    slices: int
    leases: int
    unsettled_slices: int
    energy_wh: float
    computer_wh: float
    paid: float
    cost: float
    net: float
    currency: str


class VacateTime(msgspec.Struct, frozen=True, kw_only=True):
    """The computer was given back: idle and free so many milliseconds after the sign."""

    at_ms: int
    at: str | None
    cause: str
    idle_ms: int
    gone_ms: int


class Breach(msgspec.Struct, frozen=True, kw_only=True):
    """One time that a promise was broken."""

    at_ms: int
    at: str | None
    detail: str


class PromiseKept(msgspec.Struct, frozen=True, kw_only=True):
    """A promise, and every time it was broken."""

    name: str
    held: bool
    broken: tuple[Breach, ...]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A whole night. `supposed` is None for a recording, which supposes nothing."""

    trace: str
    kind: str
    policy: str
    time_zone: str
    started: str | None
    hours: float
    asleep_hours: float
    open_minutes: float
    hold_minutes: float
    closed_minutes: float
    ever_parked: bool
    never_seen: tuple[str, ...]
    timeline: tuple[Change, ...]
    reasons: tuple[ReasonTime, ...]
    work: WorkDone
    vacates: tuple[VacateTime, ...]
    highest_die_c: float | None
    lowest_charge_percent: float | None
    promises: tuple[PromiseKept, ...]
    held: bool
    supposed: Supposed | None
    remarks: tuple[str, ...]


class Heading(msgspec.Struct, frozen=True, kw_only=True):
    """What the report is about. `start_wall_ms` is the wall time of the account's time 0."""

    trace: str
    kind: str
    policy: str
    currency: str
    zone: Zone
    start_wall_ms: int | None
    asleep_ms: int = 0
    supposed: Supposed | None = None
    remarks: tuple[str, ...] = ()


def make_report(heading: Heading, account: Account) -> Report:
    """The report of a night."""

    def at(at_ms: int) -> str | None:
        return _stamp(heading, at_ms)

    broken = {name: [one for one in account.broken if one.name == name] for name in PROMISES}
    promises = tuple(
        PromiseKept(
            name=name,
            held=not breaches,
            broken=tuple(Breach(at_ms=one.at_ms, at=at(one.at_ms), detail=one.detail) for one in breaches),
        )
        for name, breaches in broken.items()
    )
    return Report(
        trace=heading.trace,
        kind=heading.kind,
        policy=heading.policy,
        time_zone=heading.zone.name,
        started=at(account.start_ms),
        hours=(account.end_ms - account.start_ms) / HOUR_MS,
        asleep_hours=heading.asleep_ms / HOUR_MS,
        open_minutes=account.gate_ms[GateState.OPEN] / MINUTE_MS,
        hold_minutes=account.gate_ms[GateState.HOLD] / MINUTE_MS,
        closed_minutes=account.gate_ms[GateState.CLOSED] / MINUTE_MS,
        ever_parked=account.ever_parked,
        never_seen=account.never_seen,
        timeline=tuple(
            Change(
                at_ms=span.from_ms,
                at=at(span.from_ms),
                seconds=(span.to_ms - span.from_ms) / 1000,
                state=span.state.value,
                gate=span.gate,
                code=span.code,
                text=span.text,
            )
            for span in account.spans
        ),
        reasons=tuple(
            ReasonTime(
                code=one.code, gates=one.gates, minutes=one.ms / MINUTE_MS, alone_minutes=one.alone_ms / MINUTE_MS
            )
            for one in account.standing
        ),
        work=WorkDone(
            minutes=account.computing_ms / MINUTE_MS,
            slices=account.slices,
            leases=account.leases,
            unsettled_slices=account.unsettled_slices,
            energy_wh=account.energy_micro_wh / 1e6,
            computer_wh=account.computer_micro_wh / 1e6,
            paid=account.paid_micro / 1e6,
            cost=account.cost_micro / 1e6,
            net=(account.paid_micro - account.cost_micro) / 1e6,
            currency=heading.currency,
        ),
        vacates=tuple(
            VacateTime(at_ms=one.at_ms, at=at(one.at_ms), cause=one.cause, idle_ms=one.idle_ms, gone_ms=one.gone_ms)
            for one in account.vacates
        ),
        highest_die_c=account.highest_die_c,
        lowest_charge_percent=account.lowest_charge_percent,
        promises=promises,
        held=not account.broken,
        supposed=heading.supposed,
        remarks=heading.remarks,
    )


def _stamp(heading: Heading, at_ms: int) -> str | None:
    """Local time as RFC 3339, to the millisecond."""
    if heading.start_wall_ms is None:
        return None
    wall_ms = heading.start_wall_ms + at_ms
    zone = dt.timezone(dt.timedelta(milliseconds=heading.zone.offset_ms(wall_ms)))
    return dt.datetime.fromtimestamp(wall_ms / 1000, zone).isoformat(timespec="milliseconds")
