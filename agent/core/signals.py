"""The vehicle as the agent knows it: VSS leaves with value, age and quality. Unknown is unsafe.

A leaf is believed only while its last sample was good, is of the leaf's kind and within its range, and is young enough
for its class. Everything else is a `Reading` without a value and with the reason: never seen, stale, or what was wrong
with it. So a gate cannot mistake 'nobody told me' for 'no'. Two leaves that cannot both be true are a contradiction,
and a contradiction counts like the worse of the two. Age is counted from this computer's own receipt of the sample.

Leaves are named by COVESA VSS 6.0; names of VSS 4.x and 5.x are understood through `canonical`. `Vehicle.Driveway.*`
is our overlay for what VSS lacks.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable

import msgspec

from agent.core.events import Quality, Sample, SignalsSeen, SignalValue, SourceChanged, SourceHeard

SPEED = "Vehicle.Speed"
MOVING = "Vehicle.IsMoving"
GEAR = "Vehicle.Powertrain.Transmission.SelectedGear"
PARK_LOCK = "Vehicle.Powertrain.Transmission.IsParkLockEngaged"
BRAKE = "Vehicle.Chassis.Brake.PedalPosition"
LOW_VOLTAGE_STATE = "Vehicle.LowVoltageSystemState"
SEAT = "Vehicle.Cabin.Seat.Row1.DriverSide.OccupancyStatus"
PASSENGER_SEAT = "Vehicle.Cabin.Seat.Row1.PassengerSide.OccupancyStatus"
BELT = "Vehicle.Cabin.Seat.Row1.DriverSide.IsBelted"
DRIVER_PRESENT = "Vehicle.Driveway.DriverPresent"
DOOR_HANDLE = "Vehicle.Driveway.DoorHandlePulled"
DOORS = tuple(f"Vehicle.Cabin.Door.Row{row}.{side}Side.IsOpen" for row in (1, 2) for side in ("Driver", "Passenger"))
LOCK = "Vehicle.Cabin.Door.Row1.DriverSide.IsLocked"
TRUNK = "Vehicle.Body.Trunk.Rear.IsOpen"
HOOD = "Vehicle.Body.Hood.IsOpen"

CHARGE = "Vehicle.Powertrain.TractionBattery.StateOfCharge.Current"
CHARGE_DISPLAYED = "Vehicle.Powertrain.TractionBattery.StateOfCharge.Displayed"
CABLE = "Vehicle.Powertrain.TractionBattery.Charging.ChargingPort.AnyPosition.IsChargingCableConnected"
CHARGING = "Vehicle.Powertrain.TractionBattery.Charging.IsCharging"
CHARGE_LIMIT = "Vehicle.Powertrain.TractionBattery.Charging.ChargeLimit"
CAPACITY = "Vehicle.Powertrain.TractionBattery.NetCapacity"
TIMER_MODE = "Vehicle.Powertrain.TractionBattery.Charging.Timer.Mode"
TIMER_TIME = "Vehicle.Powertrain.TractionBattery.Charging.Timer.Time"
PACK_POWER = "Vehicle.Powertrain.TractionBattery.CurrentPower"
PACK_TEMPERATURE = "Vehicle.Powertrain.TractionBattery.Temperature.Average"
CONTACTORS = (
    "Vehicle.Powertrain.TractionBattery.IsPowerConnected",
    "Vehicle.Powertrain.TractionBattery.IsGroundConnected",
)
LOW_VOLTAGE = "Vehicle.LowVoltageBattery.CurrentVoltage"
LOW_VOLTAGE_CURRENT = "Vehicle.LowVoltageBattery.CurrentCurrent"
AMBIENT = "Vehicle.Exterior.AirTemperature"
POWER_OPTIMIZE = "Vehicle.PowerOptimizeLevel"
OTHER_USERS = tuple(f"Vehicle.Driveway.ComputerUse.{user}" for user in ("Update", "Sentry", "Preconditioning", "Camp"))
"""Who else may be using the computer of a parked car; true while they do."""
PAUSE_REQUESTED = "Vehicle.Driveway.PauseRequested"
"""The car's own switch for the owner (a button on its screen), where it has one."""

GEAR_PARK = 126


LATE_PERIODS = 5
DEFAULT_PERIOD_MS = 100


class Staleness(enum.Enum):
    """How old a leaf may be and still count: `hold_ms` starts nothing new, beyond `stale_ms` it is unknown.

    Field practice for missing messages is 200 to 500 ms, and bus traces show gaps of 1.1 to 3.7 periods; energy moves
    slowly and is sent slowly. A leaf of known period holds after `LATE_PERIODS` of it, not before `hold_ms`.
    """

    GATE_EDGE = (250, 500)
    HEALTH = (2_000, 5_000)
    ENERGY = (10_000, 60_000)
    AMBIENT = (300_000, 300_000)

    @property
    def hold_ms(self) -> int:
        """Older than this: no new slice."""
        return self.value[0]

    @property
    def stale_ms(self) -> int:
        """Older than this: unknown."""
        return self.value[1]


class Leaf(msgspec.Struct, frozen=True):
    """What the agent expects of one VSS leaf: its kind and unit, its range or allowed values, and how it ages.

    A leaf that is not `needed` of every car is read only where the car's profile has it; then it is as binding.
    """

    kind: type[float | bool | str]
    unit: str
    staleness: Staleness
    minimum: float = -math.inf
    maximum: float = math.inf
    allowed: frozenset[str] = frozenset()
    needed: bool = False

    def judge(self, value: SignalValue) -> Quality:
        """How far a value that arrived as good may be believed."""
        if self.kind is float:
            return self._judge_number(value)
        if not isinstance(value, self.kind):
            return Quality.INVALID
        if value in {"UNKNOWN", "UNDEFINED"}:
            return Quality.UNKNOWN
        return Quality.INVALID if self.allowed and value not in self.allowed else Quality.GOOD

    def _judge_number(self, value: SignalValue) -> Quality:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return Quality.INVALID
        if math.isnan(value):
            return Quality.NOT_A_NUMBER
        return Quality.GOOD if self.minimum <= value <= self.maximum else Quality.OUT_OF_RANGE


_EDGE, _HEALTH, _ENERGY, _AMBIENT = Staleness.GATE_EDGE, Staleness.HEALTH, Staleness.ENERGY, Staleness.AMBIENT
_SEAT_STATES = frozenset({"EMPTY", "OCCUPIED"})

LEAVES: dict[str, Leaf] = {
    SPEED: Leaf(float, "km/h", _EDGE, -60, 500, needed=True),
    MOVING: Leaf(bool, "", _EDGE),
    GEAR: Leaf(float, "", _EDGE, -128, 127, needed=True),
    PARK_LOCK: Leaf(bool, "", _EDGE),
    BRAKE: Leaf(float, "%", _EDGE, 0, 100, needed=True),
    LOW_VOLTAGE_STATE: Leaf(str, "", _EDGE, allowed=frozenset({"LOCK", "OFF", "ACC", "ON", "START"}), needed=True),
    SEAT: Leaf(str, "", _EDGE, allowed=_SEAT_STATES, needed=True),
    PASSENGER_SEAT: Leaf(str, "", _EDGE, allowed=_SEAT_STATES),
    BELT: Leaf(bool, "", _EDGE),
    DRIVER_PRESENT: Leaf(bool, "", _EDGE, needed=True),
    DOOR_HANDLE: Leaf(bool, "", _EDGE, needed=True),
    **{door: Leaf(bool, "", _EDGE, needed=True) for door in DOORS},
    LOCK: Leaf(bool, "", _EDGE),
    TRUNK: Leaf(bool, "", _EDGE, needed=True),
    HOOD: Leaf(bool, "", _EDGE),
    CHARGE: Leaf(float, "%", _ENERGY, 0, 100, needed=True),
    CHARGE_DISPLAYED: Leaf(float, "%", _ENERGY, 0, 100),
    CABLE: Leaf(bool, "", _ENERGY, needed=True),
    CHARGING: Leaf(bool, "", _ENERGY),
    CHARGE_LIMIT: Leaf(float, "%", _ENERGY, 0, 100),
    CAPACITY: Leaf(float, "kWh", _ENERGY, 1, 1_000),
    TIMER_MODE: Leaf(str, "", _ENERGY, allowed=frozenset({"INACTIVE", "START_TIME", "END_TIME"})),
    TIMER_TIME: Leaf(str, "", _ENERGY),
    PACK_POWER: Leaf(float, "W", _ENERGY, -1_000_000, 1_000_000),
    PACK_TEMPERATURE: Leaf(float, "celsius", _ENERGY, -60, 120),
    **dict.fromkeys(CONTACTORS, Leaf(bool, "", _HEALTH)),
    LOW_VOLTAGE: Leaf(float, "V", _HEALTH, 0, 60),
    LOW_VOLTAGE_CURRENT: Leaf(float, "A", _HEALTH, -500, 500),
    AMBIENT: Leaf(float, "celsius", _AMBIENT, -60, 80),
    POWER_OPTIMIZE: Leaf(float, "", _ENERGY, 0, 10),
    **dict.fromkeys(OTHER_USERS, Leaf(bool, "", _ENERGY)),
    PAUSE_REQUESTED: Leaf(bool, "", _ENERGY),
}
"""The leaves that gates read. Sources may send more; `driveway signals` shows them all."""

NEVER_ABSENT = frozenset({SPEED, GEAR, DOORS[0], CHARGE})
"""No profile may say that a car lacks these."""

ANY_STALE_MS = Staleness.ENERGY.stale_ms
"""For leaves that no gate reads."""

_BATTERY = "Vehicle.Powertrain.TractionBattery"
ALIASES: dict[str, str] = {
    f"{_BATTERY}.Charging.IsChargingCableConnected": CABLE,  # VSS 4.x
    **{
        f"{_BATTERY}.Charging.ChargingPort.{position}.IsChargingCableConnected": CABLE  # VSS 5.1 and 6.0: one a port
        for position in ("FrontLeft", "FrontMiddle", "FrontRight", "RearLeft", "RearMiddle", "RearRight")
    },
    "Vehicle.Cabin.Seat.Row1.DriverSide.IsOccupied": SEAT,  # VSS 4.x and 5.x: a boolean
    "Vehicle.Cabin.Seat.Row1.PassengerSide.IsOccupied": PASSENGER_SEAT,
}
"""Names of the same leaf in other versions of VSS."""


def canonical(sample: Sample) -> Sample:
    """The sample under its name and values of VSS 6.0, and only as good as its leaf allows."""
    path = ALIASES.get(sample.path, sample.path)
    value, quality = sample.value, sample.quality
    if path != sample.path and isinstance(value, bool) and path in {SEAT, PASSENGER_SEAT}:
        value = "OCCUPIED" if value else "EMPTY"
    if quality is Quality.GOOD:
        leaf = LEAVES.get(path)
        quality = Quality.UNKNOWN if value is None else Quality.GOOD if leaf is None else leaf.judge(value)
    return Sample(path, value if quality is Quality.GOOD else None, quality, sample.group, sample.period_ms)


class Known(msgspec.Struct, frozen=True):
    """The last word on one leaf, when it reached this computer, and since when it says the same."""

    value: SignalValue | None
    quality: Quality
    source: str
    group: str
    period_ms: int
    at_ms: int
    since_ms: int


class Reading(msgspec.Struct, frozen=True):
    """A leaf as a gate may use it: `value` is set exactly when `problem` is empty.

    It is unknown from `expires_ms` on if nothing more is heard, and too old for new work from `holds_ms` on.
    """

    path: str
    value: SignalValue | None
    problem: str
    age_ms: int | None
    since_ms: int = 0
    holds_ms: int = 0
    expires_ms: int = 0


class SourceState(msgspec.Struct, frozen=True):
    """Whether a vehicle source is heard, and if not, why."""

    alive: bool
    detail: str
    since_ms: int


class Vehicle(msgspec.Struct, frozen=True):
    """Everything the sources said, newest word each.

    `offered` are the leaves that the car's profiles map or its broker lists; `absent` those which a profile says that
    this model does not have.
    """

    known: dict[str, Known] = {}
    sources: dict[str, SourceState] = {}
    heard: dict[str, int] = {}
    offered: frozenset[str] = frozenset()
    absent: frozenset[str] = frozenset()

    def reads(self, path: str) -> bool:
        """Whether gates look at this leaf on this car."""
        return path not in self.absent and (LEAVES[path].needed or path in self.offered)

    def seen(self, event: SignalsSeen) -> Vehicle:
        """The vehicle after these samples."""
        news = {}
        heard = dict(self.heard)
        for raw in event.samples:
            sample = canonical(raw)
            before = self.known.get(sample.path)
            same = before is not None and (before.value, before.quality) == (sample.value, sample.quality)
            since_ms = before.since_ms if same and before is not None else event.at_ms
            news[sample.path] = Known(
                value=sample.value,
                quality=sample.quality,
                source=event.source,
                group=sample.group,
                period_ms=sample.period_ms,
                at_ms=event.at_ms,
                since_ms=since_ms,
            )
            if sample.group:
                heard[_group(event.source, sample.group)] = event.at_ms
        return msgspec.structs.replace(self, known={**self.known, **news}, heard=heard)

    def repeated(self, event: SourceHeard) -> Vehicle:
        """The vehicle after a source said again what it had said."""
        news = {_group(event.source, group): event.at_ms for group in event.groups}
        return msgspec.structs.replace(self, heard={**self.heard, **news})

    def changed(self, event: SourceChanged) -> Vehicle:
        """The vehicle after a source came or went."""
        state = SourceState(event.alive, event.detail, event.at_ms)
        return msgspec.structs.replace(self, sources={**self.sources, event.source: state})

    def read(self, path: str, now_ms: int) -> Reading:
        """One leaf as it may be used at `now_ms`."""
        known = self.known.get(path)
        if known is None:
            return Reading(path, None, "missing", None)
        at_ms = known.at_ms
        if known.group:
            at_ms = max(at_ms, self.heard.get(_group(known.source, known.group), at_ms))
        age_ms = now_ms - at_ms
        source = self.sources.get(known.source)
        if source is not None and not source.alive:
            return Reading(path, None, "source_down", age_ms)
        leaf = LEAVES.get(path)
        stale_ms = ANY_STALE_MS if leaf is None else leaf.staleness.stale_ms
        if age_ms > stale_ms:
            return Reading(path, None, "stale", age_ms)
        if known.quality is not Quality.GOOD:
            return Reading(path, None, known.quality.value, age_ms)
        late_ms = LATE_PERIODS * (known.period_ms or DEFAULT_PERIOD_MS)
        holds_ms = stale_ms if leaf is None else min(stale_ms, max(late_ms, leaf.staleness.hold_ms))
        return Reading(path, known.value, "", age_ms, known.since_ms, at_ms + holds_ms + 1, at_ms + stale_ms + 1)


def _group(source: str, group: str) -> str:
    return f"{source}/{group}"


class Contradiction(msgspec.Struct, frozen=True):
    """Two leaves that cannot both be true. `told` decides on their values; both are known when it is asked."""

    first: str
    second: str
    told: Callable[[SignalValue, SignalValue], bool]


WALKING_KMH = 5.0
"""A wheel sensor may shiver by less than this in a parked car; faster, one of two signals is wrong."""
CONNECTED_W = 500.0
"""More than this does not flow through open contactors."""
DISPLAY_PERCENT = 25.0
"""The charge shown to the driver leaves out buffers, but not this much."""


def _number(value: SignalValue) -> float:
    return float(value)


DRIVING_CONTRADICTIONS = (
    Contradiction(GEAR, SPEED, lambda gear, speed: gear == GEAR_PARK and abs(_number(speed)) > WALKING_KMH),
    Contradiction(MOVING, SPEED, lambda moving, speed: moving is False and abs(_number(speed)) > WALKING_KMH),
    Contradiction(PARK_LOCK, GEAR, lambda engaged, gear: engaged is False and gear == GEAR_PARK),
)
ENERGY_CONTRADICTIONS = (
    Contradiction(CHARGING, CABLE, lambda charging, cable: charging is True and cable is False),
    Contradiction(CONTACTORS[0], PACK_POWER, lambda on, power: on is False and abs(_number(power)) > CONNECTED_W),
    Contradiction(CHARGE, CHARGE_DISPLAYED, lambda one, two: abs(_number(one) - _number(two)) > DISPLAY_PERCENT),
)
