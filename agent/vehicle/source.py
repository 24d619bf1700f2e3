"""Builds the source of one vehicle bus from its configuration and the vehicle's profiles."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal, assert_never

import msgspec

from agent.errors import ConfigError
from agent.ports import Clock, Source
from agent.vehicle.binding import bind, load_dbc
from agent.vehicle.decoder import Decoder
from agent.vehicle.profile import Profile, dbc_path, did_you_mean
from agent.vehicle.socketcan import SocketCanSource, open_socketcan

if TYPE_CHECKING:
    import can


class BusConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where one bus of a profile is heard.

    `name` is the bus's name in the profile; `channel` is an interface (`can0`), a multicast group, or a virtual
    channel's name. `port` belongs to `udp_multicast` alone, and tells buses apart: one port each.
    """

    name: str
    interface: Literal["socketcan", "udp_multicast", "virtual"]
    channel: str
    port: Annotated[int, msgspec.Meta(ge=1, le=65_535)] | None = None

    def __post_init__(self) -> None:
        if (self.port is not None) != (self.interface == "udp_multicast"):
            raise ValueError(f"bus {self.name}: `port` goes with udp_multicast, and only with it")


def build_source(bus: BusConfig, profiles: Sequence[Profile], clock: Clock) -> Source:
    """The source of one bus, decoding what the profile that has a bus of this name maps. Raises ConfigError."""
    decoder = build_decoder(bus.name, profiles)
    match bus.interface:
        case "socketcan":
            return SocketCanSource(bus.name, decoder, clock, partial(open_socketcan, bus.channel, decoder.keys))
        case "udp_multicast" | "virtual":
            try:
                from agent.vehicle.python_can import PythonCanSource  # noqa: PLC0415 - rigs only; vehicles do without
            except ImportError as error:
                raise ConfigError(
                    f"bus {bus.name} needs python-can for {bus.interface}", hint="install driveway-agent[hil]"
                ) from error
            return PythonCanSource(bus.name, decoder, clock, partial(_open_python_can, bus))
        case _:
            assert_never(bus.interface)


def build_decoder(bus_name: str, profiles: Sequence[Profile]) -> Decoder:
    """The decoder of the one profile that maps this bus. Raises ConfigError."""
    holders = [profile for profile in profiles if bus_name in profile.buses]
    if len(holders) > 1:
        names = ", ".join(profile.name for profile in holders)
        raise ConfigError(f"bus {bus_name!r} is in more than one vehicle profile: {names}", hint="use one of them")
    if not holders:
        known = {name for profile in profiles for name in profile.buses}
        raise ConfigError(f"no vehicle profile has a bus {bus_name!r}", hint=did_you_mean(bus_name, known))
    profile = holders[0]
    mapping = profile.buses[bus_name]
    return Decoder(bind(mapping, load_dbc(dbc_path(profile, mapping.dbc))))


def _open_python_can(bus: BusConfig) -> can.BusABC:
    import can  # noqa: PLC0415 - rigs only; vehicles do without

    if bus.interface == "udp_multicast":
        # hop_limit 0 keeps the frames inside this host.
        return can.Bus(interface=bus.interface, channel=bus.channel, port=bus.port, hop_limit=0)
    return can.Bus(interface=bus.interface, channel=bus.channel)
