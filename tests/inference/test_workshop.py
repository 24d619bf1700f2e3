"""Plans in the car: what is missing is built by a real process, kept, offered, loaded by the next, and built anew when
it turns out to be of no use. The core's own rules decide when; here they are replaced by a hand.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from agent import wire
from agent.core.events import (
    BuildProgress,
    BuildRefused,
    EventType,
    PlanBuilt,
    PlanMade,
    PlanNotKept,
    PlansMissing,
    PlanUnusable,
    WorkerGone,
    WorkerIdle,
    WorkerReady,
    WorkerRefused,
)
from agent.core.model import Grant, JobKey
from agent.inference.planned import PlannedShelf
from agent.inference.plans import Kind as Kinds
from agent.inference.plans import PlanCache, plan_name, timing_name
from agent.inference.shelf import Shelf
from agent.inference.station import Station, WorkerLimits
from agent.inference.workshop import Workshop
from agent.package import Package
from agent.rows import StoredSlice
from agent.sealed import InputMemory
from agent.trust.device_secret import DeviceSecret
from tests.conftest import FixedClock
from tests.core.world import grant
from tests.hil.tiny_models import softmax_model
from tests.inference.desk import PATIENCE_S, Kind, rewrite_manifest
from tests.inference.scripted import BUILT, LOADED, PLATFORM, scripted
from tests.inference.test_shelf import TRUSTED, put, sign

MEMORY_MB = 256


def another_model(path: Path) -> None:
    """Give a package a model of its own: packages with the same model and shapes share their plan."""
    (path / "model.onnx").write_bytes(softmax_model(1, 5))
    sign(path, rewrite_manifest(path).manifest_bytes)


class Yard:
    """A shelf with packages, a plan cache, a workshop and a station; and what they told the core."""

    def __init__(self, folder: Path, build: str, load: str) -> None:
        self.folder = folder
        put(folder / "packages", "one")
        another_model(put(folder / "packages", "two"))
        self.shelf = Shelf(folder / "packages", TRUSTED)
        self.one, self.two = sorted(self.shelf.packages.values(), key=lambda package: package.manifest.name)
        self.cache = PlanCache(folder / "plans", DeviceSecret(b"s" * 32), reserve_bytes=0)
        self.events: list[EventType] = []
        self.lost: list[str] = []
        self.slices: list[tuple[JobKey, StoredSlice]] = []
        self._news = asyncio.Event()
        clock = FixedClock()
        self.plans = PlannedShelf(self.shelf, self.cache, emit=self._heard, clock=clock, memory_mb=MEMORY_MB)
        program = scripted(folder, build=build, load=load)
        limits = WorkerLimits(threads=1, memory_mb=MEMORY_MB, executor="tensorrt", python=program)
        self.workshop = Workshop(
            emit=self._heard,
            clock=clock,
            shelf=self.shelf,
            plans=self.plans,
            limits=limits,
            on_lost=self.lost.append,
        )
        self.station = Station(
            emit=self._heard,
            clock=clock,
            shelf=self.shelf,
            plans=self.plans,
            limits=limits,
            on_slice=lambda key, stored: self.slices.append((key, stored)),
            on_lost=self.lost.append,
        )

    def grant(self, package: Package) -> Grant:
        return msgspec.structs.replace(grant(1), package=package.manifest.name, package_sha256=package.package_sha256)

    def file(self, package: Package) -> Path:
        name = plan_name(package, PLATFORM, MEMORY_MB)
        return self.folder / "plans" / f"{name}.plan"

    async def surveyed(self, platform: wire.Platform = PLATFORM) -> None:
        await self.plans.surveyed(wire.Surveyed(platform=platform, needs_plan=True))

    async def build(self, package: Package) -> WorkerGone:
        """Build one plan, to its end, and until it is kept."""
        self.events.clear()
        self.workshop.start(package.package_sha256)
        gone = await self.heard(WorkerGone)
        if PlanMade in self.kinds():
            await self.heard(PlanBuilt)
        return gone

    async def load(self, package: Package) -> None:
        """Start a worker for a lease of it."""
        self.events.clear()
        self.station.start(self.grant(package))

    async def heard(self, kind: type[Kind]) -> Kind:
        async with asyncio.timeout(PATIENCE_S):
            while not (found := [event for event in self.events if isinstance(event, kind)]):
                self._news.clear()
                await self._news.wait()
        return found[-1]

    def kinds(self) -> list[type[EventType]]:
        return [type(event) for event in self.events]

    def _heard(self, event: EventType) -> None:
        self.events.append(event)
        self._news.set()


@asynccontextmanager
async def yard(folder: Path, *, build: str = BUILT, load: str = LOADED) -> AsyncIterator[Yard]:
    made = Yard(folder, build, load)
    try:
        yield made
    finally:
        async with asyncio.timeout(PATIENCE_S):
            await made.workshop.close()
            await made.station.close()


def test_from_a_survey_to_a_loaded_plan(tmp_path: Path) -> None:
    async def story() -> None:
        async with yard(tmp_path) as here:
            both = (here.one.package_sha256, here.two.package_sha256)
            await here.plans.refresh()
            assert here.plans.offered == (), "before the first survey nobody knows for which plans to look"
            await here.surveyed()
            assert set((await here.heard(PlansMissing)).packages) == set(both)
            assert here.plans.offered == ()
            gone = await here.build(here.one)
            assert (gone.expected, gone.detail) == (True, "")
            assert here.kinds() == [WorkerIdle, PlanMade, WorkerGone, PlansMissing, PlanBuilt]
            built = await here.heard(PlanBuilt)
            assert built.package_sha256 == both[0]
            assert list(here.plans.offered) == [both[0]]
            body = b"a plan of " + here.one.manifest.files["model.onnx"].encode()
            assert built.plan_bytes == len(body)
            await here.load(here.one)
            ready = await here.heard(WorkerReady)
            assert (ready.executor, ready.package) == ("tensorrt", "one")
            assert here.station._engine is not None
            assert here.station._engine.plan_sha256 == hashlib.sha256(body).hexdigest(), "which statements name"

    asyncio.run(story())


def test_another_survey_finds_what_was_built_and_another_platform_does_not(tmp_path: Path) -> None:
    async def story() -> None:
        async with yard(tmp_path) as here:
            await here.surveyed()
            await here.build(here.one)
        async with yard(tmp_path / "other") as here:
            here.cache._folder = tmp_path / "plans"
            await here.surveyed()
            assert here.plans.offered == (here.one.package_sha256,)
            await here.surveyed(msgspec.structs.replace(PLATFORM, version="10.3.0.31"))
            assert list(here.plans.offered) == [], "an update of the engine leaves everything to be built anew"

    asyncio.run(story())


def test_a_packages_timing_cache_goes_from_build_to_build_and_to_no_other(tmp_path: Path) -> None:
    async def story() -> None:
        async with yard(tmp_path, build="built(b'plan', given + b'+')") as here:
            await here.surveyed()
            for package in (here.one, here.two, here.one):
                await here.build(package)
            for package, timed in ((here.one, b"++"), (here.two, b"+")):
                timing = here.cache.read(timing_name(package, PLATFORM), "timing")
                assert timing is not None
                assert timing.memory.read() == timed
                timing.close()

    asyncio.run(story())


def test_progress_is_told_and_not_more_than_once_a_second(tmp_path: Path) -> None:
    script = "[say(wire.Building(phase='Tactics', done_permille=n)) for n in range(1000)]; built(b'plan')"

    async def story() -> None:
        async with yard(tmp_path, build=script) as here:
            await here.surveyed()
            gone = await here.build(here.one)
            (told,) = [event for event in here.events if isinstance(event, BuildProgress)]
            assert (told.package, told.phase, told.done_permille) == ("one", "Tactics", 0)
            assert told.pid == gone.pid

    asyncio.run(story())


def test_a_build_is_killed_at_once_and_can_begin_again(tmp_path: Path) -> None:
    script = "say(wire.Building(phase='Tactics', done_permille=1)); time.sleep(600)"

    async def story() -> None:
        async with yard(tmp_path, build=script) as here:
            await here.surveyed()
            for _ in range(2):
                here.events.clear()
                here.workshop.start(here.one.package_sha256)
                pid = (await here.heard(BuildProgress)).pid
                here.workshop.pace(0)
                here.workshop.stop(0)
                gone = await here.heard(WorkerGone)
                assert (gone.pid, gone.expected) == (pid, True)
                assert PlanBuilt not in here.kinds()
                with pytest.raises(ProcessLookupError):
                    os.kill(pid, 0)
            here.events.clear()
            here.workshop.start(here.one.package_sha256)
            here.workshop.stop(0)
            assert (await here.heard(WorkerGone)).expected, "stopped before there was a process"

    asyncio.run(story())


def test_a_model_that_cannot_be_built_is_refused_and_taken_off_the_shelf(tmp_path: Path) -> None:
    async def story() -> None:
        async with yard(tmp_path, build="say(wire.Refused(detail='no such operator'))") as here:
            await here.surveyed()
            await here.build(here.one)
            assert here.kinds()[-2:] == [BuildRefused, WorkerGone]
            assert here.shelf.refused == {"one": "no such operator"}
            assert list(here.shelf.packages) == [here.two.package_sha256]

    asyncio.run(story())


@pytest.mark.parametrize(
    ("script", "expected", "lost"),
    [
        ("os.abort()", False, False),
        ("sys.exit(5)", False, True),
        ("say(wire.Refused(detail='no device', unavailable=True))", True, True),
        ("built(b'plan', descriptors=[])", False, False),
        ("sys.exit()", False, False),
    ],
)
def test_what_else_goes_wrong_is_the_end_of_this_try_alone(
    tmp_path: Path, script: str, expected: bool, lost: bool
) -> None:
    async def story() -> None:
        async with yard(tmp_path, build=script) as here:
            await here.surveyed()
            gone = await here.build(here.one)
            assert (gone.expected, bool(here.lost)) == (expected, lost)
            assert gone.detail
            assert here.kinds()[-1:] == [WorkerGone]
            assert not {PlanBuilt, BuildRefused} & set(here.kinds())
            assert len(here.shelf.packages) == 2

    asyncio.run(story())


def test_a_disk_without_room_is_no_fault_of_the_worker(tmp_path: Path) -> None:
    async def story() -> None:
        async with yard(tmp_path) as here:
            here.cache._max_bytes = 100
            await here.surveyed()
            here.workshop.start(here.one.package_sha256)
            assert "more than half of what the cache may hold" in (await here.heard(PlanNotKept)).detail
            gone = await here.heard(WorkerGone)
            assert (gone.expected, gone.detail) == (True, "")
            assert not {PlanBuilt, BuildRefused} & set(here.kinds())
            assert here.plans.offered == ()
            assert len(here.shelf.packages) == 2

    asyncio.run(story())


def test_the_worker_is_gone_before_its_plan_is_kept_and_the_next_need_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with yard(tmp_path) as here:
            await here.surveyed()
            may_write, write = threading.Event(), here.cache.write

            def slowly(name: str, memory: InputMemory, kind: Kinds = "plan") -> None:
                assert may_write.wait(PATIENCE_S)
                write(name, memory, kind)

            monkeypatch.setattr(here.cache, "write", slowly)
            try:
                for package in (here.one, here.two):
                    here.events.clear()
                    here.workshop.start(package.package_sha256)
                    await here.heard(WorkerGone)
                    assert PlanMade in here.kinds(), "which says that there is one"
                    assert PlanBuilt not in here.kinds(), "it is not on the disk"
                    assert here.plans.offered == ()
            finally:
                may_write.set()
            await here.workshop.close()
            assert here.kinds().count(PlanBuilt) == 2
            assert len(here.plans.offered) == 2

    asyncio.run(story())


def test_a_package_that_is_gone_is_not_built(tmp_path: Path) -> None:
    async def story() -> None:
        async with yard(tmp_path) as here:
            here.workshop.start("0" * 64)  # before the first survey, too
            gone = await here.heard(WorkerGone)
            assert "holds no package 0000000000000000… any more" in gone.detail

    asyncio.run(story())


Spoil = Callable[[Yard], object]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda here: here.file(here.one).unlink(),
        lambda here: here.file(here.one).write_bytes(here.file(here.one).read_bytes()[:-1]),
        lambda here: here.file(here.one).write_bytes(b"\0" + here.file(here.one).read_bytes()[1:]),
        lambda here: here.file(here.one).write_bytes(here.file(here.two).read_bytes()),
    ],
    ids=["gone", "cut", "damaged", "another's"],
)
def test_a_plan_that_is_not_whole_is_never_loaded_but_built_anew(tmp_path: Path, spoil: Spoil) -> None:
    async def story() -> None:
        async with yard(tmp_path) as here:
            await here.surveyed()
            await here.build(here.one)
            await here.build(here.two)
            spoil(here)
            await here.load(here.one)
            await here.heard(WorkerGone)
            unusable = await here.heard(PlanUnusable)
            assert unusable.package_sha256 == here.one.package_sha256
            missing = await here.heard(PlansMissing)
            assert missing.packages == (here.one.package_sha256,)
            assert not {WorkerReady, WorkerRefused} & set(here.kinds()), "nothing is wrong with the package"
            assert here.plans.offered == (here.two.package_sha256,)
            await here.build(here.one)
            await here.load(here.one)
            await here.heard(WorkerReady)

    asyncio.run(story())


def test_a_plan_that_the_engine_finds_stale_is_deleted_and_missing(tmp_path: Path) -> None:
    async def story() -> None:
        async with yard(tmp_path, load="say(wire.Refused(detail='another release', stale_plan=True))") as here:
            await here.surveyed()
            await here.build(here.one)
            assert here.file(here.one).exists()
            await here.load(here.one)
            gone = await here.heard(WorkerGone)
            assert gone.expected
            assert (await here.heard(PlanUnusable)).detail == "another release"
            assert here.one.package_sha256 in (await here.heard(PlansMissing)).packages
            assert not here.file(here.one).exists()
            assert len(here.shelf.packages) == 2

    asyncio.run(story())


@pytest.mark.parametrize(
    ("load", "lost", "why"),
    [
        ("sys.exit(5)", True, "status 5"),
        ("say(wire.Refused(detail='no device', unavailable=True)); time.sleep(60)", True, "no device"),
        ("loaded(order, 'onnxruntime_cpu')", False, "it runs on onnxruntime_cpu, and tensorrt is configured"),
        ("built(b'plan'); time.sleep(60)", False, "it says Built, which nobody asked for"),
    ],
)
def test_a_worker_without_the_accelerator_is_lost_and_never_falls_back(
    tmp_path: Path, load: str, lost: bool, why: str
) -> None:
    async def story() -> None:
        async with yard(tmp_path, load=load) as here:
            await here.surveyed()
            await here.build(here.one)
            await here.load(here.one)
            gone = await here.heard(WorkerGone)
            assert not gone.expected
            assert why in gone.detail
            assert (bool(here.lost), len(here.shelf.packages)) == (lost, 2)
            assert not {WorkerReady, WorkerRefused} & set(here.kinds())

    asyncio.run(story())


def test_a_worker_that_is_stopped_while_its_plan_is_read_just_ends(tmp_path: Path) -> None:
    async def story() -> None:
        async with yard(tmp_path) as here:
            await here.surveyed()
            await here.build(here.one)
            await here.load(here.one)
            here.station.stop(0)
            assert (await here.heard(WorkerGone)).expected
            assert PlanUnusable not in here.kinds()

    asyncio.run(story())


def test_packages_that_come_later_are_missing_until_built(tmp_path: Path) -> None:
    async def story() -> None:
        async with yard(tmp_path) as here:
            await here.surveyed()
            here.events.clear()
            await here.plans.refresh()
            assert here.events == [], "nothing is told twice"
            put(tmp_path / "packages", "three")
            here.shelf.take_in(here.shelf.newcomers())
            assert not here.plans.offered, "not even for a moment"
            await here.plans.refresh()
            assert len((await here.heard(PlansMissing)).packages) == 3
            await here.build(here.one)
            names = {here.shelf.packages[sha256].manifest.name for sha256 in here.plans.offered}
            assert names == {"one", "three"}, "the same model and shapes need no other plan"

    asyncio.run(story())
