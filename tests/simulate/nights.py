"""Nights for the tests: a car parked at home, and what happens to it, as the text of a trace."""

from __future__ import annotations

from agent.core.effects import EffectType
from agent.core.events import EventType
from agent.core.policy import Policy
from agent.core.state import State
from agent.core.walltime import UTC, Zone
from agent.simulate.counterpart import Supposed
from agent.simulate.rehearsal import Rehearsal
from agent.simulate.table import parse_table

BATTERY = "Vehicle.Powertrain.TractionBattery"
HANDLE = "Vehicle.Driveway.DoorHandlePulled"
DOOR = "Vehicle.Cabin.Door.Row1.DriverSide.IsOpen"
SPEED = "Vehicle.Speed"
PARKED = {
    SPEED: "0",
    "Vehicle.Powertrain.Transmission.SelectedGear": "P",
    "Vehicle.Chassis.Brake.PedalPosition": "0",
    "Vehicle.LowVoltageSystemState": "LOCK",
    "Vehicle.Cabin.Seat.Row1.DriverSide.OccupancyStatus": "EMPTY",
    "Vehicle.Driveway.DriverPresent": "false",
    HANDLE: "false",
    DOOR: "false",
    "Vehicle.Cabin.Door.Row1.PassengerSide.IsOpen": "false",
    "Vehicle.Cabin.Door.Row2.DriverSide.IsOpen": "false",
    "Vehicle.Cabin.Door.Row2.PassengerSide.IsOpen": "false",
    "Vehicle.Body.Trunk.Rear.IsOpen": "false",
    f"{BATTERY}.StateOfCharge.Current": "80",
    f"{BATTERY}.Charging.ChargingPort.AnyPosition.IsChargingCableConnected": "true",
}
"""Every leaf that each car must have, of one that may work."""

POLICY = Policy(parked_for_s=10)
SUPPOSED = Supposed(slice_s=1.0, load_s=2.0)

Row = tuple[float, str, str]
Step = tuple[State, EventType, State, tuple[EffectType, ...]]


def parked(*rows: Row, end_s: float = 300) -> str:
    """A car that stands parked from second 0 on, with these rows besides, until `end_s`."""
    begin = [(0.0, name, value) for name, value in PARKED.items()]
    every = sorted([*begin, *rows, (end_s, "ambient_c", "20")], key=lambda row: row[0])
    return "time,name,value\n" + "".join(f"{time},{name},{value}\n" for time, name, value in every)


def rehearse(
    text: str,
    policy: Policy = POLICY,
    *,
    zone: Zone = UTC,
    start_wall_ms: int | None = None,
    supposed: Supposed = SUPPOSED,
    extra_tick_ms: int | None = None,
) -> tuple[Rehearsal, list[Step]]:
    """Play a trace; the rehearsal after it, and every step."""
    steps: list[Step] = []

    def watch(before: State, event: EventType, after: State, effects: tuple[EffectType, ...]) -> None:
        steps.append((before, event, after, effects))

    rehearsal = Rehearsal(parse_table(text, "test", start_wall_ms), policy, zone, supposed, watch)
    rehearsal.run(extra_tick_ms)
    return rehearsal, steps
