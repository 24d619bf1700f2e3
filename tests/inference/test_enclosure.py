"""The control group is made beside the loop: a kernel that hangs there holds up nobody, and no process id is reused."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import wire
from agent.errors import WorkerError
from agent.inference import child, enclosure, launcher
from agent.inference.cgroup import WorkerGroup
from agent.inference.enclosure import PENDING
from agent.wire import Confinement
from tests.inference.desk import PATIENCE_S, Desk
from tests.inference.test_launcher import impostor

MADE = Confinement("cgroup", "enforced")


class SlowGroup(WorkerGroup):
    """A group that keeps note of what it was told."""

    def __init__(self) -> None:
        super().__init__(None, (MADE,))
        self.told: list[str] = []

    def kill(self) -> None:
        self.told.append("kill")

    def remove(self) -> None:
        self.told.append("remove")


class Kernel:
    """What makes groups, and hangs until `lets_go`."""

    def __init__(self) -> None:
        self.lets_go, self.group, self.done = threading.Event(), SlowGroup(), threading.Event()
        self.thread: threading.Thread | None = None

    def enclose(self, _pid: int, _memory_mb: int | None) -> WorkerGroup:
        self.thread = threading.current_thread()
        assert self.lets_go.wait(PATIENCE_S)
        return self.group


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    one = Kernel()
    monkeypatch.setattr(enclosure, "enclose", one.enclose)
    yield one
    one.lets_go.set()
    assert one.thread is not None
    one.thread.join(PATIENCE_S)
    assert not one.thread.is_alive()


def is_zombie(pid: int) -> bool:
    return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()


def test_a_kernel_that_hangs_there_does_not_hold_the_worker_up(tmp_path: Path, kernel: Kernel) -> None:
    async def watch() -> None:
        desk = Desk()
        process = desk.launch(python=impostor(tmp_path, "hello(); time.sleep(60)"))
        await desk.wait_for(wire.Hello)
        assert process.confinement == (PENDING,)
        process.stop(0)
        kernel.lets_go.set()
        assert (await desk.end())[0]
        assert kernel.group.told == ["kill", "kill", "remove"], "at the last rung, and when it was gone"
        assert process.confinement == (MADE,)

    asyncio.run(watch())


def test_it_is_not_reaped_before_its_group_is_made_and_its_end_is_told_all_the_same(
    tmp_path: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "LEAVE_S", 0.05)

    async def watch() -> None:
        desk = Desk()
        process = desk.launch(python=impostor(tmp_path, "hello(); sys.exit(7)"))
        assert (await desk.end()) == (False, "exited with status 7")
        assert process.is_gone
        assert is_zombie(process.pid), "its id cannot be another's"
        assert kernel.group.told == []
        kernel.lets_go.set()
        assert kernel.thread is not None
        await asyncio.to_thread(kernel.thread.join, PATIENCE_S)
        assert kernel.group.told == ["kill", "remove"]
        pids.append(process.pid)

    pids: list[int] = []
    asyncio.run(watch())
    assert not Path(f"/proc/{pids[0]}").exists()


def test_a_worker_that_cannot_be_watched_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pids: list[int] = []

    def no_thread(pid: int, _memory_mb: int | None) -> None:
        pids.append(pid)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(child, "Enclosure", no_thread)

    async def watch() -> None:
        with pytest.raises(WorkerError, match="cannot be watched: can't start new thread"):
            Desk().launch(python=impostor(tmp_path, "hello(); time.sleep(60)"))
        with pytest.raises(ProcessLookupError):
            os.kill(pids[0], 0)

    asyncio.run(watch())
