"""A measure of the cage that is required and does not stand: nothing is loaded, and the operator reads why."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from agent import wire
from agent.clock import SystemClock
from agent.core.events import AcceleratorSeen, EventType
from agent.core.model import Readiness
from agent.inference.accelerator import AcceleratorWatch
from agent.inference.errand import Errand
from tests.inference.desk import PATIENCE_S, Desk

LACKING = "the worker's cage lacks what require_confinement demands: landlock_files (absent: Function not implemented)"
PROGRAM = """#!{python}
import errno, os, sys
from agent.worker.sandbox.kernel import Kernel

class WithoutLandlock(Kernel):
    def call(self, name, *arguments):
        if name.startswith("landlock"):
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        return super().call(name, *arguments)

from agent.worker.sandbox import kernel
import agent.worker.sandbox
agent.worker.sandbox.Kernel = WithoutLandlock
from agent.worker.__main__ import main
sys.argv[1:] = sys.argv[sys.argv.index("agent.worker") + 1:]
sys.exit(main())
"""


@pytest.fixture
def without_landlock(tmp_path: Path) -> str:
    """The real worker, on a kernel that has no Landlock."""
    program = tmp_path / "python"
    program.write_text(PROGRAM.format(python=sys.executable), "utf-8")
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize("order", ["load", "build", "survey"])
def test_every_order_is_refused_before_it_is_looked_at(without_landlock: str, order: str) -> None:
    """The package is not even there, and nobody notices."""

    async def story() -> None:
        desk = Desk()
        process = desk.launch(python=without_landlock, required=("dies_with_parent", "landlock_files"))
        match order:
            case "load":
                process.load(Path("/nowhere"), executor="onnxruntime", threads=1, memory_mb=256, drain_ms=50)
            case "build":
                process.build(Path("/nowhere"), executor="tensorrt", threads=1, memory_mb=256)
            case _:
                process.survey("onnxruntime")
        await desk.wait_for(wire.Hello)
        refused = await desk.wait_for(wire.Refused)
        assert refused.detail.startswith(LACKING)
        assert (refused.unavailable, refused.stale_plan) == (True, False)
        assert (await desk.end())[0]

    asyncio.run(story())


def test_what_nobody_requires_is_only_told(without_landlock: str) -> None:
    async def story() -> None:
        errand = Errand(SystemClock(), python=without_landlock, required=("system_calls",))
        surveyed = await errand.survey("onnxruntime")
        assert surveyed.platform.executor == "onnxruntime"
        assert ("landlock_files", "absent: Function not implemented") in [
            (one.name, one.state) for one in errand.confinement
        ]

    asyncio.run(story())


async def nobody_hears(_surveyed: wire.Surveyed) -> None:
    raise AssertionError("it is not fit to be surveyed")


def test_the_accelerator_is_absent_and_says_why(without_landlock: str) -> None:
    async def story() -> None:
        seen: asyncio.Queue[EventType] = asyncio.Queue()
        watch = AcceleratorWatch(
            "onnxruntime",
            clock=SystemClock(),
            on_surveyed=nobody_hears,
            python=without_landlock,
            required=("landlock_files",),
        )
        task = asyncio.create_task(watch.run(seen.put_nowait))
        async with asyncio.timeout(PATIENCE_S):
            event = await seen.get()
        task.cancel()
        await asyncio.wait({task})
        assert isinstance(event, AcceleratorSeen)
        assert event.accelerator.state is Readiness.ABSENT
        assert event.accelerator.detail.startswith(LACKING)

    asyncio.run(story())
