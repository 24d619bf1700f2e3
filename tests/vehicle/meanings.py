"""What every raw value of every mapped signal must come out as: the profiles' meaning, written down a second time."""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

from agent.core.events import Quality, SignalValue

Meaning = TypeVar("Meaning")


class Case(NamedTuple, Generic[Meaning]):
    """One mapped signal, and what each raw value must come out as."""

    bus: str
    message: str
    signal: str
    path: str
    table: dict[int, Meaning]


SNA, FAULT, INVALID = Quality.NOT_AVAILABLE, Quality.FAULT, Quality.INVALID
BATTERY = "Vehicle.Powertrain.TractionBattery"
GEAR = "Vehicle.Powertrain.Transmission.SelectedGear"
CLOSED, OPEN, MOVING_OR_AJAR = 2, 1, (3, 4, 5)
LATCH: dict[int, SignalValue] = {
    CLOSED: False,
    OPEN: True,
    0: SNA,
    6: SNA,
    7: INVALID,
    8: FAULT,
    9: INVALID,
    15: INVALID,
}
LATCH |= dict.fromkeys(MOVING_OR_AJAR, True)

# Every mapped choice: bus, message, signal, VSS path, raw value -> VSS value, or what is wrong.
CHOICES: list[Case[SignalValue]] = [
    Case(
        "party",
        "DI_systemStatus",
        "DI_gear",
        "Vehicle.Powertrain.Transmission.SelectedGear",
        {0: INVALID, 1: 126.0, 2: -1.0, 3: 0.0, 4: 127.0, 5: INVALID, 6: INVALID, 7: SNA},
    ),
    Case(
        "party",
        "ESP_status",
        "ESP_driverBrakeApply",
        "Vehicle.Chassis.Brake.PedalPosition",
        {0: SNA, 1: 0.0, 2: 100.0, 3: FAULT},
    ),
    Case(
        "party",
        "VCFRONT_LVPowerState",
        "VCFRONT_vehiclePowerState",
        "Vehicle.LowVoltageSystemState",
        {0: "OFF", 1: "LOCK", 2: "ACC", 3: "ON"},
    ),
    Case("party", "ESP_B", "ESP_vehicleStandstillSts", "Vehicle.IsMoving", {0: True, 1: False}),
    Case(
        "vehicle",
        "VCLEFT_switchStatus",
        "VCLEFT_frontBuckleSwitch",
        "Vehicle.Cabin.Seat.Row1.DriverSide.IsBelted",
        {0: SNA, 1: False, 2: True, 3: FAULT},
    ),
    Case("vehicle", "VCLEFT_doorStatus", "VCLEFT_frontLatchStatus", "Vehicle.Cabin.Door.Row1.DriverSide.IsOpen", LATCH),
    Case("vehicle", "VCLEFT_doorStatus", "VCLEFT_rearLatchStatus", "Vehicle.Cabin.Door.Row2.DriverSide.IsOpen", LATCH),
    Case(
        "vehicle",
        "VCLEFT_doorStatus",
        "VCLEFT_frontHandlePulled",
        "Vehicle.Driveway.DoorHandlePulled",
        {0: False, 1: True},
    ),
    Case(
        "vehicle",
        "VCRIGHT_doorStatus",
        "VCRIGHT_frontLatchStatus",
        "Vehicle.Cabin.Door.Row1.PassengerSide.IsOpen",
        LATCH,
    ),
    Case(
        "vehicle",
        "VCRIGHT_doorStatus",
        "VCRIGHT_rearLatchStatus",
        "Vehicle.Cabin.Door.Row2.PassengerSide.IsOpen",
        LATCH,
    ),
    Case("vehicle", "VCRIGHT_doorStatus", "VCRIGHT_trunkLatchStatus", "Vehicle.Body.Trunk.Rear.IsOpen", LATCH),
    Case(
        "vehicle",
        "VCLEFT_switchStatus",
        "VCLEFT_driverPresent",
        "Vehicle.Driveway.DriverPresent",
        {0: False, 1: True},
    ),
    Case(
        "vehicle",
        "VCLEFT_switchStatus",
        "VCLEFT_frontOccupancySwitch",
        "Vehicle.Cabin.Seat.Row1.DriverSide.OccupancyStatus",
        {0: SNA, 1: "EMPTY", 2: "OCCUPIED", 3: FAULT},
    ),
    Case(
        "energy",
        "DW_chargeStatus",
        "DW_cableState",
        f"{BATTERY}.Charging.ChargingPort.AnyPosition.IsChargingCableConnected",
        {0: False, 1: True, 2: FAULT, 3: SNA},
    ),
    Case(
        "energy",
        "DW_chargeStatus",
        "DW_chargingState",
        f"{BATTERY}.Charging.IsCharging",
        {0: False, 1: True, 2: FAULT, 3: SNA},
    ),
    Case(
        "energy",
        "DW_chargeStatus",
        "DW_contactorPositive",
        f"{BATTERY}.IsPowerConnected",
        {0: False, 1: True, 2: FAULT, 3: SNA},
    ),
    Case(
        "energy",
        "DW_chargeStatus",
        "DW_contactorNegative",
        f"{BATTERY}.IsGroundConnected",
        {0: False, 1: True, 2: FAULT, 3: SNA},
    ),
]

# Every mapped number: bus, message, signal, VSS path, raw value -> VSS value, or what is wrong with it.
NUMBERS: list[Case[float | Quality]] = [
    Case(
        "party",
        "DI_speed",
        "DI_vehicleSpeed",
        "Vehicle.Speed",
        {500: 0.0, 501: 0.08, 1125: 50.0, 0: Quality.OUT_OF_RANGE, 4094: Quality.OUT_OF_RANGE, 4095: SNA},
    ),
    Case(
        "energy",
        "DW_batteryStatus",
        "DW_stateOfCharge",
        f"{BATTERY}.StateOfCharge.Current",
        {0: 0.0, 6234: 62.34, 10000: 100.0, 10001: Quality.OUT_OF_RANGE, 16383: SNA},
    ),
    Case(
        "energy",
        "DW_batteryStatus",
        "DW_packPower",
        f"{BATTERY}.CurrentPower",
        {0: 0.0, -250: -250.0, 9882: 9882.0, 524287: Quality.OUT_OF_RANGE, -524288: SNA},
    ),
    Case(
        "energy",
        "DW_batteryStatus",
        "DW_packTemperature",
        f"{BATTERY}.Temperature.Average",
        {0: 0.0, -105: -10.5, 251: 25.1, 1300: Quality.OUT_OF_RANGE, -2048: SNA},
    ),
    Case(
        "energy",
        "DW_chargeStatus",
        "DW_chargeLimit",
        f"{BATTERY}.Charging.ChargeLimit",
        {0: 0.0, 80: 80.0, 101: Quality.OUT_OF_RANGE, 255: SNA},
    ),
    Case(
        "energy",
        "DW_lowVoltageStatus",
        "DW_lowVoltage",
        "Vehicle.LowVoltageBattery.CurrentVoltage",
        {0: 0.0, 13590: 13.59, 60001: Quality.OUT_OF_RANGE, 65535: SNA},
    ),
    Case(
        "energy",
        "DW_lowVoltageStatus",
        "DW_lowVoltageCurrent",
        "Vehicle.LowVoltageBattery.CurrentCurrent",
        {0: 0.0, -83: -0.83, 31000: Quality.OUT_OF_RANGE, -32768: SNA},
    ),
    Case(
        "energy",
        "DW_ambientStatus",
        "DW_ambientTemperature",
        "Vehicle.Exterior.AirTemperature",
        {0: 0.0, -105: -10.5, 450: 45.0, 900: Quality.OUT_OF_RANGE, -2048: SNA},
    ),
]
