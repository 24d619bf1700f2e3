"""Reads a bus of python-can: rigs and tests, where the kernel has no CAN.

A thread waits in `recv` and collects the frames; the event loop takes them as it drains a real bus: the first after a
silence at once, then every 20 ms. When the bus fails, the source says so and opens it again.

A `udp_multicast` bus hears any UDP packet that reaches its port, from anywhere: it is for rigs, never for a vehicle.
It also hears other groups of the same port, so each bus needs a port of its own.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import can

from agent.ports import Clock
from agent.vehicle.decoder import Decoder, Frame
from agent.vehicle.drain import grid_s
from agent.vehicle.layout import EXTENDED_FLAG
from agent.vehicle.listener import BusListener, BusSource

RECEIVE_TIMEOUT_S = 0.2
"""How long the thread waits before it looks whether it should end. Never 0: with filters in software, python-can's
`recv(timeout=0)` returns None at the first foreign frame."""
REOPEN_S = 0.5


class PythonCanSource(BusSource):
    """A vehicle source over a python-can bus."""

    def __init__(self, name: str, decoder: Decoder, clock: Clock, open_bus: Callable[[], can.BusABC]) -> None:
        super().__init__(name, decoder, clock)
        self._open_bus = open_bus

    async def keep_open(self, listener: BusListener) -> None:
        """Receive until cancelled."""
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
        bus.set_filters([_exact_filter(key) for key in self.decoder.keys])
        loop = asyncio.get_running_loop()
        failed: asyncio.Future[str] = loop.create_future()
        stop = threading.Event()
        batch = _Batch(loop, lambda frames: listener.take(frames, self.clock.boot_ms()))

        def fail(detail: str) -> None:
            if not failed.done():
                failed.set_result(detail)

        def read() -> None:
            try:
                _read(bus, stop, batch.put)
            except (can.CanError, OSError) as error:
                loop.call_soon_threadsafe(fail, str(error))

        thread = threading.Thread(target=read, name=f"{self.name} reader", daemon=True)
        thread.start()
        try:
            return await failed
        finally:
            stop.set()
            await asyncio.shield(asyncio.to_thread(thread.join))
            bus.shutdown()


class _Batch:
    """Frames from the thread to the loop: the first after a pause at once, the others every 20 ms."""

    def __init__(self, loop: asyncio.AbstractEventLoop, take: Callable[[list[Frame]], object]) -> None:
        self._loop, self._take = loop, take
        self._lock = threading.Lock()
        self._frames: list[Frame] = []
        self._looking = False

    def put(self, frame: Frame) -> None:
        """Called on the thread."""
        with self._lock:
            self._frames.append(frame)
            wake, self._looking = not self._looking, True
        if wake:
            self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        with self._lock:
            frames, self._frames = self._frames, []
            self._looking = bool(frames)
        if frames:
            self._loop.call_at(grid_s(self._loop.time()), self._drain)
            self._take(frames)


def _read(bus: can.BusABC, stop: threading.Event, deliver: Callable[[Frame], None]) -> None:
    while not stop.is_set():
        message = bus.recv(timeout=RECEIVE_TIMEOUT_S)
        if message is not None:
            deliver(_frame(message))


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
