"""What runs a model: one protocol, so that the pipeline is the same on every accelerator.

An executor holds one model. Every shape that it will be run with is bound once (`bind`): a bound bucket has slots, each
with memory of its own at fixed addresses. A slot is filled (`stage_…`), submitted, waited for, read, and filled again;
while one is computed the other is filled. What the device half of the operations does (`kernels.operation`) happens
inside `submit`, on the accelerator where there is one.

What cannot be recovered from (a lost context, a launch that failed) is LostError: the process is to be ended, and the
daemon starts another. Everything else that goes wrong with the engine is ExecutorError and costs a slice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from agent.package import Bucket
from kernels.operation import Array, ImageOperation, ResultOperation, TensorSpec


class ExecutorError(Exception):
    """The engine could not be built, or a run of it failed; the text is the engine's own."""


class UnavailableError(ExecutorError):
    """The executor cannot work on this computer, or not now: what is missing, and what to do about it."""

    def __init__(self, what: str, *, hint: str) -> None:
        super().__init__(f"{what}; {hint}")


class OutOfMemoryError(UnavailableError):
    """Memory of the accelerator, or pinned memory, cannot be had now: others have it, and give it back some day."""

    def __init__(self, what: str) -> None:
        super().__init__(what, hint="it is tried again later")


class StalePlanError(ExecutorError):
    """The plan was built for another engine or device, or is damaged: the package has to be built anew."""


class LostError(ExecutorError):
    """The accelerator's context is gone (suspend, fault, sticky error): nothing in this process can use it any more."""


class SlotFullError(ExecutorError):
    """No room for this image beside those staged in the slot: submit it, and stage the image in another slot.

    Into an empty slot goes any image that `agent.worker.images` lets through.
    """


@dataclass(frozen=True)
class ModelTensor:
    """An input or output of the model: the dtype's NumPy name, and its shape with the batch; None: any size."""

    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Binding:
    """One bucket with every shape fixed. `stacked`: tensors have a leading axis of `bucket.items`; else none at all."""

    bucket: Bucket
    image: ImageOperation | None
    """The operation that fills the model's only input; None: items bring the inputs' tensors themselves."""
    inputs: Mapping[str, TensorSpec]
    """One item's tensor for each of the model's inputs."""
    results: Sequence[ResultOperation]
    stacked: bool = True


class Slot(Protocol):
    """Memory for one micro-batch of one bucket. Use from one thread."""

    def stage_image(self, row: int, image: NDArray[np.uint8]) -> None:
        """Put an image (rows x columns x 3 uint8, at most `agent.worker.images.MAX_PIXELS`) into a row.

        Raises SlotFullError when it has no room beside those staged since the last submit.
        """
        ...

    def stage_tensors(self, row: int, tensors: Sequence[Array]) -> None:
        """Put one item's tensors into a row, in the order of the binding's inputs."""
        ...

    def submit(self, items: int) -> None:
        """Begin to compute the first `items` rows, the rest as zeros; returns at once. Raises ExecutorError."""
        ...

    def poll(self) -> bool:
        """Whether what was submitted has ended, well or not."""
        ...

    def wait(self) -> float:
        """Wait asleep until it has ended; the seconds the engine worked on it. Raises ExecutorError or LostError."""
        ...

    def results(self, row: int) -> list[tuple[Array, ...]]:
        """One item's results, a tuple for each of the binding's operations; valid until the slot is staged again."""
        ...


class BoundBucket(Protocol):
    """A bucket with its slots; each operation's output as the engine gives it (without the batch)."""

    @property
    def slots(self) -> Sequence[Slot]:
        """At least one, at most `Executor.depth` + 1."""
        ...

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        """For each of the binding's operations, the output that it reads."""
        ...

    def close(self) -> None:
        """Free its memory, overwritten: it is not used any more. May be called twice; raises nothing."""
        ...


class Executor(Protocol):
    """One model on one device."""

    @property
    def name(self) -> str:
        """The kind of engine, as reported and attested: `onnxruntime_cpu`, `tensorrt`, `tensorrt_rtx`."""
        ...

    @property
    def device(self) -> str:
        """The device it runs on, in its maker's words."""
        ...

    @property
    def kernels_sha256(self) -> str:
        """What the operations are computed with, as attested: the compiled kernels' digest, or the references'."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """What it has to do without here and therefore does less well, a sentence each; mostly nothing."""
        ...

    @property
    def depth(self) -> int:
        """How many submitted micro-batches a drain has to wait for at most."""
        ...

    @property
    def inputs(self) -> Mapping[str, ModelTensor]:
        """The model's inputs by name, in its order."""
        ...

    @property
    def outputs(self) -> Mapping[str, ModelTensor]:
        """The model's outputs by name, in its order."""
        ...

    def bind(self, binding: Binding) -> BoundBucket:
        """Fix the shapes and addresses of a bucket; raises ExecutorError, or OperationError where they do not fit."""
        ...

    def drain(self) -> None:
        """Drop what has not begun and wait for what has; nothing computes when this returns."""
        ...

    def wipe(self) -> None:
        """Overwrite every buffer that held an item: another lease's data is about to come. Nothing may be in flight."""
        ...

    def close(self) -> None:
        """Free the engine and all memory, overwritten where it held items. May be called twice."""
        ...
