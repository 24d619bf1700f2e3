"""The daemon's workshop over the real worker and the real TensorRT-RTX builder: built, kept, killed, built again."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import msgspec
import pytest

from agent import wire
from agent.core.events import BuildProgress, EventType, PlanBuilt, PlansMissing, WorkerGone
from agent.inference.planned import PlannedShelf
from agent.inference.plans import PlanCache
from agent.inference.shelf import Shelf
from agent.inference.station import WorkerLimits
from agent.inference.workshop import Workshop
from agent.package import Bucket
from agent.trust.device_secret import DeviceSecret
from hil.packages import build_named
from tests.conftest import FixedClock
from tests.inference.desk import PATIENCE_S, Kind, rewrite_manifest
from tests.inference.test_shelf import TRUSTED, sign
from tests.tensorrt.bindings import ROOT, RTX_VERSIONS, folder

VERSION = RTX_VERSIONS[-1]
PLATFORM = wire.Platform("tensorrt_rtx", VERSION, "13.0", "8.6", "a card that is not here", 24_000, False)
LIMITS = WorkerLimits(threads=2, memory_mb=2048, executor="tensorrt_rtx")
SHIM = """#!/bin/sh
# In the interpreter's place: the worker with the engine's bindings, building for a device that is not here.
shift 4
PYTHONPATH={root}:{bindings} exec {python} {script} 8.6 8192 0 --read {bindings} "$@"
"""


def shim(directory: Path) -> str:
    path = directory / "python"
    script = Path(__file__).parent / "build_worker.py"
    bindings = folder("tensorrt_rtx", VERSION)
    path.write_text(SHIM.format(root=ROOT, bindings=bindings, python=sys.executable, script=script))
    path.chmod(0o755)
    return str(path)


class Yard:
    """A shelf with the classifier, with two of its buckets, and a workshop; and what it told the core."""

    def __init__(self, directory: Path) -> None:
        path = directory / "packages" / "orientation"
        build_named("orientation", path)
        buckets = (Bucket(items=1, width=192), Bucket(items=4, width=192))
        package = rewrite_manifest(path, lambda manifest: msgspec.structs.replace(manifest, buckets=buckets))
        sign(path, package.manifest_bytes)
        self.shelf = Shelf(directory / "packages", TRUSTED)
        (self.package,) = self.shelf.packages.values()
        self.cache = PlanCache(directory / "plans", DeviceSecret(b"s" * 32), reserve_bytes=0)
        self.events: list[EventType] = []
        self._news = asyncio.Event()
        clock = FixedClock()
        self.plans = PlannedShelf(self.shelf, self.cache, emit=self._heard, clock=clock, memory_mb=LIMITS.memory_mb)
        self.workshop = Workshop(
            emit=self._heard,
            clock=clock,
            shelf=self.shelf,
            plans=self.plans,
            limits=msgspec.structs.replace(LIMITS, python=shim(directory)),
            on_lost=pytest.fail,
        )

    async def heard(self, kind: type[Kind]) -> Kind:
        async with asyncio.timeout(PATIENCE_S):
            while not (found := [event for event in self.events if isinstance(event, kind)]):
                self._news.clear()
                await self._news.wait()
        return found[-1]

    def _heard(self, event: EventType) -> None:
        self.events.append(event)
        self._news.set()


def test_a_real_plan_is_killed_built_kept_and_offered(tmp_path: Path) -> None:
    async def story() -> None:
        here = Yard(tmp_path)
        sha256 = here.package.package_sha256
        try:
            await here.plans.surveyed(wire.Surveyed(platform=PLATFORM, needs_plan=True))
            assert (await here.heard(PlansMissing)).packages == (sha256,)
            here.workshop.start(sha256)
            pid = (await here.heard(BuildProgress)).pid
            here.workshop.stop(0)
            assert (await here.heard(WorkerGone)).expected
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
            assert not here.plans.offered
            here.events.clear()
            here.workshop.start(sha256)
            gone = await here.heard(WorkerGone)
            built = await here.heard(PlanBuilt)
            assert (gone.expected, gone.detail) == (True, "")
            assert built.plan_bytes > 1_000_000
            assert list(here.plans.offered) == [sha256]
            plan = await here.plans.plan_of(here.package)
            assert plan is not None
            assert plan.memory.length == built.plan_bytes
            plan.close()
        finally:
            await here.workshop.close()

    asyncio.run(story())
