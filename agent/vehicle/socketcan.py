"""Reads a SocketCAN interface: the way vehicles do it.

A raw socket with exact kernel filters, so that of thousands of frames a second only the profile's reach this process.
The event loop wakes when there are frames and drains them all. Error frames are subscribed to hear of bus-off. When
the interface goes (ENETDOWN, ENODEV), the source says so, and opens the socket again with back-off.

Nothing here transmits: a raw socket only sends what is written to it. Set the controller itself to listen-only
(`ip link set can0 type can listen-only on`) so that it does not even acknowledge.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable

from agent.ports import Clock, Emit
from agent.vehicle.binding import EXTENDED_FLAG
from agent.vehicle.decoder import Decoder, Dropped, Frame
from agent.vehicle.listener import BusListener

CAN_FRAME = struct.Struct("=IB3x8s")
"""`struct can_frame` of linux/can.h: id with flags, length, padding, data."""
RECEIVE_BYTES = 72
"""The size of `struct canfd_frame`, so that an over-long datagram is seen as what it is and not cut to fit."""

# linux/can/error.h and linux/can/raw.h; the socket module does not have these.
CAN_ERR_BUSOFF = 0x40
CAN_RAW_ERR_FILTER = 2

MAX_FRAMES_PER_WAKEUP = 512
"""A flooded bus must not keep the loop from everything else."""
FIRST_BACKOFF_S = 0.25
MAX_BACKOFF_S = 5.0


def open_socketcan(interface: str, keys: tuple[int, ...]) -> socket.socket:
    """A raw socket on `interface` that hears these ids and bus-off. Raises OSError."""
    can = socket.socket(socket.AF_CAN, socket.SOCK_RAW, socket.CAN_RAW)
    try:
        can.setsockopt(socket.SOL_CAN_RAW, socket.CAN_RAW_FILTER, b"".join(map(kernel_filter, keys)))
        can.setsockopt(socket.SOL_CAN_RAW, CAN_RAW_ERR_FILTER, CAN_ERR_BUSOFF)
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
    """The frame in a `struct can_frame`; None when it is not one."""
    if len(raw) != CAN_FRAME.size:
        return None
    flagged_id, length, data = CAN_FRAME.unpack(raw)
    if length > 8:
        return None
    extended = bool(flagged_id & socket.CAN_EFF_FLAG)
    return Frame(
        can_id=flagged_id & (socket.CAN_EFF_MASK if extended else socket.CAN_SFF_MASK),
        data=data[:length],
        extended=extended,
        remote=bool(flagged_id & socket.CAN_RTR_FLAG),
        error=bool(flagged_id & socket.CAN_ERR_FLAG),
    )


class SocketCanSource:
    """A vehicle source (`agent.ports.Source`) over any datagram socket that carries `struct can_frame`."""

    def __init__(self, name: str, decoder: Decoder, clock: Clock, open_socket: Callable[[], socket.socket]) -> None:
        self._name = name
        self._decoder = decoder
        self._clock = clock
        self._open_socket = open_socket

    async def run(self, emit: Emit) -> None:
        """Read and emit until cancelled."""
        await BusListener(self._name, self._decoder, self._clock, emit).listen(self._keep_open)

    async def _keep_open(self, listener: BusListener) -> None:
        backoff_s = FIRST_BACKOFF_S
        while True:
            try:
                can = self._open_socket()
            except OSError as error:
                listener.lost(f"cannot be opened: {_describe(error)}")
            else:
                opened_ms = self._clock.boot_ms()
                listener.lost(await self._receive(can, listener))
                if self._clock.boot_ms() - opened_ms > MAX_BACKOFF_S * 1000:
                    backoff_s = FIRST_BACKOFF_S
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)

    async def _receive(self, can: socket.socket, listener: BusListener) -> str:
        """Receive until the socket fails; returns why it did."""
        loop = asyncio.get_running_loop()
        failed: asyncio.Future[str] = loop.create_future()
        loop.add_reader(can, self._drain, can, listener, failed)
        try:
            return await failed
        finally:
            loop.remove_reader(can)
            can.close()

    def _drain(self, can: socket.socket, listener: BusListener, failed: asyncio.Future[str]) -> None:
        for _ in range(MAX_FRAMES_PER_WAKEUP):
            try:
                raw = can.recv(RECEIVE_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                if not failed.done():
                    failed.set_result(_describe(error))
                return
            self._take(raw, listener)

    def _take(self, raw: bytes, listener: BusListener) -> None:
        frame = parse_can_frame(raw)
        if frame is None:
            self._decoder.dropped[Dropped.MALFORMED] += 1
            return
        listener.frame(frame, self._clock.boot_ms())
        if frame.error and struct.unpack("=I", raw[:4])[0] & CAN_ERR_BUSOFF:
            listener.lost("bus-off: the controller has left the bus")


def _describe(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)
