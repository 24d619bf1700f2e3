"""The hands and the power limits: the computer is held back while there is a worker, and never longer."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agent.core.effects import SetPowerLimit, StartWorker
from agent.core.events import WorkerGone
from agent.telemetry.actuators import Devfreq
from agent.telemetry.limits import PowerLimits
from tests.bench import bench
from tests.telemetry.gpu import CLOCKS, Gpu, devfreq
from tests.telemetry.test_limits import BOOT


def test_the_computer_is_held_back_from_the_workers_start_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = Gpu(tmp_path)
    written: list[int] = []
    write = Devfreq.write

    def spy(actuator: Devfreq, value: int) -> None:
        written.append(value)
        write(actuator, value)

    monkeypatch.setattr(Devfreq, "write", spy)

    async def main() -> None:
        limits = PowerLimits(lambda: devfreq(tmp_path), tmp_path / "note", BOOT, lambda _name, _fields: None)
        async with bench(tmp_path / "bench") as one:
            one.hands._power_limits = limits
            one.hands.perform(SetPowerLimit(limit_w=35.0))
            assert limits._task is not None
            await limits._task
            assert written == [], "no worker, no limit"
            one.hands.perform(StartWorker(grant=one.job()))  # its package is a stand-in: the worker refuses it
            await one.heard(WorkerGone)
            await limits._task
            assert written == [CLOCKS[1], CLOCKS[3]]

    asyncio.run(main())
    assert gpu.max_hz == CLOCKS[3]
