"""An executor whose engine is a NumPy function, and which watches over how it is used.

It computes a micro-batch only when it is waited for, and in the order of submission, as an accelerator's queue would;
a slot that is staged again gives its old results no more. Whoever stages what is in flight, reads what was not computed
or leaves something in flight over a wipe fails the test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from agent.worker.executor import Binding, ExecutorError, ModelTensor
from kernels.operation import Array, TensorSpec

Engine = Callable[[Sequence[Array]], Mapping[str, Array]]
"""From the inputs, in the binding's order and with the batch, to the outputs by name."""
POISON = 99


@dataclass
class Submitted:
    """What was computed: the bucket, how many items counted, and the inputs as the engine saw them."""

    binding: Binding
    items: int
    inputs: list[Array]
    in_flight: int


@dataclass
class NumpyExecutor:
    """See `agent.worker.executor.Executor`. `engine_s` says how long the engine takes over so many items."""

    engine: Engine
    inputs: Mapping[str, ModelTensor]
    outputs: Mapping[str, ModelTensor]
    engine_s: Callable[[int], float] = lambda items: 0.001 * items
    slots: int = 2
    depth: int = 1
    name: str = "numpy"
    device: str = "test"
    kernels_sha256: str = "0" * 64
    notes: tuple[str, ...] = ()
    submitted: list[Submitted] = field(default_factory=list)
    flying: list[NumpySlot] = field(default_factory=list)
    drains: int = 0
    wipes: int = 0

    def bind(self, binding: Binding) -> NumpyBucket:
        return NumpyBucket(self, binding)

    def drain(self) -> None:
        self.drains += 1
        for slot in self.flying:
            slot.outcome = ExecutorError("drained")
        self.flying.clear()

    def wipe(self) -> None:
        assert not self.flying
        self.wipes += 1

    def close(self) -> None:
        self.drain()


class NumpyBucket:
    def __init__(self, executor: NumpyExecutor, binding: Binding) -> None:
        rows = (binding.bucket.items,) if binding.stacked else ()
        zeros: list[Array] = [np.zeros((*rows, *spec.shape), spec.dtype) for spec in binding.inputs.values()]
        given = executor.engine(zeros)
        only = next(iter(executor.outputs))
        found = [given[one.output or only] for one in binding.results]
        self.outputs = [TensorSpec(one.dtype.name, one.shape[len(rows) :]) for one in found]
        self.slots = [NumpySlot(executor, binding) for _ in range(executor.slots)]
        self.closed = False

    def close(self) -> None:
        assert not any(slot in self.slots for slot in self.slots[0].executor.flying)
        self.closed = True


class NumpySlot:
    def __init__(self, executor: NumpyExecutor, binding: Binding) -> None:
        self.executor, self.binding = executor, binding
        self.outcome: list[tuple[Array, ...]] | ExecutorError | None = None
        self.items = 0
        self.rows = (binding.bucket.items,) if binding.stacked else ()
        self._fresh()

    def stage_image(self, row: int, image: NDArray[np.uint8]) -> None:
        self._begin(row)
        assert self.binding.image is not None
        self.binding.image.reference(image, self.arrays[0][row])

    def stage_tensors(self, row: int, tensors: Sequence[Array]) -> None:
        self._begin(row)
        for array, tensor in zip(self.arrays, tensors, strict=True):
            (array[row, ...] if self.binding.stacked else array)[...] = tensor

    def submit(self, items: int) -> None:
        assert self not in self.executor.flying
        assert 0 < items <= self.binding.bucket.items
        self.items = items
        self.executor.flying.append(self)
        self.executor.submitted.append(
            Submitted(self.binding, items, [one.copy() for one in self.arrays], len(self.executor.flying))
        )

    def poll(self) -> bool:
        return self not in self.executor.flying

    def wait(self) -> float:
        if self in self.executor.flying:
            while self.executor.flying.pop(0)._compute() is not self:
                pass
        if isinstance(self.outcome, ExecutorError):
            raise self.outcome
        return self.executor.engine_s(self.binding.bucket.items)

    def results(self, row: int) -> list[tuple[Array, ...]]:
        assert row < self.items
        assert isinstance(self.outcome, list)
        return [tuple(one[row] for one in result) for result in self.outcome]

    def _begin(self, row: int) -> None:
        assert self not in self.executor.flying
        assert row < self.binding.bucket.items
        if self.outcome is not None:
            for result in self.outcome if isinstance(self.outcome, list) else ():
                for one in result:
                    one.fill(POISON)
            self._fresh()

    def _fresh(self) -> None:
        self.outcome = None
        self.arrays: list[Array] = [
            np.zeros((*self.rows, *spec.shape), spec.dtype) for spec in self.binding.inputs.values()
        ]

    def _compute(self) -> NumpySlot:
        try:
            given = self.executor.engine(self.arrays)
            only = next(iter(self.executor.outputs))
            self.outcome = []
            for one in self.binding.results:
                output = given[one.output or only].copy()
                self.outcome.append(one.reference(output if self.binding.stacked else output[None]))
        except ExecutorError as error:
            self.outcome = error
        return self
