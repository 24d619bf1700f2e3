"""The portable executor: ONNX Runtime on the CPU.

Threads wait asleep between runs (spinning would burn the core that pacing is meant to spare), the graph runs one
operator at a time, and the memory arena grows by what is asked for, up to the worker's share.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from agent.worker.executor import ExecutorError

_SAME_AS_REQUESTED = 1
"""OrtArenaCfg's `arena_extend_strategy`: grow by the size asked for, not by powers of two."""


class OnnxRuntimeCpu:
    """One session on the CPU; see `agent.worker.executor.Executor`. Make one in a process: the arena is global."""

    name = "onnxruntime_cpu"

    def __init__(self, model: bytes, *, threads: int, memory_mb: int) -> None:
        """Build the session from the bytes of an ONNX model; raises ExecutorError."""
        options = ort.SessionOptions()
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.use_env_allocators", "1")
        self.device = _processor_name()
        try:
            _limit_arena(memory_mb)
            self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common base, and a bad model is not our bug
            raise ExecutorError(f"ONNX Runtime does not take the model: {error}") from error
        self._inputs = [one.name for one in self._session.get_inputs()]
        self._outputs = [one.name for one in self._session.get_outputs()]

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """One run of the engine; raises ExecutorError, also when the output is not float32 with a row an item."""
        if len(self._inputs) != 1 or len(self._outputs) != 1:
            raise ExecutorError(
                f"the model has {len(self._inputs)} inputs and {len(self._outputs)} outputs, not one of each"
            )
        try:
            output = self._session.run(None, {self._inputs[0]: batch})[0]
        except Exception as error:  # as above
            raise ExecutorError(f"ONNX Runtime failed: {error}") from error
        if not isinstance(output, np.ndarray) or output.dtype != np.float32 or output.shape[:1] != batch.shape[:1]:
            raise ExecutorError("the model's output is not float32 with one row an item")
        return output

    def run_tensors(
        self, inputs: Mapping[str, NDArray[np.generic]], outputs: Sequence[str]
    ) -> list[NDArray[np.generic]]:
        """The named outputs for these inputs; raises ExecutorError, also for outputs that are no tensors."""
        if sorted(inputs) != sorted(self._inputs) or not set(outputs) <= set(self._outputs):
            raise ExecutorError(
                f"the model has the inputs {self._inputs} and outputs {self._outputs}, "
                f"not {sorted(inputs)} and {list(outputs)}"
            )
        try:
            given = self._session.run(list(outputs), dict(inputs))
        except Exception as error:  # as above
            raise ExecutorError(f"ONNX Runtime failed: {error}") from error
        if not all(isinstance(one, np.ndarray) and one.dtype.kind in "biuf" for one in given):
            raise ExecutorError("an output of the model is not a tensor of numbers")
        return list(given)


def _limit_arena(memory_mb: int) -> None:
    """Cap the CPU arena that sessions with `session.use_env_allocators` share."""
    config = ort.OrtArenaCfg({"max_mem": memory_mb * 1024**2, "arena_extend_strategy": _SAME_AS_REQUESTED})
    info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(info, config)


def _processor_name() -> str:
    """The processor as the kernel names it; the architecture where it does not (most ARM kernels)."""
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()
