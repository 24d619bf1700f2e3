"""The real worker process on the CUDA executor, but that the stand-in's engine is in TensorRT's place.

Run in the interpreter's place (`shim`): the real command line, cage, session and executor, on the stand-in driver.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from agent.worker import executors
from agent.worker.__main__ import main
from agent.worker.executor import Executor
from tests.cuda import standin

ROWS, INNER, COLUMNS = 3, 5, 2
IMAGE = b"// PTX, as far as the stand-in driver looks into it\0"
PASSED = ("LD_LIBRARY_PATH", "PYTHONPATH", "STANDIN", "STANDIN_CONTROL")


def shim(directory: Path, control: Path, kernels: Path) -> str:
    """An executable to start as the worker's interpreter. The package does not have to be named."""
    variables = standin.environment(control=control, kernels=kernels, integrated=False)
    settings = [f"{name}={variables[name]}" for name in PASSED]
    readable = (standin.ROOT, standin.driver(), standin.SITE, kernels.parent, control.parent)
    reads = [word for one in readable for word in ("--read", str(one))]
    path = directory / "python"
    words = shlex.join(["env", *settings, sys.executable, str(Path(__file__)), *reads])
    path.write_text(
        f'#!/bin/sh\n# Without the interpreter\'s own options: -I -B -m agent.worker.\nshift 4\nexec {words} "$@"\n'
    )
    path.chmod(0o755)
    return str(path)


def _product(name: str, plan: memoryview, memory_mb: int) -> Executor:
    """The executor as for TensorRT, around the product of two matrices."""
    from agent.worker.cuda import opening  # noqa: PLC0415 - the driver is loaded in the cage, as on a vehicle
    from tests.cuda.standin_engine import ProductEngine  # noqa: PLC0415 - as above

    assert (name, bytes(plan)) == ("tensorrt", b"a plan")
    return opening.open_executor(
        lambda: ProductEngine(IMAGE, ROWS, INNER, COLUMNS, batched=True),
        memory_bytes=memory_mb * 1024**2,
        kernel_image=lambda _facts: IMAGE,
    )


if __name__ == "__main__":
    executors._tensorrt = _product
    sys.exit(main())
