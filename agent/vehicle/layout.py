"""Where a profile's signals sit in their frames, and what their bits mean: plain values, made once at start.

`agent.vehicle.binding` makes these from a DBC; the decoder works on nothing else, so no DBC library need be resident
while the car is watched. Every bit position is resolved: a signal is `bits` bits of the payload, read as one number
(little-endian for Intel signals, big-endian for Motorola ones), `shift` bits from its low end.
"""

from __future__ import annotations

import math
import struct

import msgspec

from agent.core.events import Quality, Sample, SignalValue
from agent.vehicle.profile import ChecksumKind

EXTENDED_FLAG = 0x8000_0000
"""CAN_EFF_FLAG: a 29-bit id and an 11-bit id of the same number are different messages."""
FLOATS = {16: ("<H", "<e"), 32: ("<I", "<f"), 64: ("<Q", "<d")}
"""IEEE 754 by width: the raw number's format, and the float's."""


class Bits(msgspec.Struct, frozen=True, gc=False):
    """A field of the payload."""

    shift: int
    bits: int
    big_endian: bool = False
    signed: bool = False
    is_float: bool = False

    def raw(self, little: int, big: int) -> int:
        """The field's number in a payload, given as a little-endian and as a big-endian number."""
        number = (big if self.big_endian else little) >> self.shift & (1 << self.bits) - 1
        return number - (1 << self.bits) if self.signed and number >> self.bits - 1 else number

    def mask(self, length: int) -> int:
        """The field's bits in a payload of `length` bytes read as a little-endian number."""
        mask = ((1 << self.bits) - 1) << self.shift
        return int.from_bytes(mask.to_bytes(length, "big"), "little") if self.big_endian else mask


class Meaning(msgspec.Struct, frozen=True, gc=False):
    """What one raw value says. A `surprise` is a choice that the profile's author did not think of."""

    value: SignalValue | None
    quality: Quality = Quality.GOOD
    surprise: bool = False


SURPRISE = Meaning(None, Quality.INVALID, surprise=True)


class BoundSignal(msgspec.Struct, frozen=True, kw_only=True):
    """One mapped signal. `meanings` are its named choices by raw value; a signal with `named_only` has nothing else."""

    path: str
    group: str
    period_ms: int
    bits: Bits
    meanings: dict[int, Meaning] = {}
    named_only: bool = False
    factor: float = 1.0
    offset: float = 0.0
    scale: float = 1.0
    resolution: float = 0.0
    minimum: float = -math.inf
    maximum: float = math.inf

    def meaning(self, raw: int) -> Meaning:
        """What the raw value says."""
        named = self.meanings.get(raw)
        if named is not None:
            return named
        return SURPRISE if self.named_only else self._number(raw)

    def sample(self, meaning: Meaning) -> Sample:
        """The VSS sample of a meaning."""
        return Sample(self.path, meaning.value, meaning.quality, self.group, self.period_ms)

    def same(self, one: Meaning, other: Meaning) -> bool:
        """Whether there is no news between two meanings."""
        if one.quality is not other.quality:
            return False
        if one.value == other.value:
            return True
        if isinstance(one.value, float) and isinstance(other.value, float):
            return abs(one.value - other.value) < self.resolution
        return False

    def _number(self, raw: int) -> Meaning:
        if self.bits.is_float:
            as_integer, as_float = FLOATS[self.bits.bits]
            (number,) = struct.unpack(as_float, struct.pack(as_integer, raw))
        else:
            number = raw
        value = (number * self.factor + self.offset) * self.scale
        if not math.isfinite(value):
            return Meaning(None, Quality.NOT_A_NUMBER)
        if not self.minimum <= value <= self.maximum:
            return Meaning(None, Quality.OUT_OF_RANGE)
        return Meaning(float(value))


class BoundGroup(msgspec.Struct, frozen=True):
    """Signals that are heard together: those of a message, or of one page of a multiplexed one.

    `mask` are their bits in the payload read as a little-endian number: what counters, checksums and everything nobody
    asked for are hidden by.
    """

    name: str
    mask: int
    signals: tuple[BoundSignal, ...]


class Checksum(msgspec.Struct, frozen=True):
    """Which byte protects a message, and how (`agent.vehicle.checksum`)."""

    kind: ChecksumKind
    byte: int
    data_ids: tuple[int, ...] = ()


class BoundMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message of the profile. `every_page` is in each frame (None: no signal is), `pages` by the multiplexer's value.

    A multiplexer's value that is not in `known_pages` is one that the DBC cannot explain.
    """

    name: str
    key: int
    length: int
    every_page: BoundGroup | None
    multiplexer: Bits | None = None
    pages: dict[int, BoundGroup] = {}
    known_pages: frozenset[int] = frozenset()
    checksum: Checksum | None = None
    counter: Bits | None = None

    @property
    def groups(self) -> tuple[BoundGroup, ...]:
        """All its groups."""
        return (*((self.every_page,) if self.every_page else ()), *self.pages.values())

    @property
    def has_big_endian(self) -> bool:
        """Whether anything in it is read as big-endian."""
        fields = [signal.bits for group in self.groups for signal in group.signals]
        return any(bits.big_endian for bits in (*fields, self.multiplexer, self.counter) if bits is not None)
