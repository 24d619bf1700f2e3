"""What the tests of the vehicle's side share: the bundled profiles' decoders, and frames built from the DBCs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from cantools.database.can import Database, Message

from agent.vehicle.dbc import load_dbc
from agent.vehicle.decoder import Decoder, Frame
from agent.vehicle.profile import Profile, dbc_path, load_profile
from agent.vehicle.source import build_decoder


@pytest.fixture(scope="session")
def profiles() -> tuple[Profile, ...]:
    return load_profile("tesla-model3"), load_profile("driveway-energy")


@pytest.fixture(scope="session")
def databases(profiles: tuple[Profile, ...]) -> dict[str, Database]:
    return {
        bus: load_dbc(dbc_path(profile, mapping.dbc)) for profile in profiles for bus, mapping in profile.buses.items()
    }


@pytest.fixture
def decoders(profiles: tuple[Profile, ...]) -> dict[str, Decoder]:
    return {bus: build_decoder(bus, profiles) for profile in profiles for bus in profile.buses}


@pytest.fixture
def make_frame(databases: dict[str, Database]) -> Callable[..., Frame]:
    """A frame of one message: raw signal values, everything else raw zero, the checksum right, the counter counting."""
    counts: Counter[str] = Counter()

    def make(bus: str, message_name: str, **raw: int) -> Frame:
        message = databases[bus].get_message_by_name(message_name)
        counter = named(message, "Counter")
        if counter is not None and counter not in raw:
            raw[counter] = counts[message_name]
            counts[message_name] += 1
        number = sum(place(message, name, value) for name, value in raw.items())
        data = bytearray(number.to_bytes(message.length, "little"))
        checksum = named(message, "Checksum")
        if checksum is not None:
            low, high = message.frame_id & 0xFF, message.frame_id >> 8
            data[message.get_signal_by_name(checksum).start // 8] = (low + high + sum(data)) % 256
        return Frame(message.frame_id, bytes(data))

    def named(message: Message, ending: str) -> str | None:
        return next((signal.name for signal in message.signals if signal.name.endswith(ending)), None)

    def place(message: Message, name: str, value: int) -> int:
        signal = message.get_signal_by_name(name)
        assert signal.byte_order == "little_endian"
        return (value & ((1 << signal.length) - 1)) << signal.start

    return make
