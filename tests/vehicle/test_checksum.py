from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.vehicle.binding import bind_bus
from agent.vehicle.checksum import e2e_profile_2, summed
from agent.vehicle.decoder import Decoder, Dropped, Frame
from agent.vehicle.profile import load_profile

GEARBOX = next(one for one in bind_bus("powertrain", [load_profile("vw-meb")]) if one.name == "Getriebe_11")
PARK_BY_COUNTER = {  # Getriebe_11 with GE_Fahrstufe = 5 (P), its CRC computed bit by bit below
    counter: bytes([0, counter, 0, 0, 0, 5 << 2, 0, 0]) for counter in range(16)
}


def crc8(message: bytes, polynomial: int = 0x2F) -> int:
    """CRC-8 the slow way: one bit at a time, as AUTOSAR's specification of the CRC routines defines it."""
    crc = 0xFF
    for byte in message:
        for bit in range(7, -1, -1):
            crc = (crc << 1) ^ (polynomial if (crc >> 7 ^ byte >> bit) & 1 else 0)
            crc &= 0xFF
    return crc ^ 0xFF


def test_the_crc_is_the_one_of_the_standard() -> None:
    """CRC8H2F of "123456789" is 0xDF (AUTOSAR SWS_CRCLibrary): eight bytes of data, and the ninth as data id."""
    assert crc8(b"123456789") == 0xDF
    data_ids = tuple(ord("9") for _ in range(16))
    assert e2e_profile_2(b"?12345678", data_ids) == 0xDF


@given(data=st.binary(min_size=2, max_size=64), data_ids=st.tuples(*[st.integers(0, 255)] * 16))
def test_the_data_id_is_chosen_by_the_counter(data: bytes, data_ids: tuple[int, ...]) -> None:
    assert e2e_profile_2(data, data_ids) == crc8(data[1:] + bytes([data_ids[data[1] & 0x0F]]))


@given(can_id=st.integers(0, 0x7FF), data=st.binary(min_size=1, max_size=8), where=st.integers(0, 7))
def test_the_sum_leaves_out_its_own_byte(can_id: int, data: bytes, where: int) -> None:
    where %= len(data)
    others = data[:where] + data[where + 1 :]
    assert summed(can_id, data, where) == (can_id % 256 + can_id // 256 + sum(others)) % 256


def test_a_frame_of_volkswagen_is_believed_with_its_checksum_and_dropped_with_any_other_bit_flipped() -> None:
    assert GEARBOX.checksum is not None
    decoder = Decoder([GEARBOX])
    for counter in range(16):
        body = PARK_BY_COUNTER[counter]
        good = bytes([crc8(body[1:] + bytes([GEARBOX.checksum.data_ids[counter]]))]) + body[1:]
        heard = decoder.decode(Frame(GEARBOX.key, good))
        assert heard is not None
        for bit in range(64):
            flipped = (int.from_bytes(good, "little") ^ 1 << bit).to_bytes(8, "little")
            assert decoder.decode(Frame(GEARBOX.key, flipped)) is None
    assert decoder.dropped == {Dropped.CHECKSUM: 16 * 64}
