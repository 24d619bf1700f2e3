"""A station with one package on its shelf, and a small program in the worker's place on the real wire."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from agent import wire
from agent.core.events import EventType, WorkerReady
from agent.core.model import Grant, JobKey
from agent.inference import launcher
from agent.inference.launcher import OnGone, OnMessage, WorkerProcess
from agent.inference.planned import PlannedShelf
from agent.inference.shelf import Shelf
from agent.inference.station import Station, WorkerLimits
from agent.ports import Clock
from agent.rows import StoredSlice
from agent.sealed import InputMemory
from tests.conftest import FixedClock
from tests.core.world import grant
from tests.inference.desk import PATIENCE_S, Kind
from tests.inference.test_launcher import impostor
from tests.inference.test_shelf import TRUSTED, put

BODY = wire.encode_input([b"item"] * 12)

WORKER = """
from pathlib import Path

decoder, given, forgotten = wire.daemon_messages(), False, 0

def say(*messages):
    channel.sendall(b"".join(map(wire.encode, messages)))

def loaded(order, **changes):
    if "package_sha256" not in changes:
        manifest = (Path(order.path) / "manifest.json").read_bytes()
        changes["package_sha256"] = hashlib.sha256(manifest).hexdigest()
    fields = dict(executor="stand-in", device="none", micro_batch_ms=1.0, kernels_sha256="7" * 64,
                  precision="float32", batch=(1, 8), golden_raw_sha256="6" * 64)
    return wire.Loaded(**(fields | changes))

def done(order, **changes):
    fields = dict(index=order.index, items=order.last - order.first, failed_items=0, output=b"[]",
                  output_sha256=hashlib.sha256(b"[]").hexdigest(), raw_sha256="0" * 64, raw_dtype="float32",
                  raw_shape=(1,), compute_ms=5)
    return wire.SliceDone(**(fields | changes))

hello()
while data := channel.recv(65536):
    for order in decoder.feed(data):
        if isinstance(order, wire.Load):
            {on_load}
        elif isinstance(order, wire.Input):
            given = True
        elif isinstance(order, wire.Forget):
            given, forgotten = False, forgotten + 1
        elif isinstance(order, wire.Run):
            {on_run}
        elif isinstance(order, wire.Stop):
            say(wire.Idle())
            sys.exit()
"""
LOADED = "say(loaded(order))"
DONE = "say(done(order))"


def stand_in(monkeypatch: pytest.MonkeyPatch, directory: Path, *, on_load: str = LOADED, on_run: str = DONE) -> None:
    """Have the station start a small program that does this when it is told to load and to run."""
    program = impostor(directory, WORKER.replace("{on_load}", on_load).replace("{on_run}", on_run))
    start_instead(monkeypatch, program)


def start_instead(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Have the station start this program, with everything else as it would start the interpreter."""

    def launch(clock: Clock, on_message: OnMessage, on_gone: OnGone, **options: object) -> WorkerProcess:
        return launcher.launch(clock, on_message, on_gone, **{**options, "python": program})  # type: ignore[arg-type]

    monkeypatch.setattr("agent.inference.station.launch", launch)


class Floor:
    """A station with one package on its shelf, and what it told the core and the disk."""

    def __init__(self, folder: Path) -> None:
        put(folder, "good")
        self.shelf = Shelf(folder, TRUSTED)
        (package,) = self.shelf.packages
        self.grant: Grant = msgspec.structs.replace(grant(1), package="good", package_sha256=package)
        self.events: list[EventType] = []
        self.memory = InputMemory.holding(BODY)
        self.lost: list[str] = []
        self.slices: list[tuple[JobKey, StoredSlice]] = []
        self._news = asyncio.Event()
        self.station = Station(
            emit=self._heard,
            clock=FixedClock(),
            shelf=self.shelf,
            plans=PlannedShelf(self.shelf, None, emit=self._heard, clock=FixedClock(), memory_mb=256),
            limits=WorkerLimits(threads=1, memory_mb=256),
            on_slice=self._kept,
            on_lost=self.lost.append,
        )

    def run(self, index: int = 0) -> None:
        self.station.run(self.grant.key, index, self.grant.span(index), self.memory, self.grant.items)

    async def ready(self) -> WorkerReady:
        self.station.start(self.grant)
        return await self.heard(WorkerReady)

    async def heard(self, kind: type[Kind]) -> Kind:
        """Wait until the core was told of this."""
        return (await self._until(lambda: [event for event in self.events if isinstance(event, kind)]))[-1]

    async def kept(self, count: int) -> None:
        """Wait until so many slices were handed to the disk."""
        await self._until(lambda: self.slices[count - 1 :])

    def kinds(self) -> list[type[EventType]]:
        return [type(event) for event in self.events]

    async def _until(self, wanted: Callable[[], list[Kind]]) -> list[Kind]:
        async with asyncio.timeout(PATIENCE_S):
            while not (found := wanted()):
                self._news.clear()
                await self._news.wait()
        return found

    def _heard(self, event: EventType) -> None:
        self.events.append(event)
        self._news.set()

    def _kept(self, key: JobKey, stored: StoredSlice) -> None:
        self.slices.append((key, stored))
        self._news.set()


@asynccontextmanager
async def floor(folder: Path) -> AsyncIterator[Floor]:
    opened = Floor(folder / "packages")
    try:
        yield opened
    finally:
        async with asyncio.timeout(PATIENCE_S):
            await opened.station.close()
        opened.memory.close()


async def turns(count: int = 20) -> None:
    """Let the loop turn, so that whatever is still to be said is said."""
    for _ in range(count):
        await asyncio.sleep(0)


def killed(pid: int) -> None:
    """Kill a process, and return when it is dead; the station has not looked yet."""
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
