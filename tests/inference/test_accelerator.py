"""The readiness of the accelerator: surveyed at start, after a loss, after a sleep; asked again while absent."""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from agent import wire
from agent.clock import SystemClock
from agent.core.events import AcceleratorSeen, EventType
from agent.core.model import Accelerator, Readiness
from agent.errors import WorkerError
from agent.inference import accelerator as accelerators
from agent.inference import errand as errands
from agent.inference import launcher
from agent.inference.accelerator import AcceleratorWatch
from agent.inference.ladder import Ladder
from tests.inference.desk import PATIENCE_S
from tests.inference.scripted import PLATFORM, SURVEYED, scripted

ABSENT = "say(wire.Refused(detail='TensorRT is not installed', unavailable=True))"
CPU = wire.Platform("onnxruntime", "1.22", "", "", "a processor", 8_000, True)


class Bay:
    """A watch, what it told the core, and how long the computer has slept."""

    def __init__(self, program: str, executor: wire.ExecutorName = "tensorrt", *, permitted: bool = True) -> None:
        self.seen: list[Accelerator] = []
        self.surveyed: list[wire.Surveyed] = []
        self.slept_s = 0.0
        self._news = asyncio.Event()
        self.watch = AcceleratorWatch(
            executor,
            clock=SystemClock(),
            on_surveyed=self._on_surveyed,
            python=program,
            slept_s=lambda: self.slept_s,
        )
        if permitted:
            self.watch.permit(permitted=True)

    async def states(self, count: int) -> list[str]:
        async with asyncio.timeout(PATIENCE_S):
            while len(self.seen) < count:
                self._news.clear()
                await self._news.wait()
        return [one.state.value for one in self.seen]

    async def _on_surveyed(self, surveyed: wire.Surveyed) -> None:
        self.surveyed.append(surveyed)

    def heard(self, event: EventType) -> None:
        assert isinstance(event, AcceleratorSeen)
        self.seen.append(event.accelerator)
        self._news.set()


def watched(bay: Callable[[], Bay], story: Callable[[Bay], Awaitable[None]]) -> None:
    async def main() -> None:
        here = bay()
        task = asyncio.get_running_loop().create_task(here.watch.run(here.heard))
        try:
            await story(here)
        finally:
            task.cancel()
            await asyncio.wait({task})

    asyncio.run(main())


def test_it_is_ready_when_a_survey_says_so_and_plans_hear_of_it_first(tmp_path: Path) -> None:
    async def story(here: Bay) -> None:
        began = here.watch.begins()
        assert (began.state, began.executor) == (Readiness.STARTING, "tensorrt")
        assert await here.states(1) == ["ready"]
        assert here.seen == [Accelerator(Readiness.READY, "tensorrt", "10.3.0.30", "Orin", "")]
        assert here.surveyed == [wire.Surveyed(platform=PLATFORM, needs_plan=True)]

    watched(lambda: Bay(scripted(tmp_path)), story)


def test_a_worker_that_lost_it_is_followed_by_a_survey(tmp_path: Path) -> None:
    async def story(here: Bay) -> None:
        await here.states(1)
        here.watch.lost("the context is gone")
        assert await here.states(3) == ["ready", "lost", "ready"]
        assert here.seen[1].detail == "the context is gone"
        assert len(here.surveyed) == 2

    watched(lambda: Bay(scripted(tmp_path)), story)


def test_a_sleep_is_followed_by_a_survey(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerators, "LOOK_S", 0.01)

    async def story(here: Bay) -> None:
        await here.states(1)
        here.slept_s += 0.5
        await asyncio.sleep(0.05)
        assert len(here.seen) == 1, "the two clocks are read one after the other"
        here.watch.permit(permitted=False)
        here.slept_s += 60
        await asyncio.sleep(0.05)
        assert len(here.seen) == 1, "no worker is held back by a survey that waits for its end"
        here.watch.permit(permitted=True)
        assert await here.states(3) == ["ready", "starting", "ready"]
        assert here.seen[1].detail == "the computer has slept"

    watched(lambda: Bay(scripted(tmp_path)), story)


def test_a_processor_is_after_a_sleep_what_it_was_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerators, "LOOK_S", 0.01)
    survey = f"say(wire.Surveyed(platform=wire.{CPU!r}, needs_plan=False))"

    async def story(here: Bay) -> None:
        assert await here.states(1) == ["ready"]
        here.slept_s += 60
        await asyncio.sleep(0.1)
        assert len(here.seen) == 1

    watched(lambda: Bay(scripted(tmp_path, survey=survey), "onnxruntime"), story)


def test_what_is_absent_is_asked_for_again_and_told_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerators, "RETRY_FIRST_S", 0.01)
    flag = tmp_path / "installed"
    survey = f"{SURVEYED} if Path({str(flag)!r}).exists() else {ABSENT}"

    async def story(here: Bay) -> None:
        assert await here.states(2) == ["absent", "absent"]
        assert here.seen[0].detail == "TensorRT is not installed"
        assert here.seen[0].device == ""
        flag.touch()
        async with asyncio.timeout(PATIENCE_S):
            while (await here.states(len(here.seen) + 1))[-1] != "ready":
                pass

    watched(lambda: Bay(scripted(tmp_path, survey=survey)), story)


def test_a_vehicle_set_up_for_one_engine_takes_no_other(tmp_path: Path) -> None:
    survey = f"say(wire.Surveyed(platform=wire.{CPU!r}, needs_plan=False))"

    async def story(here: Bay) -> None:
        assert await here.states(1) == ["absent"]
        assert "something else than tensorrt" in here.seen[0].detail

    watched(lambda: Bay(scripted(tmp_path, survey=survey)), story)


def test_a_plan_cache_that_cannot_be_used_is_no_accelerator(tmp_path: Path) -> None:
    async def story(here: Bay) -> None:
        assert await here.states(1) == ["absent"]
        assert "no memory" in here.seen[0].detail

    class Full(Bay):
        async def _on_surveyed(self, surveyed: wire.Surveyed) -> None:
            raise WorkerError("no memory")

    watched(lambda: Full(scripted(tmp_path)), story)


# --- when it may be looked at ---------------------------------------------------------------------------------


def test_nothing_touches_the_accelerator_before_it_may(tmp_path: Path) -> None:
    async def story(here: Bay) -> None:
        await asyncio.sleep(0.05)
        assert not here.seen
        here.watch.permit(permitted=True)
        assert await here.states(1) == ["ready"]

    watched(lambda: Bay(scripted(tmp_path), permitted=False), story)


def test_a_survey_ends_at_once_when_it_may_not_be_and_is_begun_again(tmp_path: Path) -> None:
    """The first one never answers, the second does: nothing is told of the first, for it found nothing out."""
    began = tmp_path / "began"
    flag = f"Path({str(began)!r})"
    survey = f"{SURVEYED} if {flag}.exists() else ({flag}.write_text(str(os.getpid())), time.sleep(600))"

    async def story(here: Bay) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not (began.exists() and began.read_text()):  # noqa: ASYNC110 - another process writes it
                await asyncio.sleep(0.01)
        process = os.pidfd_open(int(began.read_text()))
        try:
            here.watch.permit(permitted=False)
            ended, _, _ = select.select([process], [], [], PATIENCE_S)
            assert ended, "the loop had no turn in between"
        finally:
            os.close(process)
        await asyncio.sleep(0.05)
        assert not here.seen
        here.watch.permit(permitted=True)
        assert await here.states(1) == ["ready"]

    watched(lambda: Bay(scripted(tmp_path, survey=survey)), story)


def test_a_processor_is_looked_at_whatever_the_gate_says(tmp_path: Path) -> None:
    survey = f"say(wire.Surveyed(platform=wire.{CPU!r}, needs_plan=False))"

    async def story(here: Bay) -> None:
        assert await here.states(1) == ["ready"]

    watched(lambda: Bay(scripted(tmp_path, survey=survey), "onnxruntime", permitted=False), story)


def test_a_process_that_cannot_be_killed_is_told_of_and_joined_by_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one inside a driver that hangs: it is waited for so long, and asked for anew only once it is gone."""
    monkeypatch.setattr(accelerators, "RETRY_FIRST_S", 0.01)
    monkeypatch.setattr(errands, "SURVEY_S", 0.5)
    monkeypatch.setattr(launcher.WorkerProcess.gone, "__defaults__", (0.1,))
    began = tmp_path / "began"
    survey = f"{SURVEYED} if Path({str(began)!r}).exists() else (Path({str(began)!r}).touch(), time.sleep(600))"
    kill = Ladder.stop_within
    stuck: list[Ladder] = []
    monkeypatch.setattr(Ladder, "stop_within", lambda ladder, _budget_ms: stuck.append(ladder))

    async def story(here: Bay) -> None:
        assert await here.states(3) == ["absent"] * 3
        assert here.seen[0].detail.startswith("no answer from tensorrt")
        assert "cannot be ended" in here.seen[1].detail
        assert len(set(map(id, stuck))) == 1, "only one process"
        monkeypatch.setattr(Ladder, "stop_within", kill)
        kill(stuck[0], 0)
        async with asyncio.timeout(PATIENCE_S):
            while (await here.states(len(here.seen) + 1))[-1] != "ready":
                pass

    watched(lambda: Bay(scripted(tmp_path, survey=survey)), story)
