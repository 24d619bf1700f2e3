"""The receive path over a datagram pair: this is every line but the opening of an AF_CAN socket."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Callable, Coroutine, Iterator

import pytest

from agent.clock import SystemClock
from agent.core.events import EventType, Sample, SignalsSeen, SourceChanged
from agent.vehicle import socketcan
from agent.vehicle.decoder import Decoder, Dropped, Frame
from agent.vehicle.socketcan import CAN_ERR_BUSOFF, SocketCanSource, kernel_filter, parse_can_frame

GEAR = "Vehicle.Powertrain.Transmission.SelectedGear"
MakeFrame = Callable[..., Frame]


def can_frame(can_id: int, data: bytes, *, length: int | None = None) -> bytes:
    """`struct can_frame` as the kernel hands it out."""
    return struct.pack("=IBBBB8s", can_id, len(data) if length is None else length, 0, 0, 0, data)


class Interface(socket.socket):
    """The source's end of the pair. Down, it gives the error that the kernel gives for an interface that went."""

    down_with = 0

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        if self.down_with:
            raise OSError(self.down_with, "scripted")
        return super().recv(size, flags)


class Rig:
    """A source on one end of a datagram pair, and a test at the other."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.opened: list[socket.socket] = []
        self.fail_with: list[int] = []
        self.events: asyncio.Queue[EventType] = asyncio.Queue()
        self.opens: asyncio.Queue[socket.socket] = asyncio.Queue()
        self.interfaces: list[Interface] = []

    def open(self) -> socket.socket:
        if self.fail_with:
            raise OSError(self.fail_with.pop(0), "scripted")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        interface = Interface(fileno=theirs.detach())
        interface.setblocking(False)
        self.opened.append(ours)
        self.opens.put_nowait(ours)
        self.interfaces.append(interface)
        return interface

    async def next(self) -> EventType:
        return await asyncio.wait_for(self.events.get(), 5)

    async def next_open(self) -> socket.socket:
        return await asyncio.wait_for(self.opens.get(), 5)

    def run(self, scenario: Callable[[], Coroutine[None, None, None]]) -> None:
        async def main() -> None:
            source = SocketCanSource("party", self.decoder, SystemClock(), self.open)
            reading = asyncio.create_task(source.run(self.events.put_nowait))
            await scenario()
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            assert all(end.fileno() == -1 for end in self.interfaces), "the source closes what it opened"

        asyncio.run(main())


@pytest.fixture
def rig(decoders: dict[str, Decoder], monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(socketcan, "FIRST_BACKOFF_S", 0.001)
    rig = Rig(decoders["party"])
    yield rig
    for ours in rig.opened:
        ours.close()


def raw(frame: Frame) -> bytes:
    return can_frame(frame.can_id, frame.data)


def test_all_waiting_frames_are_drained_and_dropped_ones_are_counted(rig: Rig, make_frame: MakeFrame) -> None:
    async def scenario() -> None:
        bus = await rig.next_open()
        park, drive = (make_frame("party", "DI_systemStatus", DI_gear=gear) for gear in (1, 4))
        bus.send(raw(park))
        bus.send(b"too short for a frame")
        bus.send(can_frame(park.can_id, park.data, length=9))
        bus.send(can_frame(park.can_id, park.data, length=3))
        bus.send(can_frame(park.can_id | socket.CAN_RTR_FLAG, park.data))
        bus.send(can_frame(park.can_id | socket.CAN_EFF_FLAG, park.data))
        bus.send(raw(drive))
        assert isinstance(await rig.next(), SourceChanged)
        first, second = await rig.next(), await rig.next()
        assert isinstance(first, SignalsSeen)
        assert isinstance(second, SignalsSeen)
        assert first.samples == (Sample(GEAR, 126.0),)
        assert second.samples == (Sample(GEAR, 127.0),)

    rig.run(scenario)
    assert rig.decoder.dropped == {
        Dropped.MALFORMED: 2,
        Dropped.SHORT: 1,
        Dropped.REMOTE: 1,
        Dropped.FOREIGN: 1,
    }


def test_bus_off_is_said_and_the_next_frame_brings_the_bus_back(rig: Rig, make_frame: MakeFrame) -> None:
    async def scenario() -> None:
        bus = await rig.next_open()
        bus.send(raw(make_frame("party", "DI_systemStatus", DI_gear=1)))
        assert isinstance(await rig.next(), SourceChanged)
        assert isinstance(await rig.next(), SignalsSeen)
        bus.send(can_frame(socket.CAN_ERR_FLAG | CAN_ERR_BUSOFF, bytes(8)))
        lost = await rig.next()
        assert isinstance(lost, SourceChanged)
        assert not lost.alive
        assert "bus-off" in lost.detail
        bus.send(raw(make_frame("party", "DI_systemStatus", DI_gear=4)))
        back = await rig.next()
        assert isinstance(back, SourceChanged)
        assert back.alive

    rig.run(scenario)
    assert rig.decoder.dropped[Dropped.ERROR] == 1


def test_an_interface_that_goes_is_said_once_and_opened_again(rig: Rig, make_frame: MakeFrame) -> None:
    async def scenario() -> None:
        bus = await rig.next_open()
        bus.send(raw(make_frame("party", "DI_systemStatus", DI_gear=1)))
        assert isinstance(await rig.next(), SourceChanged)
        assert isinstance(await rig.next(), SignalsSeen)
        rig.fail_with = [errno.ENODEV, errno.ENETDOWN]
        rig.interfaces[0].down_with = errno.ENETDOWN
        bus.send(b"wakes the reader, as the kernel does")
        lost = await rig.next()
        assert isinstance(lost, SourceChanged)
        assert (lost.alive, lost.detail) == (False, "Network is down")
        bus = await rig.next_open()
        assert not rig.fail_with
        bus.send(raw(make_frame("party", "DI_systemStatus", DI_gear=4)))
        back, seen = await rig.next(), await rig.next()
        assert isinstance(back, SourceChanged)
        assert back.alive
        assert isinstance(seen, SignalsSeen)

    rig.run(scenario)


def test_an_interface_that_never_was_is_said_with_its_reason(decoders: dict[str, Decoder]) -> None:
    def refuse() -> socket.socket:
        raise OSError(errno.ENODEV, "No such device")

    async def main() -> EventType:
        events: asyncio.Queue[EventType] = asyncio.Queue()
        source = SocketCanSource("party", decoders["party"], SystemClock(), refuse)
        reading = asyncio.create_task(source.run(events.put_nowait))
        event = await asyncio.wait_for(events.get(), 5)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        return event

    event = asyncio.run(main())
    assert isinstance(event, SourceChanged)
    assert (event.alive, event.detail) == (False, "cannot be opened: No such device")


def test_the_kernel_filter_takes_exactly_one_id() -> None:
    assert kernel_filter(0x118) == struct.pack("=II", 0x118, 0xC000_07FF)
    assert kernel_filter(0x9ABC_DEF0) == struct.pack("=II", 0x9ABC_DEF0, 0xDFFF_FFFF)


def test_a_standard_frame_is_parsed_from_the_bytes_of_linux_can_h() -> None:
    assert parse_can_frame(bytes.fromhex("18010000 03000000 0102030000000000")) == Frame(0x118, b"\x01\x02\x03")
    assert parse_can_frame(bytes(72)) is None
