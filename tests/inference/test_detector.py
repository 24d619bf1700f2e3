"""A model whose single call is longer than a vacate may take says so, and its worker is killed at once, not drained."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from agent import wire
from agent.core.effects import RunSlice, StartWorker, StopWorker
from agent.core.events import EventType, WorkerGone, WorkerIdle, WorkerReady
from agent.core.model import Grant
from agent.inference.planned import PlannedShelf
from agent.inference.shelf import Shelf
from agent.inference.station import Station, WorkerLimits
from agent.package import MANIFEST
from agent.sealed import InputMemory
from hil.packages.detector import build_detector_package, golden_pages
from tests.conftest import FixedClock
from tests.core.stories import DOOR, ready, until
from tests.core.world import car, grant
from tests.inference.desk import PATIENCE_S
from tests.inference.test_shelf import TRUSTED, sign


def budget_of(micro_batch_ms: float) -> int:
    """What the core gives a worker with such micro-batches when the driver comes in the middle of a slice.

    On a computer that is fast enough to keep the usual vacate budget, a tighter one stands for it.
    """
    shell = ready()
    until(shell, StartWorker)
    shell.waiting.clear()
    policy = shell.state.policy
    budget_ms = min(policy.vacate_budget_ms, micro_batch_ms / 2)
    shell.state = msgspec.structs.replace(
        shell.state, policy=msgspec.structs.replace(policy, vacate_budget_ms=int(budget_ms))
    )
    shell.tell(
        WorkerReady(at_ms=shell.now_ms, pid=1, executor="x", device="cpu", package="ocr", micro_batch_ms=micro_batch_ms)
    )
    until(shell, RunSlice)
    (stop,) = [one for one in shell.tell(car(shell.now_ms + 1, {DOOR: True})) if isinstance(one, StopWorker)]
    return stop.budget_ms


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages")
    path = build_detector_package(folder / "detector").path
    sign(path, (path / MANIFEST).read_bytes())
    return folder


def test_the_detector_is_killed_in_the_middle_of_a_page(packages: Path) -> None:
    async def story() -> None:
        events: list[EventType] = []
        news = asyncio.Event()

        def heard(event: EventType) -> None:
            events.append(event)
            news.set()

        async def wait_for(kind: type[EventType]) -> EventType:
            async with asyncio.timeout(PATIENCE_S):
                while not (found := [event for event in events if isinstance(event, kind)]):
                    news.clear()
                    await news.wait()
            return found[0]

        clock, shelf = FixedClock(), Shelf(packages, TRUSTED)
        (package,) = shelf.packages
        wanted: Grant = msgspec.structs.replace(grant(1), package_sha256=package)
        station = Station(
            emit=heard,
            clock=clock,
            shelf=shelf,
            plans=PlannedShelf(shelf, None, emit=heard, clock=clock, memory_mb=2048),
            limits=WorkerLimits(threads=1, memory_mb=2048),
            on_slice=lambda *_: pytest.fail("a slice was finished"),
            on_lost=pytest.fail,
        )
        pages = [page.png for page in golden_pages()] * 40
        memory = InputMemory.holding(wire.encode_input(pages))
        try:
            station.start(wanted)
            loaded = await wait_for(WorkerReady)
            assert isinstance(loaded, WorkerReady)
            assert budget_of(loaded.micro_batch_ms) == 0
            station.run(wanted.key, 0, (0, len(pages)), memory, len(pages))
            while not station.items_done:  # noqa: ASYNC110 - the station tells nobody of progress
                await asyncio.sleep(0.01)
            station.stop(budget_of(loaded.micro_batch_ms))
            gone = await wait_for(WorkerGone)
            assert isinstance(gone, WorkerGone)
            assert gone.expected
            assert "was killed by SIGKILL" in gone.detail
            assert not [event for event in events if isinstance(event, WorkerIdle)], "it was not asked to drain"
        finally:
            await station.close()
            memory.close()

    asyncio.run(story())


def test_a_model_that_keeps_the_budget_is_drained() -> None:
    shell = ready()
    until(shell, RunSlice)
    (stop,) = [one for one in shell.tell(car(shell.now_ms + 1, {DOOR: True})) if isinstance(one, StopWorker)]
    assert stop.budget_ms == shell.state.policy.vacate_budget_ms
