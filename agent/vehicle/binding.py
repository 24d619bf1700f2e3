"""Binds a profile to its DBC: every name looked up once at start, so that nothing can be missing later.

What comes out is what the decoder needs per message: its id, its length, which bits are a mapped signal (the change
mask, which hides counters, checksums and everything nobody asked for), where the checksum sits, and how a decoded
value becomes a VSS sample. A name that the DBC lacks is a ConfigError that names the DBC, the message and the signal.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import cantools.database
import msgspec
from cantools.database.can import Database, Message, Signal
from cantools.database.errors import Error as DatabaseError
from cantools.database.namedsignalvalue import NamedSignalValue

from agent.core.events import Quality, Sample
from agent.errors import ConfigError
from agent.vehicle.profile import BusMapping, MessageMapping, SignalMapping, did_you_mean

EXTENDED_FLAG = 0x8000_0000
"""CAN_EFF_FLAG: a 29-bit id and an 11-bit id of the same number are different messages."""


class BoundSignal(msgspec.Struct, frozen=True):
    """A mapping whose signal is known to exist."""

    mapping: SignalMapping

    def sample(self, decoded: object) -> Sample:
        """The VSS sample of what cantools decoded: a number, or a named choice."""
        path = self.mapping.path
        if self.mapping.values:
            value = self.mapping.values.get(choice_name(decoded))
            return Sample(path, value) if value is not None else Sample(path, None, Quality.INVALID)
        if not isinstance(decoded, (int, float)):
            return Sample(path, None, Quality.INVALID)  # a number's only named choices are SNA and the like
        number = float(decoded) * self.mapping.scale
        if not math.isfinite(number):
            return Sample(path, None, Quality.INVALID)
        if not _within(number, self.mapping.minimum, self.mapping.maximum):
            return Sample(path, None, Quality.OUT_OF_RANGE)
        return Sample(path, number)

    def is_surprise(self, decoded: object) -> bool:
        """Whether the car sent a choice that the profile's author did not think of."""
        name = choice_name(decoded)
        return bool(self.mapping.values) and name not in self.mapping.values and name not in self.mapping.invalid

    def invalid(self) -> Sample:
        """The sample of a message that could not be decoded."""
        return Sample(self.mapping.path, None, Quality.INVALID)


class BoundMessage(msgspec.Struct, frozen=True):
    """A message of the profile, ready to be decoded.

    `change_mask` and `multiplexer_mask` apply to the payload read as a little-endian number of `length` bytes.
    """

    message: Message
    key: int
    length: int
    change_mask: int
    multiplexer_mask: int
    checksum_byte: int | None
    signals: tuple[BoundSignal, ...]


def choice_name(decoded: object) -> str:
    """What a profile calls this value: the choice's name, or the number where the DBC names none."""
    return decoded.name if isinstance(decoded, NamedSignalValue) else str(decoded)


def load_dbc(path: Path) -> Database:
    """The CAN database in `path`. Raises ConfigError."""
    try:
        database = cantools.database.load_file(path)
    except (DatabaseError, OSError, ValueError) as error:
        raise ConfigError(f"DBC {path} cannot be used: {error}") from error
    if not isinstance(database, Database):
        raise ConfigError(f"DBC {path} is no CAN database")
    return database


def bind(mapping: BusMapping, database: Database) -> tuple[BoundMessage, ...]:
    """The profile's messages of one bus, looked up in its DBC. Raises ConfigError."""
    paths: set[str] = set()
    for signal in (signal for message in mapping.messages for signal in message.signals):
        if signal.path in paths:
            raise ConfigError(f"two signals of {mapping.dbc} claim {signal.path}", hint="a leaf has one source")
        paths.add(signal.path)
    return tuple(_bind_message(message, database, mapping.dbc) for message in mapping.messages)


def _bind_message(mapping: MessageMapping, database: Database, dbc: str) -> BoundMessage:
    by_name = {message.name: message for message in database.messages}
    message = by_name.get(mapping.message)
    if message is None:
        raise ConfigError(f"{dbc} has no message {mapping.message!r}", hint=did_you_mean(mapping.message, by_name))
    signals = [_find_signal(message, wanted.signal, dbc) for wanted in mapping.signals]
    for wanted, signal in zip(mapping.signals, signals, strict=True):
        _check_choices(wanted, signal, f"{dbc}, {message.name}")
    multiplexer_mask = _mask(signal for signal in message.signals if signal.is_multiplexer)
    return BoundMessage(
        message=message,
        key=message.frame_id | (EXTENDED_FLAG if message.is_extended_frame else 0),
        length=message.length,
        change_mask=_mask(signals) | multiplexer_mask,
        multiplexer_mask=multiplexer_mask,
        checksum_byte=_checksum_byte(message, mapping.checksum, dbc) if mapping.checksum else None,
        signals=tuple(BoundSignal(wanted) for wanted in mapping.signals),
    )


def _find_signal(message: Message, name: str, dbc: str) -> Signal:
    by_name = {signal.name: signal for signal in message.signals}
    if name not in by_name:
        raise ConfigError(f"{dbc}, message {message.name} has no signal {name!r}", hint=did_you_mean(name, by_name))
    return by_name[name]


def _check_choices(mapping: SignalMapping, signal: Signal, where: str) -> None:
    named = {str(name) for name in (signal.choices or {}).values()}
    for key in (*mapping.values, *mapping.invalid):
        if key not in named and not key.isdecimal():
            raise ConfigError(f"{where}, signal {signal.name} has no choice {key!r}", hint=did_you_mean(key, named))


def _checksum_byte(message: Message, name: str, dbc: str) -> int:
    signal = _find_signal(message, name, dbc)
    if signal.length != 8 or signal.start % 8 != 0:
        raise ConfigError(f"{dbc}, {message.name}.{name} is not one whole byte, so it cannot be the checksum")
    return signal.start // 8


def _mask(signals: Iterable[Signal]) -> int:
    """The bits of these signals, in the payload read as a little-endian number."""
    mask = 0
    for signal in signals:
        bit = signal.start
        for _ in range(signal.length):
            mask |= 1 << bit
            # A big-endian ('Motorola') signal runs down to bit 0 of its byte and on at bit 7 of the next one.
            little = signal.byte_order == "little_endian"
            bit += 1 if little else (-1 if bit % 8 else 15)
    return mask


def _within(number: float, minimum: float | None, maximum: float | None) -> bool:
    return (minimum is None or number >= minimum) and (maximum is None or number <= maximum)
