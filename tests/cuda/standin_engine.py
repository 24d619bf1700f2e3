"""An engine for tests of the CUDA executor: real kernels on the stream it is given, and the same in NumPy.

It stands where TensorRT stands on a vehicle (`agent.worker.cuda.engine.DeviceEngine`) and takes the same liberties:
memory of its own for weights, scratch memory that it is given, several launches an enqueue, libcuda called directly.
What can go wrong with an engine can be asked for: one that cannot be captured, one that refuses to run.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pycuda.driver as cuda
from numpy.typing import NDArray

from agent.worker.executor import ExecutorError, ModelTensor
from kernels.operation import Argument, Array, Buffer, Int32, Shape, TensorSpec
from tests.cuda.host_kernels import pack

COLUMNS = 8
"""Columns of pixels that make one step."""
_THREADS = 32
_libcuda = ctypes.CDLL("libcuda.so.1")
_HANDLE = ctypes.c_void_p


@dataclass
class Temper:
    """How the engine behaves."""

    uncapturable: bool = False
    """It waits for its stream in the middle of its work."""
    refuses: bool = False
    """It says no, as TensorRT's enqueue does by returning False."""
    enqueued: int = 0
    settles: bool = False
    """It sets itself up in the first run at new addresses, and waits for that."""
    terminated_at: int = 0
    """SIGTERM comes in this run, counted from one; 0: never."""


class _Context:
    """What both contexts share: launches by libcuda on a stream's handle."""

    def __init__(self, module: int, temper: Temper) -> None:
        self._module = module
        self._temper = temper
        self._addresses: dict[str, int] = {}
        self._settled = False
        self.closed = False

    def attach(self, addresses: Mapping[str, int], scratch: int) -> None:
        if any(address == 0 for address in addresses.values()):
            raise ExecutorError(f"an address is missing in {addresses}")
        self._addresses = {**addresses, "scratch": scratch}
        self._settled = False

    def enqueue(self, stream: int) -> None:
        self._temper.enqueued += 1
        if self._temper.refuses:
            raise ExecutorError("the engine refused to run")
        self._launch_all(stream)
        if self._temper.enqueued == self._temper.terminated_at:
            os.kill(os.getpid(), signal.SIGTERM)
        if self._temper.uncapturable or (self._temper.settles and not self._settled):
            code = _libcuda.cuStreamSynchronize(_HANDLE(stream))
            if code:
                raise ExecutorError(f"the engine cannot wait for its stream: {code}")
            self._settled = True

    def close(self) -> None:
        self.closed = True

    def _launch_all(self, stream: int) -> None:
        raise NotImplementedError

    def _launch(self, kernel: str, count: int, arguments: Sequence[Argument], stream: int) -> None:
        function = _HANDLE()
        _check(_libcuda.cuModuleGetFunction(ctypes.byref(function), _HANDLE(self._module), kernel.encode()))
        packed = ctypes.create_string_buffer(pack(arguments, self._addresses))
        size = ctypes.c_size_t(len(packed) - 1)
        extra = (_HANDLE * 5)(1, ctypes.addressof(packed), 2, ctypes.addressof(size), 0)
        grid = (-(-count // _THREADS), 1, 1)
        _check(_libcuda.cuLaunchKernel(function, *grid, _THREADS, 1, 1, 0, _HANDLE(stream), None, extra))


class ColumnsEngine:
    """Images (items x planes x height x width) to sequences (items x width / 8 x classes), float32 or float16."""

    name = "standin"

    def __init__(
        self, image: bytes, *, dtype: str = "float32", planes: int = 3, height: int = 48, classes: int = 40
    ) -> None:
        self.temper = Temper()
        self.dtype = dtype
        self.contexts: list[_ColumnsContext] = []
        generator = np.random.default_rng(5)
        self._lines = planes * height
        self.weights: NDArray[np.float32] = generator.standard_normal((self._lines * COLUMNS, classes), np.float32)
        self.weights /= np.float32(16)
        self.bias = generator.normal(size=classes).astype(np.float32)
        self.inputs = {"x": ModelTensor(dtype, (None, planes, height, None))}
        self.outputs = {"y": ModelTensor(dtype, (None, None, classes)), "unread": ModelTensor("float64", (None,))}
        self._module = _loaded(image)
        self._device = {"weights": _on_device(self.weights), "bias": _on_device(self.bias)}

    def bind(self, shapes: Mapping[str, Shape]) -> _ColumnsContext:
        context = _ColumnsContext(self, shapes["x"])
        self.contexts.append(context)
        return context

    def reference(self, batch: Array) -> Array:
        """What it computes."""
        items, planes, height, width = batch.shape
        steps = batch.astype(np.float64).reshape(items, planes * height, width // COLUMNS, COLUMNS)
        rows = steps.transpose(0, 2, 1, 3).reshape(items, width // COLUMNS, -1)
        sums: NDArray[np.float64] = rows @ self.weights.astype(np.float64)
        return (sums + self.bias).astype(np.float32).astype(self.dtype)

    def close(self) -> None:
        for context in self.contexts:
            context.close()
        for allocation in self._device.values():
            allocation.free()
        self._device.clear()
        if self._module:
            _libcuda.cuModuleUnload(_HANDLE(self._module))
            self._module = 0


class _ColumnsContext(_Context):
    def __init__(self, engine: ColumnsEngine, shape: Shape) -> None:
        super().__init__(engine._module, engine.temper)
        self._engine = engine
        self._classes = engine.bias.size
        self._items, self._steps = shape[0], shape[3] // COLUMNS
        self._count = self._items * self._steps * self._classes
        self.outputs = {
            "y": TensorSpec(engine.dtype, (self._items, self._steps, self._classes)),
            "unread": TensorSpec("float64", (self._items,)),
        }
        self.scratch_bytes = self._count * 8

    def attach(self, addresses: Mapping[str, int], scratch: int) -> None:
        super().attach(addresses, scratch)
        self._addresses.update({name: int(one) for name, one in self._engine._device.items()})

    def _launch_all(self, stream: int) -> None:
        dtype, classes, count = self._engine.dtype, Int32(self._classes), Int32(self._count)
        steps, lines = Int32(self._steps), Int32(self._engine._lines)
        sums: list[Argument] = [Buffer("x"), Buffer("weights"), Buffer("scratch"), steps, lines]
        self._launch(f"standin_columns_{dtype}", self._count, [*sums, classes, count], stream)
        biased: list[Argument] = [Buffer("scratch"), Buffer("bias"), Buffer("y"), classes, count]
        self._launch(f"standin_biased_{dtype}", self._count, biased, stream)


class ProductEngine:
    """Two matrices of each item to their product, float32: ONNX's MatMul. `items` None: no batch."""

    name = "standin"

    def __init__(self, image: bytes, rows: int, inner: int, columns: int, *, batched: bool) -> None:
        self.temper = Temper()
        self.contexts: list[_ProductContext] = []
        self.sizes = (rows, inner, columns)
        leading = (None,) if batched else ()
        self.inputs = {
            "left": ModelTensor("float32", (*leading, rows, inner)),
            "right": ModelTensor("float32", (*leading, inner, columns)),
        }
        self.outputs = {"product": ModelTensor("float32", (*leading, rows, columns))}
        self._module = _loaded(image)

    def bind(self, shapes: Mapping[str, Shape]) -> _ProductContext:
        context = _ProductContext(self, shapes["left"][:-2])
        self.contexts.append(context)
        return context

    def close(self) -> None:
        if self._module:
            _libcuda.cuModuleUnload(_HANDLE(self._module))
            self._module = 0


class _ProductContext(_Context):
    scratch_bytes = 0

    def __init__(self, engine: ProductEngine, leading: Shape) -> None:
        super().__init__(engine._module, engine.temper)
        rows, inner, columns = engine.sizes
        shape = (*leading, rows, columns)
        self.outputs = {"product": TensorSpec("float32", shape)}
        self._sizes = [Int32(rows), Int32(inner), Int32(columns)]
        self._count = int(np.prod(shape))

    def _launch_all(self, stream: int) -> None:
        names = [Buffer("left"), Buffer("right"), Buffer("product")]
        self._launch("standin_product_float32", self._count, [*names, *self._sizes, Int32(self._count)], stream)


def _on_device(values: NDArray[np.float32]) -> cuda.DeviceAllocation:
    allocation = cuda.mem_alloc(values.nbytes)
    cuda.memcpy_htod(allocation, values)
    return allocation


def _loaded(image: bytes) -> int:
    module = _HANDLE()
    _check(_libcuda.cuModuleLoadData(ctypes.byref(module), image))
    return module.value or 0


def _check(code: int) -> None:
    if code:
        raise ExecutorError(f"the engine failed: {code}")
