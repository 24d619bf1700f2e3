"""Work for the device whose length is chosen: the executor that cars use, around the stand-in engine.

    python -m hil.gpu.caged_load --fd N hold|start|stray|reset --image FILE [--batch-ms N] [--values N] [--ballast-mb N]

A process of its own, since that is how the accelerator is given back: by a process that ends. It is shut in as a worker
is, by `hil.gpu.caged_load`, which then calls `main` here. It says on standard
output what it has come to, a word a line:

* `hold`: `ready N`, where N is the milliseconds that a micro-batch takes, then micro-batches without end until a line
  comes on standard input; `idle` when nothing computes any more, `closed` when all is freed;
* `start`: `ready` after the first right result;
* `stray`, `reset`: `ready`, then the context is lost, by a kernel that touches foreign memory, or taken away as a
  suspend takes it; `lost` with the error that came of it.
"""

from __future__ import annotations

import argparse
import ctypes
import select
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agent.package import Bucket
from agent.worker.cuda.context import DeviceContext
from agent.worker.cuda.driver import Driver
from agent.worker.cuda.executor import CudaBucket, CudaExecutor
from agent.worker.cuda.kernels import KernelLibrary
from agent.worker.cuda.memory import Arena, Budget
from agent.worker.executor import Binding, ExecutorError
from hil.gpu.synthetic import INPUT, OUTPUT, BusyEngine, Kernel
from kernels.operation import TensorSpec
from kernels.tensor_answers import TensorValues

ITEMS, MEMORY_MB = 16, 64
_TRIAL_ROUNDS = 2_000


@dataclass(frozen=True)
class Work:
    """An executor at work, one bucket of it, and the rows that have to come out of it unchanged."""

    driver: Driver
    executor: CudaExecutor
    engine: BusyEngine
    bucket: CudaBucket
    rows: NDArray[np.float32]

    def stage(self, number: int) -> None:
        """Fill a slot."""
        for row, item in enumerate(self.rows):
            self.bucket.slots[number].stage_tensors(row, [item])

    def is_right(self, number: int) -> bool:
        """Whether the slot's results are what was staged."""
        slot = self.bucket.slots[number]
        return all(np.array_equal(slot.results(row)[0][0], values) for row, values in enumerate(self.rows))


@contextmanager
def at_work(batch_ms: float, values: int, *, busy: bytes, ballast_mb: int = 0) -> Iterator[Work]:
    """An executor whose micro-batches take `batch_ms`, and memory held beside; raises ExecutorError."""
    context = DeviceContext()
    try:
        rounds = max(2, round(_TRIAL_ROUNDS * batch_ms / 1000 / _seconds(busy, values, _TRIAL_ROUNDS)))
        engine = BusyEngine(busy, values=values, rounds=rounds)
        executor = CudaExecutor(context, engine, KernelLibrary(context.driver, busy), memory_bytes=MEMORY_MB * 1024**2)
    except BaseException:
        context.close()
        raise
    ballast = Arena(context.driver, Budget(ballast_mb * 1024**2), mapped=False)
    try:
        if ballast_mb:
            ballast.device("ballast", ballast_mb * 1024**2)
        spec = TensorSpec("float32", (values,))
        binding = Binding(Bucket(items=ITEMS), None, {INPUT: spec}, [TensorValues(output=OUTPUT)])
        rows = np.random.default_rng(5).random((ITEMS, values), dtype=np.float32)
        yield Work(context.driver, executor, engine, executor.bind(binding), rows)
    finally:
        ballast.free()
        executor.close()


def _seconds(image: bytes, values: int, rounds: int) -> float:
    """How long one run of so many rounds takes, the context being current."""
    import pycuda.driver as cuda  # noqa: PLC0415 - after the context

    stream = cuda.Stream(1)
    kernel = BusyEngine(image, values=values, rounds=rounds)
    context = kernel.bind({INPUT: (ITEMS, values)})
    memory = cuda.mem_alloc(2 * 4 * ITEMS * values)
    try:
        context.attach({INPUT: int(memory), OUTPUT: int(memory) + 4 * ITEMS * values}, 0)
        for _ in range(2):  # the first run also wakes the device
            stream.synchronize()
            began_s = time.perf_counter()
            context.enqueue(stream.handle)
            stream.synchronize()
        return max(time.perf_counter() - began_s, 1e-6)
    finally:
        memory.free()


def _hold(work: Work) -> None:
    """Two slots in flight all the time, until somebody says stop."""
    for number in (0, 1):
        work.stage(number)
        work.bucket.slots[number].submit(ITEMS)
    taken_s = [work.bucket.slots[number].wait() for number in (0, 1)]
    for number in (0, 1):
        work.bucket.slots[number].submit(ITEMS)
    _say(f"ready {max(taken_s) * 1000:.3f}")
    number = 0
    while not select.select([sys.stdin], [], [], 0)[0]:
        work.bucket.slots[number].wait()
        work.bucket.slots[number].submit(ITEMS)
        number = 1 - number
    work.executor.drain()
    _say("idle")


def _start(work: Work) -> None:
    work.stage(0)
    work.bucket.slots[0].submit(ITEMS)
    work.bucket.slots[0].wait()
    if not work.is_right(0):
        raise ExecutorError("the first result is wrong")
    _say("ready")


def _lose(work: Work, how: str, image: bytes) -> None:
    """Lose the context; the executor's own call has to say so."""
    _start(work)
    if how == "stray":
        Kernel(image, "stray").bound(1, 32, "P", 8)(0)
    else:
        ctypes.CDLL("libcuda.so.1").cuDevicePrimaryCtxReset_v2(0)
    try:
        _start(work)
    except ExecutorError as error:
        _say(f"lost {type(error).__name__}: {error}")
    else:
        _say("lost nothing: the next result was right")


def main(arguments: Sequence[str]) -> int:
    """What the head of this file says."""
    parser = argparse.ArgumentParser(prog="python -m hil.gpu.caged_load", description=__doc__)
    parser.add_argument("how", choices=("hold", "start", "stray", "reset"))
    parser.add_argument("--batch-ms", type=float, default=10.0)
    parser.add_argument("--values", type=int, default=16_384, help="float32 an item")
    parser.add_argument("--ballast-mb", type=int, default=0, help="device memory to hold beside")
    parser.add_argument("--image", type=Path, required=True, help="the compiled stand-in engine")
    options = parser.parse_args(arguments)
    image = options.image.read_bytes()
    with at_work(options.batch_ms, options.values, ballast_mb=options.ballast_mb, busy=image) as work:
        if options.how == "hold":
            _hold(work)
        elif options.how == "start":
            _start(work)
        else:
            _lose(work, options.how, image)
    _say("closed")
    return 0


def _say(word: str) -> None:
    print(word, flush=True)
