"""One order to a real process on the real wire: a survey or a build, its answer, and how each goes wrong."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from agent import wire
from agent.clock import SystemClock
from agent.errors import DrivewayError, PackageError, WorkerError
from agent.inference import errand as errands
from agent.inference.errand import BuiltPlan, Errand
from agent.sealed import InputMemory
from tests.inference.desk import PATIENCE_S
from tests.inference.scripted import PLATFORM, scripted
from tests.inference.test_shelf import put

OPEN = Path("/proc/self/fd")
CPU = "wire.Platform('onnxruntime', '1', '', '', 'cpu', 1, True)"


def patiently(work: Coroutine[Any, Any, None]) -> None:
    async def main() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await work

    before = len(list(OPEN.iterdir()))
    asyncio.run(main())
    assert len(list(OPEN.iterdir())) <= before, "descriptors are left"


async def built(one: Errand, package: Path, timing: InputMemory | None = None) -> BuiltPlan:
    return await one.build(package, executor="tensorrt", threads=1, memory_mb=256, timing=timing)


def test_a_survey_says_what_is_there(tmp_path: Path) -> None:
    async def work() -> None:
        one = Errand(SystemClock(), python=scripted(tmp_path))
        assert await one.survey("tensorrt") == wire.Surveyed(platform=PLATFORM, needs_plan=True)
        with pytest.raises(ProcessLookupError):
            os.kill(one.pid, 0)

    patiently(work())


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("say(wire.Refused(detail='TensorRT is not installed', unavailable=True))", "TensorRT is not installed"),
        ("say(wire.Refused(detail='no such device'))", "no such device"),
        ("sys.exit(5)", "without an answer: exited with status 5"),
        ("os.kill(os.getpid(), 9)", "without an answer: was killed by SIGKILL"),
        ("built(b'x')", "it says Built, which nobody asked for"),
        ("say(wire.Idle())", "without an answer"),
        (f"say(wire.Surveyed(platform={CPU}, needs_plan=False))", "something else than tensorrt"),
        ("say(wire.Progress(index=0, done=1)); time.sleep(60)", "it says Progress, which nobody asked for"),
    ],
)
def test_a_survey_that_comes_to_nothing_says_why(tmp_path: Path, answer: str, why: str) -> None:
    async def work() -> None:
        with pytest.raises(WorkerError, match=why):
            await Errand(SystemClock(), python=scripted(tmp_path, survey=answer)).survey("tensorrt")

    patiently(work())


def test_a_survey_that_never_answers_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        one = Errand(SystemClock(), python=scripted(tmp_path, survey="time.sleep(600)"))
        monkeypatch.setattr(errands, "SURVEY_S", 0.5)
        with pytest.raises(WorkerError, match="no answer from tensorrt within"):
            await one.survey("tensorrt")

    patiently(work())


def test_a_build_brings_its_plan_and_its_timing_cache(tmp_path: Path) -> None:
    package = put(tmp_path, "good")
    script = "say(wire.Building(phase='Tactics', done_permille=500)); built(b'p' * 300_000, given + b' and more')"

    async def work() -> None:
        heard: list[wire.Building] = []
        one = Errand(SystemClock(), python=scripted(tmp_path, build=script), on_building=heard.append)
        timing = InputMemory.holding(b"what was timed")
        got = await built(one, package, timing)
        timing.close()
        assert got.plan.read() == b"p" * 300_000
        assert got.timing is not None
        assert got.timing.read() == b"what was timed and more"
        assert heard == [wire.Building(phase="Tactics", done_permille=500)]
        assert one.expected
        got.close()
        got.close()

    patiently(work())


@pytest.mark.parametrize(
    ("script", "error", "why", "lost"),
    [
        ("say(wire.Refused(detail='no such operator'))", PackageError, "no such operator", False),
        ("say(wire.Refused(detail='no device', unavailable=True))", WorkerError, "no device", True),
        ("sys.exit(5)", WorkerError, "exited with status 5", True),
        ("os.abort()", WorkerError, "SIGABRT", False),
        ("say(wire.Surveyed(platform=PLATFORM, needs_plan=True))", WorkerError, "NameError", False),
        ("built(b'plan', descriptors=[])", WorkerError, "a message without the memory that it names", False),
        ("built(b'plan', descriptors=[sealed(b'longer')])", WorkerError, "memory of 6 bytes", False),
        ("built(b'plan', descriptors=[sealed(b'plan', 0)])", WorkerError, "with the seals 0x0", False),
        ("built(b'plan', descriptors=[sealed(b'plan', fcntl.F_SEAL_SHRINK)])", WorkerError, "with the seals", False),
        ("built(b'plan', descriptors=[os.open('/dev/zero', 0)])", WorkerError, "no sealed memory", False),
        ("built(b'plan', b'time', [sealed(b'plan')])", WorkerError, "without the memory that it names", False),
        ("built(b'plan', descriptors=[sealed(b'plan')] * 3)", WorkerError, "more descriptors than it may", False),
        ("built(b'plan'); built(b'plan'); time.sleep(60)", WorkerError, "Built, which nobody asked for", False),
        ("built(b'plan'); os.kill(os.getpid(), 9)", None, "", False),
    ],
)
def test_a_build_that_comes_to_nothing_says_why_and_leaves_nothing(
    tmp_path: Path, script: str, error: type[DrivewayError] | None, why: str, lost: bool
) -> None:
    package = put(tmp_path, "good")

    async def work() -> None:
        one = Errand(SystemClock(), python=scripted(tmp_path, build=script))
        if error is None:
            (await built(one, package)).close()  # whole, and how its maker ended after that is its own affair
            return
        with pytest.raises(error, match=why) as raised:
            await built(one, package)
        assert type(raised.value) is error
        assert one.lost_accelerator is lost

    patiently(work())


def test_a_build_can_be_stopped_at_any_time(tmp_path: Path) -> None:
    package = put(tmp_path, "good")
    script = "say(wire.Building(phase='Tactics', done_permille=1)); time.sleep(600)"

    async def work() -> None:
        begun = asyncio.Event()
        one = Errand(SystemClock(), python=scripted(tmp_path, build=script), on_building=lambda _: begun.set())
        task = asyncio.get_running_loop().create_task(built(one, package))
        await begun.wait()
        one.pace(0)
        one.stop(0)
        with pytest.raises(WorkerError, match="SIGKILL"):
            await task
        assert one.expected, "it was told to"
        late = Errand(SystemClock(), python=scripted(tmp_path))
        late.stop(0)
        with pytest.raises(WorkerError, match="stopped before it began"):
            await built(late, package)

    patiently(work())


def test_no_process_is_said(tmp_path: Path) -> None:
    async def work() -> None:
        with pytest.raises(WorkerError, match="cannot be started"):
            await Errand(SystemClock(), python=str(tmp_path / "nowhere")).survey("tensorrt")

    patiently(work())
