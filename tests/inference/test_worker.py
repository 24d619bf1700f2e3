"""The real worker process, the real model, over the real socket."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent import wire
from agent.inference.launcher import WorkerProcess
from agent.package import Manifest, OpCall, Package
from agent.sealed import InputMemory
from hil.images import accuracy, drawn_lines
from kernels import kernels_sha256
from tests.inference.desk import PATIENCE_S, Desk, rewrite_manifest, with_one_bucket
from tests.inference.ways import Way

GENEROUS_MS = 30_000
CLEAN_EXIT = "exited with status 0"


@pytest.fixture(scope="module")
def quick_package(ocr_package: Package, tmp_path_factory: pytest.TempPathFactory) -> Package:
    return with_one_bucket(ocr_package, tmp_path_factory.mktemp("quick") / "ocr")


@contextlib.asynccontextmanager
async def loaded(
    package: Package, way: Way | None = None, **options: Any
) -> AsyncIterator[tuple[Desk, WorkerProcess, wire.Loaded]]:
    """A worker with the package loaded; it is gone afterwards, come what may."""
    desk = Desk(way)
    process = desk.launch(readable=[package.path], **options)
    try:
        process.load(package.path, executor="onnxruntime", threads=2, memory_mb=2048, drain_ms=60)
        yield desk, process, await desk.wait_for(wire.Loaded)
    finally:
        process.stop(0)
        await process.gone()


def hand_over(process: WorkerProcess, items: list[bytes]) -> None:
    send(process, wire.encode_input(items), len(items))


def send(process: WorkerProcess, body: bytes, items: int) -> None:
    memory = InputMemory.holding(body)
    process.send_input(memory, items=items)
    memory.close()  # the worker has a descriptor of its own


def texts(done: wire.SliceDone) -> list[str]:
    return [answer.get("text", "") for answer in json.loads(done.output)]


def test_a_lease_of_slices(ocr_package: Package) -> None:
    async def story() -> None:
        async with loaded(ocr_package) as (desk, process, ready):
            assert ready.executor == "onnxruntime_cpu"
            assert ready.package_sha256 == ocr_package.package_sha256
            assert ready.kernels_sha256 == kernels_sha256()
            assert ready.micro_batch_ms > 0

            lines = drawn_lines(24, seed=21)
            items = [line.png for line in lines]
            items[5] = b"no image"
            hand_over(process, items)
            read: list[str] = []
            for index in range(3):
                process.run(index, index * 8, index * 8 + 8)
            for index in range(3):
                assert (await desk.wait_for(wire.Progress)).index == index
                done = await desk.wait_for(wire.SliceDone)
                assert (done.index, done.items, done.failed_items) == (index, 8, int(index == 0))
                assert done.output_sha256 == hashlib.sha256(done.output).hexdigest()
                read += texts(done)
            truths = [line.text or "" for line in lines]
            assert read.pop(5) == ""
            del truths[5]
            assert accuracy(truths, read) >= 0.95

            hand_over(process, items[:1])  # the next lease: its input replaces the one before
            process.run(0, 0, 1)
            again = await desk.wait_for(wire.SliceDone)
            assert texts(again) == read[:1]
            process.run(1, 0, 2)
            assert (await desk.wait_for(wire.SliceError)).detail == "items [0, 2) of an input of 1"
            process.run(2, 1, 1)
            assert (await desk.wait_for(wire.SliceError)).index == 2

            send(process, b"\xc1 what a customer may send", 1)
            process.run(0, 0, 1)
            assert "not a msgpack array of byte strings" in (await desk.wait_for(wire.SliceError)).detail
            hand_over(process, [b""] * (ocr_package.manifest.limits.max_items + 1))
            process.run(0, 0, 1)
            assert "more than the package's 100000" in (await desk.wait_for(wire.SliceError)).detail

            process.stop(GENEROUS_MS)
            await desk.wait_for(wire.Idle)
            expected, detail = await desk.end()
            assert expected
            assert detail.startswith(CLEAN_EXIT)

    asyncio.run(story())


def test_stop_drops_the_slice_in_flight_and_pacing_does_not_delay_it(quick_package: Package, way: Way) -> None:
    async def story() -> None:
        async with loaded(quick_package, way) as (desk, process, _):
            hand_over(process, [drawn_lines(1, seed=1)[0].png] * 12)
            process.pace(0)
            process.run(0, 0, 12)
            assert (await desk.wait_for(wire.Progress)).done == 1
            process.pace(1000)  # a pause ends when the pace says so …
            assert (await desk.wait_for(wire.SliceDone)).items == 12
            process.pace(1)  # … and now every line is followed by seconds of rest,
            process.run(1, 0, 12)
            assert (await desk.wait_for(wire.Progress)).done == 1
            process.stop(GENEROUS_MS)  # … which Stop cuts short
            await desk.wait_for(wire.Idle)
            expected, detail = await desk.end()
            assert expected
            assert detail.startswith(CLEAN_EXIT)
            assert not desk.messages

    asyncio.run(story())


def test_a_worker_is_shut_off_and_when_it_hangs_it_is_killed_in_time(quick_package: Package, way: Way) -> None:
    async def story() -> None:
        async with loaded(quick_package, way) as (desk, process, _):
            limit = quick_package.manifest.limits.memory_mb * 1024**2
            assert resource.prlimit(process.pid, resource.RLIMIT_CORE) == (0, 0)
            assert resource.prlimit(process.pid, resource.RLIMIT_DATA) == (limit, limit)
            assert os.getpriority(os.PRIO_PROCESS, process.pid) == 10
            assert os.getsid(process.pid) == process.pid or way.is_unit

            os.kill(process.pid, signal.SIGSTOP)
            process.stop(50)
            expected, detail = await desk.end()
            assert expected
            assert detail.startswith("was killed by SIGKILL")
            process.stop(0)  # once more does no harm

    asyncio.run(story())


async def refusal(path: Path, memory_mb: int = 2048) -> str:
    """What a fresh worker says to a package that it must refuse."""
    desk = Desk()
    process = desk.launch(readable=[path])
    process.load(path, executor="onnxruntime", threads=1, memory_mb=memory_mb, drain_ms=60)
    refused = await desk.wait_for(wire.Refused)
    expected, detail = await desk.end()
    assert expected
    assert detail == "exited with status 3"
    return refused.detail


def test_a_damaged_package_is_refused(ocr_copy: Path) -> None:
    (ocr_copy / "characters.txt").write_text("changed")
    assert "characters.txt does not have the listed SHA-256" in asyncio.run(refusal(ocr_copy))


def test_characters_that_were_swapped_and_listed_anew_fail_the_golden_vector(ocr_copy: Path) -> None:
    characters = (ocr_copy / "characters.txt").read_text("utf-8")
    assert "\ne\n" in characters
    (ocr_copy / "characters.txt").write_text(characters.replace("\ne\n", "\nE\n"), "utf-8")
    rewrite_manifest(ocr_copy)
    detail = asyncio.run(refusal(ocr_copy))
    assert "golden vector: item 0 gave" in detail
    assert "Harbour StrEEt" in detail


def test_a_golden_answer_that_was_changed_is_refused(ocr_copy: Path) -> None:
    golden = ocr_copy / "golden/expected.json"
    golden.write_bytes(golden.read_bytes().replace(b"Leeds", b"Luton"))
    rewrite_manifest(ocr_copy)
    detail = asyncio.run(refusal(ocr_copy))
    assert "golden vector: item 0 gave" in detail
    assert "Luton" in detail


def test_an_unknown_operation_is_refused(ocr_copy: Path) -> None:
    def sharpen(manifest: Manifest) -> Manifest:
        pipeline = msgspec.structs.replace(manifest.pipeline, pre=(OpCall(op="sharpen"),))
        return msgspec.structs.replace(manifest, pipeline=pipeline)

    rewrite_manifest(ocr_copy, sharpen)
    assert "pipeline.pre: no operation is called 'sharpen'" in asyncio.run(refusal(ocr_copy))


def test_a_package_that_wants_more_memory_than_there_is_is_refused(ocr_package: Package) -> None:
    assert "needs 1536 MiB, more than 1024" in asyncio.run(refusal(ocr_package.path, memory_mb=1024))


def test_a_package_that_outgrows_its_own_limit_is_refused(ocr_copy: Path) -> None:
    def tight(manifest: Manifest) -> Manifest:
        return msgspec.structs.replace(manifest, limits=msgspec.structs.replace(manifest.limits, memory_mb=64))

    rewrite_manifest(ocr_copy, tight)
    assert asyncio.run(refusal(ocr_copy)) == "the package needs more memory than its limit"


def test_the_worker_dies_with_its_parent() -> None:
    """The parent is killed while the worker is stopped, so only the kernel can end it."""
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, start_new_session=True, cwd=Path(__file__).parents[2]
    )
    with parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        watched = os.pidfd_open(worker)
        try:
            os.kill(worker, signal.SIGSTOP)
            parent.kill()
            parent.wait()
            ended, _, _ = select.select([watched], [], [], PATIENCE_S)
            assert ended
        finally:
            os.close(watched)


_PARENT = """
import asyncio
from agent import wire
from tests.inference.desk import Desk

async def main():
    desk = Desk()
    process = desk.launch()
    await desk.wait_for(wire.Hello)
    print(process.pid, flush=True)
    await process.gone()

asyncio.run(main())
"""


def test_a_worker_whose_channel_is_not_its_parents_ends() -> None:
    code = """
import os, socket, sys
ours, theirs = socket.socketpair()
if os.fork() == 0:
    if os.fork() == 0:
        theirs.set_inheritable(True)
        os.execv(sys.executable, [sys.executable, "-m", "agent.worker", "--fd", str(theirs.fileno())])
    os._exit(0)
os.wait()
theirs.close()
assert ours.recv(1) == b""
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert ended.returncode == 0
    assert "which made the channel" in ended.stderr
