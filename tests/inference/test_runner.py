"""A package run for a person: the real worker, the real model."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from agent.errors import PackageError, WorkerError
from agent.inference.runner import PackageRunner
from agent.load import PackageLoad
from agent.package import Package
from hil.images import accuracy, drawn_lines
from tests.inference.desk import PATIENCE_S, rewrite_manifest, with_one_bucket


@pytest.fixture(scope="module")
def quick_package(ocr_package: Package, tmp_path_factory: pytest.TempPathFactory) -> Package:
    return with_one_bucket(ocr_package, tmp_path_factory.mktemp("quick") / "ocr")


def patiently(work: Coroutine[Any, Any, None]) -> None:
    async def main() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await work

    asyncio.run(main())


async def endless(runner: PackageRunner) -> None:
    while True:
        await runner.compute()


def worker_pid(runner: PackageRunner) -> int:
    assert runner._worker is not None
    return runner._worker.pid


def test_it_computes_as_often_as_it_is_asked_and_says_when_its_worker_is_lost(quick_package: Package) -> None:
    lines = drawn_lines(3, 5)

    async def work() -> None:
        runner = PackageRunner(quick_package.path, threads=1)
        try:
            assert (await runner.open()).executor
            runner.give([line.png for line in lines])
            first, second = (await runner.compute()).output, (await runner.compute()).output
            assert first == second
            answers = [answer["text"] for answer in json.loads(first)]
            assert accuracy(answers, [line.text or "" for line in lines]) > 0.9
            runner.give([line.png for line in lines[:1]])
            assert len(json.loads((await runner.compute()).output)) == 1
            os.kill(worker_pid(runner), signal.SIGKILL)
            with pytest.raises(WorkerError, match="the worker was lost: was killed by SIGKILL"):
                await endless(runner)
            with pytest.raises(WorkerError, match="the worker was lost"):
                runner.give([b"x"])
        finally:
            await runner.close()
            await runner.close()

    patiently(work())


def test_a_package_that_the_worker_refuses_says_why(ocr_copy: Path) -> None:
    golden = rewrite_manifest(ocr_copy).manifest.golden.expected
    (ocr_copy / golden).write_text('[{"text":"another","confidence_permille":1000}]', "ascii")
    rewrite_manifest(ocr_copy)

    async def work() -> None:
        runner = PackageRunner(ocr_copy, threads=1)
        try:
            with pytest.raises(PackageError, match=r"was refused: .*golden vector"):
                await runner.open()
        finally:
            await runner.close()

    patiently(work())


def test_a_package_is_a_load_until_it_is_stopped_or_its_worker_is_lost(quick_package: Package) -> None:
    async def work() -> None:
        runner = PackageRunner(quick_package.path, threads=1)
        load = PackageLoad(runner, [line.png for line in drawn_lines(2, 5)])
        await load.stop()
        await load.start()
        pid = worker_pid(runner)
        await asyncio.sleep(0.1)
        assert load.fault() == ""
        os.kill(pid, signal.SIGKILL)
        assert load._task is not None
        await asyncio.wait({load._task})
        assert "the worker was lost" in load.fault()
        await load.stop()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    patiently(work())
