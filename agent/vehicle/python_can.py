"""Reads a bus of python-can: rigs and tests, where the kernel has no CAN.

A thread waits in `recv` and hands each frame to the event loop at once, so there is no polling delay between a frame
and its event; the frame's time is taken in the thread. When the bus fails, the source says so and opens it again.

A `udp_multicast` bus hears any UDP packet that reaches its port, from anywhere: it is for rigs, never for a vehicle.
It also hears other groups of the same port, so each bus needs a port of its own.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import can

from agent.ports import Clock, Emit
from agent.vehicle.binding import EXTENDED_FLAG
from agent.vehicle.decoder import Decoder, Frame
from agent.vehicle.listener import BusListener

RECEIVE_TIMEOUT_S = 0.2
"""How long the thread waits before it looks whether it should end. Never 0: with filters in software, python-can's
`recv(timeout=0)` returns None at the first foreign frame."""
REOPEN_S = 0.5


class PythonCanSource:
    """A vehicle source (`agent.ports.Source`) over a python-can bus."""

    def __init__(self, name: str, decoder: Decoder, clock: Clock, open_bus: Callable[[], can.BusABC]) -> None:
        self._name = name
        self._decoder = decoder
        self._clock = clock
        self._open_bus = open_bus

    async def run(self, emit: Emit) -> None:
        """Read and emit until cancelled."""
        await BusListener(self._name, self._decoder, self._clock, emit).listen(self._keep_open)

    async def _keep_open(self, listener: BusListener) -> None:
        while True:
            try:
                bus = self._open_bus()
            except (can.CanError, OSError) as error:
                listener.lost(f"cannot be opened: {error}")
            else:
                listener.lost(await self._receive(bus, listener))
            await asyncio.sleep(REOPEN_S)

    async def _receive(self, bus: can.BusABC, listener: BusListener) -> str:
        """Receive until the bus fails; returns why it did."""
        bus.set_filters([_exact_filter(key) for key in self._decoder.keys])
        loop = asyncio.get_running_loop()
        failed: asyncio.Future[str] = loop.create_future()
        stop = threading.Event()

        def deliver(frame: Frame, at_ms: int) -> None:
            loop.call_soon_threadsafe(listener.frame, frame, at_ms)

        def fail(detail: str) -> None:
            if not failed.done():
                failed.set_result(detail)

        def read() -> None:
            try:
                self._read(bus, stop, deliver)
            except (can.CanError, OSError) as error:
                loop.call_soon_threadsafe(fail, str(error))

        thread = threading.Thread(target=read, name=f"{self._name} reader", daemon=True)
        thread.start()
        try:
            return await failed
        finally:
            stop.set()
            await asyncio.shield(asyncio.to_thread(thread.join))
            bus.shutdown()

    def _read(self, bus: can.BusABC, stop: threading.Event, deliver: Callable[[Frame, int], None]) -> None:
        while not stop.is_set():
            message = bus.recv(timeout=RECEIVE_TIMEOUT_S)
            if message is not None:
                deliver(_frame(message), self._clock.boot_ms())


def _exact_filter(key: int) -> can.typechecking.CanFilter:
    extended = bool(key & EXTENDED_FLAG)
    can_id = key & ~EXTENDED_FLAG
    return {"can_id": can_id, "can_mask": 0x1FFF_FFFF if extended else 0x7FF, "extended": extended}


def _frame(message: can.Message) -> Frame:
    return Frame(
        can_id=message.arbitration_id,
        data=bytes(message.data),
        extended=message.is_extended_id,
        remote=message.is_remote_frame,
        error=message.is_error_frame,
    )
