from __future__ import annotations

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.events import Quality, Sample, SignalValue
from agent.vehicle.decoder import REPEAT_MS, Decoder, Dropped, Frame
from agent.vehicle.profile import load_profile
from agent.vehicle.source import build_decoder

MakeFrame = Callable[..., Frame]
Meaning = TypeVar("Meaning")


class Case(NamedTuple, Generic[Meaning]):
    """One mapped signal, and what each raw value must come out as."""

    bus: str
    message: str
    signal: str
    path: str
    table: dict[int, Meaning]


BATTERY = "Vehicle.Powertrain.TractionBattery"
CLOSED, OPEN, MOVING_OR_AJAR, NO_VALUE = 2, 1, (3, 4, 5), (0, 6, 7, 8, 9, 15)
LATCH: dict[int, SignalValue | None] = {CLOSED: False, OPEN: True}
LATCH |= dict.fromkeys(MOVING_OR_AJAR, True) | dict.fromkeys(NO_VALUE)

# Every mapped choice: bus, message, signal, VSS path, raw value -> VSS value (None: invalid).
CHOICES: list[Case[SignalValue | None]] = [
    Case(
        "party",
        "DI_systemStatus",
        "DI_gear",
        "Vehicle.Powertrain.Transmission.SelectedGear",
        {0: None, 1: 126.0, 2: -1.0, 3: 0.0, 4: 127.0, 5: None, 6: None, 7: None},
    ),
    Case(
        "party",
        "ESP_status",
        "ESP_driverBrakeApply",
        "Vehicle.Chassis.Brake.PedalPosition",
        {0: None, 1: 0.0, 2: 100.0, 3: None},
    ),
    Case(
        "party",
        "VCFRONT_LVPowerState",
        "VCFRONT_vehiclePowerState",
        "Vehicle.LowVoltageSystemState",
        {0: "OFF", 1: "LOCK", 2: "ACC", 3: "ON"},
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
        {0: None, 1: "EMPTY", 2: "OCCUPIED", 3: None},
    ),
    Case(
        "energy",
        "DW_chargeStatus",
        "DW_cableState",
        f"{BATTERY}.Charging.ChargingPort.AnyPosition.IsChargingCableConnected",
        {0: False, 1: True, 2: None, 3: None},
    ),
    Case(
        "energy",
        "DW_chargeStatus",
        "DW_chargingState",
        f"{BATTERY}.Charging.IsCharging",
        {0: False, 1: True, 2: None, 3: None},
    ),
    Case(
        "energy",
        "DW_chargeStatus",
        "DW_contactorPositive",
        f"{BATTERY}.IsPowerConnected",
        {0: False, 1: True, 2: None, 3: None},
    ),
    Case(
        "energy",
        "DW_chargeStatus",
        "DW_contactorNegative",
        f"{BATTERY}.IsGroundConnected",
        {0: False, 1: True, 2: None, 3: None},
    ),
]

# Every mapped number: bus, message, signal, VSS path, raw value -> VSS value, or what is wrong with it.
NUMBERS: list[Case[float | Quality]] = [
    Case(
        "party",
        "DI_speed",
        "DI_vehicleSpeed",
        "Vehicle.Speed",
        {500: 0.0, 501: 0.08, 1125: 50.0, 0: Quality.OUT_OF_RANGE, 4094: Quality.OUT_OF_RANGE, 4095: Quality.INVALID},
    ),
    Case(
        "energy",
        "DW_batteryStatus",
        "DW_stateOfCharge",
        f"{BATTERY}.StateOfCharge.Current",
        {0: 0.0, 6234: 62.34, 10000: 100.0, 10001: Quality.OUT_OF_RANGE, 16383: Quality.INVALID},
    ),
    Case(
        "energy",
        "DW_batteryStatus",
        "DW_packPower",
        f"{BATTERY}.CurrentPower",
        {0: 0.0, -250: -250.0, 9882: 9882.0, 524287: Quality.OUT_OF_RANGE, -524288: Quality.INVALID},
    ),
    Case(
        "energy",
        "DW_batteryStatus",
        "DW_packTemperature",
        f"{BATTERY}.Temperature.Average",
        {0: 0.0, -105: -10.5, 251: 25.1, 1300: Quality.OUT_OF_RANGE, -2048: Quality.INVALID},
    ),
    Case(
        "energy",
        "DW_chargeStatus",
        "DW_chargeLimit",
        f"{BATTERY}.Charging.ChargeLimit",
        {0: 0.0, 80: 80.0, 101: Quality.OUT_OF_RANGE, 255: Quality.INVALID},
    ),
    Case(
        "energy",
        "DW_lowVoltageStatus",
        "DW_lowVoltage",
        "Vehicle.LowVoltageBattery.CurrentVoltage",
        {0: 0.0, 13590: 13.59, 60001: Quality.OUT_OF_RANGE, 65535: Quality.INVALID},
    ),
    Case(
        "energy",
        "DW_lowVoltageStatus",
        "DW_lowVoltageCurrent",
        "Vehicle.LowVoltageBattery.CurrentCurrent",
        {0: 0.0, -83: -0.83, 31000: Quality.OUT_OF_RANGE, -32768: Quality.INVALID},
    ),
    Case(
        "energy",
        "DW_ambientStatus",
        "DW_ambientTemperature",
        "Vehicle.Exterior.AirTemperature",
        {0: 0.0, -105: -10.5, 450: 45.0, 900: Quality.OUT_OF_RANGE, -2048: Quality.INVALID},
    ),
]


def sample_of(samples: tuple[Sample, ...] | None, path: str) -> Sample:
    assert samples is not None
    return next(sample for sample in samples if sample.path == path)


@pytest.mark.parametrize("case", CHOICES, ids=lambda case: case.signal)
def test_every_choice_of_every_mapped_signal(
    make_frame: MakeFrame, decoders: dict[str, Decoder], case: Case[SignalValue | None]
) -> None:
    for raw, value in case.table.items():
        frame = make_frame(case.bus, case.message, **{case.signal: raw})
        sample = sample_of(decoders[case.bus].decode(frame, 0), case.path)
        assert sample == Sample(case.path, value, Quality.INVALID if value is None else Quality.GOOD)


@pytest.mark.parametrize("case", NUMBERS, ids=lambda case: case.signal)
def test_every_mapped_number(make_frame: MakeFrame, decoders: dict[str, Decoder], case: Case[float | Quality]) -> None:
    for raw, expected in case.table.items():
        frame = make_frame(case.bus, case.message, **{case.signal: raw})
        sample = sample_of(decoders[case.bus].decode(frame, 0), case.path)
        if isinstance(expected, Quality):
            assert sample == Sample(case.path, None, expected)
        else:
            assert sample.quality is Quality.GOOD
            assert sample.value == pytest.approx(expected)


def test_the_tables_above_are_complete() -> None:
    tested = {(case.bus, case.signal, case.path) for case in CHOICES}
    tested |= {(case.bus, case.signal, case.path) for case in NUMBERS}
    mapped = {
        (bus, signal.signal, signal.path)
        for name in ("tesla-model3", "driveway-energy")
        for bus, mapping in load_profile(name).buses.items()
        for message in mapping.messages
        for signal in message.signals
    }
    assert tested == mapped


def test_an_unchanged_payload_is_repeated_but_not_more_often_than_every_100_ms(
    make_frame: MakeFrame, decoders: dict[str, Decoder]
) -> None:
    decoder = decoders["party"]
    said = []
    for index in range(20):  # 20 ms apart; the counter makes every payload differ
        frame = make_frame("party", "DI_systemStatus", DI_gear=1, DI_systemStatusCounter=index % 16)
        if decoder.decode(frame, 20 * index):
            said.append(20 * index)
    assert said == [0, 100, 200, 300]
    assert REPEAT_MS == 100


def test_a_change_is_said_at_once(make_frame: MakeFrame, decoders: dict[str, Decoder]) -> None:
    decoder = decoders["vehicle"]
    decoder.decode(make_frame("vehicle", "VCLEFT_doorStatus", VCLEFT_frontLatchStatus=2, VCLEFT_rearLatchStatus=2), 0)
    frame = make_frame("vehicle", "VCLEFT_doorStatus", VCLEFT_frontLatchStatus=1, VCLEFT_rearLatchStatus=2)
    assert sample_of(decoder.decode(frame, 1), "Vehicle.Cabin.Door.Row1.DriverSide.IsOpen").value is True


def test_another_page_of_a_multiplexed_message_says_nothing_about_the_seat(
    make_frame: MakeFrame, decoders: dict[str, Decoder]
) -> None:
    decoder = decoders["vehicle"]
    seat = make_frame("vehicle", "VCLEFT_switchStatus", VCLEFT_frontOccupancySwitch=1)
    other = make_frame("vehicle", "VCLEFT_switchStatus", VCLEFT_switchStatusIndex=1, VCLEFT_swcLeftPressed=3)
    assert decoder.decode(seat, 0)
    assert decoder.decode(other, 10) == ()
    assert decoder.decode(seat, 20) == ()  # not news either: the page in between changed nothing
    assert decoder.decode(seat, 100)


def test_both_pages_of_the_power_state_count(make_frame: MakeFrame, decoders: dict[str, Decoder]) -> None:
    for page in (0, 1):
        frame = make_frame("party", "VCFRONT_LVPowerState", VCFRONT_LVPowerStateIndex=page, VCFRONT_vehiclePowerState=3)
        assert decoders["party"].decode(frame, page) == (Sample("Vehicle.LowVoltageSystemState", "ON"),)


def test_a_page_that_does_not_exist_makes_every_leaf_of_the_message_invalid(
    make_frame: MakeFrame, decoders: dict[str, Decoder]
) -> None:
    decoder = decoders["vehicle"]
    samples = decoder.decode(make_frame("vehicle", "VCLEFT_switchStatus", VCLEFT_switchStatusIndex=3), 0)
    assert samples is not None
    assert len(samples) == 2
    assert {sample.quality for sample in samples} == {Quality.INVALID}
    assert decoder.undecodable == 1


def test_every_reason_to_drop_a_frame_is_counted(make_frame: MakeFrame, decoders: dict[str, Decoder]) -> None:
    decoder = decoders["party"]
    good = make_frame("party", "DI_systemStatus", DI_gear=1)
    flipped = good.data[:5] + bytes([good.data[5] ^ 0x10]) + good.data[6:]
    for frame, reason in (
        (Frame(0x7FF, bytes(8)), Dropped.FOREIGN),
        (msgspec.structs.replace(good, extended=True), Dropped.FOREIGN),
        (msgspec.structs.replace(good, remote=True), Dropped.REMOTE),
        (msgspec.structs.replace(good, error=True), Dropped.ERROR),
        (msgspec.structs.replace(good, data=good.data[:7]), Dropped.SHORT),
        (msgspec.structs.replace(good, data=flipped), Dropped.CHECKSUM),
    ):
        before = decoder.dropped[reason]
        assert decoder.decode(frame, 0) is None
        assert decoder.dropped[reason] == before + 1
    assert decoder.decode(good, 0)
    assert decoder.dropped.total() == 6


def test_a_value_that_the_profile_does_not_mention_is_counted_and_a_known_invalid_one_is_not(
    make_frame: MakeFrame, decoders: dict[str, Decoder]
) -> None:
    decoder = decoders["party"]
    decoder.decode(make_frame("party", "DI_systemStatus", DI_gear=7), 0)
    assert decoder.surprises == 0
    decoder.decode(make_frame("party", "DI_systemStatus", DI_gear=6), 1)
    assert decoder.surprises == 1


TESLA, ENERGY = load_profile("tesla-model3"), load_profile("driveway-energy")
FUZZED = [build_decoder(bus, [TESLA, ENERGY]) for bus in ("party", "vehicle", "energy")]
IDS = sorted({key for decoder in FUZZED for key in decoder.keys})


@given(
    can_id=st.sampled_from(IDS) | st.integers(0, 0x1FFF_FFFF),
    data=st.binary(min_size=0, max_size=64) | st.binary(min_size=8, max_size=8),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()) | st.just((False, False, False)),
    now_ms=st.integers(0, 10_000),
)
def test_no_frame_makes_the_decoder_raise_or_say_a_value_it_does_not_believe(
    can_id: int, data: bytes, flags: tuple[bool, bool, bool], now_ms: int
) -> None:
    extended, remote, error = flags
    for decoder in FUZZED:
        for sample in decoder.decode(Frame(can_id, data, extended, remote, error), now_ms) or ():
            assert (sample.value is None) == (sample.quality is not Quality.GOOD)


@given(data=st.binary(min_size=8, max_size=8))
def test_any_payload_with_a_right_checksum_is_decoded(data: bytes) -> None:
    decoder = FUZZED[0]
    dropped = decoder.dropped.total()
    summed = (0x18 + 0x01 + sum(data[1:])) % 256
    assert decoder.decode(Frame(0x118, bytes([summed]) + data[1:]), 0) is not None
    assert decoder.dropped.total() == dropped
