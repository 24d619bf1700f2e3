"""The station and a process on the real wire that answers wrongly, refuses, or is gone: every end is told, once."""

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
from agent.core.events import EventType, SliceFailed, WorkerGone, WorkerReady, WorkerRefused
from agent.core.model import Grant, JobKey
from agent.inference import launcher
from agent.inference.launcher import OnGone, OnMessage, WorkerProcess
from agent.inference.planned import PlannedShelf
from agent.inference.shelf import Shelf
from agent.inference.station import Running, Station, WorkerLimits
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
    manifest = (Path(order.path) / "manifest.json").read_bytes()
    fields = dict(executor="stand-in", device="none", micro_batch_ms=1.0, kernels_sha256="7" * 64,
                  package_sha256=hashlib.sha256(manifest).hexdigest())
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


def test_slices_are_kept_with_what_computed_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with floor(tmp_path) as here:
            ready = await here.ready()
            assert (ready.executor, ready.package) == ("stand-in", "good")
            for index in (0, 1):
                here.run(index)
                await here.kept(index + 1)
            keys, kept = zip(*here.slices, strict=True)
            assert keys == (here.grant.key, here.grant.key)
            assert [(one.outcome.index, one.outcome.items, one.output) for one in kept] == [
                (0, 4, b"[]"),
                (1, 4, b"[]"),
            ]
            (package,) = here.shelf.packages.values()
            assert kept[0].engine.model_sha256 == package.manifest.files["model.onnx"]
            assert (kept[0].engine.executor, kept[0].engine.kernels_sha256) == ("stand-in", "7" * 64)
            here.station.stop(PATIENCE_S * 1000)
            gone = await here.heard(WorkerGone)
            assert (gone.pid, gone.expected) == (ready.pid, True)

    stand_in(monkeypatch, tmp_path)
    asyncio.run(story())


@pytest.mark.parametrize(
    ("on_run", "complaint"),
    [
        ("say(done(order, items=5))", "it answered slice 1 with 5 items, not what it was asked"),
        ("say(done(order, items=0))", "it answered slice 1 with 0 items"),
        ("say(done(order, failed_items=5))", "it answered slice 1 with 4 items"),
        ("say(done(order, index=2))", "it answered slice 2 with 4 items"),
        ("say(done(order, output_sha256='0' * 64))", "slice 1 does not have the digest it came with"),
    ],
)
def test_an_answer_to_another_question_ends_the_worker_and_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_run: str, complaint: str
) -> None:
    async def story() -> None:
        async with floor(tmp_path) as here:
            ready = await here.ready()
            here.run(1)
            gone = await here.heard(WorkerGone)
            assert (gone.pid, gone.expected) == (ready.pid, False)
            assert complaint in gone.detail
            assert "SIGKILL" in gone.detail
            await turns()
            assert here.kinds() == [WorkerReady, WorkerGone]
            assert here.slices == []

    stand_in(monkeypatch, tmp_path, on_run=on_run)
    asyncio.run(story())


@pytest.mark.parametrize(
    ("on_load", "complaint"),
    [
        ("say(loaded(order, package_sha256='5' * 64))", "it says it loaded 5555555555555555…"),
        ("say(loaded(order, executor='two words'))", "on 'two words'"),
        ("say(loaded(order, executor=''))", "on ''"),
    ],
)
def test_a_worker_that_did_not_load_what_it_was_told_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_load: str, complaint: str
) -> None:
    async def story() -> None:
        async with floor(tmp_path) as here:
            here.station.start(here.grant)
            gone = await here.heard(WorkerGone)
            assert not gone.expected
            assert complaint in gone.detail
            await turns()
            assert here.kinds() == [WorkerGone], "it was never ready"
            assert len(here.shelf.packages) == 1, "the package is not to blame"

    stand_in(monkeypatch, tmp_path, on_load=on_load)
    asyncio.run(story())


@pytest.mark.parametrize(
    ("on_load", "on_run"),
    [
        (LOADED, "say(done(order, items=5), done(order))"),
        ("say(loaded(order, package_sha256='5' * 64), loaded(order))", DONE),
    ],
)
def test_nothing_that_a_condemned_worker_says_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_load: str, on_run: str
) -> None:
    async def story() -> None:
        async with floor(tmp_path) as here:
            here.station.start(here.grant)
            if on_load == LOADED:
                await here.heard(WorkerReady)
                here.run()
            assert not (await here.heard(WorkerGone)).expected
            assert here.slices == []
            assert (WorkerReady in here.kinds()) == (on_load == LOADED)

    stand_in(monkeypatch, tmp_path, on_load=on_load, on_run=on_run)
    asyncio.run(story())


@pytest.mark.parametrize("on_run", ["say(done(order), done(order))", "say(done(order)); say(done(order, index=1))"])
def test_only_the_slice_that_was_asked_for_is_kept_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_run: str
) -> None:
    async def story() -> None:
        async with floor(tmp_path) as here:
            await here.ready()
            here.run()
            await here.kept(1)
            here.station.stop(PATIENCE_S * 1000)  # it answers Idle and ends, so that all it said was heard
            assert (await here.heard(WorkerGone)).expected
            assert [stored.outcome.index for _, stored in here.slices] == [0]

    stand_in(monkeypatch, tmp_path, on_run=on_run)
    asyncio.run(story())


def test_a_slice_that_cannot_be_computed_costs_the_slice_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with floor(tmp_path) as here:
            await here.ready()
            here.run()
            failed = await here.heard(SliceFailed)
            assert (failed.key, failed.index, failed.detail) == (here.grant.key, 0, "no such shape")
            here.run(1)
            await here.kept(1)
            assert [stored.outcome.index for _, stored in here.slices] == [1]

    on_run = "say(done(order) if order.index else wire.SliceError(index=0, detail='no such shape'))"
    stand_in(monkeypatch, tmp_path, on_run=on_run)
    asyncio.run(story())


def test_a_worker_that_cannot_be_started_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with floor(tmp_path) as here:
            here.station.start(here.grant)
            (gone,) = here.events
            assert isinstance(gone, WorkerGone)
            assert (gone.pid, gone.expected) == (0, False)
            assert "nowhere cannot be started" in gone.detail

    start_instead(monkeypatch, str(tmp_path / "nowhere"))
    asyncio.run(story())


def test_a_package_that_is_not_here_is_refused_and_then_its_worker_is_gone(tmp_path: Path) -> None:
    async def story() -> None:
        async with floor(tmp_path) as here:
            here.station.start(grant(2))
            refused, gone = here.events
            assert isinstance(refused, WorkerRefused)
            assert refused.package == "ocr"
            assert "holds no package aaaaaaaaaaaaaaaa…" in refused.detail
            assert isinstance(gone, WorkerGone)
            assert gone.expected

    asyncio.run(story())


def test_a_refused_package_is_offered_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with floor(tmp_path) as here:
            here.station.start(here.grant)
            gone = await here.heard(WorkerGone)
            refused, _ = here.events
            assert isinstance(refused, WorkerRefused)
            assert (refused.package, refused.detail) == ("good", "its golden vector came out wrong")
            assert gone.expected, "it ended because it was told so by its package"
            assert here.shelf.packages == {}
            assert here.shelf.refused == {"good": "its golden vector came out wrong"}
            here.station.start(here.grant)
            assert here.kinds() == [WorkerRefused, WorkerGone] * 2, "and no process was started for it"

    on_load = "say(wire.Refused(detail='its golden vector came out wrong')); sys.exit(1)"
    stand_in(monkeypatch, tmp_path, on_load=on_load)
    asyncio.run(story())


def test_a_worker_that_died_between_two_slices_is_gone_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with floor(tmp_path) as here:
            ready = await here.ready()
            here.run()
            await here.kept(1)
            killed(ready.pid)
            here.run(1)
            assert here.kinds() == [WorkerReady], "its end is told by its end alone"
            gone = await here.heard(WorkerGone)
            assert (gone.pid, gone.expected) == (ready.pid, False)
            assert "SIGKILL" in gone.detail
            here.run(1)
            here.station.pace(500)
            here.station.stop(0)
            await turns()
            assert here.kinds() == [WorkerReady, WorkerGone], "orders to nobody are not answered"
            assert len(here.slices) == 1

    stand_in(monkeypatch, tmp_path)
    asyncio.run(story())


def test_the_next_worker_gets_the_input_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with floor(tmp_path) as here:
            for count in (1, 2):
                ready = await here.ready()
                here.run()
                await here.kept(count)
                killed(ready.pid)
                await here.heard(WorkerGone)
                here.events.clear()

    on_run = "say(done(order)) if given else sys.exit('run without an input')"
    stand_in(monkeypatch, tmp_path, on_run=on_run)
    asyncio.run(story())


def test_a_worker_that_does_not_read_its_orders_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with floor(tmp_path) as here:
            ready = await here.ready()
            for _ in range(100_000):
                here.station.pace(500)
            gone = await here.heard(WorkerGone)
            assert (gone.pid, gone.expected) == (ready.pid, False)
            assert "the worker does not" in gone.detail

    stand_in(monkeypatch, tmp_path, on_load=f"{LOADED}; time.sleep(60)")
    asyncio.run(story())


@pytest.mark.parametrize("budget_ms", [0, 100])
def test_stopping_nobody_does_nothing(tmp_path: Path, budget_ms: int) -> None:
    async def story() -> None:
        async with floor(tmp_path) as here:
            here.station.stop(budget_ms)
            await here.station.close()
            await turns()
            assert here.events == []

    asyncio.run(story())


GIVEN = "say(done(order) if given else wire.SliceError(index=order.index, detail=f'forgotten {forgotten} times'))"


def test_when_a_lease_is_over_the_worker_that_stays_warm_forgets_its_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with floor(tmp_path) as here:
            await here.ready()
            here.run()
            await here.kept(1)
            here.station.forget(JobKey("another", 1))
            here.run(1)
            await here.kept(2)
            here.station.forget(here.grant.key)
            here.station._order(lambda process: process.run(7, 0, 4))
            here.station._running = Running(here.grant.key, 7, (0, 4))
            assert (await here.heard(SliceFailed)).detail == "forgotten 1 times"
            here.station.forget(here.grant.key)
            here.run(2)  # what it forgot it is given again
            await here.kept(3)

    stand_in(monkeypatch, tmp_path, on_run=GIVEN)
    asyncio.run(story())


def test_before_another_leases_input_the_last_one_is_forgotten_whatever_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with floor(tmp_path) as here:
            await here.ready()
            here.run()
            await here.kept(1)
            here.grant = msgspec.structs.replace(here.grant, job="another")
            here.run()
            failed = await here.heard(SliceFailed)
            assert (failed.key, failed.detail) == (here.grant.key, "forgotten 1 times")

    stand_in(monkeypatch, tmp_path, on_run=GIVEN.replace("if given", "if not forgotten"))
    asyncio.run(story())


def test_a_worker_that_was_told_to_stop_need_not_forget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the input along, and may have closed its socket."""

    async def story() -> None:
        async with floor(tmp_path) as here:
            await here.ready()
            here.run()
            await here.kept(1)
            here.station.stop(PATIENCE_S * 1000)
            here.station.forget(here.grant.key)
            assert (await here.heard(WorkerGone)).expected

    stand_in(monkeypatch, tmp_path)
    asyncio.run(story())


def test_a_worker_that_lost_the_accelerator_says_so_with_its_exit_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with floor(tmp_path) as here:
            await here.ready()
            here.run()
            gone = await here.heard(WorkerGone)
            assert (gone.expected, gone.lost_accelerator) == (False, True)
            assert len(here.lost) == 1
            assert len(here.shelf.packages) == 1, "the package is not to blame"

    stand_in(monkeypatch, tmp_path, on_run="sys.exit(wire.EXIT_LOST)")
    asyncio.run(story())
