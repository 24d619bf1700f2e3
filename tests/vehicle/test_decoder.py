from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.events import Quality, Sample, SignalValue
from agent.vehicle.decoder import Decoder, Dropped, Frame
from agent.vehicle.profile import Profile, load_profile
from agent.vehicle.source import build_decoder
from tests.vehicle.meanings import CHOICES, GEAR, NUMBERS, SNA, Case

MakeFrame = Callable[..., Frame]


def said(decoder: Decoder, frame: Frame) -> dict[str, Sample]:
    heard = decoder.decode(frame)
    assert heard is not None
    return {sample.path: sample for sample in heard.samples}


@pytest.mark.parametrize("case", CHOICES, ids=lambda case: case.signal)
def test_every_choice_of_every_mapped_signal(
    make_frame: MakeFrame, profiles: tuple[Profile, ...], case: Case[SignalValue]
) -> None:
    for raw, expected in case.table.items():
        frame = make_frame(case.bus, case.message, **{case.signal: raw})
        sample = said(build_decoder(case.bus, profiles), frame)[case.path]
        if isinstance(expected, Quality):
            assert (sample.value, sample.quality) == (None, expected)
        else:
            assert (sample.value, sample.quality) == (expected, Quality.GOOD)


@pytest.mark.parametrize("case", NUMBERS, ids=lambda case: case.signal)
def test_every_mapped_number(make_frame: MakeFrame, profiles: tuple[Profile, ...], case: Case[float | Quality]) -> None:
    for raw, expected in case.table.items():
        frame = make_frame(case.bus, case.message, **{case.signal: raw})
        sample = said(build_decoder(case.bus, profiles), frame)[case.path]
        if isinstance(expected, Quality):
            assert (sample.value, sample.quality) == (None, expected)
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


def test_an_unchanged_payload_is_heard_and_says_nothing(make_frame: MakeFrame, decoders: dict[str, Decoder]) -> None:
    decoder = decoders["party"]
    first = decoder.decode(make_frame("party", "DI_systemStatus", DI_gear=1))
    assert first is not None
    assert first.samples == (Sample(GEAR, 126.0, group="DI_systemStatus", period_ms=20),)
    for _ in range(20):  # the counter and the checksum make every payload differ
        heard = decoder.decode(make_frame("party", "DI_systemStatus", DI_gear=1))
        assert heard is not None
        assert (heard.groups, heard.samples) == (("DI_systemStatus",), ())
    assert decoder.frames == 21


def test_only_the_leaf_that_changed_is_said(make_frame: MakeFrame, decoders: dict[str, Decoder]) -> None:
    decoder = decoders["vehicle"]
    decoder.decode(make_frame("vehicle", "VCLEFT_doorStatus", VCLEFT_frontLatchStatus=2, VCLEFT_rearLatchStatus=2))
    frame = make_frame("vehicle", "VCLEFT_doorStatus", VCLEFT_frontLatchStatus=1, VCLEFT_rearLatchStatus=2)
    (sample,) = said(decoder, frame).values()
    assert (sample.path, sample.value) == ("Vehicle.Cabin.Door.Row1.DriverSide.IsOpen", True)


def test_a_reading_that_shivers_is_heard_and_not_said_until_it_has_moved_by_its_resolution(
    make_frame: MakeFrame, decoders: dict[str, Decoder]
) -> None:
    decoder = decoders["energy"]
    path = "Vehicle.Powertrain.TractionBattery.CurrentPower"
    assert said(decoder, make_frame("energy", "DW_batteryStatus", DW_packPower=1000))[path].value == 1000.0
    assert path not in said(decoder, make_frame("energy", "DW_batteryStatus", DW_packPower=1010))
    assert path not in said(decoder, make_frame("energy", "DW_batteryStatus", DW_packPower=1019))
    assert said(decoder, make_frame("energy", "DW_batteryStatus", DW_packPower=1020))[path].value == 1020.0
    assert said(decoder, make_frame("energy", "DW_batteryStatus", DW_packPower=-524288))[path].quality is SNA


def test_another_page_of_a_multiplexed_message_says_nothing_about_the_seat(
    make_frame: MakeFrame, decoders: dict[str, Decoder]
) -> None:
    decoder = decoders["vehicle"]
    seat = make_frame("vehicle", "VCLEFT_switchStatus", VCLEFT_frontOccupancySwitch=1)
    other = make_frame("vehicle", "VCLEFT_switchStatus", VCLEFT_switchStatusIndex=1, VCLEFT_swcLeftPressed=3)
    first, second, third = decoder.decode(seat), decoder.decode(other), decoder.decode(seat)
    assert first is not None
    assert second is not None
    assert third is not None
    assert first.groups == ("VCLEFT_switchStatus/0",)
    assert len(first.samples) == 3
    assert (second.groups, second.samples) == ((), ()), "the seat is no fresher for it"
    assert (third.groups, third.samples) == (first.groups, ())


def test_a_leaf_on_both_pages_is_made_fresh_by_either_and_two_pages_that_differ_are_both_said(
    make_frame: MakeFrame, decoders: dict[str, Decoder]
) -> None:
    decoder = decoders["party"]
    states = []
    for page, state in ((0, 3), (1, 3), (0, 1), (1, 3), (0, 1)):
        frame = make_frame(
            "party", "VCFRONT_LVPowerState", VCFRONT_LVPowerStateIndex=page, VCFRONT_vehiclePowerState=state
        )
        heard = decoder.decode(frame)
        assert heard is not None
        assert heard.groups == ("VCFRONT_LVPowerState",)
        states.append([sample.value for sample in heard.samples])
    assert states == [["ON"], [], ["LOCK"], ["ON"], ["LOCK"]]


def test_a_page_that_does_not_exist_makes_every_leaf_of_the_message_invalid_until_the_next_good_one(
    make_frame: MakeFrame, decoders: dict[str, Decoder]
) -> None:
    decoder = decoders["vehicle"]
    seat = make_frame("vehicle", "VCLEFT_switchStatus", VCLEFT_frontOccupancySwitch=1, VCLEFT_frontBuckleSwitch=1)
    assert len(said(decoder, seat)) == 3
    samples = said(decoder, make_frame("vehicle", "VCLEFT_switchStatus", VCLEFT_switchStatusIndex=3))
    assert len(samples) == 3
    assert {sample.quality for sample in samples.values()} == {Quality.INVALID}
    assert decoder.undecodable == 1
    assert {sample.quality for sample in said(decoder, seat).values()} == {Quality.GOOD}


def test_every_reason_to_drop_a_frame_is_counted(make_frame: MakeFrame, decoders: dict[str, Decoder]) -> None:
    decoder = decoders["party"]
    good = make_frame("party", "DI_systemStatus", DI_gear=1)
    flipped = good.data[:5] + bytes([good.data[5] ^ 0x10]) + good.data[6:]
    for frame, reason in (
        (Frame(0x7FF, bytes(8)), Dropped.FOREIGN),
        (msgspec.structs.replace(good, extended=True), Dropped.FOREIGN),
        (msgspec.structs.replace(good, remote=True), Dropped.REMOTE),
        (msgspec.structs.replace(good, error=True), Dropped.ERROR),
        (msgspec.structs.replace(good, data=good.data[:7]), Dropped.LENGTH),
        (msgspec.structs.replace(good, data=good.data + b"\0"), Dropped.LENGTH),
        (msgspec.structs.replace(good, data=flipped), Dropped.CHECKSUM),
    ):
        before = decoder.dropped[reason]
        assert decoder.decode(frame) is None
        assert decoder.dropped[reason] == before + 1
    assert decoder.decode(good)
    assert decoder.counts == {
        "frames": 1,
        "dropped_checksum": 1,
        "dropped_error": 1,
        "dropped_foreign": 2,
        "dropped_length": 2,
        "dropped_remote": 1,
    }


def test_a_counter_that_stands_still_is_a_frozen_sender_and_makes_nothing_fresh(
    make_frame: MakeFrame, decoders: dict[str, Decoder]
) -> None:
    decoder = decoders["party"]
    frozen = make_frame("party", "DI_systemStatus", DI_gear=1)
    assert decoder.decode(frozen)
    for _ in range(3):
        assert decoder.decode(frozen) is None
    assert decoder.dropped[Dropped.FROZEN] == 3
    assert decoder.decode(make_frame("party", "DI_systemStatus", DI_gear=1)), "it thaws with the next count"


def test_a_counter_that_jumps_is_counted_and_believed(make_frame: MakeFrame, decoders: dict[str, Decoder]) -> None:
    decoder = decoders["party"]
    for count in (14, 15, 0, 3, 2):
        assert decoder.decode(make_frame("party", "DI_speed", DI_vehicleSpeed=500, DI_speedCounter=count))
    assert decoder.jumps == 2
    assert decoder.dropped.total() == 0


def test_counters_are_left_alone_where_unchanged_frames_never_arrive(
    make_frame: MakeFrame, profiles: tuple[Profile, ...]
) -> None:
    decoder = Decoder(build_decoder("party", profiles).messages.values(), counters=False)
    frame = make_frame("party", "DI_systemStatus", DI_gear=1)
    assert decoder.decode(frame)
    assert decoder.decode(frame)


def test_a_message_known_to_have_stopped_leaves_its_leaves_unknown_until_it_is_heard(
    make_frame: MakeFrame, decoders: dict[str, Decoder]
) -> None:
    decoder = decoders["party"]
    decoder.decode(make_frame("party", "DI_systemStatus", DI_gear=1))
    (unknown,) = decoder.silenced(0x118)
    assert (unknown.path, unknown.value, unknown.quality) == (GEAR, None, Quality.UNKNOWN)
    assert decoder.silenced(0x118) == (), "said once"
    assert decoder.silenced(0x7FF) == ()
    assert said(decoder, make_frame("party", "DI_systemStatus", DI_gear=1))[GEAR].value == 126.0


def test_a_value_that_the_profile_does_not_mention_is_counted_and_a_known_invalid_one_is_not(
    make_frame: MakeFrame, decoders: dict[str, Decoder]
) -> None:
    decoder = decoders["party"]
    decoder.decode(make_frame("party", "DI_systemStatus", DI_gear=7))
    assert decoder.surprises == 0
    decoder.decode(make_frame("party", "DI_systemStatus", DI_gear=6))
    assert decoder.surprises == 1


TESLA, ENERGY, MEB = load_profile("tesla-model3"), load_profile("driveway-energy"), load_profile("vw-meb")
FUZZED = [build_decoder(bus, [TESLA, ENERGY, MEB]) for bus in ("party", "vehicle", "energy", "powertrain")]
IDS = sorted({key for decoder in FUZZED for key in decoder.keys})


@given(
    can_id=st.sampled_from(IDS) | st.integers(0, 0x1FFF_FFFF),
    data=st.binary(min_size=0, max_size=64) | st.binary(min_size=8, max_size=8),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()) | st.just((False, False, False)),
)
def test_no_frame_makes_the_decoder_raise_or_say_a_value_it_does_not_believe(
    can_id: int, data: bytes, flags: tuple[bool, bool, bool]
) -> None:
    extended, remote, error = flags
    for decoder in FUZZED:
        heard = decoder.decode(Frame(can_id, data, extended, remote, error))
        for sample in () if heard is None else heard.samples:
            assert (sample.value is None) == (sample.quality is not Quality.GOOD)


@given(data=st.binary(min_size=8, max_size=8))
def test_any_payload_with_a_right_checksum_and_a_counter_that_counts_is_decoded(data: bytes) -> None:
    decoder = Decoder(FUZZED[0].messages.values())
    for count in (0, 1):
        body = bytes([data[1] & 0xF0 | count]) + data[2:]
        summed = (0x18 + 0x01 + sum(body)) % 256
        assert decoder.decode(Frame(0x118, bytes([summed]) + body)) is not None
    assert decoder.dropped.total() == 0
