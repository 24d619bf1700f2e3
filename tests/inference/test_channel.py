"""Memory that rides with frames, both ways: as large as announced, sealed, and in the order of its frames."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import wire
from agent.sealed import InputMemory
from agent.worker.channel import Channel, ChannelClosedError

ALL_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
PLAN = wire.Load(path="/p", executor="tensorrt", threads=1, memory_mb=64, drain_ms=1, plan_bytes=6)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, Channel]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, Channel(theirs)


def send(ours: socket.socket, message: wire.DaemonMessage, *bodies: bytes) -> None:
    memories = [InputMemory.holding(body) for body in bodies]
    socket.send_fds(ours, [wire.encode(message)], [one.descriptor for one in memories])
    for one in memories:
        one.close()


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_plan_is_taken_and_stays_mapped(ends: tuple[socket.socket, Channel]) -> None:
    ours, channel = ends
    send(ours, PLAN, b"a plan")
    assert channel.receive(1) == [PLAN]
    before = open_files()
    plan = channel.take_memory(6)
    assert bytes(plan) == b"a plan"
    assert plan.readonly
    assert open_files() <= before  # the mapping keeps the memory; one descriptor of its own is Python's
    with pytest.raises(wire.WireError, match="without its memfd"):
        channel.take_memory(6)


def test_memories_are_taken_in_their_order(ends: tuple[socket.socket, Channel]) -> None:
    ours, channel = ends
    send(ours, PLAN, b"first!")
    send(ours, wire.Input(items=1, bytes=len(wire.encode_input([b"x"]))), wire.encode_input([b"x"]))
    messages: list[wire.DaemonMessage] = []
    while len(messages) < 2:
        messages += channel.receive(1)
    assert bytes(channel.take_memory(6)) == b"first!"
    assert isinstance(messages[1], wire.Input)
    assert channel.take_items(messages[1]) == [b"x"]


@pytest.mark.parametrize("length", [5, 7, 0])
def test_memory_of_another_size_is_refused(ends: tuple[socket.socket, Channel], length: int) -> None:
    ours, channel = ends
    send(ours, PLAN, b"a plan")
    channel.receive(1)
    with pytest.raises(wire.WireError, match=f"6 bytes, not {length}"):
        channel.take_memory(length)


def test_memory_that_could_still_change_is_refused(ends: tuple[socket.socket, Channel]) -> None:
    ours, channel = ends
    descriptor = os.memfd_create("open", os.MFD_ALLOW_SEALING)
    os.write(descriptor, b"a plan")
    socket.send_fds(ours, [wire.encode(PLAN)], [descriptor])
    os.close(descriptor)
    channel.receive(1)
    with pytest.raises(wire.WireError, match="not sealed"):
        channel.take_memory(6)


def test_what_is_no_memfd_is_refused(ends: tuple[socket.socket, Channel]) -> None:
    ours, channel = ends
    reading, writing = os.pipe()
    socket.send_fds(ours, [wire.encode(PLAN)], [reading])
    os.close(reading)
    os.close(writing)
    channel.receive(1)
    with pytest.raises(wire.WireError):
        channel.take_memory(6)


def test_a_plan_leaves_sealed_and_whole(ends: tuple[socket.socket, Channel]) -> None:
    ours, channel = ends
    before = open_files()
    body = os.urandom(700_000)
    channel.send(wire.Built(plan_bytes=len(body), timing_bytes=2), [body, memoryview(b"ok")])
    data, descriptors, _, _ = socket.recv_fds(ours, 65536, 4)
    try:
        assert wire.worker_messages().feed(data) == [wire.Built(plan_bytes=len(body), timing_bytes=2)]
        assert [os.pread(one, 10**6, 0) for one in descriptors] == [body, b"ok"]
        assert all(fcntl.fcntl(one, fcntl.F_GET_SEALS) == ALL_SEALS for one in descriptors)
        assert open_files() == before + 2
    finally:
        for one in descriptors:
            os.close(one)


def test_no_memory_for_a_plan_is_told(ends: tuple[socket.socket, Channel], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(12, "Cannot allocate memory")

    before = open_files()
    monkeypatch.setattr("agent.worker.channel.os.write", fail)
    with pytest.raises(MemoryError, match="no memory for 5 bytes"):
        ends[1].send(wire.Built(plan_bytes=5, timing_bytes=0), [b"plan!"])
    assert open_files() == before


def test_a_daemon_that_is_gone_is_told(ends: tuple[socket.socket, Channel]) -> None:
    ours, channel = ends
    ours.close()
    with pytest.raises(ChannelClosedError):
        channel.send(wire.Built(plan_bytes=5, timing_bytes=0), [b"plan!"])
