from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import can
import pytest
from can.interfaces.virtual import VirtualBus

from agent.clock import SystemClock
from agent.core.events import EventType, Sample, SignalsSeen, SourceChanged
from agent.vehicle import python_can
from agent.vehicle.binding import bind_bus
from agent.vehicle.decoder import Decoder, Frame
from agent.vehicle.drain import Rounds
from agent.vehicle.profile import Profile
from agent.vehicle.python_can import PythonCanSource
from agent.vehicle.source import BusConfig, build_source


def message(frame: Frame) -> can.Message:
    return can.Message(arbitration_id=frame.can_id, data=frame.data, is_extended_id=False)


def test_a_virtual_bus_is_heard_between_foreign_frames(
    profiles: tuple[Profile, ...], make_frame: Callable[..., Frame]
) -> None:
    async def main() -> list[EventType]:
        events: asyncio.Queue[EventType] = asyncio.Queue()
        bus = BusConfig(name="party", interface="virtual", channel="test-python-can")
        reading = asyncio.create_task(
            build_source(bus, bind_bus("party", profiles), SystemClock(), Path(), Rounds()).run(events.put_nowait)
        )
        with can.Bus(interface="virtual", channel="test-python-can") as car:
            while events.empty():  # a virtual bus hears only what is sent after it was opened
                for foreign in range(50):
                    car.send(can.Message(arbitration_id=0x700 + foreign, is_extended_id=False))
                car.send(message(make_frame("party", "ESP_status", ESP_driverBrakeApply=2)))
                await asyncio.sleep(0.01)
            received = [await asyncio.wait_for(events.get(), 5) for _ in range(2)]
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        return received

    alive, seen = asyncio.run(main())
    assert isinstance(alive, SourceChanged)
    assert alive.alive
    assert isinstance(seen, SignalsSeen)
    assert seen.samples == (Sample("Vehicle.Chassis.Brake.PedalPosition", 100.0, group="ESP_status", period_ms=20),)
    assert not any(thread.name == "party reader" for thread in threading.enumerate())


def test_a_bus_that_fails_is_said_and_opened_again(
    decoders: dict[str, Decoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(python_can, "REOPEN_S", 0.001)
    opened = 0
    enough = asyncio.Event()

    class FailingBus(VirtualBus):
        def _recv_internal(self, timeout: float | None) -> tuple[can.Message | None, bool]:
            raise can.CanOperationError("could not unpack received message")

    def open_bus() -> can.BusABC:
        nonlocal opened
        opened += 1
        if opened == 3:
            enough.set()
        if opened == 2:
            raise can.CanInitializationError("no such interface")
        return FailingBus(channel="test-failing")

    async def main() -> list[EventType]:
        events: list[EventType] = []
        source = PythonCanSource("party", decoders["party"], SystemClock(), open_bus)
        reading = asyncio.create_task(source.run(events.append))
        await asyncio.wait_for(enough.wait(), 5)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        return events

    (lost,) = asyncio.run(main())
    assert isinstance(lost, SourceChanged)
    assert (lost.alive, lost.detail) == (False, "could not unpack received message")
