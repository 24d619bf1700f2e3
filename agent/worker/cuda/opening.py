"""Opening the accelerator: one place that knows that pycuda, the driver or the device may not be there.

Importing pycuda already fails where the driver is not installed, so nothing is imported before it is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from agent.worker.cuda.engine import DeviceEngine
from agent.worker.executor import ExecutorError, UnavailableError
from kernels.fatbin import FatbinError, default_folder, load

if TYPE_CHECKING:
    from agent.worker.cuda.context import DeviceContext, DeviceFacts
    from agent.worker.cuda.executor import CudaExecutor

_HINT = "it takes the accelerator's driver (`nvidia-smi` or `tegrastats` show it) and the extra `tensorrt`"


def open_context() -> DeviceContext:
    """The first device's context, current in this thread; raises UnavailableError where there is none."""
    try:
        from agent.worker.cuda.context import DeviceContext  # noqa: PLC0415 - fails without the driver

        return DeviceContext()
    except (ImportError, ExecutorError) as error:
        what = str(error) if isinstance(error, ExecutorError) else f"the accelerator cannot be used: {error}"
        raise UnavailableError(what, hint=_HINT) from error


def built_kernels(facts: DeviceFacts) -> bytes:
    """The compiled kernels for a device, checked against their manifest; raises ExecutorError."""
    try:
        return load(default_folder(), facts.cuda_version, facts.compute_capability).body
    except FatbinError as error:
        raise ExecutorError(f"the accelerator's kernels cannot be used: {error}") from error


def open_executor(
    make_engine: Callable[[], DeviceEngine],
    *,
    memory_bytes: int,
    kernel_image: Callable[[DeviceFacts], bytes] = built_kernels,
) -> CudaExecutor:
    """The engine on the first device, as an executor that owns everything it is made of.

    `make_engine` is called in the device's context; `memory_bytes` limits what it takes and what the executor
    allocates. The engine's share is what less is free afterwards, so what others take or give back meanwhile counts as
    well: no library says what it took. Raises ExecutorError (OutOfMemoryError where memory is short now), and whatever
    `make_engine` raises; nothing is left open then.
    """
    with ExitStack() as undo:
        context = open_context()
        undo.callback(context.close)
        from agent.worker.cuda.context import refusing_what_never_fits  # noqa: PLC0415 - as above
        from agent.worker.cuda.executor import CudaExecutor  # noqa: PLC0415 - as above
        from agent.worker.cuda.kernels import KernelLibrary  # noqa: PLC0415 - as above

        undo.enter_context(refusing_what_never_fits(context.facts, memory_bytes))
        kernels = KernelLibrary(context.driver, kernel_image(context.facts))
        free_bytes = context.free_bytes()
        engine = make_engine()
        undo.callback(engine.close)
        engine_bytes = max(0, free_bytes - context.free_bytes())
        executor = CudaExecutor(context, engine, kernels, memory_bytes=memory_bytes, engine_bytes=engine_bytes)
        undo.pop_all()
    return executor
