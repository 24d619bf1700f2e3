"""Round trip: the car's state -> frames -> the agent's decoder -> VSS."""

from __future__ import annotations

from functools import cache

import can
import msgspec
import pytest

from agent.core.events import Quality, SignalValue
from agent.core.signals import LEAVES
from agent.vehicle.decoder import Decoder, Frame
from agent.vehicle.profile import load_profile
from agent.vehicle.source import build_decoder
from hil.car.body import DRIVING, PARKED, Action, Body, Door, Gear, act
from hil.car.frames import RECIPES, Encoder, View, encoders
from hil.car.plant import PlantInputs, PlantParameters, initial_state, step
from hil.car.power_state import PowerState
from hil.car.transmitter import Transmitter

BATTERY = "Vehicle.Powertrain.TractionBattery"
GEAR = "Vehicle.Powertrain.Transmission.SelectedGear"
LOW_VOLTAGE_STATE = "Vehicle.LowVoltageSystemState"
PARAMETERS = PlantParameters()


@cache
def car_encoders() -> dict[str, tuple[Encoder, ...]]:
    return encoders()


def decoders() -> dict[str, Decoder]:
    profiles = [load_profile("tesla-model3"), load_profile("driveway-energy")]
    return {bus: build_decoder(bus, profiles) for bus in RECIPES}


def view(body: Body, *, charger_w: float = 11_000.0, ambient_c: float = 21.5) -> View:
    inputs = PlantInputs(
        ambient_c=ambient_c,
        charger_w=charger_w if body.plugged_in else 0.0,
        utilisation=0.5,
        awake=body.power_state is not PowerState.OFF,
        speed_kmh=body.speed_kmh,
    )
    plant = step(initial_state(PARAMETERS, 62.34, ambient_c), inputs, 0.0, PARAMETERS)
    return View(body=body, plant=plant, parameters=PARAMETERS, ambient_c=ambient_c)


def heard(seen: View) -> dict[str, SignalValue]:
    """Every leaf that the agent gets from one round of all messages; all of them must be good."""
    leaves: dict[str, SignalValue] = {}
    for bus, decoder in decoders().items():
        for count, encoder in enumerate(car_encoders()[bus]):
            message = encoder.frame(encoder.payload(seen), count)
            frame = Frame(message.arbitration_id, bytes(message.data), message.is_extended_id)
            said = decoder.decode(frame)
            for sample in () if said is None else said.samples:
                assert sample.quality is Quality.GOOD, sample
                assert sample.value is not None
                leaves[sample.path] = sample.value
        assert set(decoder.dropped) <= {"foreign"}, "every frame of ours has the right checksum and length"
    return leaves


def test_a_parked_car_that_charges_looks_parked_awake_and_fed() -> None:
    leaves = heard(view(PARKED))
    assert {path for path, leaf in LEAVES.items() if leaf.needed} <= set(leaves)
    numbers = {path: value for path, value in leaves.items() if type(value) is float}
    assert {path: value for path, value in leaves.items() if path not in numbers} == {
        LOW_VOLTAGE_STATE: "LOCK",
        "Vehicle.Cabin.Door.Row1.DriverSide.IsOpen": False,
        "Vehicle.Cabin.Door.Row1.PassengerSide.IsOpen": False,
        "Vehicle.Cabin.Door.Row2.DriverSide.IsOpen": False,
        "Vehicle.Cabin.Door.Row2.PassengerSide.IsOpen": False,
        "Vehicle.Body.Trunk.Rear.IsOpen": False,
        "Vehicle.Driveway.DoorHandlePulled": False,
        "Vehicle.Driveway.DriverPresent": False,
        "Vehicle.IsMoving": False,
        "Vehicle.Cabin.Seat.Row1.DriverSide.IsBelted": False,
        "Vehicle.Cabin.Seat.Row1.DriverSide.OccupancyStatus": "EMPTY",
        f"{BATTERY}.Charging.ChargingPort.AnyPosition.IsChargingCableConnected": True,
        f"{BATTERY}.Charging.IsCharging": True,
        f"{BATTERY}.IsPowerConnected": True,
        f"{BATTERY}.IsGroundConnected": True,
    }
    plant = view(PARKED).plant
    assert numbers == pytest.approx(
        {
            GEAR: 126.0,
            "Vehicle.Speed": 0.0,
            "Vehicle.Chassis.Brake.PedalPosition": 0.0,
            f"{BATTERY}.StateOfCharge.Current": 62.34,
            f"{BATTERY}.CurrentPower": plant.pack_w,
            f"{BATTERY}.Temperature.Average": 21.5,
            f"{BATTERY}.Charging.ChargeLimit": 80.0,
            "Vehicle.LowVoltageBattery.CurrentVoltage": 13.59,
            "Vehicle.LowVoltageBattery.CurrentCurrent": 0.44,
            "Vehicle.Exterior.AirTemperature": 21.5,
        },
        abs=0.6,
    )


def test_a_driving_car_looks_driven() -> None:
    leaves = heard(view(DRIVING))
    assert leaves[GEAR] == 127.0
    assert leaves["Vehicle.Speed"] == pytest.approx(50.0, abs=0.08)
    assert leaves[LOW_VOLTAGE_STATE] == "ON"
    assert leaves["Vehicle.Cabin.Seat.Row1.DriverSide.OccupancyStatus"] == "OCCUPIED"
    assert leaves["Vehicle.Driveway.DriverPresent"] is True
    assert leaves["Vehicle.IsMoving"] is True
    assert leaves["Vehicle.Cabin.Seat.Row1.DriverSide.IsBelted"] is True
    assert leaves[f"{BATTERY}.Charging.ChargingPort.AnyPosition.IsChargingCableConnected"] is False


@pytest.mark.parametrize(
    ("gear", "value"), [(Gear.PARK, 126.0), (Gear.REVERSE, -1.0), (Gear.NEUTRAL, 0.0), (Gear.DRIVE, 127.0)]
)
def test_every_gear(gear: Gear, value: float) -> None:
    assert heard(view(msgspec.structs.replace(PARKED, gear=gear)))[GEAR] == value


@pytest.mark.parametrize(
    ("state", "value"),
    [
        (PowerState.OFF, "OFF"),
        (PowerState.CONDITIONING, "LOCK"),
        (PowerState.ACCESSORY, "ACC"),
        (PowerState.DRIVE, "ON"),
    ],
)
def test_every_power_state_and_with_it_the_contactors(state: PowerState, value: str) -> None:
    leaves = heard(view(msgspec.structs.replace(PARKED, power_state=state)))
    assert leaves[LOW_VOLTAGE_STATE] == value
    awake = state is not PowerState.OFF
    assert leaves[f"{BATTERY}.IsPowerConnected"] is leaves[f"{BATTERY}.IsGroundConnected"] is awake


@pytest.mark.parametrize(
    ("door", "path"),
    [
        (Door.ROW1_DRIVER, "Vehicle.Cabin.Door.Row1.DriverSide.IsOpen"),
        (Door.ROW1_PASSENGER, "Vehicle.Cabin.Door.Row1.PassengerSide.IsOpen"),
        (Door.ROW2_DRIVER, "Vehicle.Cabin.Door.Row2.DriverSide.IsOpen"),
        (Door.ROW2_PASSENGER, "Vehicle.Cabin.Door.Row2.PassengerSide.IsOpen"),
        (Door.TRUNK, "Vehicle.Body.Trunk.Rear.IsOpen"),
    ],
)
def test_every_door_and_only_that_one(door: Door, path: str) -> None:
    leaves = heard(view(act(PARKED, Action.OPEN_DOOR, door=door)))
    assert [name for name, value in leaves.items() if name.endswith("IsOpen") and value is True] == [path]


def test_the_brake_and_the_handle_show() -> None:
    assert heard(view(act(PARKED, Action.BRAKE)))["Vehicle.Chassis.Brake.PedalPosition"] == 100.0
    assert heard(view(act(PARKED, Action.PULL_HANDLE)))["Vehicle.Driveway.DoorHandlePulled"] is True


class Wire(can.BusABC):
    """A bus that keeps what was sent on it."""

    def __init__(self) -> None:
        super().__init__(channel="wire")
        self.sent: list[can.Message] = []

    def send(self, msg: can.Message, timeout: float | None = None) -> None:
        self.sent.append(msg)


class ManualClock:
    """A clock that only the test moves."""

    now_ms = 0

    def boot_ms(self) -> int:
        return self.now_ms

    def wall_ms(self) -> int:
        return 0


def test_a_change_is_sent_at_once_and_only_what_changed() -> None:
    clock, wire = ManualClock(), Wire()
    with wire:
        transmitter = Transmitter({"vehicle": wire}, car_encoders(), clock)
        transmitter.send_due(view(PARKED))
        assert transmitter.send_changes(view(PARKED)) is None
        wire.sent.clear()
        clock.now_ms = 7
        assert transmitter.send_changes(view(act(PARKED, Action.OPEN_DOOR))) == 7
        assert [message.arbitration_id for message in wire.sent] == [0x102]


def test_messages_keep_their_periods_and_their_counters_count() -> None:
    clock, wire = ManualClock(), Wire()
    with wire:
        transmitter = Transmitter({"party": wire}, car_encoders(), clock)
        for clock.now_ms in range(0, 1_000, 10):
            transmitter.send_due(view(PARKED))
    gears = [message for message in wire.sent if message.arbitration_id == 0x118]
    powers = [message for message in wire.sent if message.arbitration_id == 0x221]
    assert len(gears) == 50
    assert [message.data[1] & 0xF for message in gears] == [index % 16 for index in range(50)]
    assert [message.data[6] >> 4 for message in powers] == [index % 16 for index in range(20)], "two pages, one counter"
