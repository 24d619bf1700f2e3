"""Reads a SocketCAN interface: the way vehicles do it.

A raw socket with exact kernel filters, so that of thousands of frames a second only the profile's reach this process,
drained every 20 ms (`agent.vehicle.drain`). Error frames are subscribed to: bus-off is a loss, the others are counted,
and so are frames for which the kernel had no room. CAN FD is heard where the interface has it.

Nothing here transmits: a raw socket only sends what is written to it. Set the controller itself to listen-only
(`ip link set can0 type can listen-only on`) so that it does not even acknowledge.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

from agent.ports import Clock
from agent.vehicle.decoder import Decoder, Dropped, Frame
from agent.vehicle.drain import Rounds, keep_draining
from agent.vehicle.layout import EXTENDED_FLAG
from agent.vehicle.listener import BusListener, BusSource

CAN_FRAME = struct.Struct("=IB3x8s")
"""`struct can_frame` of linux/can.h: id with flags, length, padding, data."""
CANFD_FRAME = struct.Struct("=IB3x64s")
"""`struct canfd_frame`; its flags (bit rate switch, error state) say nothing about the data."""
FLAGGED_ID = struct.Struct("=I")

# linux/can/error.h and linux/can/raw.h; the socket module does not have these.
CAN_ERR_CRTL, CAN_ERR_PROT, CAN_ERR_TRX, CAN_ERR_BUSOFF, CAN_ERR_BUSERROR, CAN_ERR_RESTARTED = (
    *(0x04, 0x08, 0x10),
    *(0x40, 0x80, 0x100),
)
CAN_RAW_ERR_FILTER = 2
ERROR_CLASSES = {
    CAN_ERR_CRTL: "error_controller",
    CAN_ERR_PROT: "error_protocol",
    CAN_ERR_TRX: "error_transceiver",
    CAN_ERR_BUSOFF: "error_bus_off",
    CAN_ERR_BUSERROR: "error_bus",
    CAN_ERR_RESTARTED: "error_restarted",
}
"""The classes of error frames that are counted, by name. Arbitration and acknowledgement concern senders."""


def open_socketcan(interface: str, keys: tuple[int, ...]) -> socket.socket:
    """A raw socket on `interface` that hears these ids and the bus's errors. Raises OSError."""
    can = socket.socket(socket.AF_CAN, socket.SOCK_RAW, socket.CAN_RAW)
    try:
        can.setsockopt(socket.SOL_CAN_RAW, socket.CAN_RAW_FILTER, b"".join(map(kernel_filter, keys)))
        can.setsockopt(socket.SOL_CAN_RAW, CAN_RAW_ERR_FILTER, sum(ERROR_CLASSES))
        can.setsockopt(socket.SOL_CAN_RAW, socket.CAN_RAW_FD_FRAMES, 1)
        can.setblocking(False)
        can.bind((interface,))
    except OSError:
        can.close()
        raise
    return can


def kernel_filter(key: int) -> bytes:
    """`struct can_filter` for exactly this id. The mask is the one that the kernel looks up instead of searching."""
    id_mask = socket.CAN_EFF_MASK if key & EXTENDED_FLAG else socket.CAN_SFF_MASK
    return struct.pack("=II", key, socket.CAN_EFF_FLAG | socket.CAN_RTR_FLAG | id_mask)


def parse_can_frame(raw: bytes) -> Frame | None:
    """The frame in a `struct can_frame` or `struct canfd_frame`; None when it is neither."""
    if len(raw) == CAN_FRAME.size:
        flagged_id, length, data = CAN_FRAME.unpack(raw)
    elif len(raw) == CANFD_FRAME.size:
        flagged_id, length, data = CANFD_FRAME.unpack(raw)
    else:
        return None
    if length > len(data):
        return None
    extended = bool(flagged_id & socket.CAN_EFF_FLAG)
    return Frame(
        can_id=flagged_id & (socket.CAN_EFF_MASK if extended else socket.CAN_SFF_MASK),
        data=data[:length],
        extended=extended,
        remote=bool(flagged_id & socket.CAN_RTR_FLAG),
        error=bool(flagged_id & socket.CAN_ERR_FLAG),
    )


class RawReader:
    """Datagrams that are frames, for a listener (`agent.vehicle.drain.Reader`)."""

    def __init__(self, listener: BusListener) -> None:
        self._listener = listener

    def opened(self, channel: socket.socket) -> None:
        """Nothing more to set."""

    def drained(self, datagrams: list[bytes], at_ms: int) -> None:
        """Frames in their order; an error frame takes effect where it stands."""
        frames: list[Frame] = []
        for raw in datagrams:
            frame = parse_can_frame(raw)
            if frame is None:
                self._listener.decoder.dropped[Dropped.MALFORMED] += 1
                continue
            frames.append(frame)
            if frame.error and self._is_bus_off(raw):
                self._listener.take(frames, at_ms)
                frames = []
                self._listener.lost("bus-off: the controller has left the bus")
        self._listener.take(frames, at_ms)

    def overflowed(self, count: int) -> None:
        """Frames that we never saw: periodic ones come again, so this is counted and not feared."""
        self._listener.counted["overflowed"] += count

    def lost(self, detail: str) -> None:
        """The interface went."""
        self._listener.lost(detail)

    def _is_bus_off(self, raw: bytes) -> bool:
        """Counts the error frame's classes."""
        (flagged_id,) = FLAGGED_ID.unpack_from(raw)
        for bit, name in ERROR_CLASSES.items():
            self._listener.counted[name] += bool(flagged_id & bit)
        return bool(flagged_id & CAN_ERR_BUSOFF)


class SocketCanSource(BusSource):
    """A vehicle source over any datagram socket that carries `struct can_frame`."""

    def __init__(
        self, name: str, decoder: Decoder, clock: Clock, open_socket: Callable[[], socket.socket], rounds: Rounds
    ) -> None:
        super().__init__(name, decoder, clock)
        self._open_socket, self._rounds = open_socket, rounds

    async def keep_open(self, listener: BusListener) -> None:
        """Receive until cancelled."""
        await keep_draining(self._open_socket, RawReader(listener), self.clock, self._rounds)
