"""A car that tells every leaf there is, charging in its garage, with a clock that is kept; and how time passes."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping

from agent.core import signals
from agent.core.events import (
    ComputeSeen,
    EventType,
    HostSeen,
    LinkChanged,
    Sample,
    SignalsSeen,
    SignalValue,
    SourceHeard,
    Tick,
)
from agent.core.findings import GateState, Reason
from agent.core.machine import step
from agent.core.policy import Policy
from agent.core.signals import LEAVES, Vehicle
from agent.core.state import State, initial
from agent.core.walltime import UTC, Zone
from tests.core.world import PARKED

START_WALL_MS = round(dt.datetime(2026, 6, 1, 18, tzinfo=dt.UTC).timestamp() * 1000)
"""A Monday evening."""
CHARGING: dict[str, SignalValue] = {
    **PARKED,
    signals.MOVING: False,
    signals.PARK_LOCK: True,
    signals.PASSENGER_SEAT: "EMPTY",
    signals.BELT: False,
    signals.LOCK: True,
    signals.HOOD: False,
    signals.CHARGE: 70.0,
    signals.CHARGE_DISPLAYED: 68.0,
    signals.CHARGING: True,
    signals.CHARGE_LIMIT: 80.0,
    signals.CAPACITY: 75.0,
    signals.TIMER_MODE: "INACTIVE",
    signals.TIMER_TIME: "2026-06-02T07:30:00",
    signals.PACK_POWER: 6_500.0,
    signals.PACK_TEMPERATURE: 20.0,
    **dict.fromkeys(signals.CONTACTORS, True),
    signals.LOW_VOLTAGE: 13.8,
    signals.LOW_VOLTAGE_CURRENT: 1.0,
    signals.AMBIENT: 20.0,
    signals.POWER_OPTIMIZE: 0.0,
    **dict.fromkeys(signals.OTHER_USERS, False),
    signals.PAUSE_REQUESTED: False,
}
assert set(CHARGING) == set(LEAVES), "every leaf is told"


def samples(values: dict[str, SignalValue]) -> tuple[Sample, ...]:
    return tuple(Sample(path, value, group="car") for path, value in values.items())


class FullCar:
    """Tells the core what changes, and that the rest is as it was."""

    def __init__(
        self,
        policy: Policy | None = None,
        zone: Zone = UTC,
        *,
        synchronised: bool = True,
        changes: Mapping[str, SignalValue] | None = None,
        leaves: frozenset[str] = frozenset(LEAVES),
    ) -> None:
        policy = Policy(parked_for_s=1) if policy is None else policy
        self.state: State = initial("unit-1", policy, 0, vehicle=Vehicle(offered=leaves), zone=zone)
        self.now_ms = 0
        self.tell(self.host(synchronised=synchronised))
        self.tell(LinkChanged(at_ms=0, connected=True, broker="b:1"))
        self.tell(SignalsSeen(at_ms=0, source="bus", samples=samples({**CHARGING, **(changes or {})})))

    def host(self, wall_ms: int | None = None, *, synchronised: bool = True) -> HostSeen:
        wall_ms = START_WALL_MS + self.now_ms if wall_ms is None else wall_ms
        return HostSeen(at_ms=self.now_ms, wall_ms=wall_ms, wall_error_ms=20 if synchronised else None)

    def tell(self, event: EventType) -> None:
        self.state, _ = step(self.state, event)

    def says(self, path: str, value: SignalValue) -> None:
        self.tell(SignalsSeen(at_ms=self.now_ms, source="bus", samples=samples({path: value})))

    def advance(self, seconds: float, step_ms: int = 1_000, power_w: float = 8.0) -> None:
        """Time passes; the car repeats what it said, and the computer is read."""
        end_ms = self.now_ms + round(seconds * 1000)
        while self.now_ms < end_ms:
            since_ms, self.now_ms = self.now_ms, min(end_ms, self.now_ms + step_ms)
            self.tell(SourceHeard(at_ms=self.now_ms, source="bus", groups=("car",), since_ms=since_ms))
            self.tell(
                ComputeSeen(at_ms=self.now_ms, die_c=50.0, power_w=power_w, sensor="simulated", since_ms=since_ms)
            )
            self.tell(Tick(at_ms=self.now_ms))

    def gate(self, name: str) -> GateState:
        return next(gate.state for gate in self.state.gates.gates if gate.name == name)

    def reason(self, name: str) -> Reason:
        """The gate's one reason, besides that it waits."""
        (one,) = (reason for gate in self.state.gates.gates if gate.name == name for reason in gate.reasons)
        return one

    def codes(self, name: str) -> list[str]:
        return [reason.code for gate in self.state.gates.gates if gate.name == name for reason in gate.reasons]
