"""The station and a process on the real wire: what it is given, what is kept, what is forgotten, and its end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from agent.core.events import SliceFailed, WorkerGone, WorkerLoading, WorkerRefused
from agent.core.model import JobKey
from agent.inference.station import Running
from tests.core.world import grant
from tests.inference.desk import PATIENCE_S
from tests.inference.floor import floor, killed, stand_in, turns


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
            _, refused, _ = here.events
            assert isinstance(refused, WorkerRefused)
            assert (refused.package, refused.detail) == ("good", "its golden vector came out wrong")
            assert gone.expected, "it ended because it was told so by its package"
            assert here.shelf.packages == {}
            assert here.shelf.refused == {"good": "its golden vector came out wrong"}
            here.station.start(here.grant)
            assert here.kinds() == [WorkerLoading, *[WorkerRefused, WorkerGone] * 2], (
                "and no process was started for it"
            )

    on_load = "say(wire.Refused(detail='its golden vector came out wrong')); sys.exit(1)"
    stand_in(monkeypatch, tmp_path, on_load=on_load)
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
