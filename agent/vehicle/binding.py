"""Binds a profile to its DBC: every name looked up once at start, so that nothing can be missing later.

What comes out (`agent.vehicle.layout`) is what the decoder needs per message and no more. A name that the DBC lacks is
a ConfigError that names the DBC, the message and the signal.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from agent.core.events import Quality
from agent.errors import ConfigError
from agent.vehicle.can_database import Database, Message, Signal
from agent.vehicle.dbc import load_dbc, message_names
from agent.vehicle.layout import (
    EXTENDED_FLAG,
    FLOATS,
    SURPRISE,
    Bits,
    BoundGroup,
    BoundMessage,
    BoundSignal,
    Checksum,
    Meaning,
)
from agent.vehicle.profile import BusMapping, MessageMapping, Profile, SignalMapping, dbc_path, did_you_mean

CHECKSUM_BITS = 8


def bind_buses(profiles: Sequence[Profile], names: Iterable[str]) -> dict[str, tuple[BoundMessage, ...]]:
    """What to read of each of these buses, by the one profile that maps it. Raises ConfigError."""
    return {name: bind_bus(name, profiles) for name in names}


def bind_bus(name: str, profiles: Sequence[Profile]) -> tuple[BoundMessage, ...]:
    """What to read of one bus. Raises ConfigError."""
    profile = holder_of(name, profiles)
    mapping = profile.buses[name]
    path = dbc_path(profile, mapping.dbc)
    wanted = {message.message for message in mapping.messages}
    database = load_dbc(path, wanted)
    if missing := sorted(wanted - {message.name for message in database.messages}):
        known = message_names(path)
        raise ConfigError(f"{mapping.dbc} has no message {missing[0]!r}", hint=did_you_mean(missing[0], known))
    return bind(mapping, database)


def holder_of(bus_name: str, profiles: Sequence[Profile]) -> Profile:
    """The one profile that maps this bus. Raises ConfigError."""
    holders = [profile for profile in profiles if bus_name in profile.buses]
    if len(holders) > 1:
        names = ", ".join(profile.name for profile in holders)
        raise ConfigError(f"bus {bus_name!r} is in more than one vehicle profile: {names}", hint="use one of them")
    if not holders:
        known = {name for profile in profiles for name in profile.buses}
        raise ConfigError(f"no vehicle profile has a bus {bus_name!r}", hint=did_you_mean(bus_name, known))
    return holders[0]


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
    multiplexers = [signal for signal in message.signals if signal.is_multiplexer]
    if len(multiplexers) > 1:
        raise ConfigError(f"{dbc}, message {message.name} is multiplexed twice over, which is not understood")
    found = [(wanted, _find_signal(message, wanted.signal, dbc)) for wanted in mapping.signals]
    selector = multiplexers[0] if multiplexers else None
    return BoundMessage(
        name=message.name,
        key=message.frame_id | (EXTENDED_FLAG if message.is_extended_frame else 0),
        length=message.length,
        every_page=_group(message, mapping, [one for one in found if not one[1].multiplexer_ids], None, dbc),
        multiplexer=_bits(selector, message) if selector else None,
        pages={
            page: group
            for page in sorted({page for _, signal in found for page in signal.multiplexer_ids or ()})
            if (
                group := _group(
                    message, mapping, [one for one in found if page in (one[1].multiplexer_ids or ())], page, dbc
                )
            )
        },
        known_pages=frozenset(page for signal in message.signals for page in signal.multiplexer_ids or ()),
        checksum=_checksum(message, mapping, dbc) if mapping.checksum else None,
        counter=_bits(_find_signal(message, mapping.counter, dbc), message) if mapping.counter else None,
    )


def _group(
    message: Message,
    mapping: MessageMapping,
    found: list[tuple[SignalMapping, Signal]],
    page: int | None,
    dbc: str,
) -> BoundGroup | None:
    """The signals that are heard together, if there are any."""
    if not found:
        return None
    name = message.name if page is None else f"{message.name}/{page}"
    bound = tuple(_bind_signal(wanted, signal, message, (name, mapping.period_ms), dbc) for wanted, signal in found)
    mask = 0
    for signal in bound:
        mask |= signal.bits.mask(message.length)
    return BoundGroup(name, mask, bound)


def _bind_signal(
    mapping: SignalMapping, signal: Signal, message: Message, group: tuple[str, int], dbc: str
) -> BoundSignal:
    choices = {int(raw): str(name) for raw, name in (signal.choices or {}).items()}
    _check_choices(mapping, set(choices.values()), f"{dbc}, {message.name}, signal {signal.name}")
    return BoundSignal(
        path=mapping.path,
        group=group[0],
        period_ms=group[1],
        bits=_bits(signal, message),
        meanings=_meanings(mapping, choices),
        named_only=bool(mapping.values),
        factor=float(signal.scale),
        offset=float(signal.offset),
        scale=mapping.scale,
        resolution=mapping.resolution,
        minimum=-math.inf if mapping.minimum is None else mapping.minimum,
        maximum=math.inf if mapping.maximum is None else mapping.maximum,
    )


def _meanings(mapping: SignalMapping, choices: dict[int, str]) -> dict[int, Meaning]:
    """What each named raw value says; a raw number stands for itself where the DBC names none."""
    listed = {name: Meaning(value) for name, value in mapping.values.items()}
    listed |= dict.fromkeys(mapping.unavailable, Meaning(None, Quality.NOT_AVAILABLE))
    listed |= dict.fromkeys(mapping.faults, Meaning(None, Quality.FAULT))
    listed |= dict.fromkeys(mapping.invalid, Meaning(None, Quality.INVALID))
    named = set(choices.values())
    # A number's named choices are no numbers: what the profile does not list among them is a surprise.
    meanings = {raw: listed.get(name, SURPRISE) for raw, name in choices.items()}
    return meanings | {int(name): meaning for name, meaning in listed.items() if name not in named}


def _check_choices(mapping: SignalMapping, named: set[str], where: str) -> None:
    for key in (*mapping.values, *mapping.unavailable, *mapping.faults, *mapping.invalid):
        if key not in named and not key.removeprefix("-").isdecimal():
            raise ConfigError(f"{where} has no choice {key!r}", hint=did_you_mean(key, named))


def _find_signal(message: Message, name: str, dbc: str) -> Signal:
    by_name = {signal.name: signal for signal in message.signals}
    if name not in by_name:
        raise ConfigError(f"{dbc}, message {message.name} has no signal {name!r}", hint=did_you_mean(name, by_name))
    return by_name[name]


def _checksum(message: Message, mapping: MessageMapping, dbc: str) -> Checksum:
    signal = _find_signal(message, mapping.checksum, dbc)
    bits = _bits(signal, message)
    byte = (8 * message.length - bits.shift if bits.big_endian else bits.shift + CHECKSUM_BITS) // 8 - 1
    if bits.bits != CHECKSUM_BITS or bits.shift % 8:
        raise ConfigError(f"{dbc}, {message.name}.{signal.name} is not one whole byte, so it cannot be the checksum")
    if mapping.checksum_kind == "e2e_profile_2" and (byte != 0 or message.length < 2):
        raise ConfigError(f"{dbc}, {message.name}.{signal.name} is not byte 0, where e2e_profile_2 has its checksum")
    return Checksum(mapping.checksum_kind, byte, mapping.data_ids)


def _bits(signal: Signal, message: Message) -> Bits:
    """Where the signal is. A Motorola signal's start is its highest bit, counted down within a byte and up by bytes."""
    big_endian = signal.byte_order == "big_endian"
    shift = signal.start
    if big_endian:
        from_the_top = 8 * (signal.start // 8) + 7 - signal.start % 8
        shift = 8 * message.length - from_the_top - signal.length
    if signal.is_float and signal.length not in FLOATS:
        raise ConfigError(f"{message.name}.{signal.name} is a float of {signal.length} bits, which there is not")
    return Bits(shift, signal.length, big_endian, signal.is_signed and not signal.is_float, signal.is_float)
