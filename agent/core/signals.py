"""The vehicle as the agent knows it: VSS leaves with value, age and quality. Unknown is unsafe.

A leaf is believed only while its last sample was good and is young enough for its class. Everything else is a
`Reading` without a value and with the reason: never seen, stale, or what the source said was wrong with it. So a
gate cannot mistake 'nobody told me' for 'no'. Age is counted from this computer's own receipt of the sample.

Leaves are named by COVESA VSS 6.0; `Vehicle.Driveway.*` is our overlay for what VSS lacks.
"""

from __future__ import annotations

import msgspec

from agent.core.events import Quality, SignalsSeen, SignalValue, SourceChanged

SPEED = "Vehicle.Speed"
GEAR = "Vehicle.Powertrain.Transmission.SelectedGear"
BRAKE = "Vehicle.Chassis.Brake.PedalPosition"
LOW_VOLTAGE_STATE = "Vehicle.LowVoltageSystemState"
SEAT = "Vehicle.Cabin.Seat.Row1.DriverSide.OccupancyStatus"
DRIVER_PRESENT = "Vehicle.Driveway.DriverPresent"
DOOR_HANDLE = "Vehicle.Driveway.DoorHandlePulled"
DOORS = tuple(f"Vehicle.Cabin.Door.Row{row}.{side}Side.IsOpen" for row in (1, 2) for side in ("Driver", "Passenger"))
TRUNK = "Vehicle.Body.Trunk.Rear.IsOpen"
CHARGE = "Vehicle.Powertrain.TractionBattery.StateOfCharge.Current"
CABLE = "Vehicle.Powertrain.TractionBattery.Charging.ChargingPort.AnyPosition.IsChargingCableConnected"

GEAR_PARK = 126

GATE_EDGE_STALE_MS = 500
"""Gear, speed, doors, seat, brake, power state: a driver may hide behind a signal older than this."""
ENERGY_STALE_MS = 60_000
"""Charge and cable move slowly, and are sent slowly."""


class Leaf(msgspec.Struct, frozen=True):
    """What the agent expects of one VSS leaf: its kind and unit, and how old it may be and still count."""

    kind: type[SignalValue] | None
    unit: str
    stale_ms: int

    def holds(self, value: SignalValue) -> bool:
        """Whether a value is of the leaf's kind; a text where a number belongs is no value at all."""
        if self.kind is float:
            return isinstance(value, int | float) and not isinstance(value, bool)
        return self.kind is None or isinstance(value, self.kind)


LEAVES: dict[str, Leaf] = {
    SPEED: Leaf(float, "km/h", GATE_EDGE_STALE_MS),
    GEAR: Leaf(float, "", GATE_EDGE_STALE_MS),
    BRAKE: Leaf(float, "%", GATE_EDGE_STALE_MS),
    LOW_VOLTAGE_STATE: Leaf(str, "", GATE_EDGE_STALE_MS),
    SEAT: Leaf(str, "", GATE_EDGE_STALE_MS),
    DRIVER_PRESENT: Leaf(bool, "", GATE_EDGE_STALE_MS),
    DOOR_HANDLE: Leaf(bool, "", GATE_EDGE_STALE_MS),
    **{door: Leaf(bool, "", GATE_EDGE_STALE_MS) for door in DOORS},
    TRUNK: Leaf(bool, "", GATE_EDGE_STALE_MS),
    CHARGE: Leaf(float, "%", ENERGY_STALE_MS),
    CABLE: Leaf(bool, "", ENERGY_STALE_MS),
}
"""The leaves that gates read. Sources may send more; `driveway signals` shows them all."""

DEFAULT_LEAF = Leaf(None, "", ENERGY_STALE_MS)


DISPLAY_UNITS = {
    "Vehicle.Exterior.AirTemperature": "celsius",
    "Vehicle.LowVoltageBattery.CurrentVoltage": "V",
    "Vehicle.LowVoltageBattery.CurrentCurrent": "A",
    "Vehicle.Powertrain.TractionBattery.CurrentPower": "W",
    "Vehicle.Powertrain.TractionBattery.Temperature.Average": "celsius",
    "Vehicle.Powertrain.TractionBattery.Charging.ChargeLimit": "%",
}
"""Units of leaves that no gate reads, for those who look at them."""


class Known(msgspec.Struct, frozen=True):
    """The last word on one leaf, and when it reached this computer."""

    value: SignalValue | None
    quality: Quality
    source: str
    at_ms: int


class Reading(msgspec.Struct, frozen=True):
    """A leaf as a gate may use it: `value` is set exactly when `problem` is empty."""

    path: str
    value: SignalValue | None
    problem: str
    age_ms: int | None


class SourceState(msgspec.Struct, frozen=True):
    """Whether a vehicle source is heard, and if not, why."""

    alive: bool
    detail: str
    since_ms: int


class Vehicle(msgspec.Struct, frozen=True):
    """Everything the sources said, newest word each."""

    known: dict[str, Known] = {}
    sources: dict[str, SourceState] = {}

    def seen(self, event: SignalsSeen) -> Vehicle:
        """The vehicle after these samples."""
        news = {sample.path: Known(sample.value, sample.quality, event.source, event.at_ms) for sample in event.samples}
        return msgspec.structs.replace(self, known={**self.known, **news})

    def changed(self, event: SourceChanged) -> Vehicle:
        """The vehicle after a source came or went."""
        state = SourceState(event.alive, event.detail, event.at_ms)
        return msgspec.structs.replace(self, sources={**self.sources, event.source: state})

    def read(self, path: str, now_ms: int) -> Reading:
        """One leaf as it may be used at `now_ms`."""
        known = self.known.get(path)
        if known is None:
            return Reading(path, None, "missing", None)
        age_ms = now_ms - known.at_ms
        source = self.sources.get(known.source)
        if source is not None and not source.alive:
            return Reading(path, None, "source_down", age_ms)
        leaf = LEAVES.get(path, DEFAULT_LEAF)
        if age_ms > leaf.stale_ms:
            return Reading(path, None, "stale", age_ms)
        if known.quality is not Quality.GOOD or known.value is None:
            problem = known.quality.value if known.quality is not Quality.GOOD else Quality.UNKNOWN.value
            return Reading(path, None, problem, age_ms)
        if not leaf.holds(known.value):
            return Reading(path, None, Quality.INVALID.value, age_ms)
        return Reading(path, known.value, "", age_ms)
