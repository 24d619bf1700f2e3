"""What the gates look at, and the look itself: a `Sight` remembers when it must be taken again without any news."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import msgspec

from agent.core import signals
from agent.core.energy import Battery
from agent.core.events import ComputeSeen, OwnerMode, SignalValue
from agent.core.findings import Finding, GateState
from agent.core.policy import Policy
from agent.core.signals import Contradiction, Reading, Vehicle
from agent.core.tariff import Prices
from agent.core.thermal import Heat
from agent.core.walltime import UTC, WallClock, Zone

FAR_MS = 2**62
"""Later than anything."""


class Owner(msgspec.Struct, frozen=True):
    """What the owner said last, and the version of the terms that the owner agreed to."""

    mode: OwnerMode = OwnerMode.AUTO
    until_ms: int | None = None
    until_wall_ms: int | None = None
    consent_version: int = 0


class World(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a gate may look at, at `now_ms`."""

    now_ms: int
    vehicle: Vehicle
    compute: ComputeSeen | None = None
    heat: Heat = Heat()
    battery: Battery = Battery()
    wall: WallClock = WallClock()
    zone: Zone = UTC
    prices: Prices = Prices()
    demand_until_ms: int = 0
    demand_detail: str = ""
    owner: Owner = Owner()
    metered: bool | None = None
    update_pending: bool = False
    offline_since_ms: int | None = None
    leased: bool = False
    store_problem: str = ""
    self_test_problem: str = ""
    stopping: bool = False


class Sight:
    """One look of all gates at one world. Every read notes from when on it would come out differently by age alone."""

    def __init__(self, world: World, policy: Policy) -> None:
        self.world, self.policy, self.now_ms = world, policy, world.now_ms
        self.stale_ms = FAR_MS
        """The first leaf that was read becomes too old then, unless it is heard again."""
        self.look_ms = FAR_MS
        """Something else changes then by itself: a wait ends, a window begins."""

    def again(self, at_ms: int) -> None:
        """Look again at `at_ms`, whatever happens until then."""
        self.look_ms = min(self.look_ms, max(at_ms, self.now_ms + 1))

    def reads(self, path: str) -> bool:
        """Whether this car has the leaf."""
        return self.world.vehicle.reads(path)

    def read(self, path: str) -> Reading:
        """One leaf as it may be used now."""
        reading = self.world.vehicle.read(path, self.now_ms)
        if reading.value is not None:
            due_ms = reading.holds_ms if self.now_ms < reading.holds_ms else reading.expires_ms
            self.stale_ms = min(self.stale_ms, due_ms)
        return reading

    def number(self, path: str) -> float | None:
        """A numeric leaf; None where it is not known, or this car does not have it."""
        value = self.read(path).value if self.reads(path) else None
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

    def expect(
        self, path: str, code: str, good: Callable[[SignalValue], bool], limit: SignalValue
    ) -> Iterator[Finding]:
        """The leaf must be known and good, where the car has it; what is unknown counts against us by its own code."""
        if not self.reads(path):
            return
        reading = self.read(path)
        unit = signals.LEAVES[path].unit
        if reading.value is None:
            yield Finding(f"signal_{reading.problem}", path, None, limit, unit)
        elif not good(reading.value):
            yield Finding(code, path, reading.value, limit, unit)
        elif self.now_ms >= reading.holds_ms:
            yield Finding("signal_late", path, reading.value, limit, unit, GateState.HOLD)

    def agree(self, contradictions: Iterable[Contradiction]) -> Iterator[Finding]:
        """No two of these leaves may contradict each other."""
        for one in contradictions:
            if not (self.reads(one.first) and self.reads(one.second)):
                continue
            first, second = self.read(one.first).value, self.read(one.second).value
            if first is not None and second is not None and one.told(first, second):
                yield Finding("signal_contradictory", one.first, first, f"{one.second} is {second}")
