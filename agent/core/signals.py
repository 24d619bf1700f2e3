"""The vehicle as the agent knows it: VSS leaves with value, age and quality. Unknown is unsafe.

A leaf is believed only while its last sample was good, is of the leaf's kind and within its range, and is young enough
for its class. Everything else is a `Reading` without a value and with the reason: never seen, stale, or what was wrong
with it. So a gate cannot mistake 'nobody told me' for 'no'. Two leaves that cannot both be true are a contradiction,
and a contradiction counts like the worse of the two. Where two sources tell of the same leaf, both must tell, and tell
the same: one that knows less does not silence the other. Age is counted from this computer's own receipt of the sample.

Leaves are named by COVESA VSS 6.0; names of VSS 4.x and 5.x are understood through `canonical`. `Vehicle.Driveway.*`
is our overlay for what VSS lacks.
"""

from __future__ import annotations

import enum
import math

import msgspec

from agent.core.events import LeavesOffered, Quality, Sample, SignalsSeen, SignalValue, SourceChanged, SourceHeard

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

    def __init__(self, hold_ms: int, stale_ms: int) -> None:
        """Older than `hold_ms`: no new slice. Older than `stale_ms`: unknown."""
        self.hold_ms = hold_ms
        self.stale_ms = stale_ms


class Leaf(msgspec.Struct, frozen=True):
    """What the agent expects of one VSS leaf: its kind and unit, its range or allowed values, and how it ages.

    A leaf that is not `needed` of every car is read only where the car's profile has it; then it is as binding. Two
    sources of one number, which round and send as they like, may differ by `tolerance`; the worse of the two counts.
    """

    kind: type[float | bool | str]
    unit: str
    staleness: Staleness
    minimum: float = -math.inf
    maximum: float = math.inf
    allowed: frozenset[str] = frozenset()
    needed: bool = False
    tolerance: float = 0.0
    low_is_worse: bool = False

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

    def agreed(self, values: list[SignalValue]) -> SignalValue | None:
        """What several sources say together: the worst of their values, None where they contradict each other."""
        if len(set(values)) == 1:
            return values[0]
        if self.kind is not float or max(values) - min(values) > self.tolerance:  # type: ignore[operator]
            return None
        return min(values) if self.low_is_worse else max(values, key=abs)  # type: ignore[arg-type]


_EDGE, _HEALTH, _ENERGY, _AMBIENT = Staleness.GATE_EDGE, Staleness.HEALTH, Staleness.ENERGY, Staleness.AMBIENT
_SEAT_STATES = frozenset({"EMPTY", "OCCUPIED"})

LEAVES: dict[str, Leaf] = {
    SPEED: Leaf(float, "km/h", _EDGE, -60, 500, needed=True, tolerance=1),
    MOVING: Leaf(bool, "", _EDGE),
    GEAR: Leaf(float, "", _EDGE, -128, 127, needed=True),
    PARK_LOCK: Leaf(bool, "", _EDGE),
    BRAKE: Leaf(float, "%", _EDGE, 0, 100, needed=True, tolerance=5),
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
    CHARGE: Leaf(float, "%", _ENERGY, 0, 100, needed=True, tolerance=2, low_is_worse=True),
    CHARGE_DISPLAYED: Leaf(float, "%", _ENERGY, 0, 100, tolerance=2),
    CABLE: Leaf(bool, "", _ENERGY, needed=True),
    CHARGING: Leaf(bool, "", _ENERGY),
    CHARGE_LIMIT: Leaf(float, "%", _ENERGY, 0, 100, tolerance=1),
    CAPACITY: Leaf(float, "kWh", _ENERGY, 1, 1_000, tolerance=5),
    TIMER_MODE: Leaf(str, "", _ENERGY, allowed=frozenset({"INACTIVE", "START_TIME", "END_TIME"})),
    TIMER_TIME: Leaf(str, "", _ENERGY),
    PACK_POWER: Leaf(float, "W", _ENERGY, -1_000_000, 1_000_000, tolerance=1_000, low_is_worse=True),
    PACK_TEMPERATURE: Leaf(float, "celsius", _ENERGY, -60, 120, tolerance=3),
    **dict.fromkeys(CONTACTORS, Leaf(bool, "", _HEALTH)),
    LOW_VOLTAGE: Leaf(float, "V", _HEALTH, 0, 60, tolerance=0.5, low_is_worse=True),
    LOW_VOLTAGE_CURRENT: Leaf(float, "A", _HEALTH, -500, 500, tolerance=5, low_is_worse=True),
    AMBIENT: Leaf(float, "celsius", _AMBIENT, -60, 80, tolerance=3),
    POWER_OPTIMIZE: Leaf(float, "", _ENERGY, 0, 10),
    **dict.fromkeys(OTHER_USERS, Leaf(bool, "", _ENERGY)),
    PAUSE_REQUESTED: Leaf(bool, "", _ENERGY),
}
"""The leaves that gates read. Sources may send more; `driveway signals` shows them all."""

NEVER_ABSENT = frozenset({SPEED, GEAR, DOORS[0], CHARGE})
"""No profile may say that a car lacks these."""

ANY_STALE_MS = Staleness.ENERGY.stale_ms
"""For leaves that no gate reads."""
_ANY_LEAF = Leaf(str, "", _ENERGY)

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
    """The last word on one leaf, when it reached this computer, and since when it says the same.

    `key` is where `Vehicle.heard` has the time at which its group was last heard; empty without a group. Older than
    `hold_ms` it is too old for new work, older than `stale_ms` it is unknown.
    """

    value: SignalValue | None
    quality: Quality
    source: str
    group: str
    period_ms: int
    at_ms: int
    since_ms: int
    key: str
    hold_ms: int
    stale_ms: int


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
    at_ms: int = 0
    """When it was last heard."""
    key: str = ""
    """What in `Vehicle.heard` makes it young again; empty where only a new word does."""


class SourceState(msgspec.Struct, frozen=True):
    """Whether a vehicle source is heard, and if not, why."""

    alive: bool
    detail: str
    since_ms: int


class Vehicle(msgspec.Struct, frozen=True):
    """Everything the sources said, newest word each.

    `offered` are the leaves that the car's profiles map or its broker lists; `absent` those which a profile says that
    this model does not have. `witnesses` has, by source, the newest words on a leaf of which several tell; on the
    others `known`, the newest word at all, is the only one.
    """

    known: dict[str, Known] = {}
    witnesses: dict[str, dict[str, Known]] = {}
    sources: dict[str, SourceState] = {}
    heard: dict[str, int] = {}
    offered: frozenset[str] = frozenset()
    absent: frozenset[str] = frozenset()

    def reads(self, path: str) -> bool:
        """Whether gates look at this leaf on this car."""
        return path not in self.absent and (LEAVES[path].needed or path in self.offered)

    def says_as(self, before: Vehicle) -> bool:
        """Whether no source has said anything new since; that they were heard again is nothing new."""
        return (
            self.known is before.known
            and self.sources is before.sources
            and self.offered is before.offered
            and self.absent is before.absent
        )

    def seen(self, event: SignalsSeen) -> Vehicle:
        """The vehicle after these samples."""
        news = {}
        heard, witnesses = dict(self.heard), self.witnesses
        for raw in event.samples:
            sample = canonical(raw)
            newest = self.known.get(sample.path)
            told = witnesses.get(sample.path, {} if newest is None else {newest.source: newest})
            before = told.get(event.source)
            same = before is not None and (before.value, before.quality) == (sample.value, sample.quality)
            since_ms = before.since_ms if same and before is not None else event.at_ms
            key = _group(event.source, sample.group) if sample.group else ""
            hold_ms, stale_ms = _ages_ms(sample)
            news[sample.path] = Known(
                value=sample.value,
                quality=sample.quality,
                source=event.source,
                group=sample.group,
                period_ms=sample.period_ms,
                at_ms=event.at_ms,
                since_ms=since_ms,
                key=key,
                hold_ms=hold_ms,
                stale_ms=stale_ms,
            )
            if key:
                heard[key] = event.at_ms
            if len(told) > (event.source in told):
                witnesses = {**witnesses, sample.path: {**told, event.source: news[sample.path]}}
        return msgspec.structs.replace(self, known={**self.known, **news}, witnesses=witnesses, heard=heard)

    def repeated(self, event: SourceHeard) -> Vehicle:
        """The vehicle after a source said again what it had said."""
        news = {_group(event.source, group): event.at_ms for group in event.groups}
        return msgspec.structs.replace(self, heard={**self.heard, **news})

    def changed(self, event: SourceChanged) -> Vehicle:
        """The vehicle after a source came or went."""
        state = SourceState(event.alive, event.detail, event.at_ms)
        return msgspec.structs.replace(self, sources={**self.sources, event.source: state})

    def offers(self, event: LeavesOffered) -> Vehicle:
        """The vehicle after a source said which leaves it has.

        What was offered once stays binding: a leaf that a restarted source no longer lists grows stale, and that shuts
        the gate. What one source has is not absent because another knows nothing of it, in whatever order they say so.
        """
        offered = self.offered | frozenset(event.paths)
        absent = (self.absent | frozenset(event.absent)) - offered
        return msgspec.structs.replace(self, offered=offered, absent=absent)

    def word(self, path: str) -> SignalValue | None:
        """What was said last of a leaf, however long ago; None where it was nothing good, or not the same by all."""
        told = self.witnesses.get(path)
        if told is None:
            known = self.known.get(path)
            return None if known is None else known.value
        values = [known.value for known in told.values() if known.value is not None]
        return _leaf(path).agreed(values) if len(values) == len(told) else None

    def read(self, path: str, now_ms: int, source: str = "") -> Reading:
        """One leaf as it may be used at `now_ms`; as all its sources tell it together, or as one of them does."""
        known = self.known.get(path)
        if known is None:
            return Reading(path, None, "missing", None)
        if path in self.witnesses:
            if not source:
                return self._agreed(path, now_ms)
            known = self.witnesses[path][source]
        at_ms = known.at_ms
        heard_ms = self.heard.get(known.key, at_ms) if known.key else at_ms
        if heard_ms > at_ms:  # noqa: PLR1730 - half of what a look costs is in here, and calls cost
            at_ms = heard_ms
        age_ms = now_ms - at_ms
        state = self.sources.get(known.source)
        if state is not None and not state.alive:
            return Reading(path, None, "source_down", age_ms)
        if age_ms > known.stale_ms:
            return Reading(path, None, "stale", age_ms)
        if known.quality is not Quality.GOOD:
            return Reading(path, None, known.quality.value, age_ms)
        holds_ms, expires_ms = at_ms + known.hold_ms + 1, at_ms + known.stale_ms + 1
        return Reading(path, known.value, "", age_ms, known.since_ms, holds_ms, expires_ms, at_ms, known.key)

    def _agreed(self, path: str, now_ms: int) -> Reading:
        """A leaf of which several sources tell: each of them must, and the same."""
        readings = [self.read(path, now_ms, source) for source in self.witnesses[path]]
        for reading in readings:
            if reading.problem:
                return reading
        value = _leaf(path).agreed([reading.value for reading in readings if reading.value is not None])
        at_ms = min(reading.at_ms for reading in readings)
        return Reading(
            path,
            value,
            "contradictory" if value is None else "",
            now_ms - at_ms,
            max(reading.since_ms for reading in readings),
            min(reading.holds_ms for reading in readings),
            min(reading.expires_ms for reading in readings),
            at_ms,
        )


def _ages_ms(sample: Sample) -> tuple[int, int]:
    """How old a word may be: for new work, and at all."""
    leaf = LEAVES.get(sample.path)
    if leaf is None:
        return ANY_STALE_MS, ANY_STALE_MS
    late_ms, stale_ms = LATE_PERIODS * (sample.period_ms or DEFAULT_PERIOD_MS), leaf.staleness.stale_ms
    return min(stale_ms, max(late_ms, leaf.staleness.hold_ms)), stale_ms


def _leaf(path: str) -> Leaf:
    """What is expected of a leaf; of one that no gate reads, that its sources agree to the letter."""
    return LEAVES.get(path, _ANY_LEAF)


def _group(source: str, group: str) -> str:
    return f"{source}/{group}"
