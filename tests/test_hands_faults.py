"""The hands when the disk refuses or a step has a bug: each is told as what it is, and nothing waits for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from agent import hands as hands_module
from agent.core.effects import (
    EffectType,
    OpenLease,
    RecordVacate,
    Report,
    RunSlice,
    SendHandIn,
    SendRequest,
    SetPace,
    StartWorker,
    StopWorker,
)
from agent.core.events import (
    EventType,
    HandInFailed,
    HandInSettled,
    HandInStored,
    LeaseOpened,
    LeaseRefused,
    SliceFailed,
    SliceStored,
    StoreFailed,
    StoreRecovered,
    Unwritten,
    WorkerGone,
    WorkerReady,
)
from agent.core.model import Grant, JobKey
from agent.inference.station import Station
from agent.store import Store
from tests.bench import Disk, Fault, bench, given_back, served, settled
from tests.inference.desk import PATIENCE_S
from tests.inference.floor import stand_in

# --- a disk that refuses ----------------------------------------------------------------------------------------

KEY = JobKey("job1", 1)
STEPS: dict[Unwritten, tuple[Fault, Callable[[Grant], EffectType], JobKey | None, type[EventType]]] = {
    Unwritten.LEASE: (Store.open_lease, lambda one: OpenLease(grant=one), KEY, LeaseOpened),
    Unwritten.HAND_IN: (Store.hand_in, given_back, KEY, HandInStored),
    Unwritten.VERDICT: (Store.settle, lambda one: settled(one.key), KEY, HandInSettled),
}


@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_the_disk_refused_is_named_and_can_be_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: Unwritten
) -> None:
    method, effect, key, answer = STEPS[step]

    async def story() -> None:
        async with bench(tmp_path) as here:
            disk.refuse(method, Store.probe)
            here.hands.perform(effect(here.job()))
            failed = await here.heard(StoreFailed)
            assert (failed.step, failed.key, failed.index) == (step, key, None)
            assert "disk I/O error" in failed.detail
            disk.faults.clear()
            await here.heard(StoreRecovered)
            assert [type(event) for event in here.events] == [StoreFailed, StoreRecovered]
            here.events.clear()
            await here.do(effect(here.job()))
            here.only(answer)

    disk = Disk(monkeypatch)
    served(monkeypatch)
    asyncio.run(story())


@pytest.mark.parametrize(
    ("method", "effect", "key"),
    [
        (Store.vacate, RecordVacate(cause="door_open", idle_ms=5, gone_ms=9), None),
        (Store.outbox_message, SendHandIn(key=KEY, credit=0, have=()), KEY),
    ],
)
def test_a_note_that_the_disk_refused_stops_new_work_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: Fault, effect: EffectType, key: JobKey | None
) -> None:
    async def story() -> None:
        async with bench(tmp_path) as here:
            disk.refuse(method)
            await here.do(effect)
            failed, recovered = here.events
            assert isinstance(failed, StoreFailed)
            assert (failed.step, failed.key) == (Unwritten.NOTE, key)
            assert isinstance(recovered, StoreRecovered)

    disk = Disk(monkeypatch)
    asyncio.run(story())


def test_a_slice_that_the_disk_refused_is_named_and_can_be_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with bench(tmp_path) as here:
            one = here.job()
            run = RunSlice(key=one.key, index=2, first=8, last=12)
            await here.do(OpenLease(grant=one), StartWorker(grant=one))
            await here.heard(WorkerReady)
            disk.refuse(Store.add_slice)
            here.hands.perform(run)
            failed = await here.heard(StoreFailed)
            assert (failed.step, failed.key, failed.index) == (Unwritten.SLICE, one.key, 2)
            await here.heard(StoreRecovered)
            assert here.all(SliceStored) == []
            disk.faults.clear()
            here.hands.perform(run)
            assert (await here.heard(SliceStored)).outcome.index == 2

    disk = Disk(monkeypatch)
    served(monkeypatch)
    stand_in(monkeypatch, tmp_path)
    asyncio.run(story())


def test_many_refusals_are_one_recovery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with bench(tmp_path) as here:
            disk.refuse(Store.hand_in, Store.settle, Store.vacate, Store.probe)
            vacate = RecordVacate(cause="door_open", idle_ms=5, gone_ms=9)
            for effect in (given_back(here.job()), settled(KEY), vacate):
                here.hands.perform(effect)
            await here.heard(StoreFailed, times=3)
            disk.faults.clear()
            await here.do()
            assert len(here.all(StoreRecovered)) == 1
            disk.refuse(Store.vacate)
            await here.do(vacate)
            assert len(here.all(StoreRecovered)) == 2, "and the next refusal is followed up again"

    disk = Disk(monkeypatch)
    asyncio.run(story())


def test_a_log_that_cannot_be_written_is_no_news_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with bench(tmp_path) as here:
            disk.refuse(Store.log)
            await here.do(Report(name="gate_changed", fields={"state": "open"}))
            assert here.events == []
            await here.do(given_back(here.job()))
            here.only(HandInStored)
            await here.do(settled(KEY))
            here.only(HandInSettled)

    disk = Disk(monkeypatch)
    asyncio.run(story())


def test_the_hands_can_be_closed_while_the_disk_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with bench(tmp_path) as here:
            disk.refuse(Store.hand_in, Store.probe)
            here.hands.perform(given_back(here.job()))
            await here.heard(StoreFailed)
            async with asyncio.timeout(PATIENCE_S):
                await here.hands.close()
            assert here.hands._tasks == set(), "nothing goes on trying"
            assert here.all(StoreRecovered) == []

    disk = Disk(monkeypatch)
    monkeypatch.setattr(hands_module, "CLOSE_S", 0.05)
    asyncio.run(story())


def test_closing_waits_for_what_is_being_written(tmp_path: Path) -> None:
    async def story() -> None:
        async with bench(tmp_path) as here:
            here.hands.perform(given_back(here.job()))
            await here.hands.close()
            here.only(HandInStored)
            assert [row.key for row in await here.outbox()] == [KEY]

    asyncio.run(story())


def test_closing_ends_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with bench(tmp_path) as here:
            here.hands.perform(StartWorker(grant=here.job()))
            pid = (await here.heard(WorkerReady)).pid
            await here.hands.close()
            gone = await here.heard(WorkerGone)
            assert (gone.pid, gone.expected) == (pid, True)

    stand_in(monkeypatch, tmp_path)
    asyncio.run(story())


# --- bugs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "answer"),
    [
        (Unwritten.LEASE, LeaseRefused),
        (Unwritten.HAND_IN, HandInFailed),
        pytest.param(
            Unwritten.VERDICT,
            StoreFailed,
        ),
    ],
)
def test_a_bug_in_a_step_that_the_core_waits_for_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: Unwritten, answer: type[EventType]
) -> None:
    method, effect, key, _ = STEPS[step]

    async def story() -> None:
        async with bench(tmp_path) as here:
            disk.faults[method] = RuntimeError("a bug")
            await here.do(effect(here.job()))
            told = next((event for event in here.events if isinstance(event, answer)), None)
            assert told is not None
            assert cast("Any", told).key == key
            assert "a bug" in cast("Any", told).detail

    disk = Disk(monkeypatch)
    served(monkeypatch)
    asyncio.run(story())


def test_a_bug_in_keeping_a_slice_is_a_failed_slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with bench(tmp_path) as here:
            one = here.job()
            await here.do(OpenLease(grant=one), StartWorker(grant=one))
            await here.heard(WorkerReady)
            disk.faults[Store.add_slice] = RuntimeError("a bug")
            here.hands.perform(RunSlice(key=one.key, index=1, first=4, last=8))
            failed = await here.heard(SliceFailed)
            assert (failed.key, failed.index) == (one.key, 1)
            assert "a bug" in failed.detail

    disk = Disk(monkeypatch)
    served(monkeypatch)
    stand_in(monkeypatch, tmp_path)
    asyncio.run(story())


def test_a_bug_in_the_log_does_not_hide_a_hand_in_that_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with bench(tmp_path) as here:
            disk.faults[Store.log] = MemoryError()
            await here.do(given_back(here.job()))
            here.only(HandInStored)

    disk = Disk(monkeypatch)
    asyncio.run(story())


def test_the_disk_is_probed_until_it_answers_whatever_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with bench(tmp_path) as here:
            disk.refuse(Store.vacate)
            disk.faults[Store.probe] = MemoryError()
            here.hands.perform(RecordVacate(cause="door_open", idle_ms=5, gone_ms=9))
            await asyncio.wait_for(disk.failed[Store.probe].wait(), PATIENCE_S)
            disk.faults.clear()
            await here.do()
            assert len(here.all(StoreRecovered)) == 1

    disk = Disk(monkeypatch)
    asyncio.run(story())


EFFECTS: tuple[EffectType, ...] = (
    StopWorker(budget_ms=0, why="door_open"),
    SetPace(duty_permille=500),
    SendRequest(rid="r1", have=()),
    SendHandIn(key=JobKey("job2", 1), credit=0, have=()),
    RunSlice(key=KEY, index=0, first=0, last=4),
    Report(name="gate_changed", fields={}),
)


def test_no_effect_raises_whatever_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    async def story() -> None:
        async with bench(tmp_path) as here:
            await here.do(OpenLease(grant=here.job(1)), given_back(here.job(2)))
            here.events.clear()
            here.desk.fault = RuntimeError("a bug")
            with monkeypatch.context() as patch:
                for name in ("stop", "run", "pace", "start"):
                    patch.setattr(Station, name, broken)
                patch.setattr(Store, "log", broken)
                await here.do(*EFFECTS)
                assert here.events == []
                await here.do(StartWorker(grant=here.job()))
                gone = here.only(WorkerGone)
                assert (gone.pid, gone.expected) == (0, False)
                assert "a bug" in gone.detail
            here.desk.fault = None
            await here.do(*EFFECTS)
            assert len(here.desk.requests) == len(here.desk.hand_ins) == 1, "and the next is done"

    served(monkeypatch)
    asyncio.run(story())


def test_a_worker_whose_start_failed_halfway_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with bench(tmp_path) as here:
            here.hands.perform(StartWorker(grant=here.job()))
            gone = await here.heard(WorkerGone)
            assert here.hands._station._process is None
            assert gone.pid != 0
            assert here.all(WorkerGone) == [gone]

    def load(*_: object, **__: object) -> None:
        raise UnicodeEncodeError("utf-8", "\udce9", 0, 1, "surrogates not allowed")

    stand_in(monkeypatch, tmp_path)
    monkeypatch.setattr("agent.inference.launcher.WorkerProcess.load", load)
    asyncio.run(story())


def test_a_slice_whose_input_is_gone_is_a_failed_slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with bench(tmp_path) as here:
            run = RunSlice(key=KEY, index=1, first=4, last=8)
            await here.do(run)
            failed = here.only(SliceFailed)
            assert (failed.key, failed.index, failed.detail) == (KEY, 1, "its input is gone")
            await here.do(OpenLease(grant=here.job()), given_back(here.job()))
            here.events.clear()
            await here.do(run)
            assert here.only(SliceFailed).detail == "its input is gone", "it goes with the lease"

    served(monkeypatch)
    asyncio.run(story())
