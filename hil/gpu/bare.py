"""The engine alone, with the same settings as the pipeline's: two contexts on two streams, each a captured graph.

Its inputs and outputs already lie on the device and stay there. One run is put on each stream, and the older is waited
for, asleep, before the next: what a loop around the engine can do at best, with nothing before or behind it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial

import pycuda.driver as cuda

from agent.worker.cuda.driver import Driver
from agent.worker.cuda.engine import DeviceEngine, EngineContext
from agent.worker.cuda.graph import Graph, capture
from agent.worker.executor import ExecutorError
from kernels.operation import Shape, TensorSpec

_WARM_UP = 4


class BareEngine:
    """Runs of one bucket, two in flight; `plain` says why there is no graph, if there is none."""

    def __init__(self, driver: Driver, engine: DeviceEngine, inputs: Mapping[str, TensorSpec]) -> None:
        """Bind the engine twice for inputs of these shapes, batch included; raises ExecutorError."""
        self.plain = ""
        self._lanes = [_BareLane(driver, engine.bind(_shapes(inputs)), inputs) for _ in range(2)]
        self._place = 0
        try:
            for lane in self._lanes:
                lane.record()
        except (cuda.Error, ExecutorError) as error:
            self.plain = str(error)

    def turn(self) -> None:
        """Wait for the older run, and put on another."""
        self._lanes[self._place].turn()
        self._place = 1 - self._place

    def close(self) -> None:
        """Wait for what is in flight, and free everything but the engine."""
        for lane in self._lanes:
            lane.close()


class _BareLane:
    """One context on one stream."""

    def __init__(self, driver: Driver, context: EngineContext, inputs: Mapping[str, TensorSpec]) -> None:
        self._driver, self._context = driver, context
        self._stream = cuda.Stream(1)
        self._end = cuda.Event(cuda.event_flags.BLOCKING_SYNC)
        tensors = {**inputs, **context.outputs}
        self._memory = {name: cuda.mem_alloc(max(spec.nbytes, 1)) for name, spec in tensors.items()}
        self._scratch = cuda.mem_alloc(max(context.scratch_bytes, 1))
        context.attach({name: int(held) for name, held in self._memory.items()}, int(self._scratch))
        self._run: Callable[[], None] = partial(context.enqueue, self._stream.handle)
        self._run()
        self._end.record(self._stream)
        self._graph: Graph | None = None

    def record(self) -> None:
        self._stream.synchronize()
        self._graph = capture(self._driver, self._stream.handle, self._run)
        self._run = partial(self._graph.launch, self._stream.handle)

    def turn(self) -> None:
        self._end.synchronize()
        self._run()
        self._end.record(self._stream)

    def close(self) -> None:
        self._stream.synchronize()
        if self._graph is not None:
            self._graph.close()
        self._context.close()
        for held in (*self._memory.values(), self._scratch):
            held.free()


def per_s(turn: Callable[[], None], seconds: float) -> float:
    """Turns a second, over so many seconds after a few to warm up."""
    for _ in range(_WARM_UP):
        turn()
    count, began_s = 0, time.perf_counter()
    while (taken_s := time.perf_counter() - began_s) < seconds:
        turn()
        count += 1
    return count / taken_s


def _shapes(inputs: Mapping[str, TensorSpec]) -> Mapping[str, Shape]:
    return {name: spec.shape for name, spec in inputs.items()}
