"""The checksums that profiles name. Each proves that a frame is whole, and which message it is; none is a secret.

* `sum`: the low byte of the sum of the id's two bytes and of all data bytes but the checksum's own. Tesla's, and ours.
* `e2e_profile_2`: AUTOSAR E2E Profile 2 (SWS_E2ELibrary): CRC-8 with polynomial 0x2F, start 0xFF and final XOR 0xFF,
  over every byte after the checksum in byte 0, then over one more byte, the data id that belongs to the counter in the
  low four bits of byte 1. Volkswagen's messages are protected so; a message's sixteen data ids are in its profile.
"""

from __future__ import annotations

E2E_POLYNOMIAL = 0x2F


def _table(polynomial: int) -> tuple[int, ...]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = (crc << 1 ^ polynomial) & 0xFF if crc & 0x80 else crc << 1
        table.append(crc)
    return tuple(table)


CRC8_2F = _table(E2E_POLYNOMIAL)


def summed(can_id: int, data: bytes, position: int) -> int:
    """What the byte at `position` must be under `sum`."""
    return (can_id & 0xFF) + (can_id >> 8 & 0xFF) + sum(data) - data[position] & 0xFF


def e2e_profile_2(data: bytes, data_ids: tuple[int, ...]) -> int:
    """What byte 0 must be under `e2e_profile_2`; `data` is at least two bytes, `data_ids` are sixteen."""
    crc = 0xFF
    for byte in data[1:]:
        crc = CRC8_2F[crc ^ byte]
    return CRC8_2F[crc ^ data_ids[data[1] & 0x0F]] ^ 0xFF
