"""An engine of our own whose run takes a chosen time: it stands in for TensorRT where that is not to be had.

What is measured around it (slots, graphs, the binding's cost, giving back) is the same code as around a real engine. It
negates its input an even number of times, so the output must be the input: a wrong answer shows. It keeps the device
busy with arithmetic, not with memory, on all its multiprocessors.
"""

from __future__ import annotations

import ctypes
import struct
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from agent.worker.cuda.engine import EngineContext
from agent.worker.executor import ExecutorError, ModelTensor
from kernels.compiler import toolkit
from kernels.operation import Shape, TensorSpec

SOURCE = Path(__file__).parent / "busy.cu"
INPUT, OUTPUT = "x", "y"
_BLOCK = 256
_BUFFER_POINTER, _BUFFER_SIZE, _END = 1, 2, 0
"""CU_LAUNCH_PARAM_…: how cuLaunchKernel is told of packed arguments."""


class ToolError(Exception):
    """Something that a chapter needs is not on this machine."""


def compile_busy(compute_capability: tuple[int, int]) -> bytes:
    """The kernels of `busy.cu` for this device; raises ToolError without a compiler."""
    home = toolkit()
    if home is None:
        raise ToolError("no nvcc on this machine, and the stand-in engine is compiled here")
    major, minor = compute_capability
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "busy.cubin"
        done = subprocess.run(
            [home / "bin" / "nvcc", "-cubin", f"-arch=sm_{major}{minor}", "-o", cubin, SOURCE],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ToolError(f"nvcc does not compile {SOURCE.name}: {done.stderr.strip()[-300:]}")
        return cubin.read_bytes()


class BusyEngine:
    """See `agent.worker.cuda.engine.DeviceEngine`; `rounds` has to be even."""

    name = "synthetic"

    def __init__(self, image: bytes, *, values: int, rounds: int) -> None:
        """Load the kernels in the current context: `values` float32 an item. Raises ExecutorError."""
        self._busy = Kernel(image, "busy")
        self._rounds = rounds + rounds % 2
        spec = ModelTensor("float32", (None, values))
        self.inputs: Mapping[str, ModelTensor] = {INPUT: spec}
        self.outputs: Mapping[str, ModelTensor] = {OUTPUT: spec}

    def bind(self, shapes: Mapping[str, Shape]) -> EngineContext:
        """A context for inputs of this shape."""
        return _BusyContext(self._busy, shapes[INPUT], self._rounds)

    def close(self) -> None:
        """Nothing to free: the module goes with the context."""


class _BusyContext:
    """One bucket's launches."""

    scratch_bytes = 0

    def __init__(self, busy: Kernel, shape: Shape, rounds: int) -> None:
        self.outputs: Mapping[str, TensorSpec] = {OUTPUT: TensorSpec("float32", shape)}
        self._busy, self._rounds = busy, rounds
        self._values = shape[0] * shape[1]
        self._call: Callable[[int], None] | None = None

    def attach(self, addresses: Mapping[str, int], scratch: int) -> None:
        """Fix the addresses; there is no scratch memory."""
        assert scratch >= 0
        arguments = (addresses[INPUT], addresses[OUTPUT], self._values, self._rounds, -1.0)
        self._call = self._busy.bound(-(-self._values // _BLOCK), _BLOCK, "PPiif", *arguments)

    def enqueue(self, stream: int) -> None:
        """Put one run on the stream."""
        assert self._call is not None
        self._call(stream)

    def close(self) -> None:
        """Nothing to free."""


class Kernel:
    """A kernel that is launched on streams known by their handle only, as engines do, and pycuda does not."""

    def __init__(self, image: bytes, name: str) -> None:
        """Load the module in the current context; raises ExecutorError."""
        self._cuda = ctypes.CDLL("libcuda.so.1")
        self._image = ctypes.create_string_buffer(image, len(image) + 1)
        module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        self._check("cuModuleLoadData", ctypes.byref(module), self._image)
        self._check("cuModuleGetFunction", ctypes.byref(self._function), module, name.encode())

    def bound(self, grid: int, block: int, layout: str, *arguments: float) -> Callable[[int], None]:
        """A call that launches it on the stream with this handle; it raises ExecutorError.

        `layout`: the arguments' types as `struct` names them, each at its natural alignment.
        """
        packed = ctypes.create_string_buffer(struct.pack(layout, *arguments), struct.calcsize(layout))
        size = ctypes.c_size_t(len(packed))
        extra = (ctypes.c_void_p * 5)(
            *(_BUFFER_POINTER, ctypes.addressof(packed), _BUFFER_SIZE, ctypes.addressof(size), _END)
        )
        held = (packed, size)  # `extra` points into them

        def call(stream: int) -> None:
            assert held
            where = ctypes.c_void_p(stream)
            self._check("cuLaunchKernel", self._function, grid, 1, 1, block, 1, 1, 0, where, None, extra)

        return call

    def _check(self, call: str, *arguments: object) -> None:
        code = getattr(self._cuda, call)(*arguments)
        if code:
            raise ExecutorError(f"{call} failed with result {code}")
