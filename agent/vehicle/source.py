"""Builds the sources of the vehicle's buses from the configuration and the vehicle's profiles."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, assert_never

import msgspec

from agent.errors import ConfigError
from agent.ports import Clock
from agent.vehicle.decoder import Decoder
from agent.vehicle.drain import Rounds
from agent.vehicle.layout import BoundMessage
from agent.vehicle.listener import BusSource
from agent.vehicle.profile import Profile
from agent.vehicle.socketcan import SocketCanSource, open_socketcan

if TYPE_CHECKING:
    import can

Binding = Callable[[Sequence[Profile], Sequence[str]], dict[str, tuple[BoundMessage, ...]]]
"""How profiles are bound to their DBCs: `agent.vehicle.binding.bind_buses`, or apart in a process of its own."""


class BusConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where one bus of a profile is heard. `name` is the bus's name in the profile.

    Vehicles use `socketcan`, where `channel` is an interface (`can0`), and `mode` says who watches it: this process
    (`raw`), or the kernel's broadcast manager (`bcm`, `agent.vehicle.bcm`). The others are for rigs: `udp_multicast`
    (a group; its `port` tells buses apart, one each), `virtual` (a name), `candump` (a log, of which `recorded_as`
    picks one bus) and `unixgram` (the path of a datagram socket that takes `struct can_frame`).
    """

    name: str
    interface: Literal["socketcan", "udp_multicast", "virtual", "candump", "unixgram"]
    channel: str
    port: Annotated[int, msgspec.Meta(ge=1, le=65_535)] | None = None
    mode: Literal["raw", "bcm"] = "raw"
    recorded_as: str = ""

    def __post_init__(self) -> None:
        if (self.port is not None) != (self.interface == "udp_multicast"):
            raise ValueError(f"bus {self.name}: `port` goes with udp_multicast, and only with it")
        if self.mode != "raw" and self.interface != "socketcan":
            raise ValueError(f'bus {self.name}: mode = "bcm" goes with socketcan only')
        if self.recorded_as and self.interface != "candump":
            raise ValueError(f"bus {self.name}: `recorded_as` goes with candump only")


def build_sources(
    buses: Sequence[BusConfig],
    profiles: Sequence[Profile],
    clock: Clock,
    folder: Path,
    bind: Binding,
    *,
    rounds: Rounds | None = None,
) -> list[BusSource]:
    """The sources of all buses; relative paths are meant from `folder`. Raises ConfigError."""
    names = [bus.name for bus in buses]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"vehicle.bus: bus {twice[0]!r} is configured twice")
    bound, rounds = bind(profiles, names), rounds or Rounds()
    return [build_source(bus, bound[bus.name], clock, folder, rounds) for bus in buses]


def build_source(
    bus: BusConfig, messages: Sequence[BoundMessage], clock: Clock, folder: Path, rounds: Rounds
) -> BusSource:
    """The source of one bus; sources of one event loop share the `rounds`. Raises ConfigError."""
    decoder = Decoder(messages, counters=bus.mode == "raw")
    open_socket: Callable[[], socket.socket]
    match bus.interface:
        case "socketcan" if bus.mode == "bcm":
            from agent.vehicle.bcm import BcmSource, open_bcm  # noqa: PLC0415 - an option

            return BcmSource(bus.name, decoder, clock, partial(open_bcm, bus.channel), rounds)
        case "socketcan":
            open_socket = partial(open_socketcan, bus.channel, decoder.keys)
            return SocketCanSource(bus.name, decoder, clock, open_socket, rounds)
        case "unixgram":
            from agent.vehicle.unixgram import open_unixgram  # noqa: PLC0415 - rigs only

            open_socket = partial(open_unixgram, folder / bus.channel, decoder.keys)
            return SocketCanSource(bus.name, decoder, clock, open_socket, rounds)
        case "candump":
            from agent.vehicle.replay import ReplaySource  # noqa: PLC0415 - rigs only

            return ReplaySource(bus.name, decoder, clock, folder / bus.channel, bus.recorded_as)
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
    """The decoder of one bus, bound in this process: rehearsals and tests. Raises ConfigError."""
    from agent.vehicle.binding import bind_bus  # noqa: PLC0415 - the daemon binds apart, to be rid of it

    return Decoder(bind_bus(bus_name, profiles))


def _open_python_can(bus: BusConfig) -> can.BusABC:
    import can  # noqa: PLC0415 - rigs only; vehicles do without

    if bus.interface == "udp_multicast":
        # hop_limit 0 keeps the frames inside this host.
        return can.Bus(interface=bus.interface, channel=bus.channel, port=bus.port, hop_limit=0)
    return can.Bus(interface=bus.interface, channel=bus.channel)
