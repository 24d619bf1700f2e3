"""The portable executor: ONNX Runtime on the CPU.

One thread runs what was submitted, in order, while the caller fills the next slot or reads the last one: a run leaves
Python's lock alone, so with a core to spare the two overlap, and with none nothing is lost. Inputs and outputs lie at
fixed addresses, bound once (`agent.worker.onnxruntime_slots`); the device half of the operations is their NumPy
reference, which works for the caller and not in the engine's thread.

The engine's own threads wait asleep between runs (spinning would burn the core that pacing is meant to spare), the
graph runs one operator at a time, and the memory arena grows by what is asked for, up to the worker's share. A drain
does not wait for a micro-batch: what has not begun is dropped, and what runs ends after the operator it is at.
"""

from __future__ import annotations

import platform
import sys
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any

from agent.worker.executor import Binding, ExecutorError, ModelTensor
from agent.worker.onnxruntime_library import ort
from agent.worker.onnxruntime_slots import CpuBucket
from kernels import kernels_sha256

_SAME_AS_REQUESTED = 1
"""OrtArenaCfg's `arena_extend_strategy`: grow by the size asked for, not by powers of two."""
_ERRORS = 3
"""ONNX Runtime's severity from which it says something."""
_SWITCH_S = 0.00001
"""How long a thread of ours may hold Python's lock while the engine's waits for it to begin the next run."""
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(bool)": "bool",
    **{f"tensor({kind}{bits})": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
}
"""ONNX Runtime's names of what plain tensors hold, and NumPy's."""


class OnnxRuntimeCpu:
    """One session on the CPU; see `agent.worker.executor.Executor`. Make one in a process: the arena is global."""

    name = "onnxruntime_cpu"
    depth = 1
    notes: Sequence[str] = ()

    def __init__(self, model: bytes, *, threads: int, memory_mb: int) -> None:
        """Build the session from the bytes of an ONNX model; raises ExecutorError."""
        self.device = processor_name()
        self.kernels_sha256 = kernels_sha256()
        try:
            _limit_arena(memory_mb)
            self._session = ort.InferenceSession(model, session_options(threads), providers=["CPUExecutionProvider"])
        except MemoryError:
            raise
        except Exception as error:  # its exceptions have no common base, and a bad model is not our bug
            raise ExecutorError(f"ONNX Runtime does not take the model: {error}") from error
        self.inputs = _tensors(self._session.get_inputs())
        self.outputs = _tensors(self._session.get_outputs())
        self._order = ort.RunOptions()
        self._order.add_run_config_entry("gpu_graph_id", "-1")  # its absence costs an exception in every run
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._submitted: list[Future[float]] = []
        self._buckets: weakref.WeakSet[CpuBucket] = weakref.WeakSet()
        sys.setswitchinterval(_SWITCH_S)

    def bind(self, binding: Binding) -> CpuBucket:
        """Two slots for a bucket, after one run that shows the outputs' shapes; see `Executor.bind`."""
        bucket = CpuBucket(self._session, binding, self.inputs, self.outputs, self._submit)
        self._buckets.add(bucket)
        return bucket

    def _submit(self, io_binding: Any) -> Future[float]:
        """Run one slot when those before it are done; the seconds that it took, or ExecutorError."""
        self._submitted = [one for one in self._submitted if not one.done()]
        running = self._thread.submit(_run, self._session, io_binding, self._order)
        self._submitted.append(running)
        return running

    def drain(self) -> None:
        """Drop what has not begun, and end what runs after its current operator."""
        self._order.terminate = True
        running = [one for one in self._submitted if not one.cancel()]
        for one in running:
            one.exception()  # waits; how it ended is the slot's affair
        self._order.terminate = False
        self._submitted = []

    def wipe(self) -> None:
        """Overwrite the slots, and the engine's own memory by running zeros through every bucket that was used."""
        for bucket in self._buckets:
            bucket.wipe()

    def close(self) -> None:
        """End the thread; the memory goes with the last reference to the buckets."""
        self.drain()
        for bucket in self._buckets:
            bucket.clear()
        self._thread.shutdown()


def _run(session: ort.InferenceSession, io_binding: Any, order: ort.RunOptions) -> float:
    """One run, in the engine's thread."""
    began_s = perf_counter()
    try:
        session.run_with_iobinding(io_binding, order)
    except MemoryError:
        raise
    except Exception as error:  # as in __init__
        raise ExecutorError(f"ONNX Runtime failed: {error}") from error
    return perf_counter() - began_s


def session_options(threads: int) -> ort.SessionOptions:
    """How a model is run here: in order, on so many threads, which sleep when there is nothing to do."""
    options = ort.SessionOptions()
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.use_env_allocators", "1")
    return options


def _limit_arena(memory_mb: int) -> None:
    """Cap the CPU arena that sessions with `session.use_env_allocators` share."""
    config = ort.OrtArenaCfg({"max_mem": memory_mb * 1024**2, "arena_extend_strategy": _SAME_AS_REQUESTED})
    info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(info, config)


def _tensors(listed: Sequence[Any]) -> Mapping[str, ModelTensor]:
    """The model's inputs or outputs; raises ExecutorError for one that is no tensor of numbers."""
    found = {}
    for one in listed:
        dtype = _DTYPES.get(one.type)
        if dtype is None:
            raise ExecutorError(f"{one.name!r} of the model is {one.type}, not a tensor of numbers")
        sizes = tuple(size if isinstance(size, int) and size >= 0 else None for size in one.shape)
        found[one.name] = ModelTensor(dtype, sizes)
    return found


def processor_name() -> str:
    """The processor as the kernel names it; the architecture where it does not (most ARM kernels)."""
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()
