"""A worker proves its golden vector when it is asked to, and never when somebody else needs the computer."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agent.inference.proof import Prover
from agent.inference.station import WorkerLimits
from tests.conftest import FixedClock
from tests.inference.desk import PATIENCE_S
from tests.inference.floor import LOADED, WORKER, Floor
from tests.inference.test_launcher import impostor
from tests.inference.ways import Way


def prover(floor: Floor, folder: Path, way: Way, on_load: str = LOADED) -> Prover:
    program = impostor(folder, WORKER.replace("{on_load}", on_load).replace("{on_run}", "pass"))
    socket_unit = way.listen(program) if way.is_unit else None
    limits = WorkerLimits(threads=1, memory_mb=256, python=program, socket_unit=socket_unit)
    return Prover(clock=FixedClock(), shelf=floor.shelf, plans=floor.station._plans, limits=limits)


@pytest.mark.parametrize(
    ("on_load", "result", "detail"),
    [
        (LOADED, "passed", ""),
        ("say(wire.Refused(detail='golden vector: item 0 gave 1'))", "failed", "golden vector: item 0 gave 1"),
        ("sys.exit('no engine')", "failed", "no engine"),
    ],
)
def test_what_a_worker_proves(tmp_path: Path, way: Way, on_load: str, result: str, detail: str) -> None:
    async def story() -> None:
        floor = Floor(tmp_path / "packages")
        one = prover(floor, tmp_path, way, on_load)
        assert (await one.prove()).result == "none", "nobody has permitted it"
        one.permit(permitted=True)
        async with asyncio.timeout(PATIENCE_S):
            found = await one.prove()
        assert (found.result, found.package) == (result, "good")
        assert detail in found.detail
        if result == "passed":
            assert (found.executor, found.micro_batch_ms) == ("stand-in", 1.0)
            assert found.confinement or way.is_unit
        await one.close()
        floor.memory.close()

    asyncio.run(story())


def test_one_that_computes_is_ended_when_the_computer_is_needed(tmp_path: Path, way: Way) -> None:
    """And where it hangs, which is the worst that it can do, it is killed at once all the same."""

    async def story() -> None:
        floor = Floor(tmp_path / "packages")
        begun = tmp_path / "begun"
        one = prover(floor, tmp_path, way, f"open({str(begun)!r}, 'w'); time.sleep(3600)")
        one.permit(permitted=True)
        proving = asyncio.create_task(one.prove())
        while not begun.exists():  # noqa: ASYNC110 - a process tells it by a file
            await asyncio.sleep(0.01)
        one.permit(permitted=False)
        async with asyncio.timeout(PATIENCE_S):
            found = await proving
        assert (found.result, found.detail) == ("none", "it was ended, because the computer is needed")
        assert one._process is None
        floor.memory.close()

    asyncio.run(story())
