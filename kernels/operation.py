"""What an operation is: typed parameters, a NumPy reference, and the launches of the CUDA kernel with the same meaning.

An operation stands before the engine (an image becomes one row of the engine's input) or behind it (one output of the
engine becomes small tensors, which alone leave the accelerator, and then a part of the item's answer). Its device half
is given twice, as NumPy and as CUDA, on the same memory layout; its host half (`answerer`) exists once. So a package
means the same on every executor, and what is digested as "raw output" is on every executor what leaves the device.

An operation knows nothing of memory: a launch names its buffers, and the executor knows where they lie.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, Union

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
Shape = tuple[int, ...]
Json = Union[None, bool, int, float, str, "list[Json]", "dict[str, Json]"]  # Python 3.10 evaluates this line
ReadFile = Callable[[str], bytes]
"""Reads one of the package's files by name."""
Answerer = Callable[[tuple[Array, ...]], Mapping[str, Json]]
"""From the results of one item to its part of the answer; raises OperationError when they are no answer (NaN)."""

PIXELS, IMAGES, INPUT, OUTPUT, SCRATCH = "pixels", "images", "input", "output", "scratch"
"""Buffers of launches. Results are `result0`, `result1`, …"""

IMAGE = np.dtype([("offset", "<i8"), ("rows", "<i4"), ("columns", "<i4")])
"""One image of a micro-batch in the IMAGES buffer: where in PIXELS it begins (bytes), and its size; 0 rows: no image.

An image is rows x columns x 3 uint8, red first, without gaps; CUDA knows this as `struct Image` in common.cuh.
"""


class OperationError(ValueError):
    """An operation that does not exist, parameters or tensors that it does not take, or results that are no answer."""


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of one item: the dtype's NumPy name, and the shape without the batch."""

    dtype: str
    shape: Shape

    @property
    def nbytes(self) -> int:
        """Bytes of one item's tensor."""
        return int(np.dtype(self.dtype).itemsize) * int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class Buffer:
    """A launch's argument: the device address of a buffer by name."""

    name: str


@dataclass(frozen=True)
class Int32:
    """A launch's argument: an `int`."""

    value: int


@dataclass(frozen=True)
class Float32:
    """A launch's argument: a `float`."""

    value: float


Argument = Union[Buffer, Int32, Float32]  # noqa: UP007 - Python 3.10 evaluates this line


@dataclass(frozen=True)
class Launch:
    """One launch of one kernel: its name in the fatbin, how many threads, and its arguments in order."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    arguments: tuple[Argument, ...]
    shared_bytes: int = 0


class ImageOperation(Protocol):
    """From an image to one row of the engine's input."""

    def spec(self, height: int | None, width: int | None) -> TensorSpec:
        """The row for a bucket of this height and width; raises OperationError when the bucket lacks one it needs."""
        ...

    def fits(self, rows: int, columns: int, spec: TensorSpec) -> bool:
        """Whether an image of this size goes into such a row without loss; the smallest that fits is taken."""
        ...

    def reference(self, image: NDArray[np.uint8], row: Array) -> None:
        """Write the row of one image (rows x columns x 3 uint8, red first); every element is written."""
        ...

    def launch(self, items: int, spec: TensorSpec) -> Launch:
        """The same for `items` images at once: PIXELS and IMAGES to INPUT; rows without an image become zeros."""
        ...


class ResultOperation(Protocol):
    """From one output of the engine to what leaves the accelerator, and on to a part of the answer."""

    @property
    def output(self) -> str:
        """The name of the model's output it reads; empty: the model's only one."""
        ...

    def results(self, output: TensorSpec) -> tuple[TensorSpec, ...]:
        """What leaves the accelerator for one item; raises OperationError for an output that it cannot read."""
        ...

    def scratch_bytes(self, items: int, output: TensorSpec) -> int:
        """Device memory that the launches need beside their results."""
        ...

    def reference(self, output: Array) -> tuple[Array, ...]:
        """The results of a batch: items x … each, contiguous, dtypes and shapes as `results` says."""
        ...

    def launches(self, items: int, output: TensorSpec) -> tuple[Launch, ...]:
        """The same as kernels: OUTPUT (and SCRATCH) to `result0` …; none: the output itself is the only result."""
        ...

    def answerer(self, read: ReadFile, output: TensorSpec) -> Answerer:
        """How one item's results become its part of the answer; reads the package's files it needs, once."""
        ...
