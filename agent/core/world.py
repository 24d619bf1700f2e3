"""What the gates look at, and the look itself: a `Sight` remembers when it must be taken again without any news."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import msgspec

from agent.core import signals
from agent.core.contradictions import Contradiction
from agent.core.energy import Battery
from agent.core.events import ComputeSeen, OwnerMode, SignalValue
from agent.core.findings import Finding, GateState
from agent.core.model import Accelerator, Pace
from agent.core.policy import Policy
from agent.core.signals import Reading, Vehicle
from agent.core.tariff import Prices, Stay
from agent.core.thermal import Heat
from agent.core.traffic import Traffic
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
    stay: Stay = Stay()
    demand_until_ms: int = 0
    demand_detail: str = ""
    owner: Owner = Owner()
    metered: bool | None = None
    traffic: Traffic = Traffic()
    pace: Pace = Pace()
    update_pending: bool = False
    update_since_ms: int = 0
    offline_since_ms: int | None = None
    leased: bool = False
    slice_ms: int | None = None
    """How long the last slice took; None before the first."""
    store_problem: str = ""
    self_test_problem: str = ""
    accelerator: Accelerator = Accelerator()
    stopping: bool = False


class Due(msgspec.Struct, frozen=True):
    """When a gate would come out differently without any news.

    At `look_ms` a wait ends or a window begins; at `stale_ms` something that it read becomes too old. `ages` are the
    groups of leaves that it read, each with the age (ms) at which that is; as long as they are heard, it moves on.
    """

    look_ms: int = 0
    stale_ms: int = 0
    aging_ms: int = 0
    ages: tuple[tuple[str, int], ...] = ()

    def heard(self, vehicle: Vehicle) -> Due:
        """The same, after what the sources have repeated since."""
        stale_ms = min([self.aging_ms, *(vehicle.heard[key] + age_ms for key, age_ms in self.ages)])
        return self if stale_ms == self.stale_ms else Due(self.look_ms, stale_ms, self.aging_ms, self.ages)


class Sight:
    """A look of the gates at one world. Every read notes from when on it would come out differently by age alone."""

    def __init__(self, world: World, policy: Policy) -> None:
        self.world, self.policy, self.now_ms = world, policy, world.now_ms
        self._vehicle = world.vehicle
        self._readings: dict[str, Reading] = {}
        self._look_ms = self._aging_ms = FAR_MS
        self._ages: dict[str, int] = {}

    def begin(self) -> None:
        """Another gate looks now."""
        self._look_ms = self._aging_ms = FAR_MS
        self._ages = {}

    @property
    def due(self) -> Due:
        """What the reads since `begin` noted."""
        return Due(self._look_ms, 0, self._aging_ms, tuple(self._ages.items())).heard(self._vehicle)

    def ages(self, at_ms: int) -> None:
        """What was read becomes too old at `at_ms`, unless it is told anew."""
        self._aging_ms = min(self._aging_ms, at_ms)

    def again(self, at_ms: int) -> None:
        """Look again at `at_ms`, whatever happens until then."""
        self._look_ms = min(self._look_ms, max(at_ms, self.now_ms + 1))

    def reads(self, path: str) -> bool:
        """Whether this car has the leaf."""
        return self._vehicle.reads(path)

    def read(self, path: str) -> Reading:
        """One leaf as it may be used now; several gates may ask for the same."""
        reading = self._readings.get(path)
        if reading is None:
            reading = self._readings[path] = self._vehicle.read(path, self.now_ms)
        if reading.value is not None:
            due_ms = reading.holds_ms if self.now_ms < reading.holds_ms else reading.expires_ms
            if not reading.key:
                self.ages(due_ms)
            elif (age_ms := due_ms - reading.at_ms) < self._ages.get(reading.key, FAR_MS):
                self._ages[reading.key] = age_ms
        return reading

    def _value(self, path: str) -> SignalValue | None:
        """What a leaf says now; None where it is not known, or this car does not have it."""
        reading = self._readings.get(path)
        if reading is None:
            if not self._vehicle.reads(path):
                return None
            reading = self.read(path)
        return reading.value

    def number(self, path: str) -> float | None:
        """A numeric leaf; None where it is not known, or this car does not have it."""
        value = self._value(path)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

    def expect(
        self, path: str, code: str, good: Callable[[SignalValue], bool], limit: SignalValue
    ) -> tuple[Finding, ...]:
        """The leaf must be known and good, where the car has it; what is unknown counts against us by its own code."""
        reading = self._readings.get(path)
        if reading is None:
            if not self._vehicle.reads(path):
                return ()
            reading = self.read(path)
        if reading.value is None:
            return (Finding(f"signal_{reading.problem}", path, None, limit, signals.LEAVES[path].unit),)
        if not good(reading.value):
            return (Finding(code, path, reading.value, limit, signals.LEAVES[path].unit),)
        if self.now_ms >= reading.holds_ms:
            return (Finding("signal_late", path, reading.value, limit, signals.LEAVES[path].unit, GateState.HOLD),)
        return ()

    def agree(self, contradictions: Iterable[Contradiction]) -> Iterator[Finding]:
        """No two of these leaves may contradict each other."""
        for one in contradictions:
            first, second = self._value(one.first), self._value(one.second)
            if first is not None and second is not None and one.told(first, second):
                yield Finding("signal_contradictory", one.first, first, f"{one.second} is {second}")
