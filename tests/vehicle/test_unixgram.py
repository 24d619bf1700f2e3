from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.clock import SystemClock
from agent.core.events import EventType, SignalsSeen, SourceChanged
from agent.errors import ConfigError
from agent.vehicle.apart import bind_apart
from agent.vehicle.decoder import Frame
from agent.vehicle.profile import Profile
from agent.vehicle.source import BusConfig, build_sources
from agent.vehicle.unixgram import attach_filter, car_path, filter_program, open_unixgram

KEYS = (0x118, 0x257, 0x9ABC_DEF0)


def raw(can_id: int, data: bytes = bytes(8)) -> bytes:
    return struct.pack("=IB3x8s", can_id, len(data), data)


def car_end(path: Path) -> socket.socket:
    car = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    car.bind(str(car_path(path)))
    return car


def test_the_kernel_lets_exactly_these_ids_through(tmp_path: Path) -> None:
    with car_end(tmp_path / "bus") as car, open_unixgram(tmp_path / "bus", KEYS) as bus:
        car.connect(str(tmp_path / "bus"))
        wanted = [raw(key) for key in KEYS]
        foreign = [raw(0x119), raw(0x118 | 1 << 31), raw(0x118 | 1 << 30), raw(0x9ABC_DEF0 & 0x7FF), b"", b"\x18"]
        for frame in (*foreign, *wanted, *foreign):
            car.send(frame)
        got = [bus.recv(4096) for _ in wanted]
        assert got == wanted
        with pytest.raises(BlockingIOError):
            bus.recv(4096)
        for _ in range(100):
            car.send(wanted[0])
        assert [bus.recv(4096) for _ in range(100)] == [wanted[0]] * 100, "more wait than a Unix socket lets wait"


def test_a_bus_without_a_car_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_unixgram(tmp_path / "bus", KEYS)


@given(keys=st.sets(st.integers(0, 2**32 - 1), max_size=20), ids=st.lists(st.integers(0, 2**32 - 1), max_size=3))
def test_the_filter_is_exact_for_any_ids(keys: set[int], ids: list[int]) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        theirs.setblocking(False)
        attach_filter(theirs, tuple(keys))
        for can_id in [*ids, *list(keys)[:3]]:
            ours.send(raw(can_id))
            if can_id in keys:
                assert theirs.recv(100) == raw(can_id)
            else:
                with pytest.raises(BlockingIOError):
                    theirs.recv(100)


def test_more_ids_than_a_jump_reaches_are_refused() -> None:
    with pytest.raises(OSError, match="more than 250"):
        filter_program(tuple(range(251)))


def test_a_bus_over_a_unix_socket_is_heard_through_the_whole_path(
    tmp_path: Path, profiles: tuple[Profile, ...], make_frame: Callable[..., Frame]
) -> None:
    """Bound in a process of its own, filtered by the kernel, drained, decoded, told."""
    buses = [BusConfig(name="party", interface="unixgram", channel="party.bus")]

    async def main() -> list[EventType]:
        events: asyncio.Queue[EventType] = asyncio.Queue()
        (source,) = build_sources(buses, profiles, SystemClock(), tmp_path, bind_apart)
        reading = asyncio.create_task(source.run(events.put_nowait))
        with car_end(tmp_path / "party.bus") as car:
            while not (tmp_path / "party.bus").exists():  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.001)
            car.connect(str(tmp_path / "party.bus"))
            car.send(raw(0x7FF))
            frame = make_frame("party", "ESP_status", ESP_driverBrakeApply=2)
            car.send(raw(frame.can_id, frame.data))
            received = [await asyncio.wait_for(events.get(), 5) for _ in range(2)]
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert source.counts == {"frames": 1}, "the kernel dropped the foreign frame"
        return received

    alive, seen = asyncio.run(main())
    assert isinstance(alive, SourceChanged)
    assert isinstance(seen, SignalsSeen)
    assert seen.samples[0].value == 100.0


def test_a_bus_is_configured_once(tmp_path: Path, profiles: tuple[Profile, ...]) -> None:
    bus = BusConfig(name="party", interface="unixgram", channel="party.bus")
    with pytest.raises(ConfigError, match="configured twice"):
        build_sources([bus, bus], profiles, SystemClock(), tmp_path, bind_apart)
