"""Scenarios: nothing is allocated after a bind, nothing leaks, and no data stays where others find it.

Run by test_executor.py.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator

import numpy as np
import pycuda.driver as cuda

from agent.worker.cuda.executor import CudaExecutor
from agent.worker.cuda.memory import DeviceBuffer, StagedBuffer
from agent.worker.ending import end_on_sigterm, free_at_end
from agent.worker.executor import Slot
from tests.cuda import executor_rig as rig
from tests.cuda.standin_engine import ColumnsEngine

ALLOCATING = (
    "cuMemAlloc_v2",
    "cuMemHostAlloc",
    "cuMemFree_v2",
    "cuMemFreeHost",
    "cuStreamCreate",
    "cuEventCreate",
    "cuModuleGetFunction",
    "cuModuleLoadDataEx",
    "cuGraphInstantiateWithFlags",
    "cuStreamBeginCapture_v2",
)
TURNS = 4000
LEAK_BYTES = 4 * rig.MIB


def one_launch_a_micro_batch() -> None:
    """After a bind: one copy, one graph, two events, and nothing that allocates."""
    with rig.columns_executor() as (executor, engine):
        binding = rig.line_binding(results=[rig.ctc(), rig.values(), rig.fingerprint()])
        slots = executor.bind(binding).slots
        counted = {name: rig.calls(name) for name in (*ALLOCATING, "cuGraphLaunch", "cuEventRecord", "cuLaunchKernel")}
        copies = rig.calls("cuMemcpyHtoDAsync_v2")
        enqueued = engine.temper.enqueued
        for turn in range(10):
            rig.compute(slots[turn % 2], rig.images(turn, 4))
        after = {name: rig.calls(name) - before for name, before in counted.items()}
        assert after.pop("cuGraphLaunch") == 10
        assert after.pop("cuEventRecord") == 20
        assert set(after.values()) == {0}, after
        assert rig.calls("cuMemcpyHtoDAsync_v2") - copies == (0 if rig.integrated() else 10)
        assert engine.temper.enqueued == enqueued


def pinned_memory_has_a_twin_or_none() -> None:
    """On an integrated device no copy is ever asked for, and pinned memory is the device's; else each has its own."""
    with rig.columns_executor() as (executor, _):
        used = rig.used_bytes()
        slots = executor.bind(rig.line_binding(results=[rig.values()])).slots
        rig.compute(slots[0], rig.images(0, 4))
        copies = rig.calls("cuMemcpyHtoDAsync_v2"), rig.calls("cuMemcpyDtoHAsync_v2")
        assert copies == ((0, 0) if rig.integrated() else (1, 4))  # and either slot warmed up and recorded
        device, pinned = (now - before for now, before in zip(rig.used_bytes(), used, strict=True))
        assert device + pinned == executor.memory_bytes
        assert (device < 2 * rig.MIB) == rig.integrated()
        assert pinned > 12 * rig.MIB


def thousands_of_submissions() -> None:
    """Memory and handles are as many after thousands of micro-batches as after a few."""
    with rig.product_executor(3, 5, 2, batched=True) as executor:
        slots = executor.bind(rig.product_binding(4)).slots
        tensors = [np.ones((3, 5), np.float32), np.ones((5, 2), np.float32)]

        def turns(count: int) -> None:
            for turn in range(count):
                slot = slots[turn % 2]
                for row in range(4):
                    slot.stage_tensors(row, tensors)
                slot.submit(4)
                slot.wait()
                assert slot.results(3)[0][0][2, 1] == 5

        turns(200)
        used, counted, resident = rig.used_bytes(), {name: rig.calls(name) for name in ALLOCATING}, _resident_bytes()
        turns(TURNS)
        assert rig.used_bytes() == used
        assert {name: rig.calls(name) for name in ALLOCATING} == counted
        assert _resident_bytes() - resident < LEAK_BYTES, (_resident_bytes(), resident)


def buckets_come_and_go() -> None:
    """Executors opened and closed one after the other leave nothing."""
    for turn in range(8):
        with rig.columns_executor() as (executor, _):
            for width in (64, 128):
                bucket = executor.bind(rig.line_binding(width=width))
                rig.compute(bucket.slots[turn % 2], rig.images(turn, 2))
        assert rig.used_bytes() == (0, 0)
        if turn == 2:
            resident = _resident_bytes()
    assert _resident_bytes() - resident < 16 * rig.MIB


def a_closed_bucket_gives_its_memory_back() -> None:
    """A bucket that turned out too slow goes, while others stay as they are; scratch memory is the largest's."""
    with rig.columns_executor() as (executor, engine):
        kept = rig.line_binding(width=64)
        slots = executor.bind(kept).slots
        used = rig.used_bytes()
        other = executor.bind(rig.line_binding(width=128, results=[rig.values()]))
        scratch = engine.contexts[-1].scratch_bytes - engine.contexts[0].scratch_bytes
        other.slots[1].submit(1)
        other.close()
        other.close()
        assert rig.used_bytes() == (used[0] + 2 * scratch, used[1])
        assert [one.closed for one in engine.contexts] == [False, False, True, True]
        images = rig.images(2, 4)
        wanted = rig.expected(engine, kept, dict(enumerate(images)))
        for slot in slots:
            for row, results in enumerate(rig.compute(slot, images)):
                rig.assert_close(results, wanted[row])


def wiped() -> None:
    """After a wipe no byte of an item is left, neither pinned nor on the device; the slots still work."""
    with rig.columns_executor() as (executor, engine):
        binding = rig.line_binding(results=[rig.ctc(), rig.values(), rig.fingerprint()])
        slots = executor.bind(binding).slots
        images = rig.images(5, 4)
        for slot in slots:
            rig.compute(slot, images)
        unread = 2  # the output that the engine never writes, in either slot
        assert len(_with_data(executor)) == len(list(_buffers(executor))) - unread
        executor.wipe()
        assert _with_data(executor) == []
        _recomputes(slots[0], engine, images)
    with rig.product_executor(3, 5, 2, batched=True) as executor:
        slot = executor.bind(rig.product_binding(2)).slots[0]
        slot.stage_tensors(0, [np.ones((3, 5), np.float32), np.ones((5, 2), np.float32)])
        executor.wipe()
        slot.submit(2)
        slot.wait()
        assert not slot.results(0)[0][0].any()


def cleared_before_it_is_freed() -> None:
    """Closing gives no memory back that still holds an item; nor does a bucket that could not be bound."""
    seen: list[int] = []
    for kind in (DeviceBuffer, StagedBuffer):
        _look_before_free(kind, seen)
    with rig.columns_executor() as (executor, _):
        slots = executor.bind(rig.line_binding()).slots
        for slot in slots:
            rig.compute(slot, rig.images(5, 4))
        assert _with_data(executor)
    assert len(seen) >= 12
    assert not any(seen), seen


def scratch_that_moves_is_run_at_before_it_is_recorded() -> None:
    """An engine that sets itself up at new addresses keeps its graphs when a larger bucket moves the scratch memory."""
    with rig.columns_executor() as (executor, engine):
        engine.temper.settles = True
        narrow, wide = rig.line_binding(width=64), rig.line_binding(width=256)
        images = rig.images(3, 4)
        buckets = [(one, executor.bind(one)) for one in (narrow, wide)]
        assert executor.notes == []
        enqueued = engine.temper.enqueued
        for binding, bucket in buckets:
            wanted = rig.expected(engine, binding, dict(enumerate(images)))
            for slot in bucket.slots:
                for row, results in enumerate(rig.compute(slot, images)):
                    rig.assert_close(results, wanted[row])
        assert engine.temper.enqueued == enqueued, "all of it ran as graphs"


def sigterm_in_a_capture() -> None:
    """Told to end in the middle of a capture, the worker's way out still zeroes all memory and gives it back."""
    seen: list[int] = []
    for kind in (DeviceBuffer, StagedBuffer):
        _look_before_free(kind, seen)
    said: list[str] = []
    end_on_sigterm(lambda: said.append("idle"))
    executor, engine = rig.open_columns()
    for slot in executor.bind(rig.line_binding()).slots:
        rig.compute(slot, rig.images(5, 4))
    assert _with_data(executor)
    free_at_end(executor)
    free_at_end(_Judge(seen, said))
    engine.temper.terminated_at = engine.temper.enqueued + 2  # the first of a bind warms up, the second is captured
    executor.bind(rig.line_binding(width=32))
    raise AssertionError("SIGTERM was not heeded")


def pinned_memory_is_little() -> None:
    """A slot of lines pins little more than the largest image."""
    with rig.columns_executor() as (executor, _):
        before = rig.used_bytes()[1]
        executor.bind(rig.line_binding(items=16, width=320))
        assert rig.used_bytes()[1] - before < 2 * (7 * rig.MIB)


def _recomputes(slot: Slot, engine: ColumnsEngine, images: rig.Images) -> None:
    binding = rig.line_binding(results=[rig.ctc(), rig.values(), rig.fingerprint()])
    wanted = rig.expected(engine, binding, dict(enumerate(images)))
    for row, results in enumerate(rig.compute(slot, images)):
        rig.assert_close(results[:2], wanted[row][:2])


def _buffers(executor: CudaExecutor) -> Iterator[DeviceBuffer | StagedBuffer]:
    for arena in (*executor._arenas, *(one for lane in executor._lanes for one in lane._arenas)):
        yield from arena._buffers


def _with_data(executor: CudaExecutor) -> list[int]:
    """Sizes of the buffers that hold anything but zeros, on either side."""
    cuda.Context.synchronize()
    return [buffer.nbytes for buffer in _buffers(executor) if _holds_data(buffer)]


def _holds_data(buffer: DeviceBuffer | StagedBuffer) -> bool:
    body = np.empty(buffer.nbytes, np.uint8)
    cuda.memcpy_dtoh(body, buffer.address)
    return bool(body.any()) or (isinstance(buffer, StagedBuffer) and bool(buffer.host.any()))


def _look_before_free(kind: type[DeviceBuffer | StagedBuffer], seen: list[int]) -> None:
    free = kind.free

    def look(buffer: DeviceBuffer | StagedBuffer) -> None:
        seen.append(_holds_data(buffer))
        free(buffer)  # type: ignore[arg-type]  # of this kind

    kind.free = look  # type: ignore[method-assign,assignment]  # to see what nobody else may


class _Judge:
    """Ends the process with another status unless all was given back, zeroed before, and after Idle was said."""

    def __init__(self, seen: list[int], said: list[str]) -> None:
        self._seen, self._said = seen, said

    def drain(self) -> None:
        if self._said or self._seen:
            self._condemn()

    def close(self) -> None:
        if rig.used_bytes() != (0, 0) or len(self._seen) < 12 or any(self._seen) or self._said != ["idle"]:
            self._condemn()

    def _condemn(self) -> None:
        sys.stderr.write(f"left: {rig.used_bytes()}, freed with data or without: {self._seen}, said: {self._said}\n")
        sys.stderr.flush()
        os._exit(1)


def _resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - as short as it is
        return int(file.read().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    rig.play(globals())
