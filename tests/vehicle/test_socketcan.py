"""The receive path over a datagram pair: this is every line but the opening of an AF_CAN socket."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Callable, Coroutine, Iterator

import pytest

from agent.clock import SystemClock
from agent.core.events import EventType, SignalsSeen, SourceChanged
from agent.vehicle import drain
from agent.vehicle.decoder import Decoder, Frame
from agent.vehicle.drain import Rounds
from agent.vehicle.socketcan import (
    CAN_ERR_BUSERROR,
    CAN_ERR_BUSOFF,
    CAN_ERR_RESTARTED,
    SocketCanSource,
    kernel_filter,
    parse_can_frame,
)

GEAR = "Vehicle.Powertrain.Transmission.SelectedGear"
BRAKE = "Vehicle.Chassis.Brake.PedalPosition"
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
        self.opened: list[socket.socket] = []
        self.fail_with: list[int] = []
        self.events: asyncio.Queue[EventType] = asyncio.Queue()
        self.opens: asyncio.Queue[socket.socket] = asyncio.Queue()
        self.interfaces: list[Interface] = []
        self.source = SocketCanSource("party", decoder, SystemClock(), self.open, Rounds())

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
            reading = asyncio.create_task(self.source.run(self.events.put_nowait))
            await scenario()
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            assert all(end.fileno() == -1 for end in self.interfaces), "the source closes what it opened"

        asyncio.run(main())


@pytest.fixture
def rig(decoders: dict[str, Decoder], monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(drain, "FIRST_BACKOFF_S", 0.001)
    rig = Rig(decoders["party"])
    yield rig
    for ours in rig.opened:
        ours.close()


def raw(frame: Frame) -> bytes:
    return can_frame(frame.can_id, frame.data)


def test_all_waiting_frames_are_one_drain_and_dropped_ones_are_counted(rig: Rig, make_frame: MakeFrame) -> None:
    async def scenario() -> None:
        bus = await rig.next_open()
        park, brake = make_frame("party", "DI_systemStatus", DI_gear=1), make_frame("party", "ESP_status")
        bus.send(raw(park))
        bus.send(b"too short for a frame")
        bus.send(can_frame(park.can_id, park.data, length=9))
        bus.send(can_frame(park.can_id, park.data, length=3))
        bus.send(can_frame(park.can_id | socket.CAN_RTR_FLAG, park.data))
        bus.send(can_frame(park.can_id | socket.CAN_EFF_FLAG, park.data))
        bus.send(raw(park))
        bus.send(raw(brake))
        assert isinstance(await rig.next(), SourceChanged)
        seen = await rig.next()
        assert isinstance(seen, SignalsSeen)
        assert [sample.path for sample in seen.samples] == [GEAR, BRAKE]

    rig.run(scenario)
    assert rig.source.counts == {
        "frames": 2,
        "dropped_foreign": 1,
        "dropped_frozen": 1,
        "dropped_length": 1,
        "dropped_malformed": 2,
        "dropped_remote": 1,
    }


def test_a_busy_bus_is_looked_at_every_20_ms_and_a_silent_one_is_waited_for(rig: Rig, make_frame: MakeFrame) -> None:
    """Which of the two it is shows in whether the loop waits for the socket."""

    async def scenario() -> None:
        bus = await rig.next_open()
        interface = rig.interfaces[0]
        loop = asyncio.get_running_loop()
        selector = loop._selector  # type: ignore[attr-defined]

        def waited_for() -> bool:
            return interface.fileno() in selector.get_map()

        await asyncio.sleep(0)
        assert waited_for()
        started_s = loop.time()
        bus.send(raw(make_frame("party", "DI_systemStatus", DI_gear=1)))
        assert isinstance(await rig.next(), SourceChanged)
        assert isinstance(await rig.next(), SignalsSeen)
        assert not waited_for(), "until the next look"
        bus.send(raw(make_frame("party", "DI_systemStatus", DI_gear=4)))
        seen = await rig.next()
        assert isinstance(seen, SignalsSeen)
        assert seen.samples[0].value == 127.0
        assert loop.time() >= drain.grid_s(started_s), "no sooner than the next moment of the grid"
        while not waited_for():  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.005)

    rig.run(scenario)


def test_looks_are_few_while_there_is_nothing_to_give_back_and_hurry_at_once_when_there_is() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        rounds = Rounds()
        looked: list[float] = []

        class Counting(drain.Drain):
            def look(self) -> None:
                looked.append(loop.time())

        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            busy = Counting(channel, None, SystemClock(), rounds)  # type: ignore[arg-type]  # never read
            rounds.hurry(hurried=False)
            rounds.join(busy)
            assert rounds._timer is not None
            moments = {rounds._timer.when() / drain.DRAIN_S}
            while len(looked) < 4:
                await asyncio.sleep(0.001)
                moments.add(rounds._timer.when() / drain.DRAIN_S)
            assert {round(moment) % 5 for moment in moments} == {0}, "every fifth moment of the grid"
            rounds.hurry(hurried=True)
            assert rounds._timer is not None
            assert rounds._timer.when() - loop.time() <= drain.DRAIN_S
            rounds.leave(busy)
            await asyncio.sleep(0.1)
            assert rounds._timer is None, "nobody is left to be looked at"

    asyncio.run(main())


def test_every_bus_is_looked_at_in_the_same_moments() -> None:
    assert drain.grid_s(10.001) == drain.grid_s(10.019) == pytest.approx(10.02)
    assert drain.grid_s(10.0201) == pytest.approx(10.04)


def test_error_frames_are_counted_by_class_and_bus_off_is_a_loss_until_the_next_frame(
    rig: Rig, make_frame: MakeFrame
) -> None:
    async def scenario() -> None:
        bus = await rig.next_open()
        bus.send(raw(make_frame("party", "DI_systemStatus", DI_gear=1)))
        bus.send(can_frame(socket.CAN_ERR_FLAG | CAN_ERR_BUSERROR, bytes(8)))
        bus.send(can_frame(socket.CAN_ERR_FLAG | CAN_ERR_BUSOFF, bytes(8)))
        bus.send(can_frame(socket.CAN_ERR_FLAG | CAN_ERR_RESTARTED, bytes(8)))
        assert isinstance(await rig.next(), SourceChanged)
        assert isinstance(await rig.next(), SignalsSeen)
        lost = await rig.next()
        assert isinstance(lost, SourceChanged)
        assert not lost.alive
        assert "bus-off" in lost.detail
        bus.send(raw(make_frame("party", "DI_systemStatus", DI_gear=4)))
        back = await rig.next()
        assert isinstance(back, SourceChanged)
        assert back.alive

    rig.run(scenario)
    counts = rig.source.counts
    assert counts["dropped_error"] == 3
    assert (counts["error_bus"], counts["error_bus_off"], counts["error_restarted"]) == (1, 1, 1)
    assert counts["losses"] == 1


def test_what_the_kernel_had_no_room_for_is_counted() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        receiver.bind(("127.0.0.1", 0))
        for _ in range(100):
            sender.sendto(bytes(64), receiver.getsockname())
        assert drain.dropped_by_kernel(receiver) > 50
        assert drain.dropped_by_kernel(sender) == 0


def test_an_overflow_is_told_once_by_how_much(rig: Rig, make_frame: MakeFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drain, "OVERFLOW_INTERVAL_MS", 0)
    dropped = iter([0, 7, 7, 9])
    monkeypatch.setattr(drain, "dropped_by_kernel", lambda _channel: next(dropped))

    async def scenario() -> None:
        bus = await rig.next_open()
        for gear in (1, 4, 1, 4):
            bus.send(raw(make_frame("party", "DI_systemStatus", DI_gear=gear)))
            while not isinstance(await rig.next(), SignalsSeen):
                pass

    rig.run(scenario)
    assert rig.source.counts["overflowed"] == 9


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
        source = SocketCanSource("party", decoders["party"], SystemClock(), refuse, Rounds())
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


def test_frames_are_parsed_from_the_bytes_of_linux_can_h() -> None:
    assert parse_can_frame(bytes.fromhex("18010000 03000000 0102030000000000")) == Frame(0x118, b"\x01\x02\x03")
    flexible = bytes.fromhex("fc000080 30040000") + bytes(range(64))
    assert parse_can_frame(flexible) == Frame(0xFC, bytes(range(48)), extended=True)
    assert parse_can_frame(bytes(71)) is None
    assert parse_can_frame(bytes.fromhex("18010000 41000000") + bytes(64)) is None
