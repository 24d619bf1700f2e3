"""From an item's tensors to its answer: read the .npy bytes, stack a batch, run the engine, answer with the outputs.

The package names one `npy_tensor` for each input of the model, in the order in which an item holds them, and one
`tensor_values` or `tensor_digest` for each output that is answered. Where items are stacked they go to the engine along
a new first axis, in the package's batch sizes and no other: a short batch is filled up with zeros, whose answers are
dropped. Else each item is a run of its own.

As in `agent.worker.pipeline`, an item that is no good is an answer too, and only a failing engine fails a slice.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Union

import numpy as np
from numpy.typing import NDArray

from agent.errors import PackageError
from agent.package import OpCall, Package
from agent.worker.answers import Answer, answer, no_answer
from agent.worker.executor import ExecutorError, TensorExecutor
from agent.worker.pipeline import MICRO_BATCH_BUDGET_MS
from kernels import Operation, OperationError, operation
from kernels.npy_tensor import NpyError, NpyTensor, npy_tensor, sizes
from kernels.tensor_answers import MAX_VALUES, TensorDigest, TensorValues, tensor_digest, tensor_values

_TIMED_RUNS = 3
_Tensors = list[NDArray[np.generic]]
_Answering = Union[TensorValues, TensorDigest]  # noqa: UP007 - Python 3.10 evaluates this line


@dataclass(frozen=True)
class Read:
    """An item's tensors on their way to the engine, in the order of the inputs, and its place among the items."""

    place: int
    tensors: _Tensors


class TensorPipeline:
    """A package's pipeline on one executor."""

    def __init__(self, package: Package, executor: TensorExecutor) -> None:
        """Bind the operations; raises PackageError for a pipeline that does not fit together."""
        manifest = package.manifest
        self._where = f"package {package.path}"
        self._executor = executor
        self._limits = manifest.limits
        self._inputs = [one for one in self._bound(manifest.pipeline.pre, "pre") if isinstance(one, NpyTensor)]
        self._answers: list[_Answering] = [
            one for one in self._bound(manifest.pipeline.post, "post") if isinstance(one, (TensorValues, TensorDigest))
        ]
        names = [[one.input for one in self._inputs], [one.output for one in self._answers]]
        whole = (len(self._inputs), len(self._answers)) == (len(manifest.pipeline.pre), len(manifest.pipeline.post))
        if not whole or any(len(set(some)) != len(some) for some in names):
            raise PackageError(f"{self._where}: the pipeline does not lead from one tensor an input to its outputs")
        self._stacked = all(one.stacked for one in self._inputs)
        if not self._stacked and any(one.stacked for one in self._inputs):
            raise PackageError(f"{self._where}: either all inputs are stacked or none is")
        self._sizes = sorted({bucket.items for bucket in manifest.buckets})
        if not self._stacked and self._sizes != [1]:
            raise PackageError(f"{self._where}: items that are not stacked go to the engine one by one")
        self._batch_items = self._sizes[0]

    def calibrate(self) -> Iterator[float]:
        """Time the batch sizes and choose one; yields the latency in ms of the choice so far.

        As `agent.worker.pipeline.Pipeline.calibrate`, and like it raises PackageError when the engine fails.
        """
        chosen_ms = 0.0
        for items in self._sizes:
            latency_ms = self._time(items)
            if chosen_ms and latency_ms > MICRO_BATCH_BUDGET_MS:
                return
            self._batch_items, chosen_ms = items, latency_ms
            yield chosen_ms

    def steps(self, items: Sequence[bytes]) -> Iterator[list[tuple[int, Answer]]]:
        """Work through `items`, one micro-batch a step; see `agent.worker.pipeline.Pipeline.steps`."""
        waiting: list[Read] = []
        for place, item in enumerate(items):
            read = self._read(place, item)
            if isinstance(read, Answer):
                yield [(place, read)]
                continue
            waiting.append(read)
            if len(waiting) == self._batch_items:
                yield self._run(waiting)
                waiting = []
        if waiting:
            yield self._run(waiting)

    def _read(self, place: int, item: bytes) -> Read | Answer:
        """One item's tensors; an item that is no good is answered at once."""
        if len(item) > self._limits.max_item_bytes:
            return no_answer(f"the item has {len(item)} bytes, more than {self._limits.max_item_bytes}")
        tensors: _Tensors = []
        offset = 0
        for spec in self._inputs:
            try:
                tensor, offset = npy_tensor(item, offset, spec.dtype, sizes(spec.shape))
            except NpyError as error:
                return no_answer(f"input {spec.input}: {error}")
            tensors.append(tensor)
        if offset != len(item):
            return no_answer(f"{len(item) - offset} bytes more than its tensors")
        return Read(place, tensors)

    def _run(self, batch: Sequence[Read]) -> list[tuple[int, Answer]]:
        """One micro-batch, in the smallest size that holds it."""
        if not self._stacked:
            (only,) = batch
            return [(only.place, self._answer(self._engine(only.tensors)))]
        rows = min(size for size in self._sizes if size >= len(batch))
        outputs = self._engine([self._stack(rows, at, [read.tensors[at] for read in batch]) for at in self._at])
        if any(output.shape[:1] != (rows,) for output in outputs):
            raise ExecutorError("an output of the model has not one row an item")
        return [(read.place, self._answer([output[row] for output in outputs])) for row, read in enumerate(batch)]

    @property
    def _at(self) -> range:
        return range(len(self._inputs))

    def _stack(self, rows: int, at: int, tensors: Sequence[NDArray[np.generic]]) -> NDArray[np.generic]:
        """A batch of one input; what is left of it stays zero."""
        spec = self._inputs[at]
        stacked: NDArray[np.generic] = np.zeros((rows, *sizes(spec.shape)), dtype=spec.dtype)
        for row, tensor in enumerate(tensors):
            stacked[row] = tensor
        return stacked

    def _engine(self, tensors: _Tensors) -> _Tensors:
        named = {spec.input: tensor for spec, tensor in zip(self._inputs, tensors)}  # noqa: B905 - one an input
        return self._executor.run_tensors(named, [one.output for one in self._answers])

    def _answer(self, outputs: _Tensors) -> Answer:
        """Post-process one item's engine outputs."""
        body: dict[str, Any] = {}
        for call, output in zip(self._answers, outputs):  # noqa: B905 - one an output, as the executor was asked
            if isinstance(call, TensorDigest):
                body[call.output] = tensor_digest(output)
            elif output.size > MAX_VALUES:
                raise ExecutorError(f"output {call.output} has {output.size} values, more than {MAX_VALUES}")
            else:
                body[call.output] = tensor_values(output)
        return answer({"outputs": body}, outputs)

    def _time(self, items: int) -> float:
        """The latency of one batch size's engine run, in ms."""
        zeros = [np.zeros(sizes(spec.shape), dtype=spec.dtype) for spec in self._inputs]
        timings_ms = []
        try:
            for turn in range(_TIMED_RUNS + 1):
                start = time.perf_counter()
                answers = self._run([Read(place, list(zeros)) for place in range(items)])
                if turn and answers:
                    timings_ms.append((time.perf_counter() - start) * 1000)
        except ExecutorError as error:
            raise PackageError(f"{self._where}: batch of {items}: {error}") from error
        return statistics.median(timings_ms)

    def _bound(self, calls: Sequence[OpCall], stage: str) -> list[Operation]:
        try:
            return [operation(call.op, call.params) for call in calls]
        except OperationError as error:
            raise PackageError(f"{self._where}: pipeline.{stage}: {error}") from error
