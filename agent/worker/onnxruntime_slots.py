"""Memory of the ONNX Runtime executor: a bucket's slots, with inputs and outputs at addresses that never change.

An image becomes its row of the input where it is staged, and the results are made of the outputs where they are waited
for: in the caller's thread, so the engine goes on with the next slot meanwhile. Rows that nobody staged are zeros.

The outputs' shapes are what one run of the bucket gives. An engine that gives others later fails that run, since the
addresses were bound for these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.worker.executor import Binding, ExecutorError, ModelTensor
from agent.worker.onnxruntime_library import ort
from kernels.operation import Array, ImageOperation, ResultOperation, TensorSpec

_SLOTS = 2
Submit = Callable[[Any], "Future[float]"]


@dataclass(frozen=True)
class _Faces:
    """What goes in and comes out, with the batch, by the model's names; and which output each operation reads."""

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    read: Sequence[str]


class CpuBucket:
    """A bound bucket; see `agent.worker.executor.BoundBucket`."""

    def __init__(
        self,
        session: ort.InferenceSession,
        binding: Binding,
        inputs: Mapping[str, ModelTensor],
        outputs: Mapping[str, ModelTensor],
        submit: Submit,
    ) -> None:
        """Run the bucket once and make its slots; raises ExecutorError."""
        if set(binding.inputs) != set(inputs):
            raise ExecutorError(f"the model has the inputs {list(inputs)}, not {list(binding.inputs)}")
        names = [_output_name(operation, outputs) for operation in binding.results]
        rows = binding.bucket.items if binding.stacked else None
        shapes = {
            name: TensorSpec(spec.dtype, spec.shape if rows is None else (rows, *spec.shape))
            for name, spec in binding.inputs.items()
        }
        given = _first_run(session, shapes, list(dict.fromkeys(names)))
        for name, array in given.items():
            if rows is not None and array.shape[:1] != (rows,):
                raise ExecutorError(
                    f"output {name!r} of the model is {list(array.shape)}: not one row an item of {rows}"
                )
        self.outputs = [
            TensorSpec(given[name].dtype.name, given[name].shape[1:] if rows is not None else given[name].shape)
            for name in names
        ]
        faces = _Faces(shapes, {name: TensorSpec(one.dtype.name, one.shape) for name, one in given.items()}, names)
        self.slots = [CpuSlot(session, binding, faces, submit) for _ in range(_SLOTS)]

    def wipe(self) -> None:
        """Overwrite what items left, in the slots and in the engine's own memory: the same run takes the same again."""
        used = [slot.clear() for slot in self.slots]
        if any(used):
            self.slots[0].run_zeros()

    def clear(self) -> None:
        """Overwrite the slots."""
        for slot in self.slots:
            slot.clear()

    def close(self) -> None:
        """Overwrite the slots; their memory goes with the last reference to the bucket."""
        self.clear()


class CpuSlot:
    """Memory for one micro-batch; see `agent.worker.executor.Slot`."""

    def __init__(self, session: ort.InferenceSession, binding: Binding, faces: _Faces, submit: Submit) -> None:
        self._stacked = binding.stacked
        self._image: ImageOperation | None = binding.image
        self._operations: Sequence[ResultOperation] = binding.results
        self._inputs = [np.zeros(one.shape, one.dtype) for one in faces.inputs.values()]
        self._outputs = {name: np.zeros(one.shape, one.dtype) for name, one in faces.outputs.items()}
        batched = {name: one if self._stacked else one[None] for name, one in self._outputs.items()}
        self._read = [batched[name] for name in faces.read]
        self._io = session.io_binding()
        for name, array in zip(faces.inputs, self._inputs, strict=True):
            self._io.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for name, array in self._outputs.items():
            self._io.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        self._submit = submit
        self._running: Future[float] | None = None
        self._results: list[tuple[Array, ...]] = []
        self._staged_rows = self._items = 0
        self._used = False

    def stage_image(self, row: int, image: NDArray[np.uint8]) -> None:
        """Pre-process an image into its row."""
        assert self._image is not None
        self._image.reference(image, self._inputs[0][row])
        self._staged_rows = max(self._staged_rows, row + 1)

    def stage_tensors(self, row: int, tensors: Sequence[Array]) -> None:
        """Copy an item's tensors into their rows."""
        for array, tensor in zip(self._inputs, tensors, strict=True):
            (array[row, ...] if self._stacked else array)[...] = tensor
        self._staged_rows = max(self._staged_rows, row + 1)

    def submit(self, items: int) -> None:
        """Queue this slot behind what was submitted before."""
        if self._stacked and self._staged_rows > items:
            for array in self._inputs:
                array[items : self._staged_rows] = 0
        self._staged_rows = self._items = items
        self._used = True
        self._running = self._submit(self._io)

    def poll(self) -> bool:
        """Whether the run has ended, or was dropped."""
        return self._running is None or self._running.done()

    def wait(self) -> float:
        """Wait for the run, and make the results of its outputs."""
        running, self._running = self._running, None
        if running is None:
            raise ExecutorError("nothing was submitted")
        try:
            engine_s = running.result()
        except CancelledError as error:
            raise ExecutorError("dropped before it began") from error
        self._results = [
            operation.reference(output[: self._items])
            for operation, output in zip(self._operations, self._read, strict=True)
        ]
        return engine_s

    def results(self, row: int) -> list[tuple[Array, ...]]:
        """One item's results."""
        return [tuple(result[row, ...] for result in results) for results in self._results]

    def clear(self) -> bool:
        """Overwrite everything; whether an item was here since the last time."""
        used, self._used = self._used, False
        for array in (*self._inputs, *self._outputs.values(), *(one for results in self._results for one in results)):
            array.fill(0)
        self._results, self._staged_rows, self._items = [], 0, 0
        return used

    def run_zeros(self) -> None:
        """Run on what is there."""
        self._submit(self._io).result()


def _output_name(operation: ResultOperation, outputs: Mapping[str, ModelTensor]) -> str:
    """The output that an operation reads."""
    name = operation.output or (next(iter(outputs)) if len(outputs) == 1 else "")
    if name not in outputs:
        raise ExecutorError(f"the model has the outputs {list(outputs)}, not {operation.output!r}")
    return name


def _first_run(
    session: ort.InferenceSession, inputs: Mapping[str, TensorSpec], names: Sequence[str]
) -> Mapping[str, Array]:
    """The named outputs for inputs of zeros."""
    try:
        given = session.run(list(names), {name: np.zeros(one.shape, one.dtype) for name, one in inputs.items()})
    except MemoryError:
        raise
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise ExecutorError(f"ONNX Runtime failed: {error}") from error
    found = dict(zip(names, given, strict=True))
    for name, array in found.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
            raise ExecutorError(f"output {name!r} of the model is not a tensor of numbers")
    return found
