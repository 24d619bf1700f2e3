from __future__ import annotations

import math
from typing import Any

import cantools.database
import pytest
from cantools.database.can import Database
from cantools.database.errors import Error
from cantools.database.namedsignalvalue import NamedSignalValue
from hypothesis import given
from hypothesis import strategies as st

from agent.core.events import Quality, Sample
from agent.errors import ConfigError
from agent.vehicle.apart import bind_apart
from agent.vehicle.binding import bind, bind_buses
from agent.vehicle.dbc import cut_to, load_dbc
from agent.vehicle.decoder import Decoder, Frame
from agent.vehicle.layout import EXTENDED_FLAG
from agent.vehicle.profile import BusMapping, MessageMapping, Profile, SignalMapping, dbc_path, load_profile

DBC = """
VERSION ""
BU_: A
BO_ 2566844926 Extended: 8 A
 SG_ Little : 3|11@1+ (0.5,-10) [0|0] "" A
 SG_ Big : 21|12@0- (0.25,0) [0|0] "" A
 SG_ Other : 48|16@1+ (1,0) [0|0] "" A
BO_ 100 Floats: 8 A
 SG_ Single : 0|32@1- (2,1) [0|0] "" A
 SG_ Page M : 32|8@1+ (1,0) [0|0] "" A
 SG_ OnOne m1 : 47|8@0- (1,0) [0|0] "" A
 SG_ OnTwo m2 : 40|8@1+ (1,0) [0|0] "" A
CM_ BO_ 100 "BO_ 101 Trap: 8 A
BO_ 102 Trap: 8 A ";
SIG_VALTYPE_ 100 Single : 1;
"""
ID = 2566844926 & 0x1FFF_FFFF


def database(text: str = DBC) -> Database:
    loaded = cantools.database.load_string(text, "dbc")
    assert isinstance(loaded, Database)
    return loaded


def mapping(*signals: SignalMapping, message: str = "Extended") -> BusMapping:
    return BusMapping(dbc="test.dbc", messages=(MessageMapping(message=message, signals=signals),))


def numbers(message: str, **signals: str) -> BusMapping:
    return mapping(*(SignalMapping(signal=name, path=path) for name, path in signals.items()), message=message)


def values(decoder: Decoder, frame: Frame) -> dict[str, Any]:
    heard = decoder.decode(frame)
    assert heard is not None
    return {sample.path: sample.value for sample in heard.samples}


@given(little=st.integers(0, 2**11 - 1), big=st.integers(-(2**11), 2**11 - 1), other=st.integers(0, 2**16 - 1))
def test_the_change_mask_is_exactly_the_mapped_bits_in_either_byte_order(little: int, big: int, other: int) -> None:
    (bound,) = bind(numbers("Extended", Little="Vehicle.A", Big="Vehicle.B"), database())
    encode = database().get_message_by_name("Extended").encode
    blank = {"Little": -10.0, "Big": 0.0, "Other": 0}
    everything = int.from_bytes(encode({"Little": little * 0.5 - 10, "Big": big * 0.25, "Other": other}), "little")
    mapped = int.from_bytes(encode({**blank, "Little": little * 0.5 - 10, "Big": big * 0.25}), "little")
    (group,) = bound.groups
    assert everything & group.mask == mapped
    assert group.mask.bit_count() == 23


@given(data=st.binary(min_size=8, max_size=8))
def test_what_we_read_from_a_payload_is_what_cantools_reads(data: bytes) -> None:
    decoder = Decoder(bind(numbers("Extended", Little="Vehicle.A", Big="Vehicle.B", Other="Vehicle.C"), database()))
    told = database().get_message_by_name("Extended").decode_simple(data)
    ours = values(decoder, Frame(ID, data, extended=True))
    assert ours == {"Vehicle.A": told["Little"], "Vehicle.B": told["Big"], "Vehicle.C": told["Other"]}


@given(data=st.binary(min_size=8, max_size=8), page=st.sampled_from([1, 2]))
def test_floats_and_pages_are_read_as_cantools_reads_them(data: bytes, page: int) -> None:
    data = data[:4] + bytes([page]) + data[5:]
    bound = bind(numbers("Floats", Single="Vehicle.A", OnOne="Vehicle.B", OnTwo="Vehicle.C"), database())
    heard = Decoder(bound).decode(Frame(100, data))
    assert heard is not None
    ours = {sample.path: sample for sample in heard.samples}
    told = database().get_message_by_name("Floats").decode_simple(data)
    single = float(told["Single"])  # type: ignore[arg-type]
    if math.isfinite(single):
        assert ours["Vehicle.A"].value == pytest.approx(single)
    else:
        assert ours["Vehicle.A"].quality is Quality.NOT_A_NUMBER
    leaf, name = ("Vehicle.B", "OnOne") if page == 1 else ("Vehicle.C", "OnTwo")
    assert ours[leaf].value == told[name]
    assert heard.groups == ("Floats", f"Floats/{page}")
    assert ours[leaf].group == f"Floats/{page}"


def test_an_extended_message_is_told_from_a_standard_one_and_scaled_into_the_leafs_unit() -> None:
    bound = bind(mapping(SignalMapping(signal="Big", path="Vehicle.B", scale=1000, maximum=5_000)), database())
    decoder = Decoder(bound)
    assert decoder.keys == (ID | EXTENDED_FLAG,)
    encode = database().get_message_by_name("Extended").encode
    data = encode({"Little": -10.0, "Big": 2.25, "Other": 0})
    assert decoder.decode(Frame(ID, data)) is None
    assert values(decoder, Frame(ID, data, extended=True)) == {"Vehicle.B": 2250.0}
    heard = decoder.decode(Frame(ID, encode({"Little": -10.0, "Big": 5.25, "Other": 0}), extended=True))
    assert heard is not None
    assert heard.samples == (Sample("Vehicle.B", None, Quality.OUT_OF_RANGE, "Extended"),)


def test_a_dbc_is_cut_to_what_is_asked_for_and_comments_fool_nobody() -> None:
    cut = database(cut_to(DBC, {"Floats"}))
    assert [message.name for message in cut.messages] == ["Floats"]
    whole = bind(numbers("Floats", Single="Vehicle.A", OnOne="Vehicle.B"), database())
    assert bind(numbers("Floats", Single="Vehicle.A", OnOne="Vehicle.B"), cut) == whole
    assert whole[0].every_page is not None
    assert whole[0].every_page.signals[0].bits.is_float, "the cut keeps SIG_VALTYPE_"
    assert [message.name for message in database(cut_to(DBC, {"Trap"})).messages] == []


def test_an_id_too_long_for_a_standard_one_is_flagged_as_extended() -> None:
    text = DBC.replace("2566844926", str(ID))
    with pytest.raises(Error):
        database(text)
    assert database(cut_to(text, {"Extended"})).messages[0].is_extended_frame


def test_the_bundled_profiles_mean_the_same_cut_or_whole(profiles: tuple[Profile, ...]) -> None:
    for profile in profiles:
        for name, bus in profile.buses.items():
            whole = bind(bus, load_dbc(dbc_path(profile, bus.dbc)))
            assert bind_buses([profile], [name]) == {name: whole}


def test_a_process_of_its_own_binds_the_same(profiles: tuple[Profile, ...]) -> None:
    names = [bus for profile in profiles for bus in profile.buses]
    assert bind_apart(profiles, names) == bind_buses(profiles, names)


def test_what_is_wrong_comes_back_from_the_process_of_its_own(profiles: tuple[Profile, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        bind_apart(profiles, ["vehicel"])
    assert caught.value.hint == "did you mean 'vehicle'?"


def test_messages_multiplexed_twice_over_are_refused() -> None:
    nested = """
VERSION ""
BU_: A
BO_ 100 Nested: 8 A
 SG_ Outer M : 0|8@1+ (1,0) [0|0] "" A
 SG_ Inner m1M : 8|8@1+ (1,0) [0|0] "" A
 SG_ Leaf m1 : 16|8@1+ (1,0) [0|0] "" A
SG_MUL_VAL_ 100 Inner Outer 1-1;
SG_MUL_VAL_ 100 Leaf Inner 1-1;
"""
    with pytest.raises(ConfigError, match="multiplexed twice over"):
        bind(numbers("Nested", Leaf="Vehicle.A"), database(nested))


# --- production cars -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "bus"), [("vw-meb", "powertrain"), ("nissan-leaf", "car")])
@given(payload=st.integers(0, 2**64 - 1))
def test_every_choice_of_a_production_profile_is_read_as_cantools_reads_it(name: str, bus: str, payload: int) -> None:
    """Frames encoded by cantools from the same DBC, checksums left out: those have tests of their own."""
    profile = load_profile(name)
    mapped = profile.buses[bus]
    wanted = {message.message for message in mapped.messages}
    loaded = PRODUCTION.setdefault(name, load_dbc(dbc_path(profile, mapped.dbc), wanted))
    for message, bound in zip(mapped.messages, bind(mapped, loaded), strict=True):
        told = loaded.get_message_by_name(message.message)
        data = (payload & (1 << 8 * told.length) - 1).to_bytes(told.length, "little")
        expected = told.decode_simple(data)
        ours = bound.every_page
        assert ours is not None
        for signal, read in zip(message.signals, ours.signals, strict=True):
            meaning = read.meaning(read.bits.raw(int.from_bytes(data, "little"), int.from_bytes(data, "big")))
            value = expected[signal.signal]
            if signal.values:
                number = value.value if isinstance(value, NamedSignalValue) else value
                key = str(value) if str(value) in signal.values else str(number)
                assert meaning.value == signal.values.get(key)
            elif isinstance(value, float | int):
                within = (signal.minimum or 0) <= value <= (signal.maximum or math.inf)
                assert meaning.value == (pytest.approx(value) if within else None)
            else:
                assert meaning.value is None


PRODUCTION: dict[str, Database] = {}
