"""The one place where an executor is chosen: its libraries are loaded here, and only those of the one asked for."""

from __future__ import annotations

from agent.wire import ACCELERATOR_LIBRARIES_MB, ExecutorName
from agent.worker.executor import Executor, StalePlanError


def open_executor(
    name: ExecutorName, model: bytes, plan: memoryview | None, *, threads: int, memory_mb: int
) -> Executor:
    """The model on the executor of this name; raises ExecutorError, StalePlanError or LostError.

    ONNX Runtime takes the model itself, and `threads` threads. TensorRT takes the plan that was built of it, in whose
    place the model counts for nothing. Either uses `memory_mb` MiB at most.
    """
    if name == "onnxruntime":
        return _onnxruntime(model, threads, memory_mb)
    if plan is None:
        raise StalePlanError(f"{name} needs a plan, and none came with the package")
    return _tensorrt(name, plan, memory_mb)


def host_memory_mb(name: ExecutorName, memory_mb: int) -> int:
    """What a process with this executor may take of the computer's memory (MiB) for a package of `memory_mb`.

    On an accelerator `memory_mb` bounds what is allocated for the package there and pinned here; what the driver and
    the engine's libraries take for themselves comes on top (`ACCELERATOR_LIBRARIES_MB`).
    """
    return memory_mb if name == "onnxruntime" else memory_mb + ACCELERATOR_LIBRARIES_MB


def _onnxruntime(model: bytes, threads: int, memory_mb: int) -> Executor:
    from agent.worker.onnxruntime_cpu import OnnxRuntimeCpu  # noqa: PLC0415 - see above

    return OnnxRuntimeCpu(model, threads=threads, memory_mb=memory_mb)


def _tensorrt(name: str, plan: memoryview, memory_mb: int) -> Executor:
    from agent.worker.cuda import opening  # noqa: PLC0415 - see above
    from agent.worker.tensorrt.engine import open_engine  # noqa: PLC0415 - see above
    from agent.worker.tensorrt.flavour import open_flavour  # noqa: PLC0415 - see above

    flavour = open_flavour(name)
    return opening.open_executor(lambda: open_engine(plan, flavour), memory_bytes=memory_mb * 1024**2)
