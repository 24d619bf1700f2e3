from __future__ import annotations

import cantools.database
from cantools.database.can import Database
from hypothesis import given
from hypothesis import strategies as st

from agent.core.events import Quality, Sample
from agent.vehicle.binding import EXTENDED_FLAG, bind
from agent.vehicle.decoder import Decoder, Frame
from agent.vehicle.profile import BusMapping, MessageMapping, SignalMapping

DBC = """
VERSION ""
BU_: A
BO_ 2566844926 Extended: 8 A
 SG_ Little : 3|11@1+ (0.5,-10) [0|0] "" A
 SG_ Big : 21|12@0- (0.25,0) [0|0] "" A
 SG_ Other : 48|16@1+ (1,0) [0|0] "" A
"""
ID = 2566844926 & 0x1FFF_FFFF


def database() -> Database:
    loaded = cantools.database.load_string(DBC, "dbc")
    assert isinstance(loaded, Database)
    return loaded


def mapping(*signals: SignalMapping) -> BusMapping:
    return BusMapping(dbc="test.dbc", messages=(MessageMapping(message="Extended", signals=signals),))


@given(little=st.integers(0, 2**11 - 1), big=st.integers(-(2**11), 2**11 - 1), other=st.integers(0, 2**16 - 1))
def test_the_change_mask_is_exactly_the_mapped_bits_in_either_byte_order(little: int, big: int, other: int) -> None:
    (message,) = bind(
        mapping(SignalMapping(signal="Little", path="Vehicle.A"), SignalMapping(signal="Big", path="Vehicle.B")),
        database(),
    )
    encode = message.message.encode
    blank = {"Little": -10.0, "Big": 0.0, "Other": 0}
    everything = int.from_bytes(encode({"Little": little * 0.5 - 10, "Big": big * 0.25, "Other": other}), "little")
    mapped = int.from_bytes(encode({**blank, "Little": little * 0.5 - 10, "Big": big * 0.25}), "little")
    assert everything & message.change_mask == mapped
    assert message.change_mask.bit_count() == 23


def test_an_extended_message_is_told_from_a_standard_one_and_scaled_into_the_leafs_unit() -> None:
    bound = bind(mapping(SignalMapping(signal="Big", path="Vehicle.B", scale=1000, maximum=5_000)), database())
    decoder = Decoder(bound)
    assert decoder.keys == (ID | EXTENDED_FLAG,)
    data = bound[0].message.encode({"Little": -10.0, "Big": 2.25, "Other": 0})
    assert decoder.decode(Frame(ID, data), 0) is None
    assert decoder.decode(Frame(ID, data, extended=True), 0) == (Sample("Vehicle.B", 2250.0),)
    data = bound[0].message.encode({"Little": -10.0, "Big": 5.25, "Other": 0})
    assert decoder.decode(Frame(ID, data, extended=True), 0) == (Sample("Vehicle.B", None, Quality.OUT_OF_RANGE),)
