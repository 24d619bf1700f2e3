"""A process on the real wire that answers wrongly, too often or not at all, or is gone: every end is told, once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agent.core.events import SliceFailed, WorkerGone, WorkerLoading, WorkerReady, WorkerRefused
from tests.inference.floor import DONE, LOADED, floor, killed, stand_in, start_instead, turns


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
            assert here.kinds() == [WorkerLoading, WorkerReady, WorkerGone]
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
            assert here.kinds() == [WorkerLoading, WorkerGone], "it was never ready"
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


@pytest.mark.parametrize(
    "on_run",
    [
        "say(done(order), done(order))",
        "say(done(order)); say(done(order, index=1))",
        "say(done(order), wire.SliceError(index=0, detail=''))",
        "say(done(order), wire.Idle())",
        "say(done(order), loaded(order, package_sha256='0' * 64))",
        "say(done(order), wire.Refused(detail='it is no good after all'))",
    ],
)
def test_only_what_was_asked_for_is_kept_and_once_and_more_than_that_ends_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_run: str
) -> None:
    async def story() -> None:
        async with floor(tmp_path) as here:
            await here.ready()
            here.run()
            await here.kept(1)
            gone = await here.heard(WorkerGone)
            assert not gone.expected
            assert "broke the protocol: it says " in gone.detail
            assert WorkerRefused not in here.kinds()
            assert len(here.shelf.packages) == 1
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


def test_a_worker_that_died_between_two_slices_is_gone_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with floor(tmp_path) as here:
            ready = await here.ready()
            here.run()
            await here.kept(1)
            killed(ready.pid)
            here.run(1)
            assert here.kinds() == [WorkerLoading, WorkerReady], "its end is told by its end alone"
            gone = await here.heard(WorkerGone)
            assert (gone.pid, gone.expected) == (ready.pid, False)
            assert "SIGKILL" in gone.detail
            here.run(1)
            here.station.pace(500)
            here.station.stop(0)
            await turns()
            assert here.kinds() == [WorkerLoading, WorkerReady, WorkerGone], "orders to nobody are not answered"
            assert len(here.slices) == 1

    stand_in(monkeypatch, tmp_path)
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
