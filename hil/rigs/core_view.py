"""What a rig sees of the agent's core: observations, leases and vacates from the steps it made.

In virtual time the steps are at hand; of a real daemon they are replayed from its flight recorder, to the same states.
So both are told in the same words, to the millisecond.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from agent.core.events import BuildRefused, EventType, HandInSettled, LeaseRefused, WorkerRefused
from agent.core.findings import Reason
from agent.core.lease import Lease
from agent.core.state import State, Vacating, WorkerPhase
from agent.core.tariff import price_now
from agent.view import activity
from hil.rigs.observation import LeaseSeen, Observation, Vacated, Why

ENOUGH_C = 0.5
ENOUGH_MS = 30_000
"""Where nothing else has changed, a new observation is made when the die has changed by so much, or after so long."""


class CarValues(msgspec.Struct, frozen=True, kw_only=True):
    """What the car's own world says; None where nobody knows."""

    computing: bool | None = None
    power_w: float | None = None
    die_c: float | None = None
    charge_percent: float | None = None
    pack_power_w: float | None = None
    low_voltage_v: float | None = None
    ambient_c: float | None = None
    work_s: float = 0.0


class CoreView:
    """Watches one core from its first step on; `zero_ms` is when the scenario began, in the core's time."""

    def __init__(self, zero_ms: int) -> None:
        self._zero_ms = zero_ms
        self._told: tuple[object, ...] = ()
        self._reasons_of: tuple[Reason, ...] | None = None
        self._reasons: tuple[Why, ...] = ()
        self._settled = self._refusals = 0
        self._energy_start_micro_wh: float | None = None
        self._vacating: Vacating | None = None
        self._lease: Lease | None = None
        self._lease_since_ms = 0
        self._at_ms = -ENOUGH_MS
        self._die_c = 0.0
        self.vacates: list[Vacated] = []
        self.leases: list[LeaseSeen] = []

    def saw(self, event: EventType, after: State, car: CarValues) -> Observation | None:
        """One step; an observation where something is to be told."""
        now_ms = after.now_ms - self._zero_ms
        if isinstance(event, HandInSettled):
            self._settled += 1
        if isinstance(event, LeaseRefused | WorkerRefused | BuildRefused):
            self._refusals += 1
        self._follow_vacate(after)
        self._follow_lease(after, now_ms)
        if after.gates.reasons is not self._reasons_of:
            self._reasons_of = after.gates.reasons
            self._reasons = whys(after.gates.reasons)
        busy = _computes(after) if car.computing is None else car.computing
        held = after.lease.key if after.lease is not None else None
        told = (
            activity(after),
            after.gates.state,
            self._reasons,
            after.connected,
            after.worker.phase,
            busy,
            held,
            len(after.outbox),
            after.slices_kept,
            self._settled,
            self._refusals,
            len(self.vacates),
            after.accelerator.state,
            after.owner.mode,
        )
        die_c = car.die_c if car.die_c is not None else 0.0
        news = told != self._told or abs(die_c - self._die_c) >= ENOUGH_C or now_ms - self._at_ms >= ENOUGH_MS
        if not news:
            return None
        self._told, self._die_c, self._at_ms = told, die_c, now_ms
        return self._observation(after, now_ms, car, computing=busy)

    def _observation(self, after: State, now_ms: int, car: CarValues, *, computing: bool) -> Observation:
        if self._energy_start_micro_wh is None:
            self._energy_start_micro_wh = after.meter.total_micro_wh
        longest_ms = max((one.idle_ms for one in self.vacates if one.idle_ms is not None), default=None)
        return Observation(
            at_ms=now_ms,
            state=activity(after),
            gate=after.gates.state.value,
            reasons=self._reasons,
            linked=after.connected,
            worker=after.worker.phase is not WorkerPhase.ABSENT,
            computing=computing,
            lease="" if after.lease is None else str(after.lease.key),
            outbox=len(after.outbox),
            power_cap_w=after.heat.cap_w,
            die_c=car.die_c,
            power_w=car.power_w,
            charge_percent=car.charge_percent,
            pack_power_w=car.pack_power_w,
            low_voltage_v=car.low_voltage_v,
            ambient_c=car.ambient_c,
            price_micro_per_kwh=price_now(after.policy, after.zone, after.prices, after.wall, after.now_ms),
            accelerator=after.accelerator.state.value,
            owner=after.owner.mode.value,
            slices_kept=after.slices_kept,
            settled=self._settled,
            refusals=self._refusals,
            vacates=len(self.vacates),
            vacate_max_ms=longest_ms,
            work_s=car.work_s,
            energy_wh=(after.meter.total_micro_wh - self._energy_start_micro_wh) / 1e6,
        )

    def _follow_vacate(self, after: State) -> None:
        was, self._vacating = self._vacating, after.vacating
        if was is None or after.vacating is not None:
            return
        sign_ms = was.sign_ms
        idle_ms = None if was.idle_ms is None else float(was.idle_ms - sign_ms)
        gone_ms = float(after.now_ms - sign_ms)
        self.vacates.append(
            Vacated(
                at_ms=sign_ms - self._zero_ms,
                cause=was.cause,
                idle_ms=gone_ms if idle_ms is None else idle_ms,
                gone_ms=gone_ms,
            )
        )

    def _follow_lease(self, after: State, now_ms: int) -> None:
        was, self._lease = self._lease, after.lease
        if was is not None and (after.lease is None or after.lease.key != was.key):
            self._end_lease(was, now_ms)
            was = None
        if was is None and after.lease is not None:
            self._lease_since_ms = now_ms

    def _end_lease(self, lease: Lease, now_ms: int) -> None:
        done, wanted = len(lease.done), len(lease.grant.slices)
        ended = "given back" if lease.ending is None else lease.ending.value
        self.leases.append(
            LeaseSeen(
                job=str(lease.key),
                start_ms=self._lease_since_ms,
                end_ms=now_ms,
                outcome="finished" if done == wanted else ended,
                slices_done=done,
                slices_wanted=wanted,
            )
        )

    def finish(self, now_ms: int) -> None:
        """The run is over; a lease at work is told of as such."""
        if self._lease is not None:
            self._end_lease(self._lease, now_ms)
            self.leases[-1] = msgspec.structs.replace(self.leases[-1], outcome="at work")
            self._lease = None


def _computes(state: State) -> bool:
    """As the core believes: a slice is in flight, or a build, and the worker has not said that it is idle."""
    building = state.worker.phase is WorkerPhase.BUILDING
    in_flight = state.lease is not None and state.lease.in_flight is not None
    idle = state.vacating is not None and state.vacating.idle_ms is not None
    return (building or in_flight) and not idle


def whys(reasons: Iterable[Reason]) -> tuple[Why, ...]:
    """Reasons, short."""
    return tuple(Why(one.gate, one.code, one.signal) for one in reasons)
