"""What the executor's scenarios share: the stand-in driver's controls, an opened executor, and what must come out."""

from __future__ import annotations

import ctypes
import itertools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agent.package import Bucket
from agent.worker.cuda.context import DeviceFacts
from agent.worker.cuda.executor import CudaExecutor
from agent.worker.cuda.opening import open_executor
from agent.worker.executor import Binding, Slot
from kernels.ctc_greedy_decode import CtcGreedyDecode
from kernels.letterbox_normalize import LetterboxNormalize
from kernels.operation import (
    Answerer,
    Array,
    Buffer,
    Int32,
    Launch,
    OperationError,
    ReadFile,
    ResultOperation,
    TensorSpec,
)
from kernels.resize_normalize_pad import ResizeNormalizePad
from kernels.tensor_answers import TensorValues
from kernels.tensor_fingerprint import TensorFingerprint
from tests.cuda.standin_engine import ColumnsEngine, ProductEngine

MIB = 1024**2
IMAGE = b"// PTX, as far as the stand-in driver looks into it\0"
HEIGHT = 48
_driver = ctypes.CDLL("libcuda.so.1")
_driver.standin_calls.restype = ctypes.c_long
_driver.standin_used_bytes.restype = ctypes.c_size_t
_driver.standin_pinned_bytes.restype = ctypes.c_size_t

_moments_ns = itertools.count(10**18)

Images = Sequence[NDArray[np.uint8]]


def control(settings: str = "") -> None:
    """Tell the driver how to behave from now on; nothing: as the process was started."""
    path = Path(os.environ["STANDIN_CONTROL"])
    part = path.with_suffix(".part")
    part.write_text(settings, "utf-8")
    moment_ns = next(_moments_ns)  # the file system's clock may not tell two changes apart
    os.utime(part, ns=(moment_ns, moment_ns))
    part.replace(path)


def calls(name: str) -> int:
    """How often libcuda's entry point was called."""
    return int(_driver.standin_calls(name.encode("ascii")))


def integrated() -> bool:
    """Whether the driver says that the device shares the computer's memory."""
    return "integrated=1" in os.environ["STANDIN"].split(";")


def used_bytes() -> tuple[int, int]:
    """Bytes allocated on the device, and pinned."""
    return int(_driver.standin_used_bytes()), int(_driver.standin_pinned_bytes())


def kernel_image(facts: DeviceFacts) -> bytes:
    """Kernels for the stand-in driver."""
    assert facts.compute_capability == (8, 7)
    assert facts.cuda_version == (13, 0)
    return IMAGE


def open_columns(*, dtype: str = "float32", memory_bytes: int = 512 * MIB) -> tuple[CudaExecutor, ColumnsEngine]:
    """An executor of images, and its engine."""
    engines: list[ColumnsEngine] = []

    def make() -> ColumnsEngine:
        engines.append(ColumnsEngine(IMAGE, dtype=dtype))
        return engines[0]

    return open_executor(make, memory_bytes=memory_bytes, kernel_image=kernel_image), engines[0]


@contextmanager
def columns_executor(
    *, dtype: str = "float32", memory_bytes: int = 512 * MIB
) -> Iterator[tuple[CudaExecutor, ColumnsEngine]]:
    """The same, closed at the end."""
    executor, engine = open_columns(dtype=dtype, memory_bytes=memory_bytes)
    try:
        yield executor, engine
    finally:
        executor.close()


@contextmanager
def product_executor(rows: int, inner: int, columns: int, *, batched: bool) -> Iterator[CudaExecutor]:
    """An executor of pairs of matrices."""
    executor = open_executor(
        lambda: ProductEngine(IMAGE, rows, inner, columns, batched=batched),
        memory_bytes=64 * MIB,
        kernel_image=kernel_image,
    )
    try:
        yield executor
    finally:
        executor.close()


def images(seed: int, count: int) -> Images:
    """Images of different sizes."""
    generator = np.random.default_rng(seed)
    sizes = [(int(rows), int(columns)) for rows, columns in generator.integers(9, 70, size=(count, 2))]
    return [generator.integers(0, 256, size=(*size, 3), dtype=np.uint8) for size in sizes]


def ctc(output: str = "y") -> ResultOperation:
    """The best class of each step."""
    return CtcGreedyDecode(characters="characters.txt", output=output)


def fingerprint() -> ResultOperation:
    """The largest values, by kernels that use scratch memory."""
    return TensorFingerprint(output="y", k=16)


def values(output: str = "y") -> ResultOperation:
    """The output itself, without a kernel."""
    return TensorValues(output=output)


def line_binding(items: int = 4, width: int = 64, results: Sequence[ResultOperation] | None = None) -> Binding:
    """A bucket of lines of text."""
    image = ResizeNormalizePad(height=HEIGHT)
    return Binding(
        bucket=Bucket(items=items, width=width),
        image=image,
        inputs={"x": image.spec(None, width)},
        results=[ctc()] if results is None else results,
    )


def half_binding(items: int, width: int) -> Binding:
    """A bucket of pictures, as float16."""
    image = LetterboxNormalize(dtype="float16")
    return Binding(
        bucket=Bucket(items=items, width=width, height=HEIGHT),
        image=image,
        inputs={"x": image.spec(HEIGHT, width)},
        results=[ctc(), values()],
    )


@dataclass(frozen=True)
class Odd:
    """An operation that does not fit."""

    kernel: str = "ctc_greedy_decode_float32"
    buffer: str = "result1"
    launched: bool = True
    refuses: bool = False
    output: str = "y"

    def results(self, output: TensorSpec) -> tuple[TensorSpec, ...]:
        if self.refuses:
            raise OperationError("not this output")
        return TensorSpec("int32", output.shape[:1]), TensorSpec("float32", output.shape[:1])

    def scratch_bytes(self, items: int, output: TensorSpec) -> int:
        return 0

    def reference(self, output: Array) -> tuple[Array, ...]:
        raise NotImplementedError

    def launches(self, items: int, output: TensorSpec) -> tuple[Launch, ...]:
        steps, classes = output.shape
        arguments = (Buffer("output"), Buffer("result0"), Buffer(self.buffer), Int32(classes))
        return (Launch(self.kernel, (steps, items, 1), (256, 1, 1), arguments),) if self.launched else ()

    def answerer(self, read: ReadFile, output: TensorSpec) -> Answerer:
        raise NotImplementedError


def product_binding(items: int) -> Binding:
    """A bucket of pairs of matrices, 3 x 5 and 5 x 2."""
    return Binding(
        bucket=Bucket(items=items),
        image=None,
        inputs={"left": TensorSpec("float32", (3, 5)), "right": TensorSpec("float32", (5, 2))},
        results=[values("product")],
    )


def expected(
    engine: ColumnsEngine, binding: Binding, rows: Mapping[int, NDArray[np.uint8]]
) -> list[list[tuple[Array, ...]]]:
    """What NumPy says comes out, for every row of the bucket; rows without an image are zeros."""
    ((spec,),) = (binding.inputs.values(),)
    batch = np.zeros((binding.bucket.items, *spec.shape), spec.dtype)
    assert binding.image is not None
    for row, image in rows.items():
        binding.image.reference(image, batch[row])
    outputs: dict[str, Array] = {"y": engine.reference(batch)}
    made = [one.reference(outputs[one.output or "y"]) for one in binding.results]
    return [[tuple(result[row] for result in results) for results in made] for row in range(binding.bucket.items)]


def compute(slot: Slot, images: Images) -> list[list[tuple[Array, ...]]]:
    """Stage, submit and wait; the results of each image, to keep."""
    for row, image in enumerate(images):
        slot.stage_image(row, image)
    slot.submit(len(images))
    slot.wait()
    return [copied(slot.results(row)) for row in range(len(images))]


def assert_close(found: Sequence[tuple[Array, ...]], wanted: Sequence[tuple[Array, ...]]) -> None:
    """The same within what a kernel may round differently; integers are equal."""
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        assert [(one.dtype, one.shape) for one in ours] == [(one.dtype, one.shape) for one in theirs]
        for one, other in zip(ours, theirs, strict=True):
            if one.dtype.kind == "f":
                np.testing.assert_allclose(one.astype(np.float64), other.astype(np.float64), rtol=2e-3, atol=2e-3)
            else:
                np.testing.assert_array_equal(one, other)


def assert_equal(found: Sequence[tuple[Array, ...]], wanted: Sequence[tuple[Array, ...]]) -> None:
    """The same bytes."""
    assert [[one.tobytes() for one in many] for many in found] == [[one.tobytes() for one in many] for many in wanted]


def copied(results: Sequence[tuple[Array, ...]]) -> list[tuple[Array, ...]]:
    """Results that stay when the slot is used again."""
    return [tuple(one.copy() for one in many) for many in results]


def play(scenarios: Mapping[str, object]) -> None:
    """Run the scenario that the command line names."""
    scenario = scenarios[sys.argv[1]]
    assert callable(scenario)
    scenario()
